//! What is made once and kept in the cache folder: folders of files under a key, each sealed, and locked by who uses it.
//!
//! ```text
//! CACHE/KIND/1/KEY/   files, seal.json, lock
//! ```

use crate::digest::Digest;
use crate::dirs::{Dirs, make_private};
use crate::folder_lock::{FolderLock, LOCK};
use crate::kept::{Condition, Kept, folders};
use crate::seal::FileSeal;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

const SEAL: &str = "seal.json";
const MAKING: &str = ".making-";

/// What is older was left by the dead, in seconds: makers take less.
const DEAD: u64 = 600;

/// So often, and so long between, is waited for who uses what is damaged: it may be who removes it.
const TRIES: u32 = 20;
const MOMENT: Duration = Duration::from_millis(5);

/// The folders of one kind.
#[derive(Debug, Clone)]
pub(crate) struct Drawer {
    folder: PathBuf,
}

/// A folder that is not removed while this is there.
#[derive(Debug, Clone)]
pub(crate) struct Drawn {
    folder: PathBuf,
    files: Vec<SealedFile>,
    _lock: Arc<FolderLock>,
}

impl Drawn {
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The digest of a file of it.
    pub(crate) fn digest(&self, name: &str) -> Option<&Digest> {
        self.files.iter().find(|file| file.seal.name == name).map(|file| &file.sha256)
    }
}

impl Drawer {
    /// Kernels that were unpacked.
    pub(crate) fn of_kernels(dirs: &Dirs) -> Self {
        Self { folder: dirs.cache.join("kernels/1") }
    }

    /// Modules that were packed.
    pub(crate) fn of_modules(dirs: &Dirs) -> Self {
        Self { folder: dirs.cache.join("modules/1") }
    }

    /// The folder of a key; when there is none, or it is damaged, `make` writes its files.
    ///
    /// # Errors
    /// What making it gives.
    pub(crate) fn get<E: From<io::Error>>(
        &self,
        key: &str,
        make: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<Drawn, E> {
        let folder = self.folder.join(key);
        if let Some(drawn) = open(&folder) {
            return Ok(drawn);
        }
        fs::create_dir_all(self.folder.parent().unwrap_or(&self.folder))?;
        make_private(&self.folder)?;
        self.sweep();
        let making = tempfile::Builder::new().prefix(MAKING).tempdir_in(&self.folder)?;
        make(making.path())?;
        let sealed = serde_json::to_vec(&seal_of(making.path())?).map_err(io::Error::from)?;
        fs::write(making.path().join(SEAL), sealed)?;
        FolderLock::make(making.path())?;
        Ok(put_in_place(making, &folder)?)
    }

    /// Removes what the dead left behind.
    fn sweep(&self) {
        for left in folders(&self.folder) {
            let is_making =
                left.file_name().is_some_and(|name| name.to_string_lossy().starts_with(MAKING));
            let age = fs::metadata(&left).and_then(|found| found.modified()).ok();
            let is_old =
                age.and_then(|age| age.elapsed().ok()).is_some_and(|age| age.as_secs() > DEAD);
            if is_making && is_old {
                let _ = fs::remove_dir_all(left);
            }
        }
    }

    /// All that is there.
    pub(crate) fn kept(&self) -> Vec<Kept> {
        let condition = |folder: &Path| {
            let name = folder.file_name().unwrap_or_default().to_string_lossy();
            match difference(folder) {
                _ if name.starts_with(MAKING) => Condition::Making,
                Ok(_) => Condition::Ready,
                Err(why) => Condition::Damaged(why),
            }
        };
        folders(&self.folder).into_iter().map(|folder| Kept::look(folder, condition)).collect()
    }

    /// Removes a folder, unless somebody uses it; false then.
    ///
    /// # Errors
    /// What removing it gives.
    pub(crate) fn remove(&self, kept: &Kept) -> io::Result<bool> {
        let _lock = match FolderLock::exclusive(&kept.folder) {
            Ok(Some(lock)) => Some(lock),
            Ok(None) => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        fs::remove_dir_all(&kept.folder).map(|()| true)
    }
}

/// Moves what was made to its place, or takes what somebody put there who was quicker. What is damaged there goes, unless
/// somebody uses it.
fn put_in_place(making: TempDir, folder: &Path) -> io::Result<Drawn> {
    for _ in 0..TRIES {
        match fs::rename(making.path(), folder) {
            Ok(()) => {
                let _ = making.keep();
                return open(folder).ok_or_else(|| io::ErrorKind::NotFound.into());
            }
            Err(error) if is_taken(&error) => {}
            Err(error) => return Err(error),
        }
        if let Some(drawn) = open(folder) {
            return Ok(drawn);
        }
        match remove_damaged(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
            Ok(true) => {}
            Ok(false) => std::thread::sleep(MOMENT),
        }
    }
    let why = format!("`{}` is damaged, and in use", folder.display());
    Err(io::Error::new(io::ErrorKind::ResourceBusy, why))
}

/// Is there something where a folder was to be moved to (rename(2))?
fn is_taken(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists)
}

/// Removes a damaged folder, unless somebody uses it; false then.
fn remove_damaged(folder: &Path) -> io::Result<bool> {
    FolderLock::make(folder)?;
    let Some(_lock) = FolderLock::exclusive(folder)? else { return Ok(false) };
    // Somebody else may have put a whole one there before it was locked.
    if difference(folder).is_err() {
        fs::remove_dir_all(folder)?;
    }
    Ok(true)
}

fn open(folder: &Path) -> Option<Drawn> {
    let lock = match FolderLock::shared(folder) {
        Ok(Some(lock)) => lock,
        _ => return None,
    };
    let files = difference(folder).ok()?;
    lock.note_use();
    Some(Drawn { folder: folder.to_owned(), files, _lock: Arc::new(lock) })
}

/// Reads all of it. Says what is wrong.
///
/// # Errors
/// In words.
pub(crate) fn verify(kept: &Kept) -> Result<(), String> {
    for SealedFile { seal, sha256 } in sealed(&kept.folder)? {
        let name = &seal.name;
        let found = Digest::of_file(&kept.folder.join(name));
        if found.map_err(|error| format!("{name}: {error}"))? != sha256 {
            return Err(format!("{name} has another content"));
        }
    }
    Ok(())
}

/// The files, when they are what was made; else what is different.
fn difference(folder: &Path) -> Result<Vec<SealedFile>, String> {
    let files = sealed(folder)?;
    for SealedFile { seal, .. } in &files {
        let found = fs::symlink_metadata(folder.join(&seal.name));
        let found = found.map_err(|error| format!("{}: {error}", seal.name))?;
        if let Some(difference) = seal.difference(&found) {
            return Err(difference);
        }
    }
    Ok(files)
}

/// What a file was when it was made.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct SealedFile {
    #[serde(rename = "file")]
    seal: FileSeal,
    sha256: Digest,
}

