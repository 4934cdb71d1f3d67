//! Matrices: the variants of tests, as the product of axes.
//!
//! ```text
//! [matrix]                 parse ─┐
//!                                 ├─> Matrix ──(replaced_by words)──> variants, one after the other
//! --matrix cpu=qemu64,max  words ─┘
//! ```
//! A matrix is checked as it is read: what it excludes or requires has to be in it. How many points it has is known
//! before the first is made, and more than a million are refused.

mod expand;
mod parse;
#[cfg(test)]
mod tests;

pub use expand::Variants;

use super::axis::{Axis, AxisError, beginning};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use thiserror::Error;

/// A matrix has no more points.
pub const MAX_POINTS: usize = 1_000_000;

/// Nor more axes.
pub const MAX_AXES: usize = 64;

/// An error shows so many names.
const SHOWN: usize = 8;

/// Which points of a matrix are run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Strategy {
    /// Each one.
    #[default]
    All,
    /// So few that every pair of values of two axes is in one of them.
    Pairwise,
}

/// Values of axes.
pub(super) type Point = BTreeMap<Axis, Arc<str>>;

/// Axes with their values, and which of their combinations are wanted. The default is that there is one, the plain one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Matrix {
    axes: BTreeMap<Axis, Vec<Arc<str>>>,
    strategy: Strategy,
    /// Points that are wanted as well.
    include: Vec<Point>,
    /// Points that match all of one of these are not wanted.
    exclude: Vec<Point>,
    requires: BTreeMap<(Axis, Arc<str>), Vec<String>>,
}

/// A matrix that cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum MatrixError {
    /// There is no such axis.
    #[error(transparent)]
    Axis(#[from] AxisError),
    /// A word of the command line.
    #[error("`{word}` is no axis with values: write AXIS=VALUE,VALUE…")]
    Word {
        /// It.
        word: String,
    },
    /// There is no such strategy.
    #[error("no strategy `{strategy}`: write \"all\" or \"pairwise\"")]
    Strategy {
        /// It.
        strategy: String,
    },
    /// An axis without values makes no points.
    #[error("axis `{axis}` has no value: give it one, or leave the axis away")]
    EmptyAxis {
        /// Which.
        axis: Axis,
    },
    /// An axis cannot have this value.
    #[error("axis `{axis}` cannot be `{value}`: {why}")]
    Value {
        /// Which.
        axis: Axis,
        /// The value.
        value: String,
        /// What is wanted.
        why: String,
    },
    /// A value stands twice.
    #[error("axis `{axis}` has the value `{value}` twice: leave one away")]
    DuplicateValue {
        /// Which.
        axis: Axis,
        /// The value, in its one spelling.
        value: String,
    },
    /// Something stands twice.
    #[error("`{key}` stands twice: put both into one")]
    DuplicateKey {
        /// An axis, or another key of a matrix.
        key: String,
    },
    /// There are too many.
    #[error("the matrix has {axes} axes, and {MAX_AXES} are the most: leave some away")]
    TooManyAxes {
        /// How many.
        axes: usize,
    },
    /// A point names an axis that the matrix has not.
    #[error("`{key}` names axis `{axis}`, which the matrix has not: it has {known}")]
    UnknownAxis {
        /// `include`, `exclude` or `requires`.
        key: &'static str,
        /// Which.
        axis: Axis,
        /// Those that it has.
        known: String,
    },
    /// A point names a value that its axis has not.
    #[error("`{key}` names `{axis}={value}`, which the matrix has not: `{axis}` has {known}")]
    UnknownValue {
        /// `exclude` or `requires`.
        key: &'static str,
        /// Which axis.
        axis: Axis,
        /// The value.
        value: String,
        /// Those that it has.
        known: String,
    },
    /// A point sets nothing.
    #[error("`{key}` has an entry that names no axis: write {{ AXIS = VALUE, … }}")]
    EmptyPoint {
        /// `include` or `exclude`.
        key: &'static str,
    },
    /// A point stands twice.
    #[error("`{key}` has `{point}` twice: leave one away")]
    DuplicatePoint {
        /// `include` or `exclude`.
        key: &'static str,
        /// The point.
        point: String,
    },
    /// Who has these requirements?
    #[error("`requires` has the key `{key}`: write \"AXIS=VALUE\" = [\"…\"]")]
    RequiresKey {
        /// It.
        key: String,
    },
    /// It has too many points.
    #[error(
        "the matrix has more than {MAX_POINTS} points ({axes}): give an axis fewer values, here \
         or with --matrix AXIS=VALUE,…"
    )]
    TooLarge {
        /// With how many values each.
        axes: String,
    },
    /// All points are excluded.
    #[error("`exclude` leaves no point of the matrix ({axes}): exclude less")]
    NothingLeft {
        /// With how many values each.
        axes: String,
    },
}

