//! A folder that is worked on: in place, or as a copy that has its name only when all is done.

use super::beside::Beside;
use super::copy::{CopyError, copy_folder};
use super::folder::FolderRoot;
use super::tree::EmbedError;
use super::work::{Work, Worked};
use std::io;
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
    let wrong = |source| CopyError::Write { path: to.clone(), source };
    let beside = Beside::new(to).map_err(wrong)?;
    let copy = beside.copy();
    copy_folder(folder, &copy, cancel)?;
    let worked = work.run(&mut FolderRoot::new(&copy), true)?;
    if cancel.is_cancelled() {
        return Err(CopyError::Cancelled.into());
    }
    beside.publish(to).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => CopyError::Exists { path: to.clone() },
        _ => wrong(error),
    })?;
    Ok(worked)
}
