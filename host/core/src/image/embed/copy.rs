//! A copy of a folder with all that a root may hold: owners, modes, times, links, hard links, extended attributes, devices.
//!
//! cp(1) of GNU makes it: there is no other program on every host that keeps all of these.

use crate::dirs::folder_of;
use crate::host::{MAKE_ROOM, hint_of_io};
use nix::unistd::geteuid;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// So often it is looked whether the copy is wanted still.
const TICK: Duration = Duration::from_millis(20);

/// There is no copy.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// What would be overwritten.
    #[error("`{path}` is there already", path = path.display())]
    Exists {
        /// The file or folder.
        path: PathBuf,
    },
    /// It would be in itself.
    #[error("`{to}` is in `{from}`, of which it is to be a copy", to = to.display(), from = from.display())]
    Within {
        /// What is to be copied.
        from: PathBuf,
        /// Where to.
        to: PathBuf,
    },
    /// Its owners would be lost.
    #[error("`{path}` belongs to user {owner}, and only root can make a copy that does, too", path = path.display())]
    Owner {
        /// A file in it.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// A file or folder.
    #[error("cannot copy `{path}`", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The copy.
    #[error("cannot write `{path}`", path = path.display())]
    Write {
        /// Where it is to be.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// cp(1).
    #[error("cannot copy `{path}`: {said}", path = path.display())]
    Failed {
        /// What is to be copied.
        path: PathBuf,
        /// What cp(1) says.
        said: String,
    },
    /// Cancelled by the caller.
    #[error("cancelled")]
    Cancelled,
}

impl CopyError {
    /// What mends it, where that is known.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Exists { .. } => Some("name a place where nothing is"),
            Self::Within { .. } => Some("name a place outside of it"),
            Self::Owner { .. } => Some("run this as root; --in-place and --dry-run copy nothing"),
            Self::Io { source, .. } | Self::Write { source, .. } => hint_of_io(source),
            Self::Failed { said, .. } if said.contains("No space left") => Some(MAKE_ROOM),
            _ => None,
        }
    }
}

/// Copies a folder to where nothing is.
///
/// # Errors
/// [`CopyError`]; what was copied so far is at `to`, and is the caller's to remove.
pub fn copy_folder(from: &Path, to: &Path, cancel: &CancellationToken) -> Result<(), CopyError> {
    if to.symlink_metadata().is_ok() {
        return Err(CopyError::Exists { path: to.to_owned() });
    }
    let wrong = |path: &Path, source| CopyError::Io { path: path.to_owned(), source };
    let whole = from.canonicalize().map_err(|source| wrong(from, source))?;
    let above = folder_of(to);
    let above = above.canonicalize().map_err(|source| wrong(above, source))?;
    if above.starts_with(&whole) {
        return Err(CopyError::Within { from: from.to_owned(), to: to.to_owned() });
    }
    if !geteuid().is_root() {
        check_owners(&whole, cancel)?;
    }
    let mut cp = Command::new("cp");
    cp.args(["-a", "--reflink=auto", "-T", "--"]).arg(&whole).arg(to).env("LC_ALL", "C");
    cp.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    crate::sys::die_with_us(&mut cp);
    let mut cp = cp.spawn().map_err(|source| wrong(from, source))?;
    let said = cp.stderr.take();
    // It says more than a pipe holds when much of it fails.
    let listen = std::thread::spawn(move || {
        let mut text = Vec::new();
        if let Some(said) = said {
            let _ = said.take(1 << 20).read_to_end(&mut text);
        }
        String::from_utf8_lossy(&text).into_owned()
    });
    let ended = wait(&mut cp, cancel);
    let said = listen.join().unwrap_or_default();
    match ended.map_err(|source| wrong(from, source))? {
        None => Err(CopyError::Cancelled),
        Some(true) => Ok(()),
        Some(false) => {
            let line = said.lines().next().unwrap_or("cp failed");
            let line = line.trim_start_matches("cp: ");
            let said = crate::text::one_line(line, 300);
            Err(CopyError::Failed { path: from.to_owned(), said })
        }
    }
}

/// Did it end well? None when it was not wanted any more.
fn wait(child: &mut Child, cancel: &CancellationToken) -> io::Result<Option<bool>> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status.success()));
        }
        if cancel.is_cancelled() {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(TICK);
    }
}

/// An ordinary user's copy of what others own would be another root: cp(1) says nothing about it.
fn check_owners(folder: &Path, cancel: &CancellationToken) -> Result<(), CopyError> {
    let me = geteuid().as_raw();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        if cancel.is_cancelled() {
            return Err(CopyError::Cancelled);
        }
        let wrong = |source| CopyError::Io { path: folder.clone(), source };
        for entry in std::fs::read_dir(&folder).map_err(wrong)? {
            let entry = entry.map_err(wrong)?;
            let found = entry.metadata().map_err(wrong)?;
            if found.uid() != me {
                return Err(CopyError::Owner { path: entry.path(), owner: found.uid() });
            }
            if found.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    Ok(())
}
