//! Digests of folders of this host: what is in them, and, much sooner told, whether anything about them has changed.

use crate::digest::{Digest, Hasher};
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Of names, sizes, times and inodes (stat(2)): another one when anything was written to, also with the same content.
///
/// # Errors
/// What looking at one of them gives.
pub(super) fn of_state(folder: &Path) -> io::Result<Digest> {
    walk(folder, |hasher, _, found| {
        let times = (found.mtime(), found.mtime_nsec(), found.ctime(), found.ctime_nsec());
        let owner = (found.uid(), found.gid());
        hasher.update(format!(" {owner:?} {} {times:?}", found.ino()).as_bytes());
        Ok(())
    })
}

/// Of names, permissions and content: the same on every host.
///
/// # Errors
/// What reading one of them gives.
pub fn of_content(path: &Path) -> io::Result<Digest> {
    walk(path, |hasher, path, found| {
        if found.is_symlink() {
            hasher.update(format!(" {:?}", fs::read_link(path)?).as_bytes());
        }
        if !found.is_file() {
            return Ok(());
        }
        let (mut file, mut piece) = (File::open(path)?, vec![0; 1 << 18]);
        loop {
            match file.read(&mut piece)? {
                0 => return Ok(()),
                count => hasher.update(piece.get(..count).unwrap_or_default()),
            }
        }
    })
}

/// All of a folder in one order, by names relative to it; what the path itself leads to is meant.
fn walk(
    path: &Path,
    more: impl Fn(&mut Hasher, &Path, &Metadata) -> io::Result<()>,
) -> io::Result<Digest> {
    let top = fs::canonicalize(path)?;
    let (mut hasher, mut open) = (Hasher::default(), vec![top.clone()]);
    while let Some(path) = open.pop() {
        let found = fs::symlink_metadata(&path)?;
        let name = path.strip_prefix(&top).unwrap_or(&path);
        hasher.update(format!("\n{name:?} {:o} {}", found.mode(), len(&found)).as_bytes());
        more(&mut hasher, &path, &found)?;
        if found.is_dir() {
            let entries = fs::read_dir(&path)?.collect::<io::Result<Vec<_>>>()?;
            let mut paths: Vec<PathBuf> = entries.iter().map(fs::DirEntry::path).collect();
            paths.sort();
            open.extend(paths);
        }
    }
    Ok(hasher.finish())
}

/// Of a folder it depends on the file system.
fn len(found: &Metadata) -> u64 {
    if found.is_dir() { 0 } else { found.len() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_content_elsewhere_is_the_same_and_a_changed_one_is_not() {
        let [one, other] = [(), ()].map(|()| tempfile::tempdir().unwrap());
        for folder in [&one, &other] {
            fs::create_dir(folder.path().join("a")).unwrap();
            fs::write(folder.path().join("a/file"), "content").unwrap();
            std::os::unix::fs::symlink("a/file", folder.path().join("link")).unwrap();
        }
        let digest = of_content(one.path()).unwrap();
        assert_eq!(of_content(other.path()).unwrap(), digest);
        let state = of_state(one.path()).unwrap();
        assert_eq!(of_state(one.path()).unwrap(), state);
        assert_ne!(of_state(other.path()).unwrap(), state);
        fs::write(one.path().join("a/file"), "CONTENT").unwrap();
        assert_ne!(of_content(one.path()).unwrap(), digest);
        assert_ne!(of_state(one.path()).unwrap(), state);
    }
}
