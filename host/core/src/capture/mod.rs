//! What is captured of a machine beside the test's own output.

mod console;

pub use console::{Console, ConsoleLine, PANIC_MARK};
