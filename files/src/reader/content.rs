//! Reads one file's content, as content records and holes.
//!
//! The length that the kernel gives is a hint only: files of `/proc` say 0 and files of `/sys` 4096 whatever they
//! hold, so a file is read until it ends. A file that is shorter than it was is broken, unless it still says
//! otherwise itself.

use crate::info::{len_of, stored};
use crate::trouble::{error, refused};
use guestline_checksum::Checksum;
use guestline_protocol::tree::{RECORD_HEAD_LEN, RecordTag, record_head};
use guestline_protocol::{ErrorKind, RemoteError};
use nix::errno::Errno;
use nix::sys::stat::{FileStat, fstat};
use nix::unistd::{Whence, lseek64, read};
use std::os::fd::OwnedFd;

/// Read at once where nobody knows how much there is.
const BLIND_READ: u64 = 16 * 1024;

/// A file that is being read.
#[derive(Debug)]
pub(crate) struct Content {
    file: OwnedFd,
    /// In the tree.
    pub(crate) path: Vec<u8>,
    /// Device and inode, if it may come again under another name.
    pub(crate) link: Option<(u64, u64)>,
    /// Its length when it was opened.
    expected: u64,
    at: u64,
    hash: Checksum,
    layout: Layout,
}

#[derive(Debug)]
enum Layout {
    /// All of it is data.
    Plain,
    /// Data up to here, then a hole or the end.
    Sparse { data_end: u64 },
    /// There is no more.
    Read,
}

/// What came of it.
#[derive(Debug)]
pub(crate) enum Step {
    /// A content record of so many bytes, its head not counted, is in the buffer.
    Read(usize),
    /// A hole of so many bytes.
    Hole(u64),
    /// It is all read.
    Whole,
    /// It cannot be read further.
    Broken(Broken),
}

/// Why a file cannot be read further.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Broken {
    /// The kernel says so.
    Refused(Errno),
    /// It is shorter than it was.
    Shrunk,
}

impl Broken {
    pub(crate) fn of(self, path: &[u8]) -> RemoteError {
        match self {
            Self::Refused(errno) => refused(path, errno),
            Self::Shrunk => error(ErrorKind::Integrity, path, "it shrank while it was read"),
        }
    }
}

impl From<Errno> for Broken {
    fn from(errno: Errno) -> Self {
        Self::Refused(errno)
    }
}

impl Content {
    pub(crate) fn new(
        file: OwnedFd,
        path: Vec<u8>,
        link: Option<(u64, u64)>,
        stat: &FileStat,
    ) -> Self {
        let expected = len_of(stat);
        let layout = match stored(stat) < expected {
            true => Layout::Sparse { data_end: 0 },
            false => Layout::Plain,
        };
        Self { file, path, link, expected, at: 0, hash: Checksum::default(), layout }
    }

    /// Bytes so far, holes included.
    pub(crate) fn len(&self) -> u64 {
        self.at
    }

    /// Over what was sent so far.
    pub(crate) fn hash(&self) -> u64 {
        self.hash.finish()
    }

    /// Reads once, into at most `room` bytes of `buffer` from `at` on: a record with its head. `room` is more than a
    /// head. What the buffer has behind the record is of no meaning.
    pub(crate) fn read(&mut self, buffer: &mut Vec<u8>, at: usize, room: usize) -> Step {
        self.try_read(buffer, at, room).unwrap_or_else(Step::Broken)
    }

    fn try_read(&mut self, buffer: &mut Vec<u8>, at: usize, room: usize) -> Result<Step, Broken> {
        if let Layout::Sparse { data_end } = self.layout
            && self.at >= data_end
            && let Some(step) = self.skip_hole()?
        {
            return Ok(step);
        }
        let wanted = match self.layout {
            Layout::Read => return self.whole(),
            Layout::Sparse { data_end } => data_end.saturating_sub(self.at),
            // One more than there should be: when it does not come, that was the end.
            Layout::Plain if self.at < self.expected => {
                self.expected.saturating_sub(self.at).saturating_add(1)
            }
            Layout::Plain => BLIND_READ,
        };
        let begin = at.saturating_add(RECORD_HEAD_LEN);
        let room = room.saturating_sub(RECORD_HEAD_LEN);
        let wanted = usize::try_from(wanted).unwrap_or(usize::MAX).min(room);
        let end = begin.saturating_add(wanted);
        if buffer.len() < end {
            buffer.resize(end, 0);
        }
        let place = buffer.get_mut(begin..end).unwrap_or_default();
        let len = read_once(&self.file, place)?;
        if len == 0 {
            self.layout = Layout::Read;
            return self.whole();
        }
        self.hash.write(place.get(..len).unwrap_or_default());
        self.at = self.at.saturating_add(len as u64);
        if matches!(self.layout, Layout::Plain) && len < wanted && self.at == self.expected {
            self.layout = Layout::Read;
        }
        let head = record_head(RecordTag::Content, u32::try_from(len).unwrap_or(u32::MAX));
        if let Some(place) = buffer.get_mut(at..begin) {
            place.copy_from_slice(&head);
        }
        Ok(Step::Read(len))
    }

    /// At the end of data of a sparse file: a hole, the end, or nothing when there is data.
    fn skip_hole(&mut self) -> Result<Option<Step>, Broken> {
        let here = offset(self.at)?;
        let data = match lseek64(&self.file, here, Whence::SeekData) {
            Ok(data) => data,
            Err(Errno::ENXIO) => {
                let end = len_of(&fstat(&self.file)?);
                return match end > self.at {
                    true => Ok(Some(self.hole(end))),
                    false => self.whole().map(Some),
                };
            }
            // This file system does not know its holes.
            Err(_) => here,
        };
        let data_end = lseek64(&self.file, data, Whence::SeekHole).unwrap_or(0);
        lseek64(&self.file, data, Whence::SeekSet)?;
        self.layout = match data_end > data {
            true => Layout::Sparse { data_end: position(data_end) },
            false => Layout::Plain,
        };
        Ok((position(data) > self.at).then(|| self.hole(position(data))))
    }

    fn hole(&mut self, end: u64) -> Step {
        let len = end.saturating_sub(self.at);
        self.hash.write(&len.to_le_bytes());
        self.at = end;
        Step::Hole(len)
    }

    fn whole(&self) -> Result<Step, Broken> {
        match self.at < self.expected && len_of(&fstat(&self.file)?) < self.expected {
            true => Err(Broken::Shrunk),
            false => Ok(Step::Whole),
        }
    }
}

fn read_once(file: &OwnedFd, place: &mut [u8]) -> Result<usize, Errno> {
    loop {
        match read(file, place) {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}

fn offset(position: u64) -> Result<i64, Errno> {
    i64::try_from(position).map_err(|_| Errno::EFBIG)
}

fn position(offset: i64) -> u64 {
    u64::try_from(offset).unwrap_or(0)
}
