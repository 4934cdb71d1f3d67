//! What this host is and has.

use nix::sys::statvfs::statvfs;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// Another with each boot of the host (random(4)).
pub(crate) fn boot_id() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().to_owned()
}

/// Where an open file is for any process of the user, whether it has a name or not; there as long as it is open (proc_pid_fd(5)).
pub(crate) fn open_path(file: &File) -> PathBuf {
    format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()).into()
}

/// What an ordinary user may still write to the disk of a folder, MiB (statvfs(3)).
///
/// # Errors
/// The folder is not there, or cannot be asked.
pub fn free_mib(folder: &Path) -> std::io::Result<u64> {
    let found = statvfs(folder)?;
    Ok(found.blocks_available().saturating_mul(found.fragment_size()) >> 20)
}

/// What makes room on a disk.
pub(crate) const MAKE_ROOM: &str = "make room on that disk: `guestline cache prune --all` removes what is made again when it is wanted";

/// What mends an error of the operating system with a file, where that is known.
pub(crate) fn hint_of_io(error: &std::io::Error) -> Option<&'static str> {
    use std::io::ErrorKind;
    Some(match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => MAKE_ROOM,
        ErrorKind::PermissionDenied => {
            "run this as its owner or as root, or let yourself in: chmod"
        }
        ErrorKind::ReadOnlyFilesystem => "name a place on a disk that can be written to",
        ErrorKind::FileTooLarge => "name a place on a file system that takes large files",
        ErrorKind::UnexpectedEof | ErrorKind::InvalidData => DAMAGED,
        _ => return None,
    })
}

/// What mends a file that came from elsewhere.
pub(crate) const DAMAGED: &str =
    "it is cut or damaged: fetch it or make it once more, and compare its checksum";
