//! The agent's only unsafe code: descriptors here, starting processes and asking the kernel in their own files.
#![expect(unsafe_code, reason = "what the kernel gives as a bare number has no safe wrapper")]

pub(crate) mod spawn;
pub(crate) mod system;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Takes over a descriptor that our parent left open for us, if it is open.
pub(crate) fn inherited(fd: RawFd) -> Option<OwnedFd> {
    // SAFETY: the borrow is for asking whether the descriptor is open, and F_GETFD is a valid
    // question even about one that is not.
    let open =
        nix::fcntl::fcntl(unsafe { BorrowedFd::borrow_raw(fd) }, nix::fcntl::F_GETFD).is_ok();
    // SAFETY: it is open, was named on the command line to be ours, and is taken once, before
    // anything else in this process could own it.
    open.then(|| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Takes over a descriptor that a call has just made.
pub(crate) fn owned(fd: RawFd) -> OwnedFd {
    // SAFETY: the callers hand in what accept4(2) has just returned, which nobody else knows.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Has the kernel send `SIGIO` when something changes on a file, or no more (fcntl(2), `F_SETOWN`, `O_ASYNC`). Where that
/// cannot be had, nothing is signalled.
pub(crate) fn signal_changes(fd: BorrowedFd<'_>, wanted: bool) {
    // SAFETY: both commands take a plain number, and the descriptor is open for as long as it is borrowed.
    unsafe {
        nix::libc::fcntl(fd.as_raw_fd(), nix::libc::F_SETOWN, nix::libc::getpid());
        let flags = nix::libc::fcntl(fd.as_raw_fd(), nix::libc::F_GETFL);
        if flags >= 0 {
            let flags = match wanted {
                true => flags | nix::libc::O_ASYNC,
                false => flags & !nix::libc::O_ASYNC,
            };
            nix::libc::fcntl(fd.as_raw_fd(), nix::libc::F_SETFL, flags);
        }
    }
}

/// One read(2), without the C library's wrapper: that is a cancellation point, and its calls cost more than the system
/// call where pieces of 4 KiB are read by the thousand.
#[inline]
pub(crate) fn read(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the buffer is exclusively ours for the call, and its length goes with it.
    let read = unsafe {
        nix::libc::syscall(nix::libc::SYS_read, fd.as_raw_fd(), buffer.as_mut_ptr(), buffer.len())
    };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}

/// A number that no other agent draws (getrandom(2)); when the pool is not filled yet, the time since boot has to do.
pub(crate) fn random_u64() -> u64 {
    let mut number = 0_u64;
    // SAFETY: the buffer is the eight bytes of a live local, which any bytes may fill.
    let got = unsafe {
        nix::libc::getrandom((&raw mut number).cast(), size_of::<u64>(), nix::libc::GRND_NONBLOCK)
    };
    if got == 8 {
        return number;
    }
    let now =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos() & u128::from(u64::MAX)).unwrap_or(1)
}

/// Prefers this thread to others (setpriority(2)), so that the host is answered, and the last words of a guest are heard,
/// however busy the guest is. Gives the nice value that was, for the commands; none when nothing changed.
pub(crate) fn prefer() -> Option<i32> {
    // SAFETY: both calls take and give numbers only.
    let before = unsafe { nix::libc::getpriority(nix::libc::PRIO_PROCESS, 0) };
    (before > BEST && set_nice(BEST)).then_some(before)
}

/// The best nice value.
const BEST: i32 = -20;

/// Sets this thread's nice value; false when that is not allowed.
pub(crate) fn set_nice(nice: i32) -> bool {
    // SAFETY: the call takes and gives numbers only; on Linux it is the calling thread's.
    unsafe { nix::libc::setpriority(nix::libc::PRIO_PROCESS, 0, nice) == 0 }
}
