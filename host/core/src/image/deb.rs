//! Reading a Debian package: its files, streamed through `dpkg-deb` (dpkg-deb(1), `--fsys-tarfile`).

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tokio_util::sync::CancellationToken;

/// A package cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum DebError {
    /// There is no program for it.
    #[error("cannot run `dpkg-deb`, which unpacks Debian packages")]
    NoProgram(#[source] io::Error),
    /// What it gives is no archive.
    #[error("cannot unpack `{path}`", path = path.display())]
    Unpack {
        /// The package.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Calls `take` with the path (without `./`) and content of each regular file that `want` wants.
pub(super) fn files(
    path: &Path,
    cancel: &CancellationToken,
    want: impl Fn(&str) -> bool,
    mut take: impl FnMut(String, Vec<u8>),
) -> Result<(), DebError> {
    let mut command = Command::new("dpkg-deb");
    command
        .arg("--fsys-tarfile")
        .arg(path)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    crate::sys::die_with_us(&mut command);
    let mut child = command.spawn().map_err(DebError::NoProgram)?;
    let fail = |source| DebError::Unpack { path: path.to_owned(), source };
    let result = (|| {
        let Some(stdout) = child.stdout.take() else {
            return Ok(());
        };
        let mut archive = tar::Archive::new(stdout);
        for entry in archive.entries()? {
            let mut entry = entry?;
            if cancel.is_cancelled() {
                return Err(io::Error::new(io::ErrorKind::Interrupted, "interrupted"));
            }
            let name = entry.path()?.to_string_lossy().trim_start_matches("./").to_owned();
            if entry.header().entry_type().is_file() && want(&name) {
                let mut content = Vec::new();
                entry.read_to_end(&mut content)?;
                take(name, content);
            }
        }
        Ok(())
    })();
    let output = child.wait_with_output().map_err(fail)?;
    if !output.status.success() && result.is_ok() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(fail(io::Error::other(said)));
    }
    result.map_err(fail)
}
