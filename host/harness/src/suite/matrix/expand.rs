//! From a matrix to its variants, one after the other.

use super::super::axis::Axis;
use super::super::pairwise::{self, Chosen};
use super::super::space::{Exclusion, Points, Space};
use super::super::variant::{Value, Variant, labels};
use super::{MAX_POINTS, Matrix, MatrixError, Point, Strategy};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The variants of a matrix: those of its axes with the last axis changing first, then further points as they are written.
#[derive(Debug, Clone)]
pub struct Variants {
    axes: Vec<(Axis, Vec<Arc<Value>>)>,
    space: Arc<Space>,
    rows: Rows,
    further: std::vec::IntoIter<Variant>,
    /// So many of the further points are given, and are none of those of the axes.
    added: (usize, usize),
}

#[derive(Debug, Clone)]
enum Rows {
    /// The walk, and where it begins.
    All { walk: Points, first: Points },
    /// Those that were chosen, and how many they are.
    Chosen { rest: std::vec::IntoIter<Vec<usize>>, len: usize },
}

impl Variants {
    /// How many there are, of how many that are not excluded. Takes a walk over all points.
    pub fn chosen(&self) -> Chosen {
        let all = self.space.points().len();
        let own = match &self.rows {
            Rows::All { first, .. } => first.clone().len(),
            Rows::Chosen { len, .. } => *len,
        };
        Chosen { chosen: own + self.added.0, of: all.max(own) + self.added.1 }
    }
}

impl Iterator for Variants {
    type Item = Variant;

    fn next(&mut self) -> Option<Variant> {
        let row = match &mut self.rows {
            Rows::All { walk, .. } => walk.next(),
            Rows::Chosen { rest, .. } => rest.next(),
        };
        let Some(row) = row else { return self.further.next() };
        let value = |((axis, values), index): (&(Axis, Vec<Arc<Value>>), usize)| {
            (axis.clone(), Arc::clone(&values[index]))
        };
        Some(Variant::new(self.axes.iter().zip(row).map(value).collect()))
    }
}

impl Matrix {
    /// Its variants; without an axis and further points the plain one.
    ///
    /// # Errors
    /// There are too many points, which are not made then, or none.
    pub fn variants(&self) -> Result<Variants, MatrixError> {
        let size = self.axes.values().try_fold(1_usize, |size, v| size.checked_mul(v.len()));
        let points = size.and_then(|size| size.checked_add(self.include.len()));
        if points.is_none_or(|points| points > MAX_POINTS) {
            return Err(MatrixError::TooLarge { axes: self.in_words() });
        }
        let space = Arc::new(self.space());
        let rows = match self.strategy {
            _ if self.is_empty() => vec![vec![]].into(),
            Strategy::All => Rows::All { walk: space.points(), first: space.points() },
            Strategy::Pairwise => pairwise::points(&space).into(),
        };
        let is_any = match &rows {
            Rows::All { first, .. } => first.clone().step(),
            Rows::Chosen { len, .. } => *len > 0,
        };
        if !is_any && self.include.is_empty() {
            return Err(MatrixError::NothingLeft { axes: self.in_words() });
        }
        let values = self.values();
        let mut further = Vec::new();
        let mut new = 0;
        for point in &self.include {
            let row = self.row(point).filter(|row| space.has(row));
            new += usize::from(row.is_none());
            let is_given = row.is_some_and(|row| match &rows {
                Rows::All { .. } => true,
                Rows::Chosen { rest, .. } => rest.as_slice().binary_search(&row).is_ok(),
            });
            if !is_given {
                let value = |(axis, text): (&Axis, &Arc<str>)| {
                    (axis.clone(), Arc::clone(&values[axis][text]))
                };
                further.push(Variant::new(point.iter().map(value).collect()));
            }
        }
        let of_axis = |(axis, texts): (&Axis, &Vec<Arc<str>>)| {
            let values = texts.iter().map(|text| Arc::clone(&values[axis][text])).collect();
            (axis.clone(), values)
        };
        let axes = self.axes.iter().map(of_axis).collect();
        let added = (further.len(), new);
        Ok(Variants { axes, space, rows, further: further.into_iter(), added })
    }

    /// This matrix as numbers, without exclusions of values that were replaced.
    fn space(&self) -> Space {
        let sizes = self.axes.values().map(Vec::len).collect();
        let index: Vec<BTreeMap<_, _>> =
            self.axes.values().map(|values| values.iter().zip(0..).collect()).collect();
        let numbered = |point: &Point| {
            let term = |(axis, value): (&Axis, &Arc<str>)| {
                let axis = self.axes.keys().position(|known| known == axis)?;
                Some((axis, *index[axis].get(value)?))
            };
            point.iter().map(term).collect::<Option<Exclusion>>()
        };
        Space::new(sizes, self.exclude.iter().filter_map(numbered).collect())
    }

    /// A further point as numbers, if it is one of the axes.
    fn row(&self, point: &Point) -> Option<Vec<usize>> {
        let at = |(axis, values): (&Axis, &Vec<Arc<str>>)| {
            values.iter().position(|value| Some(value) == point.get(axis))
        };
        let is_whole = !self.axes.is_empty() && point.len() == self.axes.len();
        is_whole.then(|| self.axes.iter().map(at).collect()).flatten()
    }

    /// All values of all axes, with their labels and requirements.
    fn values(&self) -> BTreeMap<Axis, BTreeMap<Arc<str>, Arc<Value>>> {
        let axes = self.axes.keys().chain(self.include.iter().flat_map(Point::keys));
        let mut found = BTreeMap::new();
        for axis in axes {
            found.entry(axis.clone()).or_insert_with(|| {
                let texts = self.all_values(axis);
                let value = |(text, label): (&Arc<str>, String)| {
                    let key = (axis.clone(), Arc::clone(text));
                    let requires = self.requires.get(&key).cloned().unwrap_or_default();
                    let value = Value { text: Arc::clone(text), label, requires };
                    (Arc::clone(text), Arc::new(value))
                };
                texts.iter().zip(labels(axis, &texts)).map(value).collect()
            });
        }
        found
    }
}

impl From<Vec<Vec<usize>>> for Rows {
    fn from(rows: Vec<Vec<usize>>) -> Self {
        Self::Chosen { len: rows.len(), rest: rows.into_iter() }
    }
}