impl Matrix {
    /// Of the words of a command line, each an axis with its values: `cpu=qemu64,max`. A comma in a value is written `\,`.
    ///
    /// # Errors
    /// A word is no axis with values, or an axis stands twice.
    pub fn from_words(words: &[impl AsRef<str>]) -> Result<Self, MatrixError> {
        let mut matrix = Self::default();
        for word in words.iter().map(AsRef::as_ref) {
            let (name, values) =
                word.split_once('=').ok_or_else(|| MatrixError::Word { word: beginning(word) })?;
            let axis = Axis::introduced(name.trim())?;
            let values = match values {
                "" => vec![],
                values => {
                    split(values).iter().map(|text| value(&axis, text)).collect::<Result<_, _>>()?
                }
            };
            matrix.add(axis, values)?;
        }
        matrix.checked()
    }

    /// This matrix with the axes of another, usually of the command line, in the place of its own of the same name.
    ///
    /// A further point (`include`) with a value that the other does not give is left away.
    pub fn replaced_by(mut self, other: &Self) -> Self {
        self.axes.extend(other.axes.iter().map(|(axis, values)| (axis.clone(), values.clone())));
        self.include.retain(|point| {
            point.iter().all(|(axis, value)| {
                other.axes.get(axis).is_none_or(|values| values.contains(value))
            })
        });
        self
    }

    /// The matrix of a suite, as a test has it that has its own: the test's axes go in the place of the suite's of the same
    /// name, all else adds up. The strategy is the suite's, unless the test wants pairs.
    pub fn taken_over_by(self, own: Self) -> Self {
        let strategy =
            if own.strategy == Strategy::Pairwise { own.strategy } else { self.strategy };
        let mut merged = self.replaced_by(&own);
        let Self { include, exclude, requires, .. } = own;
        merged.include.extend(include);
        merged.exclude.extend(exclude);
        for (value, more) in requires {
            merged.requires.entry(value).or_default().extend(more);
        }
        Self { strategy, ..merged }
    }

    /// Nothing is said: there is the plain variant alone.
    pub fn is_empty(&self) -> bool {
        self.axes.is_empty() && self.include.is_empty()
    }

    /// Which points are run.
    pub fn strategy(&self) -> Strategy {
        self.strategy
    }

    /// The axes with their values, in the order of ids.
    pub fn axes(&self) -> impl Iterator<Item = (&Axis, impl Iterator<Item = &str>)> {
        self.axes.iter().map(|(axis, values)| (axis, values.iter().map(|value| &**value)))
    }

    fn add(&mut self, axis: Axis, values: Vec<Arc<str>>) -> Result<(), MatrixError> {
        if values.is_empty() {
            return Err(MatrixError::EmptyAxis { axis });
        }
        let mut seen = BTreeSet::new();
        if let Some(twice) = values.iter().find(|value| !seen.insert(&***value)) {
            return Err(MatrixError::DuplicateValue { axis, value: beginning(twice) });
        }
        match self.axes.insert(axis.clone(), values) {
            Some(_) => Err(MatrixError::DuplicateKey { key: axis.to_string() }),
            None => Ok(()),
        }
    }

