//! Takes a tree stream, and makes files and folders of it.
//!
//! The stream is hostile until proven otherwise: whoever sends it decides about what is below the target, and about
//! nothing else. Content goes from the caller's slice right into the file.
//!
//! ```text
//! Between ── item: a file ──> Content ── its end ──> Between
//!    │  └─ any other item, made at once
//!    └─ end of the stream ──> Ended          whatever comes out of turn ──> Broken
//! ```
//! A file, a link or a node is made under another name and takes its own when it is all there, so that nobody meets
//! half of it, and a name that was taken is replaced at once or not at all. A folder gets its mode, owner and time
//! when the stream has left it. When the stream breaks, what is whole stays, and the file in the making goes.

mod content;
mod limits;
mod making;
mod place;

pub use limits::Limit;

use crate::trouble::{Tally, error, refused};
use content::Incoming;
use guestline_protocol::tree::{
    NotATree, Record, TreeContentEnd, TreeItem, TreeKind, TreeParser, parts,
};
use guestline_protocol::{ErrorKind, FileKind, ItemTrouble, RemoteError, TreeCounts};
use limits::Ledger;
use making::{Meta, make_hard_link, make_node, make_symlink};
use nix::errno::Errno;
use place::Place;
use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// When more files than this have failed, no hard link is made any more.
const MAX_FAILED: usize = 4096;

/// Where a tree stream's items go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Into this folder, which is made when it is not there; the folder above it must be. One that is there keeps its
    /// mode and owner, whatever the stream says of its root.
    Into(PathBuf),
    /// The stream's root item becomes what is at this path, and the others come below it. A folder that is there
    /// stays and gets more; anything else is replaced, but a folder not by a file nor a file by a folder.
    At(PathBuf),
}

/// What a stream may do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WriteOptions {
    /// Give items the owners that the stream names; else they belong to this process's user.
    pub owners: bool,
    /// Make device nodes, pipes and sockets; else they are troubles: a device has powers, and whoever reads a folder
    /// may wait for ever at a pipe.
    pub nodes: bool,
    /// Keep set-user-ID and set-group-ID; else these bits are dropped.
    pub special_bits: bool,
    /// A stream with more bytes of content is an error; holes take no room, and do not count.
    pub max_bytes: Option<u64>,
    /// A stream with more items is an error.
    pub max_items: Option<u64>,
    /// So many bytes stay free on the file system, or a twentieth of a small one: a stream that wants them is an error.
    pub keep_free: Option<u64>,
}

/// A tree stream that becomes a file or a tree, from [`crate::TreeReader`] or any other.
#[derive(Debug)]
pub struct TreeWriter {
    options: WriteOptions,
    parser: TreeParser,
    phase: Phase,
    place: Place,
    tally: Tally,
    /// Files that were not made: what else has their names is not to be linked to.
    failed: BTreeSet<Vec<u8>>,
    ledger: Ledger,
}

#[derive(Debug)]
enum Phase {
    Between,
    Content(Box<Incoming>),
    Ended,
    Broken,
}

impl TreeWriter {
    /// Opens the target's place.
    ///
    /// # Errors
    /// The place is not there, or the folder cannot be made or opened.
    pub fn new(target: Target, options: WriteOptions) -> Result<Self, RemoteError> {
        let path = match &target {
            Target::Into(path) | Target::At(path) => path.as_os_str().as_bytes(),
        };
        let place = Place::open(&target).map_err(|errno| refused(path, errno))?;
        Ok(Self {
            options,
            parser: TreeParser::default(),
            phase: Phase::Between,
            place,
            tally: Tally::new(path),
            failed: BTreeSet::new(),
            ledger: Ledger::default(),
        })
    }

    /// Takes bytes of the stream, which may be split anywhere.
    ///
    /// # Errors
    /// The stream cannot be used: it is none, or its records are out of turn ([`ErrorKind::Protocol`]), or it is over a
    /// limit ([`ErrorKind::Busy`]), or it has a file for [`Target::Into`] itself ([`ErrorKind::Invalid`]). It stays so.
    pub fn take(&mut self, bytes: &[u8]) -> Result<(), RemoteError> {
        let taken = self.take_records(bytes);
        if taken.is_err() {
            self.phase = Phase::Broken;
        }
        taken
    }

    /// Has all of the stream come?
    pub fn is_done(&self) -> bool {
        matches!(self.phase, Phase::Ended)
    }

    /// What was made.
    ///
    /// # Errors
    /// The stream is not whole; what came of it is made nevertheless, but for a file without its end.
    pub fn finish(&mut self) -> Result<TreeCounts, RemoteError> {
        match self.phase {
            Phase::Ended => Ok(self.tally.counts),
            _ => {
                self.phase = Phase::Broken;
                Err(self.wrong(ErrorKind::Protocol, "a tree stream that is not whole"))
            }
        }
    }

    /// The limit that the stream went over, if that is why it broke.
    pub fn exceeded(&self) -> Option<Limit> {
        self.ledger.exceeded()
    }

    /// What was made so far, and how many items had troubles.
    pub fn counts(&self) -> TreeCounts {
        self.tally.counts
    }

    /// The first troubles; [`Self::counts`] has the number of all.
    pub fn troubles(&self) -> &[ItemTrouble] {
        &self.tally.troubles
    }

