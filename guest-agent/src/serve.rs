//! The poll loop: owns the link, the signals and the processes; [`SessionState`] decides.
//!
//! ```text
//! Waiting for a port ──> Serving ── host closed ──> Serving without a session, backing off
//! ```
//! A port whose host side is closed reads 0 and polls as hung up at once, for ever, so it is
//! looked at again only every [`BACK_OFF`]. A socket that ends, ends the service.

use crate::args::{ServeConfig, Source};
use crate::exec::{Processes, Said, is_transient, read_buffer};
use crate::session::{Action, SessionState};
use crate::{linux, port, reserve, sys};
use guestline_protocol::{
    Envelope, ExecStartedEvent, Framing, PortFraming, Reply, Session, encode,
};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::reboot::RebootMode;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// Between two looks at a port whose host side is closed.
const BACK_OFF: Duration = Duration::from_millis(50);

/// How long an init waits for its port before it tells what is missing. It waits on after that.
const PORT_PATIENCE: Duration = Duration::from_secs(5);

/// With so many bytes unsent, output is left in the pipes: the writer in the guest waits.
const HIGH_WATER: usize = 256 * 1024;

/// How long a last word may take.
const LAST_WORD: Duration = Duration::from_secs(1);

/// Serves until the socket ends (service), or for ever.
pub(crate) fn run(config: &ServeConfig) -> io::Result<()> {
    // Blocked before any child is there: none of their ends is missed.
    let signals = signals(config.init)?;
    let (file, is_port) = match &config.source {
        Source::Port(name) => (wait_for_port(name, config)?, true),
        Source::Fd(fd) => {
            let fd = sys::inherited(*fd).ok_or_else(|| {
                io::Error::new(io::ErrorKind::InvalidInput, format!("descriptor {fd} is not open"))
            })?;
            nix::fcntl::fcntl(&fd, nix::fcntl::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))?;
            (File::from(fd), false)
        }
    };
    Server {
        link: Link { file, framing: PortFraming::default(), out: VecDeque::new(), sent: 0 },
        is_port,
        init: config.init,
        signals,
        session: SessionState::new(config.init),
        processes: Processes::default(),
        look_again: None,
        buffer: read_buffer(),
    }
    .serve()
}

fn wait_for_port(name: &str, config: &ServeConfig) -> io::Result<File> {
    if config.init {
        let patience = Instant::now().checked_add(PORT_PATIENCE);
        if let Some(file) = port::wait(name, patience)? {
            return Ok(file);
        }
        let mut lacks = vec![format!("virtio-serial port `{name}` (virtio-console)")];
        lacks.extend(config.troubles.iter().cloned());
        reserve::tell(lacks);
    }
    port::wait(name, None)?.ok_or_else(|| io::ErrorKind::NotFound.into())
}

fn signals(init: bool) -> nix::Result<SignalFd> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGCHLD);
    if init {
        // What busybox's poweroff, halt and reboot send to process 1, and the kernel on Ctrl-Alt-Del.
        let _ = nix::sys::reboot::set_cad_enabled(false);
        for signal in [Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGTERM, Signal::SIGINT] {
            set.add(signal);
        }
    }
    set.thread_block()?;
    SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
}

/// The link's file, its decoder, and the frames that wait to be written.
struct Link {
    file: File,
    framing: PortFraming,
    out: VecDeque<Vec<u8>>,
    /// Bytes of the first waiting frame that are written.
    sent: usize,
}

impl Link {
    fn queue(&mut self, session: Session, message: &Envelope<Reply>) {
        let mut frame = Vec::new();
        if self.framing.encode(session, &encode(message), &mut frame).is_ok() {
            self.out.push_back(frame);
        }
    }

    fn is_full(&self) -> bool {
        self.out.iter().map(Vec::len).sum::<usize>() >= HIGH_WATER
    }

    /// Drops what waits, but for a frame that is half out: the host must never see half of one.
    fn forget(&mut self) {
        self.out.truncate(usize::from(self.sent > 0));
    }

    fn write(&mut self) -> io::Result<()> {
        while let Some(frame) = self.out.front() {
            match self.file.write(frame.get(self.sent..).unwrap_or_default()) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(len) => self.sent = self.sent.saturating_add(len),
                Err(error) if is_transient(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
            if self.sent >= frame.len() {
                self.out.pop_front();
                self.sent = 0;
            }
        }
        Ok(())
    }
}

struct Server {
    link: Link,
    is_port: bool,
    init: bool,
    signals: SignalFd,
    session: SessionState,
    processes: Processes,
    /// The host side is closed: look at the port again then.
    look_again: Option<Instant>,
    buffer: Vec<u8>,
}

impl Server {
    fn serve(&mut self) -> io::Result<()> {
        loop {
            let link_ready = self.wait()?;
            self.take_signals();
            if link_ready && !self.read_link()? {
                return Ok(());
            }
            self.take_output();
            if self.link.write().is_err() {
                self.hang_up();
            }
        }
    }

