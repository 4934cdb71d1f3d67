//! Finding QEMU, and knowing which version it is.

use super::args::READS_ONLY;
use crate::digest::Digest;
use crate::dirs::Dirs;
use crate::recall;
use crate::sys;
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fmt, fs, io};

/// The oldest QEMU that works: Debian 12's own.
pub const OLDEST_QEMU: QemuVersion = QemuVersion(7, 2);

/// Names the program to use instead of the one on `PATH`.
const QEMU_VARIABLE: &str = "GUESTLINE_QEMU";

/// How long it may take to say its version.
const PATIENCE: Duration = Duration::from_secs(10);

const PROGRAM: &str = "qemu-system-x86_64";

/// Major and minor version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct QemuVersion(pub u16, pub u16);

impl fmt::Display for QemuVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// A QEMU that can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Qemu {
    /// The program.
    pub path: PathBuf,
    /// Its version.
    pub version: QemuVersion,
    /// Digest of the program.
    pub digest: Digest,
}

/// There is no QEMU to use.
#[derive(Debug, thiserror::Error)]
pub enum QemuError {
    /// None on `PATH`.
    #[error("no `{PROGRAM}` on PATH")]
    Missing,
    /// The one named by the environment is not there.
    #[error("{QEMU_VARIABLE} names `{path}`, which is no program", path = path.display())]
    NotThere {
        /// As named.
        path: PathBuf,
    },
    /// It does not say its version.
    #[error("`{path} --version` {how}", path = path.display())]
    NoVersion {
        /// The program.
        path: PathBuf,
        /// What it did instead.
        how: String,
    },
    /// Older than [`OLDEST_QEMU`].
    #[error("`{path}` is QEMU {version}, too old: {OLDEST_QEMU} is the oldest that works", path = path.display())]
    TooOld {
        /// The program.
        path: PathBuf,
        /// Its version.
        version: QemuVersion,
    },
}

/// What is remembered of a program, and by what it is known again.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Remembered {
    path: PathBuf,
    size: u64,
    mtime: i64,
    inode: u64,
    version: QemuVersion,
    digest: Digest,
}

impl Qemu {
    /// The QEMU of this host. Asking it for its version takes 20 ms, its digest as long, so both are remembered in
    /// the cache folder as long as the program's file is the same.
    ///
    /// # Errors
    /// [`QemuError`].
    pub fn find(dirs: &Dirs) -> Result<Self, QemuError> {
        let path = match env::var_os(QEMU_VARIABLE) {
            Some(path) => {
                let path = PathBuf::from(path);
                if !is_program(&path) {
                    return Err(QemuError::NotThere { path });
                }
                path
            }
            None => on_path(OsStr::new(PROGRAM)).ok_or(QemuError::Missing)?,
        };
        Self::at(dirs, &path)
    }

    /// The QEMU whose program this is; else as [`Qemu::find`].
    ///
    /// # Errors
    /// [`QemuError`].
    pub fn at(dirs: &Dirs, path: &Path) -> Result<Self, QemuError> {
        let Remembered { path, version, digest, .. } = remembered(dirs, path)?;
        if version < OLDEST_QEMU {
            return Err(QemuError::TooOld { path, version });
        }
        Ok(Self { path, version, digest })
    }

    /// Does it open a memory file for reading only? Older ones want to write to it, though they do not.
    pub fn opens_read_only(&self) -> bool {
        self.version >= READS_ONLY
    }
}

/// The first program of this name on `PATH`.
pub fn on_path(name: &OsStr) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|folder| folder.join(name)).find(|path| is_program(path))
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

fn remembered(dirs: &Dirs, path: &Path) -> Result<Remembered, QemuError> {
    let cannot = |error: io::Error| QemuError::NoVersion {
        path: path.to_owned(),
        how: format!("cannot run: {error}"),
    };
    let found = fs::metadata(path).map_err(cannot)?;
    let (size, mtime, inode) = (found.len(), found.mtime(), found.ino());
    // A file for each, so that two that take turns do not make each other forgotten.
    let name = Digest::of(path.as_os_str().as_encoded_bytes());
    let name = format!("qemu-{}.json", name.short());
    let is_same = |known: &Remembered| {
        (&*known.path, known.size, known.mtime, known.inode) == (path, size, mtime, inode)
    };
    if let Some(known) = recall::recall(dirs, &name).filter(is_same) {
        return Ok(known);
    }
    let version = ask_version(path)?;
    let digest = Digest::of_file(path).map_err(cannot)?;
    let known = Remembered { path: path.to_owned(), size, mtime, inode, version, digest };
    recall::keep(dirs, &name, &known);
    Ok(known)
}

fn ask_version(path: &Path) -> Result<QemuVersion, QemuError> {
    let no_version = |how: String| QemuError::NoVersion { path: path.to_owned(), how };
    let cannot_run = |error: io::Error| no_version(format!("cannot run: {error}"));
    let mut command = Command::new(path);
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    sys::die_with_us(&mut command);
    let mut child = command.spawn().map_err(cannot_run)?;
    let started = Instant::now();
    while child.try_wait().map_err(cannot_run)?.is_none() {
        if started.elapsed() > PATIENCE {
            let _ = child.kill();
            let _ = child.wait();
            return Err(no_version(format!("says nothing within {PATIENCE:?}")));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let output = child.wait_with_output().map_err(cannot_run)?;
    if !output.status.success() {
        return Err(no_version(format!("ended with {}", output.status)));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    parse_version(&text).ok_or_else(|| {
        no_version(format!("says `{}`", text.lines().next().unwrap_or_default().escape_debug()))
    })
}

fn parse_version(text: &str) -> Option<QemuVersion> {
    let after = text.split("version ").nth(1)?;
    let mut numbers = after.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some(QemuVersion(numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_versions() {
        let debian =
            "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)\nCopyright";
        assert_eq!(parse_version(debian), Some(QemuVersion(10, 0)));
        assert_eq!(parse_version("QEMU emulator version 7.2"), Some(QemuVersion(7, 2)));
        assert_eq!(parse_version("hello"), None);
        assert_eq!(parse_version("version x"), None);
        assert!(QemuVersion(6, 9) < OLDEST_QEMU && QemuVersion(10, 0) > OLDEST_QEMU);
    }
}
