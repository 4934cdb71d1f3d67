//! What stat(2) says, in the protocol's words.

use guestline_protocol::{ByteBuf, DeviceNumber, FileInfo, FileKind, FileTime};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, major, minor};
use std::ffi::{CStr, CString};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStringExt;

/// Permission bits with set-user-ID, set-group-ID and sticky.
pub(crate) const MODE_BITS: u32 = 0o7777;

/// What a file is.
pub(crate) fn kind_of(stat: &FileStat) -> FileKind {
    match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
        SFlag::S_IFREG => FileKind::File,
        SFlag::S_IFDIR => FileKind::Folder,
        SFlag::S_IFLNK => FileKind::Symlink,
        SFlag::S_IFCHR => FileKind::CharDevice,
        SFlag::S_IFBLK => FileKind::BlockDevice,
        SFlag::S_IFIFO => FileKind::Pipe,
        // There is no other.
        _ => FileKind::Socket,
    }
}

/// Its permissions.
pub(crate) fn mode_of(stat: &FileStat) -> u32 {
    stat.st_mode & MODE_BITS
}

/// Its length, in bytes.
pub(crate) fn len_of(stat: &FileStat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}

/// Bytes that it takes on its file system.
pub(crate) fn stored(stat: &FileStat) -> u64 {
    u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512)
}

/// How many names its inode has: a number of 32 bits on some architectures.
#[allow(clippy::useless_conversion, reason = "it has 64 bits on others")]
fn links(stat: &FileStat) -> u64 {
    stat.st_nlink.into()
}

/// The time of the last change of its content.
pub(crate) fn modified(stat: &FileStat) -> FileTime {
    FileTime { seconds: stat.st_mtime, nanos: u32::try_from(stat.st_mtime_nsec).unwrap_or(0) }
}

/// Which device it is, zeros if none.
pub(crate) fn device_of(stat: &FileStat) -> DeviceNumber {
    let part = |number| u32::try_from(number).unwrap_or(0);
    DeviceNumber { major: part(major(stat.st_rdev)), minor: part(minor(stat.st_rdev)) }
}

/// All of it, for a thing of this name in a folder.
pub(crate) fn info_of(at: BorrowedFd<'_>, name: &CStr, stat: &FileStat) -> FileInfo {
    let kind = kind_of(stat);
    let is_device = matches!(kind, FileKind::CharDevice | FileKind::BlockDevice);
    FileInfo {
        kind,
        mode: mode_of(stat),
        uid: stat.st_uid,
        gid: stat.st_gid,
        len: len_of(stat),
        stored: stored(stat),
        links: links(stat),
        modified: modified(stat),
        device: is_device.then(|| device_of(stat)),
        target: (kind == FileKind::Symlink).then(|| link_target(at, name).ok()).flatten(),
    }
}

/// What a symbolic link says.
pub(crate) fn link_target(at: BorrowedFd<'_>, name: &CStr) -> Result<ByteBuf, Errno> {
    readlinkat(at, name).map(|target| ByteBuf::from(target.into_vec()))
}

/// The names in a folder without `.` and `..`, in no order; it stops after `most`.
pub(crate) fn names(folder: BorrowedFd<'_>, most: usize) -> Result<Vec<CString>, Errno> {
    let flags = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);
    let mut names = Vec::new();
    for entry in Dir::openat(folder, c".", flags, Mode::empty())?.iter() {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
        if names.len() >= most {
            break;
        }
    }
    Ok(names)
}
