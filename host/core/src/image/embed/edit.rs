//! A folder that is worked on: in place, or as a copy that has its name only when all is done.

use super::copy::{CopyError, copy_folder};
use super::folder::FolderRoot;
use super::tree::EmbedError;
use super::work::{Work, Worked};
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

/// Where what was worked on is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Nowhere: it is only told what would be done.
    Nowhere,
    /// In the place of what it was.
    InPlace,
    /// Where nothing is.
    New(PathBuf),
}

/// A folder could not be worked on.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// The copy.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// The work.
    #[error(transparent)]
    Embed(#[from] EmbedError),
}

/// Works on a root folder.
///
/// # Errors
/// [`FolderError`]; there is no copy then.
pub fn edit_folder(
    folder: &Path,
    output: &Output,
    work: &Work,
    cancel: &CancellationToken,
) -> Result<Worked, FolderError> {
    let to = match output {
        Output::Nowhere => return Ok(work.run(&mut FolderRoot::new(folder), false)?),
        Output::InPlace => return Ok(work.run(&mut FolderRoot::new(folder), true)?),
        Output::New(to) => to,
    };
    if to.symlink_metadata().is_ok() {
        return Err(CopyError::Exists { path: to.clone() }.into());
    }
    // What cannot be done is told before much is copied.
    work.run(&mut FolderRoot::new(folder), false)?;
    let wrong = |source| CopyError::Write { path: to.clone(), source };
    let above = to.parent().filter(|above| !above.as_os_str().is_empty());
    let mut making = tempfile::Builder::new();
    let making = making.prefix(".guestline-").tempdir_in(above.unwrap_or(Path::new(".")));
    let making = Making(making.map_err(wrong)?);
    let copy = making.0.path().join("root");
    copy_folder(folder, &copy, cancel)?;
    let worked = work.run(&mut FolderRoot::new(&copy), true)?;
    if cancel.is_cancelled() {
        return Err(CopyError::Cancelled.into());
    }
    let named = renameat2(AT_FDCWD, &copy, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE);
    named.map_err(|error| match error {
        nix::Error::EEXIST => CopyError::Exists { path: to.clone() },
        error => wrong(error.into()),
    })?;
    Ok(worked)
}

/// A folder that goes with all that is in it, also where its owner has let nobody write.
struct Making(TempDir);

impl Drop for Making {
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
