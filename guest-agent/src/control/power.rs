//! Ending the guest, in two steps, since the answer goes out in between.
//!
//! ```text
//! prepare: may we? kexec: loaded         answer         leave
//!   init                                   ──>   sync, reboot(2)
//!   service                                ──>   systemctl or /sbin ── refused, or over its limit ──> sync, reboot(2)
//!   either, by force                       ──>   reboot(2)
//! ```
//! A sync that hangs, on a device that is gone, is given [`SYNC_LIMIT`]; then the guest ends without it.

use super::{invalid, open, path, quoted, refused, unsupported};
use crate::sys::system;
use crate::thread;
use guestline_protocol::{PowerAction, PowerRequest, RemoteError};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, posix_spawnp};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::stat::Mode;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use std::ffi::CString;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

/// How long a sync may take.
const SYNC_LIMIT: Duration = Duration::from_secs(10);

/// How long the system may take to accept that it is to end.
const ASK_LIMIT: Duration = Duration::from_secs(30);

/// There while systemd is the init (sd_booted(3)).
const SYSTEMD: &str = "/run/systemd/system";

/// `CAP_SYS_BOOT` (capabilities(7)).
const CAP_SYS_BOOT: u32 = 22;

/// A guest that is ready to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Leave {
    mode: RebootMode,
    way: Way,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// The kernel, now.
    AtOnce,
    /// The kernel, after a sync.
    Synced,
    /// The init, which stops its services first.
    Ask,
}

/// Does all of it that can fail.
///
/// # Errors
/// For kexec: invalid, not found, or unsupported by this kernel; else what the kernel says (`EPERM`).
pub(crate) fn prepare(request: &PowerRequest, init: bool) -> Result<Leave, RemoteError> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    prepare_as(request, init, may_reboot(&status))
}

/// Ends the guest. Comes back only when its init has been asked, which ends this process in its own time.
///
/// # Errors
/// When the kernel refuses; an init can only exit then.
pub(crate) fn leave(leave: &Leave) -> nix::Result<()> {
    if leave.way == Way::Ask && ask(leave.mode) {
        return Ok(());
    }
    if leave.way != Way::AtOnce {
        let _ = within(SYNC_LIMIT, nix::unistd::sync);
    }
    reboot(leave.mode).map(drop)
}

fn prepare_as(request: &PowerRequest, init: bool, may_reboot: bool) -> Result<Leave, RemoteError> {
    if !may_reboot {
        let object = "ending the guest (the agent has no CAP_SYS_BOOT)";
        return Err(refused(object, Errno::EPERM));
    }
    let mode = match &request.action {
        PowerAction::Off => RebootMode::RB_POWER_OFF,
        PowerAction::Reboot => RebootMode::RB_AUTOBOOT,
        PowerAction::Kexec { kernel, initrd, cmdline } => {
            load(
                kernel,
                initrd.as_deref().map(Vec::as_slice),
                cmdline.as_deref().map(Vec::as_slice),
            )?;
            RebootMode::RB_KEXEC
        }
    };
    let way = match (request.force, init) {
        (true, _) => Way::AtOnce,
        (false, true) => Way::Synced,
        (false, false) => Way::Ask,
    };
    Ok(Leave { mode, way })
}

/// Does proc_pid_status(5) list the capability? If there is none to read, the kernel will tell.
fn may_reboot(status: &str) -> bool {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    effective.is_none_or(|mask| mask.checked_shr(CAP_SYS_BOOT).is_some_and(|mask| mask & 1 != 0))
}

/// Loads the kernel that the guest goes on with.
fn load(kernel: &[u8], initrd: Option<&[u8]>, cmdline: Option<&[u8]>) -> Result<(), RemoteError> {
    let kernel = path(kernel)?;
    let kernel_file = open(kernel, 0)?;
    let initrd_file = initrd.map(|initrd| open(path(initrd)?, 0)).transpose()?;
    let cmdline = match cmdline {
        Some(cmdline) => cmdline.to_vec(),
        None => running_cmdline()?,
    };
    let Ok(cmdline) = CString::new(cmdline) else {
        return Err(invalid("the kernel command line has a NUL byte".to_owned()));
    };
    let initrd_file = initrd_file.as_ref().map(AsFd::as_fd);
    system::kexec_load(kernel_file.as_fd(), initrd_file, &cmdline)
        .map_err(|errno| kexec_error(kernel, errno))
}

