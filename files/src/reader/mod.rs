//! Reads a file or a tree, and makes a tree stream of it.
//!
//! Depth first, a folder before what is in it, names sorted. Of each folder on the way down only the names that are
//! still to come are in memory. Records but content are made in `pending` first, from where they go out as room
//! allows; content is read into the caller's buffer.
//!
//! An item that cannot be read is a trouble and is not sent. A file that goes wrong when some of it is sent already is
//! ended with an error, and the receiver drops it.

mod content;

use crate::info::{device_of, kind_of, len_of, link_target, mode_of, modified, names};
use crate::levels::{FOLDER, Levels};
use crate::trouble::{Tally, join, refused};
use content::{Content, Step};
use guestline_protocol::tree::{
    MAX_DEPTH, MAX_PATH_LEN, RECORD_HEAD_LEN, RecordTag, TreeContentEnd, TreeItem, TreeKind, hole,
    record,
};
use guestline_protocol::{ByteBuf, FileKind, ItemTrouble, RemoteError, TreeCounts};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat};
use nix::sys::stat::{FileStat, Mode, fstat, fstatat};
use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// So many files with several names are remembered; names of further ones are sent as copies.
const MAX_LINKED: usize = 65_536;

/// Less room than this at the end of a buffer is left empty: a read costs more.
const MIN_READ: usize = 512;

/// A file or a tree as a tree stream, for [`crate::TreeWriter`] or any other.
#[derive(Debug)]
pub struct TreeReader {
    levels: Levels,
    /// One for each of the levels.
    listings: Vec<Listing>,
    /// The lowest folder's path in the tree.
    path: Vec<u8>,
    /// Path of each file with several names, by device and inode.
    linked: BTreeMap<(u64, u64), Vec<u8>>,
    /// Records to be sent.
    pending: Vec<u8>,
    /// So many bytes of them are.
    sent: usize,
    /// The file whose item went last.
    content: Option<Content>,
    tally: Tally,
    /// The stream's end is among the records.
    ended: bool,
}

/// What is to come of a folder.
#[derive(Debug)]
struct Listing {
    /// Names, the next one last.
    names: Vec<CString>,
    /// Length of the path of the folder above.
    above: usize,
}

impl TreeReader {
    /// Opens what is at a path; `follow` goes for a symbolic link at the path itself, below it links are sent as links.
    ///
    /// # Errors
    /// It is not there, or cannot be read.
    pub fn open(path: &Path, follow: bool) -> Result<Self, RemoteError> {
        let root = path.as_os_str().as_bytes();
        let mut reader = Self {
            levels: Levels::default(),
            listings: Vec::new(),
            path: Vec::new(),
            linked: BTreeMap::new(),
            pending: Vec::new(),
            sent: 0,
            content: None,
            tally: Tally::new(root),
            ended: false,
        };
        let name = CString::new(root).map_err(|_| refused(root, Errno::EINVAL))?;
        reader.visit(AT_FDCWD, &name, Vec::new(), follow).map_err(|errno| refused(root, errno))?;
        Ok(reader)
    }

    /// Puts bytes of the stream into `buffer` from `start` on, and says whether more is to come.
    ///
    /// Afterwards the buffer ends with them, at `limit` or earlier; what it had behind `start` is overwritten. A buffer
    /// that is handed in again as it was spares the zeroing of fresh room: in the midst of a big file, a call is one
    /// read(2) straight into it. Any room above none makes progress.
    pub fn fill(&mut self, buffer: &mut Vec<u8>, start: usize, limit: usize) -> bool {
        if buffer.len() < start {
            buffer.resize(start, 0);
        }
        let mut at = start;
        let more = loop {
            at = self.send_pending(buffer, at, limit);
            let room = limit.saturating_sub(at);
            if !self.pending.is_empty() {
                break true;
            } else if let Some(content) = &mut self.content {
                if room < MIN_READ && at > start {
                    break true;
                } else if room > RECORD_HEAD_LEN {
                    let step = content.read(buffer, at, room);
                    at = at.saturating_add(self.take_step(step));
                } else {
                    let mut small = Vec::new();
                    let step = content.read(&mut small, 0, MIN_READ);
                    small.truncate(self.take_step(step));
                    self.pending.extend(small);
                }
            } else if self.ended {
                break false;
            } else {
                self.advance();
            }
        };
        buffer.truncate(at);
        more
    }

    /// What was sent so far, and how many items had troubles.
    pub fn counts(&self) -> TreeCounts {
        self.tally.counts
    }

    /// The first troubles; [`Self::counts`] has the number of all.
    pub fn troubles(&self) -> &[ItemTrouble] {
        &self.tally.troubles
    }

    /// Puts out as much as there is room for; returns where it ends.
    fn send_pending(&mut self, buffer: &mut Vec<u8>, at: usize, limit: usize) -> usize {
        let rest = self.pending.get(self.sent..).unwrap_or_default();
        let bytes = rest.get(..limit.saturating_sub(at)).unwrap_or(rest);
        let end = at.saturating_add(bytes.len());
        let (over, behind) = bytes.split_at(bytes.len().min(buffer.len().saturating_sub(at)));
        if let Some(place) = buffer.get_mut(at..at.saturating_add(over.len())) {
            place.copy_from_slice(over);
        }
        buffer.extend_from_slice(behind);
        self.sent = self.sent.saturating_add(bytes.len());
        if self.sent >= self.pending.len() {
            self.pending.clear();
            self.sent = 0;
        }
        end
    }

