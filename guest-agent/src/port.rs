//! Finding the virtio-serial port by its name, which sysfs tells (`/sys/class/virtio-ports/*/name`).

use crate::linux;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often sysfs is read again when the kernel has no uevents for us.
const FALLBACK: Duration = Duration::from_millis(50);

/// Waits for the port until `deadline`, if there is one, and opens it without blocking.
pub(crate) fn wait(name: &str, deadline: Option<Instant>) -> io::Result<Option<File>> {
    // Listening begins before the first look, so that a port that comes in between is seen.
    let uevents = uevents().ok();
    loop {
        if let Some(path) = find(name) {
            match open(&path) {
                // Another agent holds it; or devtmpfs has not got the node yet.
                Err(error) if matches!(error.raw_os_error(), Some(EBUSY | ENOENT)) => {}
                result => return result.map(Some),
            }
        }
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) {
            return Ok(None);
        }
        sleep_until_uevent(uevents.as_ref(), left.unwrap_or(FALLBACK).min(FALLBACK));
    }
}

const EBUSY: i32 = nix::libc::EBUSY;
const ENOENT: i32 = nix::libc::ENOENT;

fn find(name: &str) -> Option<PathBuf> {
    let ports = fs::read_dir(linux::VIRTIO_PORTS).ok()?.flatten();
    let mut named = ports.filter(|port| {
        fs::read_to_string(port.path().join("name")).is_ok_and(|found| found.trim() == name)
    });
    named.next().map(|port| Path::new(linux::DEV).join(port.file_name()))
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(nix::libc::O_NONBLOCK).open(path)
}

/// The kernel's announcements of devices (netlink(7), NETLINK_KOBJECT_UEVENT, group 1).
fn uevents() -> nix::Result<OwnedFd> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        SockProtocol::NetlinkKObjectUEvent,
    )?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 1))?;
    Ok(socket)
}

fn sleep_until_uevent(uevents: Option<&OwnedFd>, limit: Duration) {
    let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::ZERO);
    let Some(uevents) = uevents else {
        let _ = poll(&mut [], limit);
        return;
    };
    let _ = poll(&mut [PollFd::new(uevents.as_fd(), PollFlags::POLLIN)], limit);
    // What the events say does not matter: sysfs is read again.
    let mut buffer = [0; 4096];
    while !matches!(recv(uevents.as_raw_fd(), &mut buffer, MsgFlags::empty()), Err(Errno::EAGAIN)) {
        if limit == PollTimeout::ZERO {
            break;
        }
    }
}
