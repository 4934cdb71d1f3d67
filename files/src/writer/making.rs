//! Makes one thing under a passing name, then gives it its own.

use super::WriteOptions;
use super::place::Named;
use crate::info::{MODE_BITS, kind_of};
use guestline_protocol::tree::TreeItem;
use guestline_protocol::{DeviceNumber, FileKind};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, renameat};
use nix::sys::stat::{
    FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, fstatat, futimens, makedev,
    mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, linkat, symlinkat, unlinkat};
use std::collections::hash_map::RandomState;
use std::ffi::{CStr, CString};
use std::hash::BuildHasher;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Set-user-ID and set-group-ID.
const SPECIAL_BITS: u32 = 0o6000;

/// What is said about an item besides its content.
#[derive(Debug)]
pub(super) struct Meta {
    mode: Mode,
    owner: Option<(Uid, Gid)>,
    modified: TimeSpec,
}

impl Meta {
    pub(super) fn new(item: &TreeItem, options: &WriteOptions) -> Self {
        let kept = if options.special_bits { MODE_BITS } else { MODE_BITS & !SPECIAL_BITS };
        Self {
            mode: Mode::from_bits_truncate(item.mode & kept),
            owner: options.owners.then(|| (Uid::from_raw(item.uid), Gid::from_raw(item.gid))),
            modified: TimeSpec::new(item.modified.seconds, item.modified.nanos.into()),
        }
    }

    /// Gives it to an open file or folder. The owner comes first, for a change of it clears bits of the mode.
    pub(super) fn apply(&self, file: &OwnedFd) -> Result<(), Errno> {
        if let Some((user, group)) = self.owner {
            fchown(file, Some(user), Some(group))?;
        }
        fchmod(file, self.mode)?;
        futimens(file, &TimeSpec::UTIME_OMIT, &self.modified)
    }

    /// Gives it to what cannot be opened; a symbolic link has no mode of its own.
    fn apply_at(&self, folder: &OwnedFd, name: &CStr, has_mode: bool) -> Result<(), Errno> {
        if let Some((user, group)) = self.owner {
            fchownat(folder, name, Some(user), Some(group), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        }
        if has_mode {
            fchmodat(folder, name, self.mode, FchmodatFlags::NoFollowSymlink)?;
        }
        let flags = UtimensatFlags::NoFollowSymlink;
        utimensat(folder, name, &TimeSpec::UTIME_OMIT, &self.modified, flags)
    }
}

/// A thing under a passing name, which goes unless it replaces another.
#[derive(Debug)]
pub(super) struct Temp {
    folder: Arc<OwnedFd>,
    name: CString,
    is_placed: bool,
}

impl Temp {
    /// Lets `make` make something that must not be there yet.
    pub(super) fn new<T>(
        folder: Arc<OwnedFd>,
        make: impl FnOnce(&OwnedFd, &CStr) -> Result<T, Errno>,
    ) -> Result<(Self, T), Errno> {
        // A name that nobody can foresee: the keys are drawn at random.
        let name = format!(".guestline-{:016x}", RandomState::new().hash_one(0_u8));
        let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
        let made = make(&folder, &name)?;
        Ok((Self { folder, name, is_placed: false }, made))
    }

    /// Takes the name, which nobody else has then.
    pub(super) fn replace(mut self, name: &CStr) -> Result<(), Errno> {
        self.rename(name)?;
        self.is_placed = true;
        Ok(())
    }

    fn rename(&self, name: &CStr) -> Result<(), Errno> {
        renameat(&*self.folder, self.name.as_c_str(), &*self.folder, name)
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        if !self.is_placed {
            let _ = unlinkat(&*self.folder, self.name.as_c_str(), UnlinkatFlags::NoRemoveDir);
        }
    }
}

/// Makes a symbolic link.
pub(super) fn make_symlink(
    folder: Arc<OwnedFd>,
    name: &CStr,
    target: &[u8],
    meta: &Meta,
) -> Result<(), Errno> {
    let target = CString::new(target).map_err(|_| Errno::EINVAL)?;
    let (temp, ()) = Temp::new(folder, |folder, temp| symlinkat(&*target, folder, temp))?;
    meta.apply_at(&temp.folder, &temp.name, false)?;
    temp.replace(name)
}

/// Makes another name of a regular file; of anything else it is `EPERM`.
pub(super) fn make_hard_link(folder: Arc<OwnedFd>, name: &CStr, of: Named) -> Result<(), Errno> {
    let (old_folder, old_name) = of;
    let stat = fstatat(&old_folder, &*old_name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    if kind_of(&stat) != FileKind::File {
        return Err(Errno::EPERM);
    }
    let (temp, ()) = Temp::new(folder, |folder, temp| {
        linkat(&old_folder, &*old_name, folder, temp, AtFlags::empty())
    })?;
    // Should `name` be the same file already, rename(2) does nothing and the passing name goes as if it had failed.
    temp.rename(name)
}

/// Makes a device node, a pipe or a socket.
pub(super) fn make_node(
    folder: Arc<OwnedFd>,
    name: &CStr,
    kind: FileKind,
    device: DeviceNumber,
    meta: &Meta,
) -> Result<(), Errno> {
    let device = makedev(device.major.into(), device.minor.into());
    let (flag, device) = match kind {
        FileKind::CharDevice => (SFlag::S_IFCHR, device),
        FileKind::BlockDevice => (SFlag::S_IFBLK, device),
        FileKind::Pipe => (SFlag::S_IFIFO, 0),
        FileKind::Socket => (SFlag::S_IFSOCK, 0),
        FileKind::File | FileKind::Folder | FileKind::Symlink => return Err(Errno::EINVAL),
    };
    let private = Mode::S_IRUSR.union(Mode::S_IWUSR);
    let (temp, ()) =
        Temp::new(folder, |folder, temp| mknodat(folder, temp, flag, private, device))?;
    meta.apply_at(&temp.folder, &temp.name, true)?;
    temp.replace(name)
}
