//! Suites: tests found in folders, and what each of them is run with.

pub mod axis;
pub mod header;
pub mod matrix;
pub mod pairwise;
pub mod selector;
mod space;
pub mod variant;

pub use axis::{Axis, AxisError};
pub use matrix::{Matrix, MatrixError, Strategy, Variants};
pub use pairwise::Chosen;
pub use selector::{Selector, SelectorError};
pub use variant::Variant;
