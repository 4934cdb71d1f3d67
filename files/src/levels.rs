//! The way down to a folder: a descriptor of each folder on it.
//!
//! Only the lowest few stay open, for a tree may be deeper than a process may have files. One further up is opened
//! again through `..` of the folder below it, and is lost when that leads elsewhere because somebody has moved
//! folders.

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, fstat};
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// So many of the lowest folders stay open, and the topmost.
const KEPT_OPEN: usize = 32;

/// How a folder is opened.
pub(crate) const FOLDER: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// Folders, each in the one before it.
#[derive(Debug, Default)]
pub(crate) struct Levels {
    levels: Vec<Level>,
}

#[derive(Debug)]
enum Level {
    Open(Arc<OwnedFd>),
    Closed { device: u64, inode: u64 },
    Lost,
}

impl Levels {
    pub(crate) fn len(&self) -> usize {
        self.levels.len()
    }

    /// The folder at the end of the way.
    ///
    /// # Errors
    /// `ENOTDIR` if there is none, `ESTALE` if it was moved.
    pub(crate) fn lowest(&self) -> Result<Arc<OwnedFd>, Errno> {
        opened(self.levels.last())
    }

    /// The folder at its beginning.
    ///
    /// # Errors
    /// As [`Self::lowest`].
    pub(crate) fn topmost(&self) -> Result<Arc<OwnedFd>, Errno> {
        opened(self.levels.first())
    }

    /// Goes down into a folder of the lowest one.
    pub(crate) fn push(&mut self, folder: OwnedFd) {
        let far = self.levels.len().saturating_sub(KEPT_OPEN);
        if far > 0
            && let Some(level) = self.levels.get_mut(far)
        {
            level.close();
        }
        self.levels.push(Level::Open(Arc::new(folder)));
    }

    /// Goes up again.
    pub(crate) fn pop(&mut self) {
        let left = self.levels.pop();
        if let (Some(Level::Open(below)), Some(level)) = (left, self.levels.last_mut()) {
            level.open_above(&below);
        }
    }
}

impl Level {
    fn close(&mut self) {
        if let Self::Open(folder) = self {
            *self = match fstat(&**folder) {
                Ok(stat) => Self::Closed { device: stat.st_dev, inode: stat.st_ino },
                Err(_) => Self::Lost,
            };
        }
    }

    fn open_above(&mut self, below: &OwnedFd) {
        if let Self::Closed { device, inode } = *self {
            *self = match open_folder(below.as_fd(), c"..") {
                Ok(folder) if is(&folder, device, inode) => Self::Open(Arc::new(folder)),
                _ => Self::Lost,
            };
        }
    }
}

/// Opens a real folder, at least as a place to go on from.
pub(crate) fn open_folder(at: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    match openat(at, name, FOLDER, Mode::empty()) {
        Err(Errno::EACCES) => openat(at, name, FOLDER.union(OFlag::O_PATH), Mode::empty()),
        result => result,
    }
}

fn opened(level: Option<&Level>) -> Result<Arc<OwnedFd>, Errno> {
    match level {
        Some(Level::Open(folder)) => Ok(Arc::clone(folder)),
        Some(_) => Err(Errno::ESTALE),
        None => Err(Errno::ENOTDIR),
    }
}

fn is(folder: &OwnedFd, device: u64, inode: u64) -> bool {
    fstat(folder).is_ok_and(|stat| stat.st_dev == device && stat.st_ino == inode)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descend(levels: &mut Levels, depth: usize) {
        for _ in 0..depth {
            let lowest = levels.lowest().unwrap();
            nix::sys::stat::mkdirat(&lowest, c"d", Mode::S_IRWXU).unwrap();
            levels.push(open_folder(lowest.as_fd(), c"d").unwrap());
        }
    }

    fn start(folder: &tempfile::TempDir) -> Levels {
        let mut levels = Levels::default();
        levels.push(std::fs::File::open(folder.path()).unwrap().into());
        levels
    }

    fn open_now(levels: &Levels) -> usize {
        levels.levels.iter().filter(|level| matches!(level, Level::Open(_))).count()
    }

    #[test]
    fn a_deep_way_keeps_few_files_open_and_leads_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut levels = start(&folder);
        descend(&mut levels, 100);
        assert!(open_now(&levels) <= KEPT_OPEN + 2, "{}", open_now(&levels));
        for _ in 0..100 {
            levels.pop();
            assert!(levels.lowest().is_ok());
        }
        let stat = fstat(&*levels.lowest().unwrap()).unwrap();
        assert_eq!(stat.st_ino, nix::sys::stat::stat(folder.path()).unwrap().st_ino);
    }

    #[test]
    fn a_folder_moved_meanwhile_is_lost_and_the_topmost_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir_in(folder.path().parent().unwrap()).unwrap();
        let mut levels = start(&folder);
        descend(&mut levels, 60);
        let moved = std::iter::repeat_n("d", 20).fold(folder.path().to_owned(), |p, d| p.join(d));
        std::fs::rename(moved, elsewhere.path().join("d")).unwrap();
        for _ in 0..41 {
            levels.pop();
        }
        assert_eq!(levels.len(), 20);
        assert_eq!(levels.lowest().unwrap_err(), Errno::ESTALE);
        assert!(levels.topmost().is_ok());
    }
}
