//! The strategy `pairwise`: few points of a matrix, which have every pair of values of two axes between them.
//!
//! A pair is covered if at least one point that is not excluded has it. Point after point is begun with the first pair that
//! none has yet, and completed axis by axis with the value that adds the most new pairs; where exclusions leave no value,
//! the one before is changed. So a pair that no point can have is known as well. Axes that exclusions name come first, since
//! the others take any value. Where exclusions are such that a search takes long all the same, a walk over all points ends it:
//! what has a new pair is taken then, which makes more points. Equal matrices give equal points.

use super::space::{Row, Space};
use std::fmt;
use std::sync::Arc;

/// A search that led nowhere so often is given up.
const MAX_DEAD_ENDS: usize = 10_000;

/// How many of how many points a strategy chose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chosen {
    /// So many are run.
    pub chosen: usize,
    /// So many are not excluded.
    pub of: usize,
}

impl fmt::Display for Chosen {
    /// "12 of 96".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.chosen, self.of)
    }
}

/// Points that have all pairs, in the order of [`Space::points`].
pub(super) fn points(space: &Arc<Space>) -> Vec<Vec<usize>> {
    let axes: Vec<_> = (0..space.sizes().len()).filter(|&axis| space.sizes()[axis] > 1).collect();
    // Each point has a pair, or a value, that no other has. And what is paired with an axis of one value need not be
    // looked at when there are more: it is in some point, thus paired with another axis too.
    if axes.len() < 3 {
        return space.points().collect();
    }
    let mut search = Search::new(space, axes);
    let mut points = Vec::new();
    for (first, second) in search.axis_pairs() {
        for a in 0..space.sizes()[first] {
            for b in 0..space.sizes()[second] {
                if !search.pairs.is_open((first, a), (second, b)) {
                    continue;
                }
                match search.point_with((first, a), (second, b)) {
                    Some(point) => {
                        search.cover(&point);
                        points.push(point);
                    }
                    None if search.dead_ends > MAX_DEAD_ENDS => {
                        points.extend(search.walk());
                        points.sort_unstable();
                        return points;
                    }
                    // Excluded by what is excluded together.
                    None => search.pairs.close((first, a), (second, b)),
                }
            }
        }
    }
    points.sort_unstable();
    points
}

/// A value of an axis.
type At = (usize, usize);

/// Which pairs no point has yet.
struct Pairs {
    /// By the number of the lower value and that of the higher.
    open: Vec<bool>,
    /// Where the pairs of an axis with a higher one begin.
    begin: Vec<Vec<usize>>,
    sizes: Vec<usize>,
    /// How many open pairs a value is in.
    count: Vec<Vec<usize>>,
}

impl Pairs {
    fn new(sizes: &[usize], axes: &[usize]) -> Self {
        let mut begin = vec![vec![0; sizes.len()]; sizes.len()];
        let mut len = 0;
        for (index, &low) in axes.iter().enumerate() {
            for &high in &axes[index + 1..] {
                begin[low][high] = len;
                len += sizes[low] * sizes[high];
            }
        }
        let all: usize = axes.iter().map(|&axis| sizes[axis]).sum();
        let count = sizes.iter().map(|&size| vec![all - size.min(all); size]).collect();
        Self { open: vec![true; len], begin, sizes: sizes.to_vec(), count }
    }

    fn index(&self, one: At, other: At) -> usize {
        let (low, high) = if one.0 < other.0 { (one, other) } else { (other, one) };
        self.begin[low.0][high.0] + low.1 * self.sizes[high.0] + high.1
    }

    fn is_open(&self, one: At, other: At) -> bool {
        self.open[self.index(one, other)]
    }

    fn close(&mut self, one: At, other: At) {
        let index = self.index(one, other);
        if std::mem::take(&mut self.open[index]) {
            self.count[one.0][one.1] -= 1;
            self.count[other.0][other.1] -= 1;
        }
    }
}

struct Search<'a> {
    space: &'a Arc<Space>,
    /// Those with more than one value.
    axes: Vec<usize>,
    /// The same: those that the most exclusions name come first.
    order: Vec<usize>,
    pairs: Pairs,
    dead_ends: usize,
}

impl<'a> Search<'a> {
    fn new(space: &'a Arc<Space>, axes: Vec<usize>) -> Self {
        let pairs = Pairs::new(space.sizes(), &axes);
        let mut order = axes.clone();
        order.sort_by_key(|&axis| std::cmp::Reverse(space.exclusions_of(axis)));
        Self { space, axes, order, pairs, dead_ends: 0 }
    }