    /// Goes on after a step of the content; returns the length of the record that is in the buffer.
    fn take_step(&mut self, step: Step) -> usize {
        let Some(content) = &mut self.content else { return 0 };
        let error = match step {
            Step::Read(len) => {
                self.tally.bytes(len as u64);
                return len.saturating_add(RECORD_HEAD_LEN);
            }
            Step::Hole(len) => {
                self.pending.extend(hole(len));
                return 0;
            }
            Step::Whole => None,
            Step::Broken(broken) => Some(broken.of(&self.tally.full(&content.path))),
        };
        let end = TreeContentEnd { len: content.len(), hash: content.hash(), error: error.clone() };
        self.pending.extend(record(RecordTag::ContentEnd, &end));
        let content = self.content.take();
        match (content, error) {
            (Some(content), Some(error)) => self.tally.trouble(&content.path, error),
            (Some(Content { link: Some(id), path, .. }), None)
                if self.linked.len() < MAX_LINKED =>
            {
                self.linked.insert(id, path);
            }
            _ => {}
        }
        0
    }

    /// Goes on to the next item, out of a folder, or to the end.
    fn advance(&mut self) {
        let Some(listing) = self.listings.last_mut() else {
            self.pending.extend(record(RecordTag::End, &self.tally.counts));
            self.ended = true;
            return;
        };
        let Some(name) = listing.names.pop() else {
            self.path.truncate(listing.above);
            self.listings.pop();
            self.levels.pop();
            return;
        };
        let path = join(&self.path, name.as_bytes());
        let folder = self.levels.lowest();
        let visited =
            folder.and_then(|folder| self.visit(folder.as_fd(), &name, path.clone(), false));
        if let Err(errno) = visited {
            self.tally.refused(&path, errno);
        }
    }

    /// Begins an item. A path that no receiver would take is `ENAMETOOLONG`.
    fn visit(
        &mut self,
        at: BorrowedFd<'_>,
        name: &CStr,
        path: Vec<u8>,
        follow: bool,
    ) -> Result<(), Errno> {
        if path.len() > MAX_PATH_LEN || self.levels.len() > MAX_DEPTH {
            return Err(Errno::ENAMETOOLONG);
        }
        let (stat_flags, open_flags) = match follow {
            true => (AtFlags::empty(), OFlag::O_CLOEXEC),
            false => (AtFlags::AT_SYMLINK_NOFOLLOW, OFlag::O_CLOEXEC.union(OFlag::O_NOFOLLOW)),
        };
        let stat = fstatat(at, name, stat_flags)?;
        let kind = match kind_of(&stat) {
            FileKind::File => match self.linked.get(&id_of(&stat)) {
                Some(to) => TreeKind::HardLink { to: ByteBuf::from(to.clone()) },
                None => return self.begin_file(at, name, path, open_flags),
            },
            FileKind::Folder => return self.begin_folder(at, name, path, open_flags),
            FileKind::Symlink => TreeKind::Symlink { target: link_target(at, name)? },
            kind => TreeKind::Node { kind, device: device_of(&stat) },
        };
        self.item(path, kind, &stat);
        Ok(())
    }

    fn begin_file(
        &mut self,
        at: BorrowedFd<'_>,
        name: &CStr,
        path: Vec<u8>,
        flags: OFlag,
    ) -> Result<(), Errno> {
        // Should something else have taken its place, opening it neither waits nor gets a terminal.
        let flags = flags | OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let file = openat(at, name, flags, Mode::empty())?;
        let stat = fstat(&file)?;
        if kind_of(&stat) != FileKind::File {
            return Err(Errno::ESTALE);
        }
        self.item(path.clone(), TreeKind::File { len: len_of(&stat) }, &stat);
        let link = (stat.st_nlink > 1).then(|| id_of(&stat));
        self.content = Some(Content::new(file, path, link, &stat));
        Ok(())
    }

    fn begin_folder(
        &mut self,
        at: BorrowedFd<'_>,
        name: &CStr,
        path: Vec<u8>,
        flags: OFlag,
    ) -> Result<(), Errno> {
        let folder = openat(at, name, flags | FOLDER.difference(OFlag::O_NOFOLLOW), Mode::empty())?;
        let stat = fstat(&folder)?;
        let mut names = names(folder.as_fd(), usize::MAX)?;
        names.sort_unstable_by(|a, b| b.cmp(a));
        self.item(path.clone(), TreeKind::Folder, &stat);
        self.levels.push(folder);
        self.listings.push(Listing { names, above: self.path.len() });
        self.path = path;
        Ok(())
    }

    fn item(&mut self, path: Vec<u8>, kind: TreeKind, stat: &FileStat) {
        let item = TreeItem {
            path: ByteBuf::from(path),
            kind,
            mode: mode_of(stat),
            uid: stat.st_uid,
            gid: stat.st_gid,
            modified: modified(stat),
        };
        self.pending.extend(record(RecordTag::Item, &item));
        self.tally.item();
    }
}

fn id_of(stat: &FileStat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}
