//! Files and folders on their way between host and guest: makes a tree stream ([`guestline_protocol::tree`]) of what is
//! on a file system, and the other way round.
//!
//! ```text
//! file system ─ TreeReader ─ bytes … bytes ─ TreeWriter ─ file system
//! ```
//! Plain blocking calls, no thread and no clock, used by the host and by the guest's agent alike; neither trusts what
//! the other sends. Below the path that was asked for, everything is opened part by part, relative to the folder
//! above it and without following symbolic links, so neither a hostile stream nor a tree that changes meanwhile leads
//! out of it.
//!
//! What goes wrong with one item is a trouble of that item, counted and told, and the others go on; an error ends the
//! whole.
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

mod info;
mod levels;
pub mod ops;
mod reader;
mod trouble;
mod writer;

pub use guestline_checksum::Checksum;
pub use reader::TreeReader;
pub use trouble::describe;
pub use writer::{Limit, Target, TreeWriter, WriteOptions};