    fn axis_pairs(&self) -> Vec<(usize, usize)> {
        let axes = self.axes.iter().enumerate();
        axes.flat_map(|(at, &low)| self.axes[at + 1..].iter().map(move |&high| (low, high)))
            .collect()
    }

    /// No pair of this point is open any more.
    fn cover(&mut self, point: &[usize]) {
        for (low, high) in self.axis_pairs() {
            self.pairs.close((low, point[low]), (high, point[high]));
        }
    }

    /// A point with both values, if one is not excluded.
    fn point_with(&mut self, one: At, other: At) -> Option<Vec<usize>> {
        let single = |&size: &usize| (size == 1).then_some(0);
        let mut row: Row = self.space.sizes().iter().map(single).collect();
        row[one.0] = Some(one.1);
        row[other.0] = Some(other.1);
        let is_allowed = (0..row.len()).all(|axis| self.space.allows(&row, axis));
        let is_whole = is_allowed && self.complete(&mut row);
        is_whole.then(|| row.into_iter().flatten().collect())
    }

    /// Sets the axes that are not set; none of them is when that cannot be.
    fn complete(&mut self, row: &mut Row) -> bool {
        let Some(axis) = self.order.iter().copied().find(|&axis| row[axis].is_none()) else {
            return true;
        };
        for value in self.best_first(row, axis) {
            row[axis] = Some(value);
            if self.space.allows(row, axis) && self.complete(row) {
                return true;
            }
            if self.dead_ends > MAX_DEAD_ENDS {
                break;
            }
        }
        row[axis] = None;
        self.dead_ends += 1;
        false
    }

    /// The points of a walk over all that have a pair which none before has.
    fn walk(&mut self) -> Vec<Vec<usize>> {
        let mut points = Vec::new();
        let axis_pairs = self.axis_pairs();
        for point in self.space.points() {
            let is_open = |&(low, high): &(usize, usize)| {
                self.pairs.is_open((low, point[low]), (high, point[high]))
            };
            if axis_pairs.iter().any(is_open) {
                self.cover(&point);
                points.push(point);
            }
        }
        points
    }

