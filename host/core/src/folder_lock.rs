//! The lock of a folder in the cache: its file `lock`, held (flock(2)) shared by who uses what is in the folder, exclusively by
//! who makes or removes it.
//!
//! It moves with its folder, so whoever has got a lock looks whether it is still that of the folder. The time of the file is
//! that of the last use. On a disk that cannot be written to it is held all the same, and its time stays.

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

/// Its name in the folder.
pub(crate) const LOCK: &str = "lock";

/// Who asks whether a folder is in use has its lock for a moment; so often, and so long between, is that waited for.
const TRIES: u32 = 20;
const MOMENT: Duration = Duration::from_millis(1);

/// A lock that is held until this is dropped.
#[derive(Debug)]
pub(crate) struct FolderLock(Flock<File>);

impl FolderLock {
    /// Makes the file, unless it is there.
    pub(crate) fn make(folder: &Path) -> io::Result<()> {
        let mut options = File::options();
        options.create(true).append(true).mode(0o600).open(folder.join(LOCK)).map(drop)
    }

    /// For a user; none when others remove the folder or make it, or when it is gone meanwhile.
    pub(crate) fn shared(folder: &Path) -> io::Result<Option<Self>> {
        take(folder, FlockArg::LockSharedNonblock, TRIES)
    }

    /// For who makes or removes; none when others have it, or when the folder is gone meanwhile.
    pub(crate) fn exclusive(folder: &Path) -> io::Result<Option<Self>> {
        take(folder, FlockArg::LockExclusiveNonblock, 1)
    }

    /// Turns a maker's into a user's. None when somebody else got in between.
    pub(crate) fn share(self) -> Option<Self> {
        self.0.relock(FlockArg::LockSharedNonblock).is_ok().then_some(self)
    }

    /// Notes that the folder is used now.
    pub(crate) fn note_use(&self) {
        let _ = self.0.set_modified(SystemTime::now());
    }
}

/// When a folder was used last, where that is known.
pub(crate) fn last_use(folder: &Path) -> Option<SystemTime> {
    fs::symlink_metadata(folder.join(LOCK)).ok()?.modified().ok()
}

/// Does anybody use a folder, make it or remove it? What cannot be told is taken for yes.
pub(crate) fn is_in_use(folder: &Path) -> bool {
    match FolderLock::exclusive(folder) {
        Ok(lock) => lock.is_none(),
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}

fn take(folder: &Path, how: FlockArg, tries: u32) -> io::Result<Option<FolderLock>> {
    let path = folder.join(LOCK);
    let open = |write: bool| OpenOptions::new().read(true).write(write).open(&path);
    let file = open(true).or_else(|error| match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => open(false),
        // What is no file cannot be anybody's lock.
        io::ErrorKind::IsADirectory => Err(io::ErrorKind::NotFound.into()),
        _ => Err(error),
    })?;
    let Some(lock) = try_lock(file, how, tries)? else { return Ok(None) };
    let (ours, there) = (lock.metadata()?, fs::metadata(&path));
    let same = there.is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino()));
    Ok(same.then_some(FolderLock(lock)))
}

/// The lock of a file, tried so often; none while others have it.
pub(crate) fn try_lock(
    mut file: File,
    how: FlockArg,
    tries: u32,
) -> io::Result<Option<Flock<File>>> {
    for attempt in 1..=tries {
        match Flock::lock(file, how) {
            Ok(lock) => return Ok(Some(lock)),
            Err((back, Errno::EWOULDBLOCK)) if attempt < tries => {
                std::thread::sleep(MOMENT);
                file = back;
            }
            Err((_, Errno::EWOULDBLOCK)) => break,
            Err((_, errno)) => return Err(errno.into()),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_share_it_and_makers_do_not() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("a");
        fs::create_dir(&folder).unwrap();
        assert!(!is_in_use(&folder));
        let missing = || FolderLock::shared(&folder).unwrap_err().kind();
        assert_eq!(missing(), io::ErrorKind::NotFound);
        fs::create_dir(folder.join(LOCK)).unwrap();
        assert!(missing() == io::ErrorKind::NotFound && !is_in_use(&folder));
        fs::remove_dir(folder.join(LOCK)).unwrap();
        FolderLock::make(&folder).unwrap();
        let maker = FolderLock::exclusive(&folder).unwrap().unwrap();
        assert!(FolderLock::shared(&folder).unwrap().is_none());
        let user = maker.share().unwrap();
        let another = FolderLock::shared(&folder).unwrap().unwrap();
        assert!(FolderLock::exclusive(&folder).unwrap().is_none() && is_in_use(&folder));
        drop((user, another));
        assert!(!is_in_use(&folder));
    }

    #[test]
    fn a_lock_of_a_folder_that_was_moved_is_none() {
        let parent = tempfile::tempdir().unwrap();
        let [folder, gone] = ["a", "b"].map(|name| parent.path().join(name));
        fs::create_dir(&folder).unwrap();
        FolderLock::make(&folder).unwrap();
        let remover = FolderLock::exclusive(&folder).unwrap().unwrap();
        fs::rename(&folder, &gone).unwrap();
        fs::create_dir(&folder).unwrap();
        FolderLock::make(&folder).unwrap();
        // The new one is another's.
        assert!(FolderLock::shared(&folder).unwrap().is_some());
        assert!(FolderLock::shared(&gone).unwrap().is_none());
        drop(remover);
    }

    #[test]
    fn a_use_is_noted() {
        let folder = tempfile::tempdir().unwrap();
        FolderLock::make(folder.path()).unwrap();
        let file = File::options().write(true).open(folder.path().join(LOCK)).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!(last_use(folder.path()), Some(SystemTime::UNIX_EPOCH));
        FolderLock::shared(folder.path()).unwrap().unwrap().note_use();
        assert!(last_use(folder.path()).unwrap() > SystemTime::UNIX_EPOCH);
    }
}
