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

/// Forks; true in the child, which is the first of a session of its own.
pub(crate) fn fork_apart() -> nix::Result<bool> {
    // SAFETY: the init calls it before there is any other thread, so that no lock is held by one that the child has not.
    match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Parent { .. } => Ok(false),
        nix::unistd::ForkResult::Child => nix::unistd::setsid().map(|_| true),
    }
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

/// One readv(2) into a buffer that is given in pieces of so many bytes. A driver that knows no vectors reads each piece
/// alone, until one is not filled (Linux `do_loop_readv_writev`): where it gives one buffer of the host at most for each
/// read, as a virtio port does, one call brings many.
pub(crate) fn read_pieces(
    fd: BorrowedFd<'_>,
    buffer: &mut [u8],
    piece: usize,
) -> io::Result<usize> {
    let pieces = buffer.chunks_mut(piece).map(|piece| (piece.as_mut_ptr(), piece.len()));
    // SAFETY: the pieces are parts of a buffer that is exclusively ours for the call.
    unsafe { move_pieces(nix::libc::SYS_readv, fd, pieces) }
}

/// One writev(2) of a buffer in pieces of so many bytes, for a driver that takes no more in one write.
pub(crate) fn write_pieces(fd: BorrowedFd<'_>, buffer: &[u8], piece: usize) -> io::Result<usize> {
    let pieces = buffer.chunks(piece).map(|piece| (piece.as_ptr().cast_mut(), piece.len()));
    // SAFETY: the pieces are parts of a buffer that is borrowed for the call, which only reads it.
    unsafe { move_pieces(nix::libc::SYS_writev, fd, pieces) }
}

/// At most so many pieces in one call (the kernel takes up to `UIO_MAXIOV`, 1024).
pub(crate) const PIECES: usize = 64;

/// One system call that takes a descriptor and vectors.
///
/// # Safety
/// `call` is readv(2) or writev(2), and the pieces are good for what it does with them.
unsafe fn move_pieces(
    call: nix::libc::c_long,
    fd: BorrowedFd<'_>,
    pieces: impl Iterator<Item = (*mut u8, usize)>,
) -> io::Result<usize> {
    let mut vectors = [nix::libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; PIECES];
    let given = vectors.iter_mut().zip(pieces).map(|(vector, (base, len))| {
        *vector = nix::libc::iovec { iov_base: base.cast(), iov_len: len };
    });
    let count = given.count();
    // Without the C library's wrapper: that is a cancellation point, and its calls cost more than the system call.
    let fd = nix::libc::c_long::from(fd.as_raw_fd());
    // SAFETY: the vectors are `count` in number and live as long as the call; the rest is the caller's word.
    let moved = unsafe { nix::libc::syscall(call, fd, vectors.as_ptr(), count) };
    usize::try_from(moved).map_err(|_| io::Error::last_os_error())
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
/// however busy the guest is. Gives the nice value that commands are to set, where they do not have theirs already.
pub(crate) fn prefer() -> Option<i32> {
    // SAFETY: both calls take and give numbers only.
    let before = unsafe { nix::libc::getpriority(nix::libc::PRIO_PROCESS, 0) };
    let is_preferred = before > BEST && set_nice(BEST);
    (is_preferred && !(before == 0 && is_for_this_thread_alone())).then_some(before)
}

/// Has what this thread starts begin with nice value 0 (sched(7), "Reset scheduling policy for child processes"): a call
/// less for each command. Not where somebody gave the agent another policy, which its commands are to have as well.
fn is_for_this_thread_alone() -> bool {
    let usual = nix::libc::c_long::from(nix::libc::SCHED_OTHER);
    let (policy, priority) = (nix::libc::SCHED_OTHER | nix::libc::SCHED_RESET_ON_FORK, 0);
    let parameters = &raw const priority;
    // SAFETY: the parameters are one int, which lives as long as the calls. The C library's wrappers ask nobody (musl).
    unsafe {
        nix::libc::syscall(nix::libc::SYS_sched_getscheduler, 0) == usual
            && nix::libc::syscall(nix::libc::SYS_sched_setscheduler, 0, policy, parameters) == 0
    }
}

/// The best nice value.
const BEST: i32 = -20;

/// Sets this thread's nice value; false when that is not allowed.
pub(crate) fn set_nice(nice: i32) -> bool {
    // SAFETY: the call takes and gives numbers only; on Linux it is the calling thread's.
    unsafe { nix::libc::setpriority(nix::libc::PRIO_PROCESS, 0, nice) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek};
    use std::os::fd::AsFd;

    #[test]
    fn pieces_are_moved_in_order_and_so_many_at_once() {
        const PIECE: usize = 1000;
        let content: Vec<u8> =
            (0..PIECES * PIECE + 500).map(|at| at.to_le_bytes()[at % 3]).collect();
        let mut file = tempfile::tempfile().unwrap();
        let mut written = 0;
        while written < content.len() {
            let wanted = (content.len() - written).min(PIECES * PIECE);
            let moved = write_pieces(file.as_fd(), &content[written..], PIECE).unwrap();
            assert_eq!(moved, wanted);
            written += moved;
        }
        file.rewind().unwrap();
        let mut buffer = vec![0; content.len() + 1];
        let read = read_pieces(file.as_fd(), &mut buffer, PIECE).unwrap();
        assert_eq!(read, PIECES * PIECE);
        assert_eq!(read_pieces(file.as_fd(), &mut buffer[read..], PIECE).unwrap(), 500);
        assert!(buffer[..content.len()] == content);
        assert_eq!(file.read(&mut buffer).unwrap(), 0);
        assert_eq!(read_pieces(file.as_fd(), &mut buffer, PIECE).unwrap(), 0);
    }
}
