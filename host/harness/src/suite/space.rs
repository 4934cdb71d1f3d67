//! A matrix as numbers: axes with so many values each, and combinations of them that are excluded.
//!
//! Points are walked one after the other, none is kept. What is excluded is seen as soon as all that it names is set, so
//! that nothing behind it is walked.

use std::sync::Arc;

/// A point that is perhaps not complete: the value of each axis.
pub(super) type Row = Vec<Option<usize>>;

/// Values of axes that are excluded together.
pub(super) type Exclusion = Vec<(usize, usize)>;

/// Axes and exclusions.
#[derive(Debug)]
pub(super) struct Space {
    sizes: Vec<usize>,
    exclusions: Vec<Exclusion>,
    /// Which exclusions name a value of an axis.
    naming: Vec<Vec<Vec<usize>>>,
}

impl Space {
    /// Of axes with so many values each. An exclusion names axes and values that there are.
    pub(super) fn new(sizes: Vec<usize>, exclusions: Vec<Exclusion>) -> Self {
        let mut naming: Vec<Vec<Vec<usize>>> =
            sizes.iter().map(|&size| vec![Vec::new(); size]).collect();
        for (number, exclusion) in exclusions.iter().enumerate() {
            for &(axis, value) in exclusion {
                naming[axis][value].push(number);
            }
        }
        Self { sizes, exclusions, naming }
    }

    /// How many values each axis has.
    pub(super) fn sizes(&self) -> &[usize] {
        &self.sizes
    }

    /// How many exclusions name an axis.
    pub(super) fn exclusions_of(&self, axis: usize) -> usize {
        self.naming[axis].iter().map(Vec::len).sum()
    }

    /// What is set is not excluded, so far as it has to do with this axis.
    pub(super) fn allows(&self, row: &[Option<usize>], axis: usize) -> bool {
        let Some(value) = row[axis] else { return true };
        let is_met = |number: &usize| {
            self.exclusions[*number].iter().all(|&(axis, value)| row[axis] == Some(value))
        };
        !self.naming[axis][value].iter().any(is_met)
    }

    /// This point is not excluded.
    pub(super) fn has(&self, point: &[usize]) -> bool {
        let row: Row = point.iter().copied().map(Some).collect();
        (0..row.len()).all(|axis| self.allows(&row, axis))
    }

    /// All points that are not excluded; the last axis changes first. Without an axis there is none.
    pub(super) fn points(self: &Arc<Self>) -> Points {
        let row = vec![None; self.sizes.len()];
        Points { space: Arc::clone(self), axis: (!row.is_empty()).then_some(0), row }
    }
}

/// A walk over the points.
#[derive(Debug, Clone)]
pub(super) struct Points {
    space: Arc<Space>,
    row: Row,
    /// Which axis changes next; none when the walk is over.
    axis: Option<usize>,
}

impl Points {
    /// Goes to the next point, if there is one.
    pub(super) fn step(&mut self) -> bool {
        while let Some(axis) = self.axis {
            match self.advance(axis) {
                true if axis + 1 == self.row.len() => return true,
                true => self.axis = Some(axis + 1),
                false => self.axis = axis.checked_sub(1),
            }
        }
        false
    }

    /// The next value of this axis that is allowed behind those before it.
    fn advance(&mut self, axis: usize) -> bool {
        let from = self.row[axis].map_or(0, |value| value + 1);
        for value in from..self.space.sizes[axis] {
            self.row[axis] = Some(value);
            if self.space.allows(&self.row, axis) {
                return true;
            }
        }
        self.row[axis] = None;
        false
    }

    /// How many there are from here.
    pub(super) fn len(mut self) -> usize {
        let mut len = 0;
        while self.step() {
            len += 1;
        }
        len
    }
}

impl Iterator for Points {
    type Item = Vec<usize>;

    fn next(&mut self) -> Option<Vec<usize>> {
        self.step().then(|| self.row.iter().flatten().copied().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(sizes: &[usize], exclusions: &[&[(usize, usize)]]) -> Vec<Vec<usize>> {
        let exclusions = exclusions.iter().map(|exclusion| exclusion.to_vec()).collect();
        Arc::new(Space::new(sizes.to_vec(), exclusions)).points().collect()
    }

    #[test]
    fn the_last_axis_changes_first() {
        assert_eq!(points(&[2, 2], &[]), [[0, 0], [0, 1], [1, 0], [1, 1]]);
        assert_eq!(points(&[3], &[]), [[0], [1], [2]]);
        assert!(points(&[], &[]).is_empty());
    }

    #[test]
    fn what_matches_all_of_an_exclusion_goes() {
        assert_eq!(points(&[2, 2], &[&[(0, 0), (1, 1)]]), [[0, 0], [1, 0], [1, 1]]);
        assert_eq!(points(&[2, 2], &[&[(0, 1)]]), [[0, 0], [0, 1]]);
        assert!(points(&[2, 2], &[&[(0, 0)], &[(0, 1)]]).is_empty());
        let space = Space::new(vec![2, 2], vec![vec![(0, 0), (1, 1)]]);
        assert_eq!((space.has(&[0, 1]), space.has(&[1, 1])), (false, true));
    }

    #[test]
    fn a_million_points_are_not_kept() {
        let space = Arc::new(Space::new(vec![10; 6], vec![vec![(0, 3), (5, 3)]]));
        assert_eq!(space.points().nth(4).unwrap(), [0, 0, 0, 0, 0, 4]);
        assert_eq!(space.points().len(), 1_000_000 - 10_000);
    }
}
