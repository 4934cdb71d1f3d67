//! What the host may ask of the guest as a whole: its clock, randomness, identity and end, its file systems'
//! freezing, what it is and what it is busy with.
//!
//! ```text
//! SetClock ─ clock     Identity ─ identity ─ net      Freeze, Thaw ─ freeze     Facts  ─ facts
//! AddEntropy ─ entropy Power ─ power                                            Sample ─ usage
//! ```
//! All of it is plain functions that block, for the agent's worker threads; they keep nothing between two calls.
//! A refusal names the object and the value, and leaves done what was done before it: requests are checked as a whole
//! before anything is touched, and each part can be asked for again. Nothing here retries.

pub(crate) mod clock;
pub(crate) mod entropy;
pub(crate) mod facts;
pub(crate) mod freeze;
pub(crate) mod identity;
mod net;
pub(crate) mod power;
pub(crate) mod usage;

pub(crate) use crate::refusal::{errno, invalid};
use guestline_files::describe;
use guestline_protocol::{ErrorKind, RemoteError};
use nix::errno::Errno;
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// This guest cannot do that.
pub(crate) fn unsupported(message: String, errno: Errno) -> RemoteError {
    RemoteError { kind: ErrorKind::Unsupported, errno: Some(errno as i32), message }
}

/// The kernel refused: `object` is what it was about, and ends up in the message before the reason.
pub(crate) fn refused(object: &str, errno: Errno) -> RemoteError {
    let kind = if errno == Errno::ENOENT { ErrorKind::NotFound } else { ErrorKind::System };
    RemoteError {
        kind,
        errno: Some(errno as i32),
        message: format!("{object}: {}", describe(errno)),
    }
}

/// How messages show a path.
pub(crate) fn quoted(path: &Path) -> String {
    format!("`{}`", path.display())
}

/// Takes a path from the host.
///
/// # Errors
/// [`ErrorKind::Invalid`] when it is empty or has a NUL byte.
pub(crate) fn path(bytes: &[u8]) -> Result<&Path, RemoteError> {
    let path = Path::new(OsStr::from_bytes(bytes));
    if bytes.is_empty() {
        return Err(invalid("the path is empty".to_owned()));
    }
    if bytes.contains(&0) {
        return Err(invalid(format!("the path {} has a NUL byte", quoted(path))));
    }
    Ok(path)
}

/// Opens for reading without ever waiting: not for a writer of a fifo, not for a terminal's carrier.
///
/// # Errors
/// Names the path.
pub(crate) fn open(path: &Path, flags: i32) -> Result<File, RemoteError> {
    let flags = flags | nix::libc::O_NONBLOCK | nix::libc::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path);
    file.map_err(|error| refused(&quoted(path), errno(&error)))
}

/// Reads the beginning of a file, at most `limit` bytes.
fn read_start(path: &Path, limit: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(limit).unwrap_or(u64::MAX);
    File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
pub(crate) mod testing {
    //! Tests that need namespaces of their own.

    use std::process::Command;

    /// Runs the test of this path once more in network and mount namespaces of its own; true when this is that run.
    /// Without the right to namespaces the test is left out.
    pub(crate) fn in_namespaces(module: &str, test: &str) -> bool {
        const INSIDE: &str = "GUESTLINE_TEST_NAMESPACES";
        if std::env::var_os(INSIDE).is_some() {
            return true;
        }
        let (_crate, module) = module.split_once("::").unwrap();
        let output = Command::new("unshare")
            .args(["--net", "--mount", "--"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", &format!("{module}::{test}"), "--nocapture"])
            .env(INSIDE, "1")
            .output();
        let Ok(output) = output else { return false };
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if text.contains("running 1 test") {
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{text}{errors}");
        } else {
            assert!(!text.contains("running 0 tests"), "no test {module}::{test}");
            eprintln!("left out, since there are no namespaces to be had");
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_name_object_and_reason() {
        let error = refused("`/etc/hostname`", Errno::EROFS);
        assert_eq!(error.message, "`/etc/hostname`: Read-only file system");
        assert_eq!((error.kind, error.errno), (ErrorKind::System, Some(30)));
        assert_eq!(refused("`/x`", Errno::ENOENT).kind, ErrorKind::NotFound);
        assert_eq!(open(Path::new("/no/such"), 0).unwrap_err().kind, ErrorKind::NotFound);
    }

    #[test]
    fn paths_that_no_kernel_takes_are_invalid() {
        assert_eq!(path(b"").unwrap_err().message, "the path is empty");
        assert_eq!(path(b"/a\0b").unwrap_err().kind, ErrorKind::Invalid);
        assert_eq!(path(b"/a").unwrap(), Path::new("/a"));
    }
}
