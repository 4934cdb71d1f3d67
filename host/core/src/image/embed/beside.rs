//! A folder in which a copy is made beside where it is to be.

use crate::dirs::folder_of;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// It goes with all that is in it, also where its owner has let nobody write.
pub(crate) struct Beside(TempDir);

impl Beside {
    /// In the folder of a place.
    ///
    /// # Errors
    /// What making it gives.
    pub(crate) fn new(place: &Path) -> io::Result<Self> {
        tempfile::Builder::new().prefix(".guestline-").tempdir_in(folder_of(place)).map(Self)
    }

    /// Where the copy is made.
    pub(crate) fn copy(&self) -> PathBuf {
        self.0.path().join("copy")
    }

    /// Gives the copy its name.
    ///
    /// # Errors
    /// `AlreadyExists` where something is, and what renaming gives.
    pub(crate) fn publish(self, place: &Path) -> io::Result<()> {
        let (copy, new) = (self.copy(), RenameFlags::RENAME_NOREPLACE);
        Ok(renameat2(AT_FDCWD, &copy, AT_FDCWD, place, new)?)
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        if fs::remove_dir_all(self.0.path()).is_err() {
            open_folders(self.0.path());
        }
    }
}

/// Lets their owner change folders.
fn open_folders(folder: &Path) {
    let _ = fs::set_permissions(folder, Permissions::from_mode(0o700));
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            open_folders(&entry.path());
        }
    }
}
