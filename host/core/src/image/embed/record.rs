//! What was added to a root, as it is written there.

use super::tree::{EmbedError, Tree};
use crate::digest::Digest;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Where it is.
pub const RECORD: &str = "/etc/guestline/embedded";

/// What this program writes, and reads.
const FORMAT: u32 = 1;

/// What was added, by the paths of the root's own system.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    format: u32,
    /// Files, each with its digest as it was added.
    #[serde(default)]
    pub(super) files: BTreeMap<String, Digest>,
    /// Links, and what they say.
    #[serde(default)]
    pub(super) links: BTreeMap<String, String>,
    /// Lines in files of others.
    #[serde(default)]
    pub(super) lines: BTreeMap<String, Lines>,
    /// Folders, each after the one that it is in.
    #[serde(default)]
    pub(super) folders: Vec<String>,
}

/// Lines that were added to a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Lines {
    pub(super) lines: Vec<String>,
    /// The file's own last line had no end before.
    #[serde(default)]
    pub(super) cut: bool,
}

impl Record {
    pub(super) fn new() -> Self {
        Self { format: FORMAT, ..Self::default() }
    }

    /// The record of a root, if it has one.
    ///
    /// # Errors
    /// [`EmbedError::Record`] when it cannot be understood.
    pub(super) fn of(tree: &mut Tree<'_>) -> Result<Option<Self>, EmbedError> {
        let Some(bytes) = tree.read(RECORD)? else { return Ok(None) };
        let wrong = |why: String| EmbedError::Record { why };
        let record: Self =
            serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
        if record.format != FORMAT {
            return Err(wrong(format!("its format is {}, not {FORMAT}", record.format)));
        }
        let paths = record.files.keys().chain(record.links.keys()).chain(record.lines.keys());
        match paths.chain(&record.folders).find(|path| !path.starts_with('/')) {
            Some(path) => Err(wrong(format!("`{}` is no path", crate::text::one_line(path, 60)))),
            None => Ok(Some(record)),
        }
    }

    /// Was nothing added?
    pub(super) fn is_empty(&self) -> bool {
        self.files.is_empty() && self.links.is_empty() && self.lines.is_empty()
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut text = serde_json::to_vec_pretty(self).unwrap_or_default();
        text.push(b'\n');
        text
    }
}