    /// This matrix, if all that it names is in it.
    fn checked(self) -> Result<Self, MatrixError> {
        if self.axes.len() > MAX_AXES {
            return Err(MatrixError::TooManyAxes { axes: self.axes.len() });
        }
        for (key, points) in [("include", &self.include), ("exclude", &self.exclude)] {
            let mut seen = BTreeSet::new();
            for point in points {
                if point.is_empty() {
                    return Err(MatrixError::EmptyPoint { key });
                }
                if !seen.insert(point) {
                    return Err(MatrixError::DuplicatePoint { key, point: in_words(point) });
                }
            }
        }
        // A further point may set what Guestline knows, but a free axis that nothing introduces is mistyped.
        for axis in self.include.iter().flat_map(Point::keys) {
            if matches!(axis, Axis::Free(_)) && !self.axes.contains_key(axis) {
                return Err(self.unknown_axis("include", axis));
            }
        }
        for (axis, value) in self.exclude.iter().flatten() {
            match self.axes.get(axis) {
                None => return Err(self.unknown_axis("exclude", axis)),
                Some(values) if values.contains(value) => {}
                Some(values) => return Err(unknown_value("exclude", axis, value, values)),
            }
        }
        for (axis, value) in self.requires.keys() {
            let values = self.all_values(axis);
            match values.contains(value) {
                true => {}
                false if values.is_empty() => return Err(self.unknown_axis("requires", axis)),
                false => return Err(unknown_value("requires", axis, value, &values)),
            }
        }
        Ok(self)
    }

    /// The values of an axis, then those that further points give it.
    fn all_values(&self, axis: &Axis) -> Vec<Arc<str>> {
        let own = self.axes.get(axis).into_iter().flatten();
        let further = self.include.iter().filter_map(|point| point.get(axis));
        let mut seen = BTreeSet::new();
        own.chain(further).filter(|value| seen.insert(&***value)).cloned().collect()
    }

    fn unknown_axis(&self, key: &'static str, axis: &Axis) -> MatrixError {
        let known = shown(self.axes.keys().map(Axis::name));
        MatrixError::UnknownAxis { key, axis: axis.clone(), known }
    }

    /// Its axes with how many values they have.
    fn in_words(&self) -> String {
        let size = |(axis, values): (&Axis, &Vec<_>)| format!("{axis} {}", values.len());
        let mut words = self.axes.iter().map(size).collect::<Vec<_>>().join(" × ");
        if !self.include.is_empty() {
            words += &format!(" + include {}", self.include.len());
        }
        words
    }
}

/// A value in its one spelling.
fn value(axis: &Axis, text: &str) -> Result<Arc<str>, MatrixError> {
    axis.value(text).map(Arc::from).map_err(|why| MatrixError::Value {
        axis: axis.clone(),
        value: beginning(text),
        why,
    })
}

fn unknown_value(key: &'static str, axis: &Axis, value: &str, values: &[Arc<str>]) -> MatrixError {
    let known = shown(values.iter().map(|value| &**value));
    MatrixError::UnknownValue { key, axis: axis.clone(), value: beginning(value), known }
}

/// The first of these names.
fn shown<'a>(mut names: impl Iterator<Item = &'a str>) -> String {
    let mut shown: Vec<_> = names.by_ref().take(SHOWN).map(beginning).collect();
    match names.count() {
        0 if shown.is_empty() => return "none".to_owned(),
        0 => {}
        more => shown.push(format!("{more} more")),
    }
    shown.join(", ")
}

fn in_words(point: &Point) -> String {
    let terms: Vec<_> = point.iter().map(|(axis, value)| format!("{axis}={value}")).collect();
    beginning(&terms.join(","))
}

/// At its commas, but not at `\,`.
fn split(text: &str) -> Vec<String> {
    let (mut parts, mut part) = (Vec::new(), String::new());
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '\\' if rest.next_if_eq(&',').is_some() => part.push(','),
            ',' => parts.push(std::mem::take(&mut part)),
            c => part.push(c),
        }
    }
    parts.push(part);
    parts
}
