//! Files of tests, put together as they lie in their suite.

use super::execute::Executor;
use crate::job::Content;
use guestline::digest::Digest;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

impl Executor {
    /// The folder with the files of a test, made once for each set of files; none where there are no files.
    pub(super) async fn content(
        &self,
        content: &Content,
    ) -> Result<Option<PathBuf>, (String, io::Error)> {
        if content.files.is_empty() {
            return Ok(None);
        }
        let mut made = self.contents.lock().await;
        if let Some(folder) = made.get(content) {
            return Ok(Some(folder.clone()));
        }
        let folder = self.work.join(format!("content-{}", made.len()));
        let files: Vec<_> =
            content.files.iter().map(|file| (file.clone(), self.file(&file.digest))).collect();
        let to = folder.clone();
        let making = tokio::task::spawn_blocking(move || {
            files.iter().try_for_each(|(file, from)| {
                place(from, &to.join(&file.path), &file.digest, file.executable)
            })
        });
        let put = making.await.unwrap_or_else(|error| Err(io::Error::other(error)));
        put.map_err(|error| (folder.display().to_string(), error))?;
        made.insert(content.clone(), folder.clone());
        Ok(Some(folder))
    }
}

/// Copies a file, whose content has to be what the job says.
fn place(from: &Path, to: &Path, digest: &Digest, executable: bool) -> io::Result<()> {
    let content = fs::read(from)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", from.display())))?;
    if Digest::of(&content) != *digest {
        let why = format!("{} changed after the run was planned", from.display());
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(to, content)?;
    fs::set_permissions(to, fs::Permissions::from_mode(if executable { 0o755 } else { 0o644 }))
}