fn sealed(folder: &Path) -> Result<Vec<SealedFile>, String> {
    let text = fs::read(folder.join(SEAL)).map_err(|error| format!("{SEAL}: {error}"))?;
    let files = serde_json::from_slice(&text).map_err(|error| format!("{SEAL}: {error}"))?;
    Ok(files)
}

fn seal_of(folder: &Path) -> io::Result<Vec<SealedFile>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let found = fs::symlink_metadata(entry.path())?;
        if found.is_file() && name != LOCK {
            let sha256 = Digest::of_file(&entry.path())?;
            files.push(SealedFile { seal: FileSeal::of(&name, &found), sha256 });
        }
    }
    files.sort_by(|a, b| a.seal.name.cmp(&b.seal.name));
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_made_once_and_anew_when_it_is_damaged() {
        let home = tempfile::tempdir().unwrap();
        let drawer = Drawer::of_modules(&Dirs::below(home.path()));
        let make = |text: &'static str| {
            let made = drawer.get("key", |folder| fs::write(folder.join("file"), text));
            let made = made.unwrap();
            (fs::read_to_string(made.folder().join("file")).unwrap(), made)
        };
        let (text, first) = make("first");
        assert_eq!(text, "first");
        assert_eq!(first.digest("file"), Some(&Digest::of(b"first")));
        assert_eq!(make("second").0, "first");
        let kept = || drawer.kept().remove(0);
        assert!(kept().in_use && kept().condition == Condition::Ready);
        assert!(!drawer.remove(&kept()).unwrap());
        drop(first);
        fs::write(kept().folder.join("file"), "other").unwrap();
        assert!(matches!(kept().condition, Condition::Damaged(_)));
        assert_eq!(verify(&kept()), Err("file has another content".to_owned()));
        assert_eq!(make("third").0, "third");
        assert_eq!(verify(&kept()), Ok(()));
        assert!(drawer.remove(&kept()).unwrap() && drawer.kept().is_empty());
        let failed = drawer.get("key", |_| Err(io::Error::from(io::ErrorKind::StorageFull)));
        assert!(failed.is_err() && drawer.kept().is_empty());
    }

    #[test]
    fn what_somebody_else_was_quicker_with_is_taken_and_kept() {
        let home = tempfile::tempdir().unwrap();
        let drawer = Drawer::of_modules(&Dirs::below(home.path()));
        let write = |folder: &Path, text: &str| fs::write(folder.join("file"), text);
        let mut quicker = None;
        let drawn = drawer.get("key", |folder| {
            quicker = Some(drawer.get("key", |folder| write(folder, "quicker"))?);
            write(folder, "slower")
        });
        let text = |drawn: &Drawn| fs::read_to_string(drawn.folder().join("file")).unwrap();
        assert_eq!(text(&drawn.unwrap()), "quicker");
        assert_eq!(drawer.kept().len(), 1);
        let used = quicker.unwrap();
        write(used.folder(), "damaged").unwrap();
        let refused = drawer.get("key", |folder| write(folder, "new")).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ResourceBusy);
        assert_eq!(text(&used), "damaged");
        fs::remove_file(used.folder().join(LOCK)).unwrap();
        drop(used);
        assert_eq!(text(&drawer.get("key", |folder| write(folder, "new")).unwrap()), "new");
    }
}
