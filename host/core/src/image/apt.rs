//! Packages through the host's own apt, which checks signatures; no root needed (apt-get(8), `download`).

use super::packages::{PackageError, Stanza, run};
use nix::unistd::Uid;
use std::path::{Path, PathBuf};
use std::process::Command;
use tokio_util::sync::CancellationToken;

/// Where [`show`] looks.
pub(super) const PLACE: &str = "this host's apt lists";

/// The candidate version's stanza.
pub(super) fn show(name: &str, cancel: &CancellationToken) -> Result<Stanza, PackageError> {
    let unknown = || PackageError::Unknown { name: name.to_owned(), place: PLACE.to_owned() };
    let shown = run(Command::new("apt-cache").args(["show", "--no-all-versions", name]), cancel);
    let text = shown.map_err(|error| match error {
        PackageError::Failed { .. } if !cancel.is_cancelled() => unknown(),
        other => other,
    })?;
    Stanza::parse(&String::from_utf8_lossy(&text)).ok_or_else(unknown)
}

/// Downloads it into a folder.
pub(super) fn download(
    stanza: &Stanza,
    folder: &Path,
    cancel: &CancellationToken,
) -> Result<PathBuf, PackageError> {
    let mut command = Command::new("apt-get");
    command.current_dir(folder).args(["-q", "download"]);
    if Uid::effective().is_root() {
        // Otherwise root's apt downloads as a user who may not enter our folder.
        command.args(["-o", "APT::Sandbox::User=root"]);
    }
    run(command.arg(format!("{}={}", stanza.name, stanza.version)), cancel)?;
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut packages = files.filter(|path| path.extension().is_some_and(|end| end == "deb"));
    packages.next().ok_or_else(|| PackageError::Failed {
        command: format!("apt-get download {}", stanza.name),
        said: "left no file".to_owned(),
    })
}