    /// Sleeps until something is to be done; says whether the link has something.
    fn wait(&mut self) -> io::Result<bool> {
        let now = Instant::now();
        if self.look_again.is_some_and(|then| then <= now) {
            self.look_again = None;
        }
        let wake = [self.look_again, self.processes.deadline()].into_iter().flatten().min();
        let timeout = wake.map_or(PollTimeout::NONE, |wake| {
            // Rounded up, so that the deadline has passed when poll returns.
            let left = wake.saturating_duration_since(now).saturating_add(Duration::from_millis(1));
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        let listening = self.look_again.is_none();
        if listening {
            let mut flags = PollFlags::POLLIN;
            flags.set(PollFlags::POLLOUT, !self.link.out.is_empty());
            fds.push(PollFd::new(self.link.file.as_fd(), flags));
        }
        if !self.link.is_full() {
            fds.extend(self.processes.pipes().map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        }
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let can_read = PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR;
        let link = fds.get(1).filter(|_| listening).and_then(PollFd::revents);
        Ok(link.is_some_and(|events| events.intersects(can_read)))
    }

    fn take_signals(&mut self) {
        while let Ok(Some(signal)) = self.signals.read_signal() {
            let number = i32::try_from(signal.ssi_signo).unwrap_or(0);
            match Signal::try_from(number) {
                Ok(Signal::SIGCHLD) => self.processes.reap(),
                // Halting would leave a machine that nobody can use and that does not end.
                Ok(Signal::SIGUSR1 | Signal::SIGUSR2) => linux::end(RebootMode::RB_POWER_OFF),
                Ok(Signal::SIGTERM | Signal::SIGINT) => linux::end(RebootMode::RB_AUTOBOOT),
                _ => {}
            }
        }
    }

    /// Reads what the host sent. False when there is no host any more and never will be.
    fn read_link(&mut self) -> io::Result<bool> {
        match self.link.file.read(&mut self.buffer) {
            Ok(0) => {
                self.hang_up();
                return Ok(self.is_port);
            }
            Ok(len) => self.link.framing.push(self.buffer.get(..len).unwrap_or_default()),
            Err(error) if is_transient(&error) => return Ok(true),
            Err(error) => return Err(error),
        }
        while let Some(frame) = self.link.framing.next_frame() {
            let actions = self.session.on_frame(&frame, linux::clock_us());
            // An answer goes out under the session it answers, also where that was refused.
            for action in actions {
                self.act(action, frame.session);
            }
        }
        Ok(true)
    }

    fn act(&mut self, action: Action, session: Session) {
        match action {
            Action::Reset => {
                self.processes.kill_all();
                self.link.forget();
            }
            Action::Send(message) => self.link.queue(session, &message),
            Action::Spawn { id, request } => {
                let body = match self.processes.spawn(id, &request, self.init) {
                    Ok(pid) => Reply::ExecStarted(ExecStartedEvent { pid }),
                    Err(error) => Reply::Error(error),
                };
                self.link.queue(session, &Envelope { id, body });
            }
            Action::PowerOff => self.power_off(),
        }
    }

    /// Moves output and exits of processes to the link.
    fn take_output(&mut self) {
        let session = self.session.current();
        let full = self.link.is_full();
        let link = &mut self.link;
        let mut say = |id, said| {
            let body = match said {
                Said::Output(output) => Reply::ExecOutput(output),
                Said::Exited(exited) => Reply::ExecExited(exited),
            };
            link.queue(session, &Envelope { id, body });
        };
        if !full {
            self.processes.read(&mut self.buffer, &mut say);
        }
        self.processes.finish(&mut say);
    }

    /// The host side is closed: what ran for it ends, what waits for it is dropped.
    fn hang_up(&mut self) {
        self.session.close();
        self.processes.kill_all();
        self.link.out.clear();
        self.link.sent = 0;
        self.link.framing = PortFraming::default();
        self.look_again = Instant::now().checked_add(BACK_OFF);
    }

    fn power_off(&mut self) {
        let deadline = Instant::now().checked_add(LAST_WORD);
        while !self.link.out.is_empty()
            && deadline.is_some_and(|deadline| Instant::now() < deadline)
            && self.link.write().is_ok()
        {
            let limit = PollTimeout::try_from(LAST_WORD).unwrap_or(PollTimeout::ZERO);
            let _ = poll(&mut [PollFd::new(self.link.file.as_fd(), PollFlags::POLLOUT)], limit);
        }
        if self.init {
            linux::end(RebootMode::RB_POWER_OFF)
        }
        // A service leaves the way down to the init that it runs under.
        let asked = std::process::Command::new("/sbin/poweroff").status();
        if !asked.is_ok_and(|status| status.success()) {
            linux::end(RebootMode::RB_POWER_OFF)
        }
    }
}