fn running_cmdline() -> Result<Vec<u8>, RemoteError> {
    let file = Path::new(crate::linux::CMDLINE);
    let line = fs::read(file).map_err(|error| refused(&quoted(file), super::errno(&error)))?;
    Ok(line.trim_ascii_end().to_vec())
}

fn kexec_error(kernel: &Path, errno: Errno) -> RemoteError {
    let kernel = quoted(kernel);
    let hint = match errno {
        Errno::ENOSYS => {
            return unsupported("this kernel has no kexec_file_load".to_owned(), errno);
        }
        Errno::ENOEXEC => "is no kernel that kexec takes (a bzImage is, on x86)",
        Errno::EPERM | Errno::EACCES => {
            "may not be loaded; is kernel lockdown on, or kernel.kexec_load_disabled set?"
        }
        Errno::EKEYREJECTED | Errno::ENODATA | Errno::EBADMSG | Errno::ENOKEY => {
            "has no signature that this kernel trusts"
        }
        Errno::EBUSY => "cannot be loaded while another is being loaded",
        _ => "cannot be loaded; is the command line too long for it, or memory short?",
    };
    refused(&format!("{kernel} {hint}"), errno)
}

/// Asks the init to end the guest; true when it has accepted.
fn ask(mode: RebootMode) -> bool {
    let Some((program, arguments)) = command(mode, Path::new(SYSTEMD).exists()) else {
        return false;
    };
    let Some(pid) = start(program, arguments) else { return false };
    // Where another part of the agent has reaped it, its status is lost; it has run to its end then, as one that
    // succeeds does.
    let wait = move || !matches!(waitpid(pid, None), Ok(WaitStatus::Exited(_, code)) if code != 0);
    within(ASK_LIMIT, wait).unwrap_or(false)
}

/// Starts a program with the agent's environment and nothing to read or say.
fn start(program: &str, arguments: &[&str]) -> Option<Pid> {
    let mut actions = PosixSpawnFileActions::init().ok()?;
    for fd in 0..=2 {
        actions.add_open(fd, "/dev/null", OFlag::O_RDWR, Mode::empty()).ok()?;
    }
    let attributes = PosixSpawnAttr::init().ok()?;
    let words = std::iter::once(&program).chain(arguments);
    let words: Vec<CString> = words.filter_map(|word| CString::new(*word).ok()).collect();
    let environment: Vec<CString> = std::env::vars_os()
        .filter_map(|(name, value)| {
            let pair = [name.as_bytes(), b"=", value.as_bytes()].concat();
            CString::new(pair).ok()
        })
        .collect();
    posix_spawnp(words.first()?, &actions, &attributes, &words, &environment).ok()
}

