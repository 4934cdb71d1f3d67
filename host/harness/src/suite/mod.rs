//! Suites: tests found in folders.

pub mod header;