    fn take_records(&mut self, mut bytes: &[u8]) -> Result<(), RemoteError> {
        while !bytes.is_empty() {
            if matches!(self.phase, Phase::Ended | Phase::Broken) {
                return Err(self.out_of_turn());
            }
            match self.parser.next(&mut bytes) {
                Ok(Some(record)) => self.take_record(record)?,
                Ok(None) => {}
                Err(not_a_tree) => return Err(self.no_tree(&not_a_tree)),
            }
        }
        Ok(())
    }

    fn take_record(&mut self, record: Record<'_>) -> Result<(), RemoteError> {
        if let Record::Content(bytes) = &record {
            let len = bytes.len() as u64;
            let within = self.ledger.content(len, &self.options, &self.place);
            within.map_err(|limit| self.over(&limit))?;
        }
        match (&mut self.phase, record) {
            (Phase::Between, Record::Item(item)) => self.take_item(item),
            (Phase::Between, Record::End(_)) => {
                self.place.leave_all(&mut self.tally);
                self.phase = Phase::Ended;
                Ok(())
            }
            (Phase::Content(incoming), Record::Content(bytes)) => {
                incoming.write(bytes, &mut self.tally);
                Ok(())
            }
            (Phase::Content(incoming), Record::Hole(len)) => {
                incoming.skip(len, &mut self.tally);
                Ok(())
            }
            (Phase::Content(_), Record::ContentEnd(end)) => {
                self.take_content_end(end);
                Ok(())
            }
            _ => Err(self.out_of_turn()),
        }
    }

    fn take_item(&mut self, item: TreeItem) -> Result<(), RemoteError> {
        let within = self.ledger.item(&self.options, &self.place);
        within.map_err(|limit| self.over(&limit))?;
        let (parts, to) = checked(&item).map_err(|not_a_tree| self.no_tree(&not_a_tree))?;
        if parts.is_empty() && item.kind != TreeKind::Folder && !self.place.takes_any_root() {
            return Err(self.wrong(ErrorKind::Invalid, "a file where a folder is wanted"));
        }
        self.place.leave_for(&parts, &mut self.tally);
        if let (TreeKind::Node { kind, .. }, false) = (&item.kind, self.options.nodes) {
            let what = match kind {
                FileKind::Pipe => "no pipes are made here",
                FileKind::Socket => "no sockets are made here",
                _ => "no device nodes are made here",
            };
            self.tally.wrong(&item.path, ErrorKind::Unsupported, what);
            return Ok(());
        }
        let meta = Meta::new(&item, &self.options);
        if let TreeKind::File { .. } = item.kind {
            let place = self.place.of(&parts);
            let path = item.path.to_vec();
            let incoming = Incoming::begin(path, place, meta, &mut self.tally);
            self.phase = Phase::Content(Box::new(incoming));
            return Ok(());
        }
        match self.make(&item.kind, &parts, &to, meta) {
            Ok(()) => self.tally.item(),
            Err(errno) => self.tally.refused(&item.path, errno),
        }
        Ok(())
    }

    fn take_content_end(&mut self, end: TreeContentEnd) {
        if let Phase::Content(incoming) = std::mem::replace(&mut self.phase, Phase::Between)
            && let Err(path) = incoming.end(end, &mut self.tally)
            && self.failed.len() <= MAX_FAILED
        {
            self.failed.insert(path);
        }
    }

    /// Is that file, or may it be, not the one that the stream meant?
    fn has_failed(&self, path: &[u8]) -> bool {
        self.failed.len() > MAX_FAILED || self.failed.contains(path)
    }

    /// Makes what has no content.
    fn make(
        &mut self,
        kind: &TreeKind,
        parts: &[&[u8]],
        to: &[&[u8]],
        meta: Meta,
    ) -> Result<(), Errno> {
        if let TreeKind::Folder = kind {
            return self.place.make_folder(parts, meta);
        }
        let (folder, name) = self.place.of(parts)?;
        match kind {
            TreeKind::Symlink { target } => make_symlink(folder, &name, target, &meta),
            TreeKind::HardLink { to } if self.has_failed(to) => Err(Errno::ENOENT),
            TreeKind::HardLink { .. } => make_hard_link(folder, &name, self.place.find(to)?),
            TreeKind::Node { kind, device } => make_node(folder, &name, *kind, *device, &meta),
            TreeKind::File { .. } | TreeKind::Folder => Ok(()),
        }
    }

    fn over(&self, limit: &Limit) -> RemoteError {
        self.wrong(ErrorKind::Busy, &limit.to_string())
    }

    fn out_of_turn(&self) -> RemoteError {
        self.no_tree(&NotATree { what: "a record out of turn" })
    }

    fn no_tree(&self, not_a_tree: &NotATree) -> RemoteError {
        let text = ["a tree stream with ", not_a_tree.what].concat();
        self.wrong(ErrorKind::Protocol, &text)
    }

    fn wrong(&self, kind: ErrorKind, text: &str) -> RemoteError {
        error(kind, &self.tally.full(b""), text)
    }
}

/// Paths in the tree, as their parts.
type Parts<'a> = Vec<&'a [u8]>;

/// The path of an item and, of a hard link, that of the file, if all of the item makes sense.
fn checked(item: &TreeItem) -> Result<(Parts<'_>, Parts<'_>), NotATree> {
    if item.modified.nanos >= 1_000_000_000 {
        return Err(NotATree { what: "a time that is none" });
    }
    let to: &[u8] = match &item.kind {
        TreeKind::HardLink { to } => to,
        TreeKind::Node { kind: FileKind::File | FileKind::Folder | FileKind::Symlink, .. } => {
            return Err(NotATree { what: "a node that is none" });
        }
        _ => b"",
    };
    Ok((parts(&item.path)?, parts(to)?))
}
