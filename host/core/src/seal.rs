//! What a file was when its content was last known to be right: cheap to compare, dear to fool.

use serde::{Deserialize, Serialize};
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

/// A file's size, identity, mode and times (stat(2)). A write changes the time of its last change, which no program can
/// set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileSeal {
    /// Its name in its folder.
    pub(crate) name: String,
    pub(crate) size: u64,
    inode: u64,
    mode: u32,
    owner: u32,
    mtime: (i64, i64),
    ctime: (i64, i64),
}

impl FileSeal {
    /// Of a file that was just looked at.
    pub(crate) fn of(name: &str, found: &Metadata) -> Self {
        Self {
            name: name.to_owned(),
            size: found.len(),
            inode: found.ino(),
            mode: found.mode(),
            owner: found.uid(),
            mtime: (found.mtime(), found.mtime_nsec()),
            ctime: (found.ctime(), found.ctime_nsec()),
        }
    }

    /// What is different about a file, for people; nothing when it is the same.
    pub(crate) fn difference(&self, found: &Metadata) -> Option<String> {
        let now = Self::of(&self.name, found);
        let name = &self.name;
        if !found.is_file() {
            return Some(format!("{name} is no file"));
        }
        if now.size != self.size {
            return Some(format!("{name} has {} bytes, not {}", now.size, self.size));
        }
        if (now.mode, now.owner) != (self.mode, self.owner) {
            return Some(format!("{name} has another owner or mode"));
        }
        if now.inode != self.inode {
            return Some(format!("{name} is another file"));
        }
        (now != *self).then(|| format!("{name} was written to"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn every_change_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ram");
        fs::write(&path, "content").unwrap();
        let look = || fs::symlink_metadata(&path).unwrap();
        let seal = FileSeal::of("ram", &look());
        assert_eq!(seal.difference(&look()), None);
        let different = |change: &dyn Fn()| {
            fs::remove_file(&path).unwrap();
            fs::write(&path, "content").unwrap();
            let seal = FileSeal::of("ram", &look());
            // Times have the grain of the kernel's clock tick (inode_set_ctime_current).
            std::thread::sleep(std::time::Duration::from_millis(20));
            change();
            seal.difference(&look()).unwrap()
        };
        let times = || fs::metadata(&path).unwrap().modified().unwrap();
        assert_eq!(different(&|| fs::write(&path, "con").unwrap()), "ram has 3 bytes, not 7");
        let same_times = || {
            let before = times();
            fs::write(&path, "CONTENT").unwrap();
            fs::File::options().write(true).open(&path).unwrap().set_modified(before).unwrap();
        };
        assert_eq!(different(&same_times), "ram was written to");
        let mode = || fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        assert_eq!(different(&mode), "ram has another owner or mode");
        let link = || {
            let real = folder.path().join("real");
            fs::rename(&path, &real).unwrap();
            std::os::unix::fs::symlink(&real, &path).unwrap();
        };
        assert_eq!(different(&link), "ram is no file");
        let another = || {
            fs::write(folder.path().join("new"), "content").unwrap();
            fs::rename(folder.path().join("new"), &path).unwrap();
        };
        assert!(["ram is another file", "ram was written to"].contains(&&*different(&another)));
    }
}
