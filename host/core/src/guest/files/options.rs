//! How files are moved, and why they could not be.

use crate::link::LinkError;
use crate::text::escape;
use guestline_files::Limit;
use guestline_protocol::{ItemTrouble, RemoteError, TreeCounts};
use std::path::{Path, PathBuf};

/// How files come into the guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PushOptions {
    /// The target is a folder to put things into, made when it is not there; else it is the thing's own place.
    pub into: bool,
    /// Keep owners, by number; else files belong to the agent's user.
    pub owners: bool,
}

/// How files come out of the guest. The limits are there from the start: what comes is the guest's choice, and the disk
/// this host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PullOptions {
    /// The target is a folder to put things into, which keeps its own mode and owner; else it is the thing's own place.
    pub into: bool,
    /// What a symbolic link that is asked for points to is meant.
    pub follow: bool,
    /// Keep owners, by number; wants root.
    pub owners: bool,
    /// Make device nodes, which wants root, pipes and sockets; else they are troubles.
    pub nodes: bool,
    /// Keep set-user-ID and set-group-ID bits, although the guest chose the content.
    pub special_bits: bool,
    /// At most so many bytes of content; holes take no room, and do not count.
    pub max_bytes: Option<u64>,
    /// At most so many files, folders and whatever else.
    pub max_entries: Option<u64>,
    /// So many bytes stay free on this host's file system, or a twentieth of a small one.
    pub keep_free: Option<u64>,
}

impl PullOptions {
    /// [`PullOptions::max_bytes`] where nobody says otherwise.
    pub const MAX_BYTES: u64 = 64 << 30;
    /// [`PullOptions::max_entries`] where nobody says otherwise.
    pub const MAX_ENTRIES: u64 = 1_000_000;
    /// [`PullOptions::keep_free`] where nobody says otherwise.
    pub const KEEP_FREE: u64 = 1 << 30;
}

impl Default for PullOptions {
    fn default() -> Self {
        Self {
            into: false,
            follow: false,
            owners: false,
            nodes: false,
            special_bits: false,
            max_bytes: Some(Self::MAX_BYTES),
            max_entries: Some(Self::MAX_ENTRIES),
            keep_free: Some(Self::KEEP_FREE),
        }
    }
}

/// What was moved.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Transferred {
    /// Items and bytes, as the receiver counts.
    pub counts: TreeCounts,
    /// What went wrong with single items, on either side; the others are in their places.
    pub troubles: Vec<ItemTrouble>,
}

/// Files could not be moved.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// The link, or the guest refused.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// This host.
    #[error("on this host: {0}")]
    Host(RemoteError),
    /// More than was allowed.
    #[error("`{path}` in the guest has more than {}", size(*limit))]
    TooLong {
        /// What was pulled.
        path: String,
        /// What was allowed, bytes.
        limit: u64,
    },
    /// More files, folders and whatever else than were allowed.
    #[error("`{path}` in the guest has more than {limit} entries")]
    TooMany {
        /// What was pulled.
        path: String,
        /// What was allowed.
        limit: u64,
    },
    /// This host's disk would be too full.
    #[error("`{path}` in the guest does not fit: {} of the file system of `{}` stay free", size(*kept), to.display())]
    NoRoom {
        /// What was pulled.
        path: String,
        /// Where to.
        to: PathBuf,
        /// What stays free, bytes.
        kept: u64,
    },
    /// What is there is of another kind.
    #[error("`{path}` in the guest is no file")]
    NoFile {
        /// What was pulled.
        path: String,
    },
}

/// The guest's choice went over a limit of this host's.
pub(super) fn over(from: &[u8], to: &Path, limit: Limit) -> FilesError {
    let path = escape(from);
    match limit {
        Limit::Bytes(limit) => FilesError::TooLong { path, limit },
        Limit::Items(limit) => FilesError::TooMany { path, limit },
        Limit::Free(kept) => FilesError::NoRoom { path, to: to.to_owned(), kept },
    }
}

/// "64 GiB", "1.5 MiB", "1000 bytes".
fn size(bytes: u64) -> String {
    let units = [(1_u64 << 30, "GiB"), (1 << 20, "MiB")];
    match units.into_iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) if bytes.is_multiple_of(unit) => format!("{} {name}", bytes / unit),
        Some((unit, name)) => format!("{:.1} {name}", bytes as f64 / unit as f64),
        None => format!("{bytes} bytes"),
    }
}
