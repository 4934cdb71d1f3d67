//! Opening the link: finding ports, setting up ttys, waiting for whoever connects.

use crate::args::{ServeConfig, Source};
use crate::link::{Lane, Link};
use crate::{linux, port, reserve, sys, thread};
use guestline_protocol::{BULK_PORT, CONTROL_PORT};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, VsockAddr, accept4, bind, listen, socket,
};
use nix::sys::termios::{ControlFlags, SetArg, cfmakeraw, tcgetattr, tcsetattr};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long the agent of a JeOS waits for its port before it takes the reserve line.
const PORT_PATIENCE: Duration = Duration::from_secs(5);

/// How often a device's node is looked for.
const NODE_LOOK: Duration = Duration::from_millis(10);

/// How long the bulk port may come later than the control port.
const BULK_PATIENCE: Duration = Duration::from_secs(1);

/// What becomes of the link when its other end is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It may open again: look at times.
    LookAgain,
    /// It is over, and so is the agent.
    Exit,
    /// Somebody else may connect.
    Accept,
}

/// A link, and how to get another.
pub(crate) struct Opened {
    pub(crate) link: Link,
    pub(crate) ending: Ending,
    /// The control lane is a tty, which others may set as they like: its path and speed.
    pub(crate) tty: Option<(PathBuf, Option<u32>)>,
    listener: Option<Listener>,
}

enum Listener {
    Unix(UnixListener, PathBuf),
    Vsock(OwnedFd),
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Opens the link; waits for a port, or for whoever connects, as long as that takes.
pub(crate) fn open(config: &ServeConfig) -> io::Result<Opened> {
    match &config.source {
        Source::Auto => match port::wait(CONTROL_PORT, patience(config.role.is_at_home()))? {
            Some(file) => Ok(of_port(file)),
            None => reserve_line(config),
        },
        Source::Port(name) => {
            let file = port::wait(name, None)?.ok_or(io::ErrorKind::NotFound)?;
            Ok(of_port(file))
        }
        Source::Tty(path, baud) => {
            wait_for(path);
            of_tty(path, *baud, open_tty(path, *baud)?)
        }
        Source::Stdio => {
            let file = both_ways()?;
            Ok(of_stream(file, Ending::Exit, None))
        }
        Source::Fd(fd) => {
            let fd = sys::inherited(*fd).ok_or_else(|| {
                io::Error::new(io::ErrorKind::InvalidInput, format!("descriptor {fd} is not open"))
            })?;
            set_nonblocking(&fd)?;
            Ok(of_stream(File::from(fd), Ending::Exit, None))
        }
        Source::Unix(path) => {
            let _ = std::fs::remove_file(path);
            let listener = UnixListener::bind(path)?;
            std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
            accept(Listener::Unix(listener, path.clone()))
        }
        Source::Vsock(port) => {
            let flags = SockFlag::SOCK_CLOEXEC;
            let fd = socket(AddressFamily::Vsock, SockType::Stream, flags, None)?;
            bind(fd.as_raw_fd(), &VsockAddr::new(libc::VMADDR_CID_ANY, *port))?;
            listen(&fd, Backlog::new(4)?)?;
            accept(Listener::Vsock(fd))
        }
    }
}

/// After the end of a link that somebody had connected: the next one.
pub(crate) fn again(mut opened: Opened) -> io::Result<Opened> {
    match opened.listener.take() {
        Some(listener) => accept(listener),
        None => Err(io::ErrorKind::NotConnected.into()),
    }
}

fn accept(listener: Listener) -> io::Result<Opened> {
    let fd = match &listener {
        Listener::Unix(unix, _) => OwnedFd::from(unix.accept()?.0),
        Listener::Vsock(fd) => sys::owned(accept4(fd.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?),
    };
    set_nonblocking(&fd)?;
    Ok(of_stream(File::from(fd), Ending::Accept, Some(listener)))
}

fn patience(at_home: bool) -> Option<Instant> {
    at_home.then(|| Instant::now().checked_add(PORT_PATIENCE)).flatten()
}

/// The port with its bulk port, if that is there; else it is looked for when a host wants it.
fn of_port(file: File) -> Opened {
    let link = Link::new(Lane::port(file));
    Opened { link, ending: Ending::LookAgain, tty: None, listener: None }
}

/// The bulk port, if it comes soon.
pub(crate) fn bulk_port() -> Option<File> {
    let deadline = Instant::now().checked_add(BULK_PATIENCE);
    port::wait(BULK_PORT, Some(deadline?)).ok().flatten()
}

fn of_stream(file: File, ending: Ending, listener: Option<Listener>) -> Opened {
    Opened { link: Link::new(Lane::stream(file)), ending, tty: None, listener }
}

fn of_tty(path: &Path, baud: Option<u32>, file: File) -> io::Result<Opened> {
    let (link, tty) = (Link::new(Lane::tty(file)), Some((path.to_owned(), baud)));
    Ok(Opened { link, ending: Ending::LookAgain, tty, listener: None })
}

/// A tty that somebody else has hung up (vhangup(2), as a getty does) is of no use to who had it open: opens it again.
pub(crate) fn reopen_tty(opened: &mut Opened) {
    if let Some((path, baud)) = &opened.tty
        && let Ok(file) = open_tty(path, *baud)
    {
        opened.link.control = Lane::tty(file);
    }
}

/// Tells what is missing, and serves on the line where that was told.
fn reserve_line(config: &ServeConfig) -> io::Result<Opened> {
    let mut tty = open_tty(Path::new(linux::RESERVE_TTY), None)?;
    let mut lacks = vec![format!("virtio-serial port `{CONTROL_PORT}` (virtio-console)")];
    lacks.extend(config.troubles.iter().cloned());
    reserve::tell(&mut tty, lacks);
    of_tty(Path::new(linux::RESERVE_TTY), None, tty)
}

/// A device's node comes some time after its driver (devtmpfs).
fn wait_for(path: &Path) {
    let deadline = Instant::now().checked_add(PORT_PATIENCE);
    while !path.exists() && deadline.is_some_and(|deadline| Instant::now() < deadline) {
        std::thread::sleep(NODE_LOOK);
    }
}

fn open_tty(path: &Path, baud: Option<u32>) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC);
    let tty = options.open(path).map_err(|error| with_path(path, &error))?;
    make_raw(tty.as_fd(), baud).map_err(|errno| with_path(path, &errno.into()))?;
    Ok(tty)
}

