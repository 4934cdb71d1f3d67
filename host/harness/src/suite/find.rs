//! Finding tests: what each file of a folder is.
//!
//! ```text
//! guestline.toml      the suite itself
//! NAME.checks         a test a line
//! NAME.py             a test, if it has a function `run`
//! NAME.setup, NAME.teardown   what is run before and after the test NAME beside it
//! an executable file  a test
//! ```
//! Hidden files and folders are passed over, and so is what a suite names for another purpose: its generator, the inputs
//! of its fixtures, `files` of tests, what `exclude` matches. A folder below with a `guestline.toml` is a suite of its own.

mod classify;
#[cfg(test)]
mod tests;
mod walk;

pub use walk::{Found, Means, NoTest, find};
pub(crate) use walk::{carried, join};

use std::path::PathBuf;
use thiserror::Error;

/// Tests that cannot be found, or not be read.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{}{why}", place(.file, .line))]
pub struct FindError {
    /// The file or folder.
    pub file: PathBuf,
    /// From 1, where there is one.
    pub line: Option<usize>,
    /// In words, with the way out.
    pub why: String,
}

fn place(file: &std::path::Path, line: &Option<usize>) -> String {
    let file = super::test::shown(file);
    match line {
        Some(line) => format!("{file}:{line}: "),
        None => format!("{file}: "),
    }
}
