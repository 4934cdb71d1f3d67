//! A file that is followed by its name, over rotation and truncation.
//!
//! ```text
//! files, oldest first        the name's file ──┐
//!   [ old ── read to its end ── ] [ new, from its start ]
//! ```
//! When another file takes the name it waits behind those that had it: whoever writes the log may go on in the old one
//! until it is told to open the new one. The old one is left when it is read to its end and the new one has
//! something in it. A file that has become shorter is read from its start; one that was truncated and has grown past
//! where we were since is not told from one that has only grown, and a file that had the name only between two looks
//! is not seen.
//!
//! inotify only wakes. What has happened is found by looking, and after every new watch once more, so that nothing is
//! missed that came in between. It is blind to what others do on a network's file system, and where a folder above the
//! file's own is replaced.

use super::Records;
use crate::control::{errno, invalid, open, quoted, refused};
use guestline_protocol::RemoteError;
use guestline_protocol::log::MAX_LOG_TEXT;
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use nix::sys::statfs::{Statfs, fstatfs, statfs};
use std::collections::VecDeque;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// With less room than this left, a piece of a file is left for the next time.
const MIN_PIECE: usize = 4096;

/// At most so many files wait behind one another; then the oldest is left at its end, whatever the others have.
const MAX_FILES: usize = 4;

/// File systems that are changed from elsewhere, which inotify does not tell, or change by themselves (statfs(2)): 9p,
/// AFS, Ceph, CIFS, FUSE and virtiofs, NFS, proc, SMB, SMB2, sysfs, vboxsf.
const FOREIGN: [u32; 11] = [
    0x0102_1997,
    0x5346_414f,
    0x00c3_6400,
    0xff53_4d42,
    0x6573_5546,
    0x0000_6969,
    0x0000_9fa0,
    0x0000_517b,
    0xfe53_4d42,
    0x6265_6572,
    0x786f_4256,
];

/// A file, by name.
#[derive(Debug)]
pub(super) struct FileLog {
    path: PathBuf,
    follow: bool,
    /// Those that have had the name and are not read to their end, oldest first; the last has it now, or had it last.
    files: VecDeque<Opened>,
    inotify: Option<Inotify>,
    /// Nothing has happened since the watches were set.
    armed: bool,
    /// There is something that the watches do not see.
    blind: bool,
    buffer: Vec<u8>,
}

#[derive(Debug)]
struct Opened {
    file: File,
    identity: (u64, u64),
    position: u64,
    /// It has had a size; the files of /proc have none however much is in them.
    sized: bool,
    /// It is to be left as soon as nothing more is in it.
    leaving: bool,
    foreign: bool,
    watch: Option<WatchDescriptor>,
}

impl FileLog {
    pub(super) fn open(path: &Path, from_start: bool, follow: bool) -> Result<Self, RemoteError> {
        let mut first = Opened::open(path)?;
        if let Some(file) = &mut first
            && !from_start
        {
            file.position = file.metadata(path)?.len();
        }
        if first.is_none() && !follow {
            return Err(refused(&quoted(path), Errno::ENOENT));
        }
        let flags = InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC;
        Ok(Self {
            path: path.to_owned(),
            follow,
            files: first.into_iter().collect(),
            inotify: if follow { Inotify::init(flags).ok() } else { None },
            armed: false,
            blind: false,
            buffer: vec![0; MAX_LOG_TEXT],
        })
    }

    /// Reads what is there, as far as it fits. If that is nothing, the watches are set.
    pub(super) fn read(&mut self, records: &mut Records) -> Result<(), RemoteError> {
        loop {
            self.read_oldest(records)?;
            if !records.bytes.is_empty() || !self.follow {
                return Ok(());
            }
            if self.advance()? {
                continue;
            }
            if self.armed {
                return Ok(());
            }
            self.arm();
        }
    }

