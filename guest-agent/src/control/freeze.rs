//! Freezing file systems, so that a snapshot of their disk is one that was in order (ioctl_fsfreeze(2)).
//!
//! Who has frozen what, and thaws it when a session ends, is not known here. A frozen file system holds whoever writes
//! to it, so nothing here writes.

use super::{open, path, quoted, refused, unsupported};
use crate::sys::system;
use guestline_protocol::RemoteError;
use nix::errno::Errno;
use nix::libc::O_DIRECTORY;
use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

/// Writes what is to be written, and then stops writing to the file system that is mounted at a path.
///
/// # Errors
/// Not found; unsupported by file systems without a disk; else what the kernel says, `EBUSY` if it is frozen.
pub(crate) fn freeze(at: &[u8]) -> Result<(), RemoteError> {
    let at = path(at)?;
    let folder = open(at, O_DIRECTORY)?;
    system::freeze(folder.as_fd()).map_err(|errno| freeze_error(&place(at, &folder), errno))
}

/// Goes on writing.
///
/// # Errors
/// Not found; else what the kernel says, `EINVAL` if it is not frozen.
pub(crate) fn thaw(at: &[u8]) -> Result<(), RemoteError> {
    let at = path(at)?;
    let folder = open(at, O_DIRECTORY)?;
    system::thaw(folder.as_fd()).map_err(|errno| thaw_error(&place(at, &folder), errno))
}

fn freeze_error(place: &str, errno: Errno) -> RemoteError {
    match errno {
        Errno::EOPNOTSUPP => unsupported(format!("{place} cannot be frozen"), errno),
        Errno::EBUSY => refused(&format!("{place} is frozen already"), errno),
        errno => refused(&format!("freezing {place}"), errno),
    }
}

fn thaw_error(place: &str, errno: Errno) -> RemoteError {
    match errno {
        Errno::EINVAL => refused(&format!("{place} is not frozen"), errno),
        errno => refused(&format!("thawing {place}"), errno),
    }
}

/// How messages call the file system that an open folder is on.
fn place(at: &Path, folder: &File) -> String {
    let at = quoted(at);
    match file_system(folder) {
        Some(kind) => format!("file system `{kind}` at {at}"),
        None => format!("file system at {at}"),
    }
}

/// The type of an open file's file system, by the mount that it was opened on (proc_pid_fdinfo(5),
/// proc_pid_mountinfo(5)).
fn file_system(file: &File) -> Option<String> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).ok()?;
    let mount = info.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim();
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let line = mounts.lines().find(|line| line.split(' ').next() == Some(mount))?;
    // A lone hyphen ends the optional fields.
    line.split(' ').skip_while(|field| *field != "-").nth(1).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use guestline_protocol::ErrorKind;

    #[test]
    fn file_systems_are_named() {
        let proc = open(Path::new("/proc/self"), O_DIRECTORY).unwrap();
        let place = place(Path::new("/proc/self"), &proc);
        assert_eq!(place, "file system `proc` at `/proc/self`");
        let error = freeze_error(&place, Errno::EOPNOTSUPP);
        assert_eq!(error.kind, ErrorKind::Unsupported);
        assert_eq!(error.message, "file system `proc` at `/proc/self` cannot be frozen");
        let error = freeze_error(&place, Errno::EBUSY);
        assert_eq!((error.kind, error.errno), (ErrorKind::System, Some(16)));
        assert!(thaw_error(&place, Errno::EINVAL).message.contains("is not frozen"));
        assert!(thaw_error(&place, Errno::EPERM).message.starts_with("thawing file system"));
    }

    #[test]
    fn only_folders_can_be_frozen() {
        // None of these reaches the ioctl.
        assert_eq!(freeze(b"/no/such").unwrap_err().kind, ErrorKind::NotFound);
        assert_eq!(thaw(b"/no/such").unwrap_err().message, "`/no/such`: No such file or directory");
        assert_eq!(freeze(b"/dev/null").unwrap_err().message, "`/dev/null`: Not a directory");
        assert_eq!(freeze(b"").unwrap_err().kind, ErrorKind::Invalid);
        assert_eq!(thaw(b"a\0b").unwrap_err().kind, ErrorKind::Invalid);
    }
}
