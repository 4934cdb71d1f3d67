//! What a foreign root lacks for checks to run in it, what that costs, and what mends it.

mod manifest;
mod root;

pub use manifest::lint_recipe;
pub use root::{Linted, lint};

use super::Kind;
use crate::text::quote;
use serde::Serialize;
use std::fmt;
use std::path::Path;

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What, in a word that stays the same: `no-agent`.
    pub id: &'static str,
    /// What.
    pub what: String,
    /// What that costs.
    pub costs: String,
    /// What mends it.
    pub mends: String,
    /// No check can run as long as it is so.
    pub prevents: bool,
}

impl Finding {
    pub(super) fn new(
        id: &'static str,
        prevents: bool,
        what: impl Into<String>,
        costs: impl Into<String>,
        mends: impl Into<String>,
    ) -> Self {
        Self { id, what: what.into(), costs: costs.into(), mends: mends.into(), prevents }
    }

    /// What is to be said of a file that is not looked into; none of a kind that is.
    pub fn unseen(kind: Kind, file: &Path) -> Option<Self> {
        let file = quote(&file.to_string_lossy());
        let (what, costs) = match kind {
            Kind::Squashfs => (
                "whether it has a /bin/sh is not known: a squashfs is not looked into",
                "nothing where it has one: kernel and agent come from beside it",
            ),
            Kind::Iso => (
                "whether it has an agent is not known: an ISO image is not looked into",
                "without one no check can run in it; it is booted as it is, from a CD drive",
            ),
            _ => return None,
        };
        let mends = format!("import it, which boots it and says: guestline image import {file}");
        Some(Self::new("unseen", false, what, costs, mends))
    }

    /// A file system that was not unmounted cleanly.
    pub fn unclean(place: &str) -> Self {
        Self::new(
            "unclean",
            false,
            format!("the file system {place} was not unmounted cleanly"),
            "what was written last may be lost, and its first boot takes longer",
            "boot it and shut it down, or run fsck",
        )
    }
}

impl fmt::Display for Finding {
    /// Three lines.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = if self.prevents { "wrong" } else { "note " };
        let Self { what, costs, mends, .. } = self;
        write!(f, "{word}  {what}\n       costs: {costs}\n       mends: {mends}")
    }
}