    /// The values of an axis: first those that add the most pairs, and of these those that are in the most open ones.
    fn best_first(&self, row: &Row, axis: usize) -> Vec<usize> {
        let set: Vec<At> = self.axes.iter().filter_map(|&at| Some((at, row[at]?))).collect();
        let new = |value| set.iter().filter(|at| self.pairs.is_open(**at, (axis, value))).count();
        let mut values: Vec<_> = (0..self.space.sizes()[axis]).collect();
        values.sort_by_cached_key(|&value| {
            std::cmp::Reverse((new(value), self.pairs.count[axis][value]))
        });
        values
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn space(sizes: &[usize], exclusions: Vec<Vec<At>>) -> Arc<Space> {
        Arc::new(Space::new(sizes.to_vec(), exclusions))
    }

    /// All pairs of these points.
    fn pairs(points: &[Vec<usize>]) -> BTreeSet<(At, At)> {
        let pairs_of = |point: &Vec<usize>| {
            let at: Vec<At> = point.iter().copied().enumerate().collect();
            let pairs =
                (0..at.len()).flat_map(|low| (low + 1..at.len()).map(move |high| (low, high)));
            pairs.map(|(low, high)| (at[low], at[high])).collect::<Vec<_>>()
        };
        points.iter().flat_map(pairs_of).collect()
    }

    #[test]
    fn few_points_have_all_pairs() {
        for (sizes, most) in [
            (&[3, 3, 3, 3][..], 12),
            (&[2; 10], 10),
            (&[4, 4, 4, 4, 4], 16),
            (&[10, 5, 2, 2, 2], 50),
            (&[2, 2, 1, 2], 4),
            (&[3; 8], 17),
            (&[10, 10, 10, 10], 128),
        ] {
            let chosen = points(&space(sizes, vec![]));
            assert!(chosen.len() <= most, "{sizes:?}: {}", chosen.len());
            let wanted: usize = pairs(&chosen).len();
            let all =
                (0..sizes.len()).flat_map(|low| (low + 1..sizes.len()).map(move |h| (low, h)));
            assert_eq!(wanted, all.map(|(low, high)| sizes[low] * sizes[high]).sum::<usize>());
        }
    }

    #[test]
    fn two_axes_have_a_pair_in_each_point() {
        assert_eq!(points(&space(&[3, 4, 1], vec![])).len(), 12);
        assert_eq!(points(&space(&[5], vec![])).len(), 5);
        assert!(points(&space(&[], vec![])).is_empty());
    }

    #[test]
    fn a_pair_that_exclusions_rule_out_together_is_not_wanted() {
        // With the first two at 0 the third can be neither 0 nor 1.
        let space = space(&[2, 2, 2], vec![vec![(0, 0), (2, 0)], vec![(1, 0), (2, 1)]]);
        let chosen = points(&space);
        assert!(!pairs(&chosen).contains(&((0, 0), (1, 0))));
        assert_eq!(pairs(&chosen), pairs(&space.points().collect::<Vec<_>>()));
    }

    #[test]
    fn with_all_excluded_there_is_none() {
        assert!(points(&space(&[2, 2, 2, 1], vec![vec![(3, 0)]])).is_empty());
    }

    #[test]
    fn exclusions_that_make_a_search_long_do_not_make_it_endless() {
        // Whatever the others are: of the last three none can be.
        let corners = (0..8_usize).map(|bits| (0..3).map(|at| (16 + at, bits >> at & 1)).collect());
        assert!(points(&space(&[2; 19], corners.collect())).is_empty());
        // With the last at 0 seven axes have seven different ones of six values, which takes long to rule out.
        let mut pigeons: Vec<Vec<At>> = Vec::new();
        for (low, high) in (0..7).flat_map(|low| (low + 1..7).map(move |high| (low, high))) {
            pigeons.extend((0..6).map(|hole| vec![(low, hole), (high, hole), (7, 0)]));
        }
        let space = space(&[6, 6, 6, 6, 6, 6, 6, 2], pigeons);
        let chosen = points(&space);
        assert!(chosen.iter().all(|point| point[7] == 1));
        assert_eq!(pairs(&chosen).len(), 21 * 36 + 7 * 6);
        assert!(chosen.len() < 500, "{}", chosen.len());
    }

    #[test]
    fn a_search_that_is_given_up_is_ended_by_a_walk() {
        let space = space(&[3, 2, 3, 2], vec![vec![(0, 0), (2, 1)], vec![(1, 1), (3, 1)]]);
        let mut search = Search::new(&space, vec![0, 1, 2, 3]);
        let all: Vec<_> = space.points().collect();
        let first = search.point_with((0, 0), (1, 1)).unwrap();
        search.cover(&first);
        let walk = search.walk();
        assert!(!walk.contains(&first) && walk.len() < all.len());
        assert_eq!(pairs(&[walk, vec![first]].concat()), pairs(&all));
    }

    #[test]
    fn how_many_of_how_many() {
        assert_eq!(Chosen { chosen: 12, of: 96 }.to_string(), "12 of 96");
    }

    fn spaces() -> impl Strategy<Value = (Vec<usize>, Vec<Vec<At>>)> {
        prop::collection::vec(1_usize..5, 1..7).prop_flat_map(|sizes| {
            let term = (0..sizes.len()).prop_flat_map({
                let sizes = sizes.clone();
                move |axis| (Just(axis), 0..sizes[axis])
            });
            let exclusion = prop::collection::btree_map(0..sizes.len(), 0_usize..5, 1..4);
            let exclusion = (exclusion, term).prop_map({
                let sizes = sizes.clone();
                move |(terms, (axis, value))| {
                    let terms = terms.into_iter().map(|(axis, value)| (axis, value % sizes[axis]));
                    let rest = terms.filter(|term| term.0 != axis);
                    rest.chain([(axis, value)]).collect::<Vec<At>>()
                }
            });
            (Just(sizes), prop::collection::vec(exclusion, 0..12))
        })
    }

    proptest! {
        #[test]
        fn every_allowed_pair_and_no_excluded_point((sizes, exclusions) in spaces()) {
            // Counted by brute force, without what is tested.
            let mut all = vec![vec![]];
            for &size in &sizes {
                let longer = |point: &Vec<usize>, value| [&point[..], &[value]].concat();
                all = all.iter().flat_map(|p| (0..size).map(move |v| longer(p, v))).collect();
            }
            all.retain(|point| {
                !exclusions.iter().any(|terms| terms.iter().all(|&(axis, v)| point[axis] == v))
            });
            let space = space(&sizes, exclusions);
            prop_assert_eq!(&space.points().collect::<Vec<_>>(), &all);
            let chosen = points(&space);
            prop_assert!(chosen.iter().all(|point| all.contains(point)));
            prop_assert!(chosen.is_sorted_by(|a, b| a < b));
            prop_assert_eq!(pairs(&chosen), pairs(&all));
            // An axis alone has no pairs, and its values are wanted all the same.
            prop_assert_eq!(chosen.is_empty(), all.is_empty());
            prop_assert!(sizes.len() > 1 || chosen == all);
        }
    }
}
