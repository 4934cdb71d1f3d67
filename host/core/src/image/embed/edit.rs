//! A folder that is worked on: in place, or as a copy that has its name only when all is done.

use super::copy::{CopyError, copy_folder};
use super::folder::FolderRoot;
use super::tree::EmbedError;
use super::work::{Work, Worked};
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use std::path::{Path, PathBuf};
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
    let wrong = |source| CopyError::Io { path: to.clone(), source };
    let above = to.parent().filter(|above| !above.as_os_str().is_empty());
    let mut making = tempfile::Builder::new();
    let making = making.prefix(".guestline-").tempdir_in(above.unwrap_or(Path::new(".")));
    let making = making.map_err(wrong)?;
    let copy = making.path().join("root");
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
