//! What all that is kept in the cache folder has in common: its room on the disk, its last use, its condition.

use crate::folder_lock::{is_in_use, last_use};
use nix::unistd::Uid;
use serde::Serialize;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// What can be said of something in the cache without reading all of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", content = "why", rename_all = "kebab-case")]
pub enum Condition {
    /// It can be used.
    Ready,
    /// It is not what was made, for this reason.
    Damaged(String),
    /// A newer Guestline made it; it is left alone.
    Newer,
    /// Another user owns it; it is left alone.
    Foreign,
    /// Somebody makes it now.
    Making,
    /// Who made or removed it died over that.
    LeftOver,
}

/// A folder of the cache.
#[derive(Debug, Clone)]
pub(crate) struct Kept {
    pub(crate) folder: PathBuf,
    /// The folder's name.
    pub(crate) name: String,
    /// On the disk.
    pub(crate) bytes: u64,
    pub(crate) used: SystemTime,
    pub(crate) in_use: bool,
    pub(crate) condition: Condition,
}

impl Kept {
    /// What is there now; `condition` is asked of what is ours.
    pub(crate) fn look(folder: PathBuf, condition: impl FnOnce(&Path) -> Condition) -> Self {
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let condition = match is_ours(&folder) {
            true => condition(&folder),
            false => Condition::Foreign,
        };
        let used = last_use(&folder);
        let used =
            used.or_else(|| fs::symlink_metadata(&folder).and_then(|found| found.modified()).ok());
        Self {
            bytes: disk_bytes(&folder),
            used: used.unwrap_or(SystemTime::UNIX_EPOCH),
            in_use: is_in_use(&folder),
            folder,
            name,
            condition,
        }
    }
}

/// What became of something that was to go.
#[derive(Debug)]
pub enum Removal {
    /// It is gone.
    Removed,
    /// It stays, since somebody uses it.
    InUse,
    /// It stays, since it cannot be removed.
    Failed(std::io::Error),
}

impl From<std::io::Result<bool>> for Removal {
    /// True: it is gone.
    fn from(removed: std::io::Result<bool>) -> Self {
        match removed {
            Ok(true) => Self::Removed,
            Ok(false) => Self::InUse,
            Err(error) => Self::Failed(error),
        }
    }
}

/// Do we own it?
pub(crate) fn is_ours(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.uid() == Uid::effective().as_raw())
}

/// The folders in a folder, in the order of their names.
pub(crate) fn folders(parent: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    let mut folders: Vec<PathBuf> = entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect();
    folders.sort();
    folders
}

/// How many bytes a file or folder takes on the disk with all that is in it; links count, where they lead does not.
pub(crate) fn disk_bytes(path: &Path) -> u64 {
    let (mut bytes, mut open) = (0_u64, vec![path.to_owned()]);
    while let Some(path) = open.pop() {
        let Ok(found) = fs::symlink_metadata(&path) else { continue };
        // Blocks of 512 bytes, whatever the file system's are (stat(2)).
        bytes = bytes.saturating_add(found.blocks().saturating_mul(512));
        if found.is_dir() {
            open.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|e| e.path()));
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_what_is_taken_on_the_disk() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("a");
        fs::create_dir_all(folder.join("b")).unwrap();
        let empty = disk_bytes(&folder);
        fs::File::create(folder.join("sparse")).unwrap().set_len(1 << 30).unwrap();
        assert!(disk_bytes(&folder) < empty + (1 << 20));
        let file = folder.join("b/file");
        fs::write(&file, vec![1; 1 << 20]).unwrap();
        fs::File::open(&file).unwrap().sync_all().unwrap();
        assert!(disk_bytes(&folder) >= empty + (1 << 20));
        std::os::unix::fs::symlink("/usr", folder.join("link")).unwrap();
        assert!(disk_bytes(&folder) < empty + (3 << 20));
        assert_eq!(disk_bytes(Path::new("/nonexistent")), 0);
    }

    #[test]
    fn what_is_not_ours_is_not_asked_for_its_condition() {
        let folder = tempfile::tempdir().unwrap();
        let look = Kept::look(folder.path().to_owned(), |_| Condition::Ready);
        assert_eq!((look.condition, look.in_use), (Condition::Ready, false));
        let look = Kept::look(PathBuf::from("/nonexistent"), |_| unreachable!());
        assert_eq!(look.condition, Condition::Foreign);
    }
}
