//! A regular file in the making.

use super::making::{Meta, Temp};
use super::place::Named;
use crate::trouble::Tally;
use guestline_checksum::Checksum;
use guestline_protocol::ErrorKind;
use guestline_protocol::tree::TreeContentEnd;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use nix::unistd::{Whence, ftruncate, lseek64, write};
use std::ffi::CString;
use std::os::fd::OwnedFd;

/// A file whose content comes.
#[derive(Debug)]
pub(super) struct Incoming {
    /// In the tree.
    path: Vec<u8>,
    /// None when something went wrong, which has been told: the rest of the content is swallowed.
    making: Option<Making>,
}

#[derive(Debug)]
struct Making {
    temp: Temp,
    file: OwnedFd,
    /// The name that it is to get.
    name: CString,
    meta: Meta,
    /// Bytes so far, holes included.
    len: u64,
    /// Bytes so far, without holes.
    bytes: u64,
    ends_with_hole: bool,
    hash: Checksum,
}

impl Incoming {
    /// Begins a file at a place, if there is one.
    pub(super) fn begin(
        path: Vec<u8>,
        place: Result<Named, Errno>,
        meta: Meta,
        tally: &mut Tally,
    ) -> Self {
        let making = place.and_then(|place| Making::begin(place, meta));
        Self { making: making.map_err(|errno| tally.refused(&path, errno)).ok(), path }
    }

    /// Appends content.
    pub(super) fn write(&mut self, bytes: &[u8], tally: &mut Tally) {
        let written = self.making.as_mut().map_or(Ok(()), |making| making.write(bytes));
        self.settle(written, tally);
    }

    /// Appends a hole.
    pub(super) fn skip(&mut self, len: u64, tally: &mut Tally) {
        let skipped = self.making.as_mut().map_or(Ok(()), |making| making.skip(len));
        self.settle(skipped, tally);
    }

    /// Gives the file its name if it is what was sent; its path comes back if it is not.
    pub(super) fn end(self, end: TreeContentEnd, tally: &mut Tally) -> Result<(), Vec<u8>> {
        let Some(making) = self.making else { return Err(self.path) };
        if let Some(error) = end.error {
            tally.trouble(&self.path, error);
        } else if making.len != end.len || making.hash.finish() != end.hash {
            tally.wrong(&self.path, ErrorKind::Integrity, "what arrived is not what was sent");
        } else {
            let bytes = making.bytes;
            match making.finish() {
                Ok(()) => {
                    tally.item();
                    tally.bytes(bytes);
                    return Ok(());
                }
                Err(errno) => tally.refused(&self.path, errno),
            }
        }
        Err(self.path)
    }

    fn settle(&mut self, result: Result<(), Errno>, tally: &mut Tally) {
        if let Err(errno) = result {
            tally.refused(&self.path, errno);
            self.making = None;
        }
    }
}

impl Making {
    fn begin(place: Named, meta: Meta) -> Result<Self, Errno> {
        let (folder, name) = place;
        let flags =
            OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let private = Mode::S_IRUSR.union(Mode::S_IWUSR);
        let (temp, file) = Temp::new(folder, |folder, temp| openat(folder, temp, flags, private))?;
        let hash = Checksum::default();
        Ok(Self { temp, file, name, meta, len: 0, bytes: 0, ends_with_hole: false, hash })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Errno> {
        write_all(&self.file, bytes)?;
        self.hash.write(bytes);
        let len = bytes.len() as u64;
        self.bytes = self.bytes.saturating_add(len);
        self.len = self.len.checked_add(len).ok_or(Errno::EFBIG)?;
        self.ends_with_hole = false;
        Ok(())
    }

    fn skip(&mut self, len: u64) -> Result<(), Errno> {
        self.hash.write(&len.to_le_bytes());
        self.len = self.len.checked_add(len).ok_or(Errno::EFBIG)?;
        lseek64(&self.file, self.end()?, Whence::SeekSet).map_err(|_| Errno::EFBIG)?;
        self.ends_with_hole = true;
        Ok(())
    }

    fn finish(self) -> Result<(), Errno> {
        if self.ends_with_hole {
            ftruncate(&self.file, self.end()?)?;
        }
        self.meta.apply(&self.file)?;
        self.temp.replace(&self.name)
    }

    fn end(&self) -> Result<i64, Errno> {
        i64::try_from(self.len).map_err(|_| Errno::EFBIG)
    }
}

fn write_all(file: &OwnedFd, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match write(file, bytes) {
            Ok(0) => return Err(Errno::EIO),
            Ok(len) => bytes = bytes.get(len..).unwrap_or_default(),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