/// Looks whether somebody else, such as a getty, has set a tty as he likes it, and sets it back.
pub(crate) fn keep_raw(tty: BorrowedFd<'_>) {
    let Ok(settings) = tcgetattr(tty) else { return };
    let mut raw = settings.clone();
    cfmakeraw(&mut raw);
    if raw != settings {
        let _ = make_raw(tty, None);
    }
}

/// Every byte is to pass as it is (termios(3)).
pub(crate) fn make_raw(tty: BorrowedFd<'_>, baud: Option<u32>) -> nix::Result<()> {
    let mut settings = tcgetattr(tty)?;
    cfmakeraw(&mut settings);
    // A line that is not wired for it must not hang up.
    settings.control_flags.insert(ControlFlags::CLOCAL);
    if let Some(baud) = baud {
        // The speed is among these flags (termios(3)); the C library's functions for it have versions, which a static
        // glibc does not know.
        let speed = speed(baud).ok_or(Errno::EINVAL)?;
        let others = settings.control_flags.bits() & !(libc::CBAUD | libc::CIBAUD);
        settings.control_flags = ControlFlags::from_bits_retain(others | speed);
    }
    tcsetattr(tty, SetArg::TCSANOW, &settings)
}

fn speed(baud: u32) -> Option<libc::tcflag_t> {
    Some(match baud {
        9_600 => libc::B9600,
        19_200 => libc::B19200,
        38_400 => libc::B38400,
        57_600 => libc::B57600,
        115_200 => libc::B115200,
        230_400 => libc::B230400,
        460_800 => libc::B460800,
        921_600 => libc::B921600,
        1_000_000 => libc::B1000000,
        1_500_000 => libc::B1500000,
        _ => return None,
    })
}

/// Standard input and output as one file: a socket for both, or two ends that two threads move bytes between.
fn both_ways() -> io::Result<File> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    let mut to_stdout = theirs.try_clone()?;
    let mut from_stdin = theirs;
    thread::spawn(Box::new(move || {
        let mut stdout = io::stdout().lock();
        let _ = copy(&mut to_stdout, &mut stdout);
        std::process::exit(0)
    }))?;
    thread::spawn(Box::new(move || {
        let mut stdin = io::stdin().lock();
        let _ = copy(&mut stdin, &mut from_stdin);
        let _ = from_stdin.shutdown(std::net::Shutdown::Write);
    }))?;
    ours.set_nonblocking(true)?;
    Ok(File::from(OwnedFd::from(ours)))
}

/// Copies to the end, each piece at once.
fn copy(from: &mut dyn io::Read, to: &mut dyn io::Write) -> io::Result<()> {
    let mut buffer = vec![0; 32 * 1024];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(len) => {
                to.write_all(buffer.get(..len).unwrap_or_default())?;
                to.flush()?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn set_nonblocking(fd: &impl AsFd) -> nix::Result<()> {
    fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map(drop)
}

fn with_path(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