    /// Rings when something may have happened.
    pub(super) fn bell(&self) -> Option<BorrowedFd<'_>> {
        self.inotify.as_ref().map(AsFd::as_fd)
    }

    /// May something happen without the bell?
    pub(super) fn is_blind(&self) -> bool {
        self.blind
    }

    /// The bell has rung, or it is time to look without.
    pub(super) fn woken(&mut self) {
        // What the events say does not matter.
        if let Some(inotify) = &self.inotify {
            while nix::unistd::read(inotify, &mut self.buffer).is_ok_and(|len| len > 0) {}
        }
        self.armed = false;
    }

    fn read_oldest(&mut self, records: &mut Records) -> Result<(), RemoteError> {
        let Some(oldest) = self.files.front_mut() else { return Ok(()) };
        loop {
            let room = records.room();
            if room < MIN_PIECE && !records.bytes.is_empty() {
                return Ok(());
            }
            let buffer = self.buffer.get_mut(..room).unwrap_or_default();
            let len = match oldest.file.read_at(buffer, oldest.position) {
                Ok(0) => return Ok(()),
                Ok(len) => len,
                Err(error) => match errno(&error) {
                    Errno::EINTR => continue,
                    Errno::EAGAIN => return Ok(()),
                    errno => return Err(refused(&quoted(&self.path), errno)),
                },
            };
            let is_full = len == buffer.len();
            let bytes = buffer.get(..len).unwrap_or_default();
            let text = if is_full { whole_lines(bytes) } else { bytes };
            let advance = u64::try_from(text.len()).unwrap_or(u64::MAX);
            oldest.position = oldest.position.saturating_add(advance);
            records.push(text);
            if !is_full {
                return Ok(());
            }
        }
    }

    /// Looks what has become of the file and its name; true when there may be something to read.
    fn advance(&mut self) -> Result<bool, RemoteError> {
        if let Some(oldest) = self.files.front_mut() {
            let size = oldest.metadata(&self.path)?.len();
            oldest.sized |= size > 0;
            if oldest.sized && size < oldest.position {
                oldest.position = 0;
                return Ok(true);
            }
        }
        let named = find(&self.path)?.map(|found| identity(&found));
        let last = self.files.back().map(|file| file.identity);
        if named.is_some() && named != last {
            // The name may have moved on, or back, since it was looked at.
            if let Some(file) = Opened::open(&self.path)?
                && Some(file.identity) != last
            {
                self.files.push_back(file);
                self.armed = false;
            }
            return Ok(true);
        }
        self.leave_oldest()
    }

    /// Leaves the oldest file for the next one; true when one is left, or is to be read once more before.
    fn leave_oldest(&mut self) -> Result<bool, RemoteError> {
        let mut is_over = self.files.len() > MAX_FILES;
        for later in self.files.iter().skip(1) {
            is_over |= later.metadata(&self.path)?.len() > 0;
        }
        let Some(oldest) = self.files.front_mut().filter(|_| is_over) else { return Ok(false) };
        if !oldest.leaving {
            // Its last lines may have come after it was read, and before the first of the new one.
            oldest.leaving = true;
            return Ok(true);
        }
        let left = self.files.pop_front();
        if let (Some(inotify), Some(watch)) = (&self.inotify, left.and_then(|file| file.watch)) {
            let _ = inotify.rm_watch(watch);
        }
        Ok(true)
    }

    /// Sets the watches, of which those that are there stay.
    fn arm(&mut self) {
        self.armed = true;
        self.blind = true;
        let Some(inotify) = &self.inotify else { return };
        self.blind = !watch_folders(inotify, &self.path);
        for file in &mut self.files {
            self.blind |= !file.watch(inotify);
        }
    }
}

/// Watches where another file can take the name: in its folder, and for a link in that of its target.
fn watch_folders(inotify: &Inotify, path: &Path) -> bool {
    let watch = |path: &Path| {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let folder = parent.unwrap_or(Path::new("."));
        let flags = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        inotify.add_watch(folder, flags).is_ok() && !is_foreign(statfs(folder))
    };
    let is_link = fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink());
    watch(path) && (!is_link || fs::canonicalize(path).is_ok_and(|target| watch(&target)))
}

impl Opened {
    /// Opens the file that has the name, if there is one.
    fn open(path: &Path) -> Result<Option<Self>, RemoteError> {
        // Looked at before it is opened: opening a device may do something.
        let Some(found) = find(path)? else { return Ok(None) };
        regular(path, &found)?;
        let file = match open(path, 0) {
            Err(error) if is_missing(error.errno.map(Errno::from_raw)) => return Ok(None),
            file => file?,
        };
        let found = file.metadata().map_err(|error| refused(&quoted(path), errno(&error)))?;
        regular(path, &found)?;
        Ok(Some(Self {
            identity: identity(&found),
            position: 0,
            sized: found.len() > 0,
            leaving: false,
            foreign: is_foreign(fstatfs(&file)),
            watch: None,
            file,
        }))
    }

    fn metadata(&self, path: &Path) -> Result<Metadata, RemoteError> {
        self.file.metadata().map_err(|error| refused(&quoted(path), errno(&error)))
    }

    /// Watches this file and no other, whatever has its name by now; true if that is enough.
    fn watch(&mut self, inotify: &Inotify) -> bool {
        if self.watch.is_none() {
            let this = format!("/proc/self/fd/{}", self.file.as_raw_fd());
            self.watch = inotify.add_watch(this.as_str(), AddWatchFlags::IN_MODIFY).ok();
        }
        self.watch.is_some() && !self.foreign
    }
}

/// What has the name, if anything has.
fn find(path: &Path) -> Result<Option<Metadata>, RemoteError> {
    match fs::metadata(path).map_err(|error: io::Error| errno(&error)) {
        Ok(found) => Ok(Some(found)),
        Err(errno) if is_missing(Some(errno)) => Ok(None),
        Err(errno) => Err(refused(&quoted(path), errno)),
    }
}

fn is_missing(errno: Option<Errno>) -> bool {
    matches!(errno, Some(Errno::ENOENT | Errno::ENOTDIR))
}

fn regular(path: &Path, found: &Metadata) -> Result<(), RemoteError> {
    if found.is_file() {
        return Ok(());
    }
    Err(invalid(format!("{} is no regular file, and cannot be followed", quoted(path))))
}

/// The same file has the same, as long as it is open.
fn identity(found: &Metadata) -> (u64, u64) {
    (found.dev(), found.ino())
}

fn is_foreign(found: nix::Result<Statfs>) -> bool {
    // As many bits as every kernel has for it; the C libraries disagree about its sign and width.
    found.map_or(true, |found| FOREIGN.contains(&(found.filesystem_type().0 as u32)))
}

/// The lines that are whole, or all of a single one that is not.
fn whole_lines(bytes: &[u8]) -> &[u8] {
    let newline = bytes.iter().rposition(|byte| *byte == b'\n');
    newline.and_then(|at| bytes.get(..=at)).unwrap_or(bytes)
}
