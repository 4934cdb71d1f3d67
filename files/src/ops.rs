//! Single questions and deeds: what is at a path, what is in a folder, make, remove.

use crate::info::{MODE_BITS, info_of, kind_of, names};
use crate::levels::FOLDER;
use crate::trouble::{errno_of, error, refused};
use guestline_protocol::{ByteBuf, ErrorKind, FileInfo, FileKind, FolderEntry, RemoteError};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, open};
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat, fstatat, lstat, stat as stat_at};
use nix::unistd::{mkdir, unlink};
use std::ffi::CString;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A folder with more entries is not listed.
pub const MAX_LISTED: usize = 100_000;

/// What is at a path; with `follow`, what a symbolic link there points to.
///
/// # Errors
/// It is not there, or the kernel does not say.
pub fn stat(path: &Path, follow: bool) -> Result<FileInfo, RemoteError> {
    let flags = if follow { AtFlags::empty() } else { AtFlags::AT_SYMLINK_NOFOLLOW };
    let info = c_path(path).and_then(|name| {
        let stat = fstatat(AT_FDCWD, &*name, flags)?;
        Ok(info_of(AT_FDCWD, &name, &stat))
    });
    info.map_err(|errno| named(path, errno))
}

/// What is in a folder, in no order; of a symbolic link, the link itself.
///
/// # Errors
/// It is no folder that can be read, or it has more than [`MAX_LISTED`] ([`ErrorKind::Busy`]).
pub fn list(path: &Path) -> Result<Vec<FolderEntry>, RemoteError> {
    let folder = open(path, FOLDER.difference(OFlag::O_NOFOLLOW), Mode::empty())
        .map_err(|errno| named(path, errno))?;
    let names =
        names(folder.as_fd(), MAX_LISTED.saturating_add(1)).map_err(|errno| named(path, errno))?;
    if names.len() > MAX_LISTED {
        return Err(error(ErrorKind::Busy, bytes(path), "more than 100000 entries"));
    }
    let entry = |name: CString| {
        let stat = fstatat(&folder, &*name, AtFlags::AT_SYMLINK_NOFOLLOW).ok();
        let info = stat.map(|stat| info_of(folder.as_fd(), &name, &stat));
        FolderEntry { name: ByteBuf::from(name.into_bytes()), info }
    };
    Ok(names.into_iter().map(entry).collect())
}

/// Makes a folder with exactly these permission bits. With `parents`, folders above it are made too as far as they
/// are not there, and that it is there itself is no error.
///
/// # Errors
/// It cannot be made.
pub fn make_folder(path: &Path, mode: u32, parents: bool) -> Result<(), RemoteError> {
    if let (true, Some(above)) = (parents, path.parent()) {
        std::fs::create_dir_all(above).map_err(|error| named(above, errno_of(&error)))?;
    }
    let mode = Mode::from_bits_truncate(mode & MODE_BITS);
    let made = match mkdir(path, mode) {
        // Once more, for the umask and for the bits that mkdir(2) ignores.
        Ok(()) => fchmodat(AT_FDCWD, path, mode, FchmodatFlags::NoFollowSymlink),
        Err(Errno::EEXIST) if parents && path.is_dir() => Ok(()),
        Err(errno) => Err(errno),
    };
    made.map_err(|errno| named(path, errno))
}

/// Removes a file, or a folder, with `recursive` not only an empty one; symbolic links are removed and never followed.
///
/// # Errors
/// It cannot be removed, or not all of it. It is not there, unless `missing_ok`. It is the root folder
/// ([`ErrorKind::Invalid`]).
pub fn remove(path: &Path, recursive: bool, missing_ok: bool) -> Result<(), RemoteError> {
    match try_remove(path, recursive) {
        Ok(true) => Ok(()),
        Ok(false) => Err(error(ErrorKind::Invalid, bytes(path), "the root folder stays")),
        Err(Errno::ENOENT) if missing_ok => Ok(()),
        Err(errno) => Err(named(path, errno)),
    }
}

/// Whether it may be removed; then it is.
fn try_remove(path: &Path, recursive: bool) -> Result<bool, Errno> {
    let (there, root) = (lstat(path)?, stat_at(c"/")?);
    if there.st_dev == root.st_dev && there.st_ino == root.st_ino {
        return Ok(false);
    }
    let removed = match (kind_of(&there) == FileKind::Folder, recursive) {
        // It goes down by descriptors, and does not follow what takes a folder's place meanwhile.
        (true, true) => std::fs::remove_dir_all(path),
        (true, false) => std::fs::remove_dir(path),
        (false, _) => return unlink(path).map(|()| true),
    };
    removed.map(|()| true).map_err(|error| errno_of(&error))
}

fn named(path: &Path, errno: Errno) -> RemoteError {
    refused(bytes(path), errno)
}

fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}

fn c_path(path: &Path) -> Result<CString, Errno> {
    CString::new(bytes(path)).map_err(|_| Errno::EINVAL)
}
