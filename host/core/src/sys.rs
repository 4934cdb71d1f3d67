//! The crate's only unsafe code.
#![expect(unsafe_code, reason = "what a child does between fork and exec has no safe wrapper")]

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use nix::errno::Errno;
use nix::fcntl::{F_GETFD, F_SETFD, FdFlag, fcntl};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::unistd::{Pid, getppid};
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use tokio::process::Command;

/// So many descriptors come with a message at most.
const MAX_FDS: usize = 32;

/// Makes the child die with the thread that spawns it (`PR_SET_PDEATHSIG`, prctl(2)), and lets it
/// inherit `fds` under their numbers. The command owns them, so they are open when it is spawned
/// and closed here when it is dropped.
pub(crate) fn guard_child(command: &mut Command, fds: Vec<OwnedFd>) {
    let parent = Pid::this();
    let prepare = move || -> io::Result<()> {
        set_pdeathsig(Signal::SIGKILL)?;
        // The parent may have died before the request stood.
        if getppid() != parent {
            return Err(Errno::ESRCH.into());
        }
        for fd in &fds {
            let flags = FdFlag::from_bits_retain(fcntl(fd.as_fd(), F_GETFD)?);
            fcntl(fd.as_fd(), F_SETFD(flags.difference(FdFlag::FD_CLOEXEC)))?;
        }
        Ok(())
    };
    // SAFETY: the closure calls prctl, getppid and fcntl only, all async-signal-safe, and neither
    // allocates nor locks.
    unsafe { command.pre_exec(prepare) };
}

/// Reads what is there of a stream, and the descriptors that came with it (`SCM_RIGHTS`, unix(7)).
pub(crate) fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = nix::cmsg_space!([RawFd; MAX_FDS]);
    let mut pieces = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut pieces, Some(&mut space), flags)?;
    let mut fds = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = control {
            // SAFETY: the kernel has just made these descriptors for us, and nobody else knows them.
            fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    Ok((message.bytes, fds))
}

/// Makes the child die with the thread that spawns it, which has to wait for it.
pub(crate) fn die_with_us(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt;
    let die = || set_pdeathsig(Signal::SIGKILL).map_err(io::Error::from);
    // SAFETY: the closure calls prctl only, which is async-signal-safe, and neither allocates nor
    // locks.
    unsafe { command.pre_exec(die) };
}

/// Lets the child outlive us and our terminal: in a session of its own (setsid(2)), without descriptors of ours beyond
/// the three that the command sets.
pub(crate) fn detach(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt;
    let detach = || -> io::Result<()> {
        nix::unistd::setsid()?;
        let (first, last) = (3 as nix::libc::c_uint, nix::libc::c_uint::MAX);
        // SAFETY: the call only marks descriptors to be closed by exec, and takes no pointer.
        let marked = unsafe {
            nix::libc::syscall(
                nix::libc::SYS_close_range,
                first,
                last,
                nix::libc::CLOSE_RANGE_CLOEXEC,
            )
        };
        // A kernel before 5.11 cannot; what we opened ourselves is closed by exec there too.
        let _ = marked;
        Ok(())
    };
    // SAFETY: the closure calls setsid and close_range only, both async-signal-safe, and neither allocates
    // nor locks.
    unsafe { command.pre_exec(detach) };
}

/// Time since some moment, by a clock that nothing adjusts (clock_gettime(2)).
pub(crate) fn raw_clock() -> Option<std::time::Duration> {
    use nix::sys::time::TimeSpec;
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC_RAW).ok()?;
    Some(TimeSpec::into(now))
}

/// The CPU's time stamp counter, where it has one.
pub(crate) fn counter() -> Option<u64> {
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: the instruction reads a register and nothing else; Linux lets every process use it.
        Some(unsafe { core::arch::x86_64::_rdtsc() })
    }
    #[cfg(not(target_arch = "x86_64"))]
    None
}

/// A page of guest memory, aligned as KVM wants it.
#[derive(Clone)]
#[repr(C, align(4096))]
pub(crate) struct Page(pub(crate) [u8; 4096]);

impl Default for Page {
    fn default() -> Self {
        Self([0; 4096])
    }
}

/// Gives a virtual machine its memory, at guest address 0. The caller keeps `pages` where they are
/// for as long as `vm` lives.
pub(crate) fn lend_memory(vm: &VmFd, pages: &mut [Page]) -> Result<(), kvm_ioctls::Error> {
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: size_of_val(pages) as u64,
        userspace_addr: pages.as_mut_ptr() as u64,
    };
    // SAFETY: the region is exactly the pages, page-aligned by their type; the one caller, the
    // probe's `Guest`, owns both and drops the machine first.
    unsafe { vm.set_user_memory_region(region) }
}