/// What asks for it; busybox and SysV inits know no kexec.
fn command(mode: RebootMode, systemd: bool) -> Option<(&'static str, &'static [&'static str])> {
    match (mode, systemd) {
        (RebootMode::RB_POWER_OFF, true) => Some(("systemctl", &["poweroff"])),
        (RebootMode::RB_AUTOBOOT, true) => Some(("systemctl", &["reboot"])),
        (RebootMode::RB_KEXEC, true) => Some(("systemctl", &["kexec"])),
        (RebootMode::RB_POWER_OFF, false) => Some(("/sbin/poweroff", &[])),
        (RebootMode::RB_AUTOBOOT, false) => Some(("/sbin/reboot", &[])),
        _ => None,
    }
}

/// What `work` gives, unless it takes longer, or there is no thread to be had for it.
fn within<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (sender, receiver) = mpsc::channel();
    let worker = move || {
        // Nobody listens any more when it took too long.
        let _ = sender.send(work());
    };
    thread::spawn(Box::new(worker)).ok()?;
    receiver.recv_timeout(limit).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use guestline_protocol::{ByteBuf, ErrorKind};

    fn kexec(kernel: &[u8], initrd: Option<&[u8]>, cmdline: Option<&[u8]>) -> RemoteError {
        let action = PowerAction::Kexec {
            kernel: ByteBuf::from(kernel),
            initrd: initrd.map(ByteBuf::from),
            cmdline: cmdline.map(ByteBuf::from),
        };
        prepare_as(&PowerRequest { action, force: false }, true, true).unwrap_err()
    }

    #[test]
    fn the_way_depends_on_force_and_init() {
        let prepare =
            |action, force, init| prepare_as(&PowerRequest { action, force }, init, true).unwrap();
        let off = RebootMode::RB_POWER_OFF;
        let leave = |mode, way| Leave { mode, way };
        assert_eq!(prepare(PowerAction::Off, false, true), leave(off, Way::Synced));
        assert_eq!(prepare(PowerAction::Off, false, false), leave(off, Way::Ask));
        assert_eq!(prepare(PowerAction::Off, true, false), leave(off, Way::AtOnce));
        let reboot = leave(RebootMode::RB_AUTOBOOT, Way::AtOnce);
        assert_eq!(prepare(PowerAction::Reboot, true, true), reboot);
    }

    #[test]
    fn without_the_right_to_it_nothing_is_promised() {
        let request = PowerRequest { action: PowerAction::Off, force: true };
        let error = prepare_as(&request, false, false).unwrap_err();
        assert_eq!((error.kind, error.errno), (ErrorKind::System, Some(1)));
        assert!(may_reboot("Name:\tx\nCapEff:\t000001ffffffffff\n"));
        assert!(may_reboot("CapEff:\t0000000000400000\n"));
        assert!(!may_reboot("CapPrm:\t0000000000400000\nCapEff:\t0000000000000000\n"));
        assert!(!may_reboot("CapEff:\t00000000a80425fb\n"), "a container's");
        assert!(may_reboot(""));
    }

    #[test]
    fn files_for_kexec_are_looked_at_first() {
        let error = kexec(b"/no/such/kernel", None, None);
        assert_eq!(error.kind, ErrorKind::NotFound);
        assert_eq!(error.message, "`/no/such/kernel`: No such file or directory");
        let error = kexec(b"/dev/null", Some(b"/no/such/initrd"), None);
        assert_eq!(error.message, "`/no/such/initrd`: No such file or directory");
        assert_eq!(kexec(b"", None, None).kind, ErrorKind::Invalid);
        assert_eq!(kexec(b"/dev/null", None, Some(b"a\0b")).kind, ErrorKind::Invalid);
        assert!(!running_cmdline().unwrap().ends_with(b"\n"));
    }

    #[test]
    fn refusals_of_kexec_say_what_may_be_wrong() {
        let error = |errno| kexec_error(Path::new("/boot/x"), errno);
        assert_eq!(error(Errno::ENOSYS).kind, ErrorKind::Unsupported);
        assert_eq!(error(Errno::ENOSYS).message, "this kernel has no kexec_file_load");
        let message = error(Errno::ENOEXEC).message;
        assert!(message.starts_with("`/boot/x` is no kernel that kexec takes"), "{message}");
        assert!(error(Errno::EPERM).message.contains("lockdown"));
        assert_eq!(error(Errno::EPERM).kind, ErrorKind::System);
        assert_eq!(error(Errno::EINVAL).errno, Some(22));
    }

    #[test]
    fn systems_are_asked_in_their_own_words() {
        let (off, kexec) = (RebootMode::RB_POWER_OFF, RebootMode::RB_KEXEC);
        assert_eq!(command(off, true), Some(("systemctl", &["poweroff"][..])));
        assert_eq!(command(off, false), Some(("/sbin/poweroff", &[][..])));
        assert_eq!(command(kexec, true), Some(("systemctl", &["kexec"][..])));
        assert_eq!(command(kexec, false), None);
    }

    #[test]
    fn work_that_hangs_is_left_behind() {
        assert_eq!(within(Duration::from_secs(10), || 7), Some(7));
        let (sender, receiver) = mpsc::channel::<()>();
        let hangs = move || receiver.recv().is_ok();
        assert_eq!(within(Duration::from_millis(1), hangs), None);
        drop(sender);
    }
}
