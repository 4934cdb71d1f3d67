//! The agent's only unsafe code.
#![expect(unsafe_code, reason = "an inherited descriptor and three ioctls have no safe wrapper")]

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

nix::ioctl_read_bad!(get_flags, nix::libc::SIOCGIFFLAGS, nix::libc::ifreq);
nix::ioctl_write_ptr_bad!(set_flags, nix::libc::SIOCSIFFLAGS, nix::libc::ifreq);
nix::ioctl_read_bad!(fionread, nix::libc::FIONREAD, nix::libc::c_int);

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

/// How many bytes wait in a pipe (`FIONREAD`, pipe(7)).
pub(crate) fn waiting(fd: &impl AsRawFd) -> usize {
    let mut count = 0;
    // SAFETY: FIONREAD writes one int to the pointer, which is to a live local.
    let _ = unsafe { fionread(fd.as_raw_fd(), &raw mut count) };
    usize::try_from(count).unwrap_or(0)
}

/// Brings the loopback interface up (netdevice(7)); the kernel gives it 127.0.0.1 and ::1.
pub(crate) fn loopback_up() -> nix::Result<()> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: an ifreq of zeros is valid: an empty name and a union of plain data.
    let mut request: nix::libc::ifreq = unsafe { core::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    let up = nix::libc::c_short::try_from(nix::libc::IFF_UP).unwrap_or(1);
    // SAFETY: both calls are given a live ifreq whose name ends with a zero; the first has filled the
    // flags of the union before they are read.
    unsafe {
        get_flags(socket.as_raw_fd(), &raw mut request)?;
        request.ifr_ifru.ifru_flags |= up;
        set_flags(socket.as_raw_fd(), &raw const request)?;
    }
    Ok(())
}
