//! The poll loop: owns the link, the signals, and all that runs for the host; [`SessionState`] decides.
//!
//! ```text
//! open the link ──> serve ── host closed ──> look again, or accept the next, or exit
//! ```
//! A port whose host side is closed polls as hung up at once, for ever. It is looked at again when the kernel signals a
//! change (`SIGIO`, fcntl(2)), and rarely without that; see [`crate::presence`].

mod arrivals;
mod requests;

use crate::args::{Role, ServeConfig};
use crate::bulk;
use crate::control;
use crate::control::power::Leave;
use crate::exec::{PollKey, Processes, Said as ExecSaid, cgroup_parent};
use crate::forward::{Said as SocketSaid, Sockets};
use crate::jobs::{Jobs, Word};
use crate::presence::Look;
use crate::session::SessionState;
use crate::source::{self, Ending, Opened};
use crate::{linux, sys, thread};
use guestline_files::describe;
use guestline_protocol::{Reply, Session, Stream};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::reboot::RebootMode;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

/// Between two looks at a link whose host side is closed: at first, and at last.
const FIRST_LOOK: Duration = Duration::from_millis(50);
const LAST_LOOK: Duration = Duration::from_secs(30);
const LAST_TTY_LOOK: Duration = Duration::from_secs(2);

/// So often is looked after a tty that others may set as they like: cooked, it may keep what is sent to itself.
const TTY_LOOK: Duration = Duration::from_secs(1);

/// How long a last word may take to leave.
const LAST_WORD: Duration = Duration::from_secs(1);

/// Name of the kernel parameter that says what runs a line.
const SHELL_PARAMETER: &str = "guestline.shell";

/// Serves until the link is over for good (service), or for ever. `head_start` is closed when the host has been answered.
///
/// # Errors
/// What opening the link gives, and what serving takes.
pub(crate) fn run(config: &ServeConfig, head_start: Option<OwnedFd>) -> io::Result<()> {
    // Blocked before any child is there: none of their ends is missed.
    let init = config.role == Role::Init;
    let signals = signals(init)?;
    let home = config.role.is_at_home().then_some(());
    let mut server = Server {
        opened: source::open(config)?,
        init,
        incarnation: sys::random_u64(),
        signals,
        session: SessionState::default(),
        processes: Processes::new(home.map(|()| linux::ENVIRONMENT), cgroup_parent(init))
            .with_shell(home.and_then(|()| linux::parameter(SHELL_PARAMETER))),
        jobs: Jobs::new()?,
        sockets: Sockets::default(),
        frozen: Vec::new(),
        pieces_left: false,
        leaving: None,
        look_again: None,
        pause: FIRST_LOOK,
        tty_look: None,
        bulk_watch: bulk::Watch::default(),
        head_start,
    };
    thread::prepare();
    loop {
        server.serve();
        if server.opened.ending == Ending::Exit {
            server.end_session();
            return Ok(());
        }
        server.opened = source::again(server.opened)?;
    }
}

fn signals(init: bool) -> nix::Result<SignalFd> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGCHLD);
    set.add(Signal::SIGIO);
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

struct Server {
    opened: Opened,
    init: bool,
    incarnation: u64,
    signals: SignalFd,
    session: SessionState,
    processes: Processes,
    jobs: Jobs,
    sockets: Sockets,
    /// Where the file systems are that this session froze.
    frozen: Vec<Vec<u8>>,
    /// Jobs may have data that the link had no room for: their wake-up has been taken.
    pieces_left: bool,
    /// The guest is to end when everything is said.
    leaving: Option<Leave>,
    /// The host side is closed: look at it again then.
    look_again: Option<Instant>,
    pause: Duration,
    /// When to look after the tty, if there is one.
    tty_look: Option<Instant>,
    bulk_watch: bulk::Watch,
    /// Somebody waits with what takes the CPU until this is closed.
    head_start: Option<OwnedFd>,
}

/// What poll found. Its lists are used again: asked for anew, their memory is mapped and unmapped each time.
#[derive(Default)]
struct Ready {
    signals: bool,
    control: Option<Look>,
    bulk: Option<Look>,
    processes: Vec<(PollKey, PollFlags)>,
    sockets: Vec<(u32, PollFlags)>,
    /// What was polled for processes and for sockets.
    keys: Vec<PollKey>,
    channels: Vec<u32>,
    /// So many descriptors were polled.
    polled: usize,
}

impl Ready {
    /// Nothing yet.
    fn emptied(self) -> Self {
        let Self { mut processes, mut sockets, mut keys, mut channels, polled, .. } = self;
        processes.clear();
        sockets.clear();
        keys.clear();
        channels.clear();
        Self { processes, sockets, keys, channels, polled, ..Self::default() }
    }
}

impl Server {
    /// Serves until the link's other end is closed for good.
    fn serve(&mut self) {
        let mut ready = Ready::default();
        loop {
            ready = self.wait(ready.emptied());
            if ready.signals {
                self.take_signal();
            }
            self.keep_tty_raw();
            let looks = [ready.control, ready.bulk];
            let mut open = !looks.contains(&Some(Look::Left));
            if ready.control == Some(Look::Read) && open {
                open = self.read_lane(None);
            }
            let bulk = self.opened.link.bulk.as_ref();
            let has_input = bulk.is_some_and(|bulk| self.bulk_watch.look(bulk, Instant::now()));
            let has_input = has_input && self.opened.link.has_bulk_host();
            if (ready.bulk == Some(Look::Read) || has_input) && open {
                open = self.read_bulk();
            }
            if looks.contains(&Some(Look::Wait)) {
                self.wait_for_host();
            }
            self.take_words();
            self.move_data(&ready);
            if self.write().is_err() {
                open = false;
            }
            if self.session.current() != Session::NONE {
                self.head_start = None;
            }
            if !open {
                self.hang_up();
                if self.opened.ending != Ending::LookAgain {
                    return;
                }
            }
            if let Some(leave) = self.leaving.take() {
                self.leave(leave);
            }
            self.processes.prepare();
        }
    }

    /// Writes what waits, and keeps the buffers for whoever makes more.
    fn write(&mut self) -> io::Result<()> {
        let now = self.opened.link.now_ms();
        let (link, jobs, processes) = (&mut self.opened.link, &self.jobs, &mut self.processes);
        let mut done = |buffer| match jobs.is_empty() {
            true => processes.recycle(buffer),
            false => jobs.pool().put(buffer),
        };
        let written = link.control.write(now, &mut done);
        match &link.bulk {
            Some(bulk) => written.and(bulk.outlet.write(&mut done)),
            None => written,
        }
    }

    /// Sleeps until something is to be done, and says what, in `ready`, which is empty.
    fn wait(&mut self, mut ready: Ready) -> Ready {
        let now = Instant::now();
        if self.look_again.is_some_and(|then| then <= now) {
            self.look_again = None;
        }
        let link = &self.opened.link;
        let framing = link.control.reading.framing.deadline_ms().map(|at| {
            let left = Duration::from_millis(at.saturating_sub(link.now_ms()));
            now.checked_add(left).unwrap_or(now)
        });
        let held = link.control.outlet.held_until();
        let bulk = link.bulk.as_ref().filter(|bulk| bulk.is_used());
        let bulk = bulk.and_then(|_| now.checked_add(bulk::GRACE));
        let wakes = [
            self.look_again,
            self.processes.deadline(),
            self.sockets.deadline(),
            framing,
            held,
            self.tty_look,
            bulk,
        ];
        let timeout = wakes.into_iter().flatten().min().map_or(PollTimeout::NONE, |wake| {
            // Rounded up, so that the deadline has passed when poll returns.
            let left = wake.saturating_duration_since(now).saturating_add(Duration::from_millis(1));
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        let may_send = !link.is_full(self.session.current());
        let timeout = if self.pieces_left && may_send { PollTimeout::ZERO } else { timeout };
        let mut fds = Vec::with_capacity(ready.polled);
        fds.push(PollFd::new(self.signals.as_fd(), PollFlags::POLLIN));
        fds.push(PollFd::new(self.jobs.wake_fd(), PollFlags::POLLIN));
        let mut lanes = Vec::new();
        for (is_bulk, fd, interest) in link.polled(self.look_again.is_none()) {
            lanes.push((is_bulk, fds.len()));
            fds.push(PollFd::new(fd, interest));
        }
        let first = fds.len();
        self.processes.poll_fds(may_send, &mut fds, &mut ready.keys);
        let sockets_from = fds.len();
        self.sockets.poll_fds(may_send, &mut fds, &mut ready.channels);
        ready.polled = fds.len();
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            // The kernel has no memory for it (poll(2)): it may have some later.
            Err(_) => {
                std::thread::sleep(FIRST_LOOK);
                return ready;
            }
        }
        let found: Vec<_> =
            fds.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty())).collect();
        let is_ready = |at: usize| found.get(at).is_some_and(|events| !events.is_empty());
        let Ready { processes, sockets, keys, channels, .. } = &mut ready;
        let events = found.iter().copied().skip(first);
        let changed = keys.iter().copied().zip(events);
        processes.extend(changed.filter(|(_, events)| !events.is_empty()));
        let events = found.iter().copied().skip(sockets_from);
        let changed = channels.iter().copied().zip(events);
        sockets.extend(changed.filter(|(_, events)| !events.is_empty()));
        ready.signals = is_ready(0);
        let link = &mut self.opened.link;
        for (is_bulk, at) in lanes {
            let look = found.get(at).and_then(|found| link.on_poll(is_bulk, *found));
            *(if is_bulk { &mut ready.bulk } else { &mut ready.control }) = look;
        }
        if is_ready(1) {
            self.jobs.awake();
        }
        ready
    }

    fn keep_tty_raw(&mut self) {
        let now = Instant::now();
        if self.opened.tty.is_some() && self.tty_look.is_none_or(|look| look <= now) {
            source::keep_raw(self.opened.link.control.fd());
            self.tty_look = now.checked_add(TTY_LOOK);
        }
    }

    fn take_signal(&mut self) {
        // One at a time: poll tells of the next.
        if let Ok(Some(signal)) = self.signals.read_signal() {
            let number = i32::try_from(signal.ssi_signo).unwrap_or(0);
            match Signal::try_from(number) {
                Ok(Signal::SIGCHLD) => self.processes.reap(),
                Ok(Signal::SIGIO) => self.look_again = None,
                // Halting would leave a machine that nobody can use and that does not end.
                Ok(Signal::SIGUSR1 | Signal::SIGUSR2) => linux::end(RebootMode::RB_POWER_OFF),
                Ok(Signal::SIGTERM | Signal::SIGINT) => linux::end(RebootMode::RB_AUTOBOOT),
                _ => {}
            }
        }
    }

    /// What jobs have said.
    fn take_words(&mut self) {
        let current = self.session.current();
        while let Some(said) = self.jobs.word() {
            let ours = said.session == current;
            match said.word {
                Word::Reply(reply) if ours => {
                    self.opened.link.message(current, said.channel, &reply);
                }
                Word::Frame(head, input) => self.take_handed(head, input),
                Word::Leave(leave) if ours => self.leaving = Some(leave),
                Word::Leave(_) => {}
                Word::Reply(_) => {}
            }
        }
        self.pieces_left = true;
        while !self.opened.link.is_full(current) {
            let Some(piece) = self.jobs.piece() else {
                self.pieces_left = false;
                break;
            };
            if piece.session == current {
                self.opened.link.data(current, piece.channel, Stream::Stdout, piece.buffer);
            }
        }
    }

    /// Moves data of processes and sockets.
    fn move_data(&mut self, ready: &Ready) {
        let session = self.session.current();
        let link = &mut self.opened.link;
        let room = link.room(session);
        let mut say = |channel, said| match said {
            ExecSaid::Data { stream, buffer } => link.data(session, channel, stream, buffer),
            ExecSaid::Exited(exited) => link.message(session, channel, &Reply::ExecExited(exited)),
            ExecSaid::Credit(credit) => link.message(session, channel, &Reply::Credit(credit)),
        };
        self.processes.on_ready(&ready.processes, room, &mut say);
        self.processes.finish(&mut say);
        let link = &mut self.opened.link;
        let mut say = |channel, said| match said {
            SocketSaid::Data(buffer) => link.data(session, channel, Stream::Stdout, buffer),
            SocketSaid::Reply(reply) => link.message(session, channel, &reply),
        };
        self.sockets.on_ready(&ready.sockets, &mut say);
    }

    /// What ran for the host ends.
    fn end_session(&mut self) {
        self.processes.end_session();
        self.jobs.end_session();
        self.sockets.end_session();
        for path in std::mem::take(&mut self.frozen) {
            // Nobody is left who would thaw it. On a thread: it may hang.
            let _ = thread::spawn(Box::new(move || drop(control::freeze::thaw(&path))));
        }
    }

    /// The host side is closed: what waits for it is dropped.
    fn hang_up(&mut self) {
        self.session.close();
        self.end_session();
        self.opened.link.hang_up();
        self.wait_for_host();
    }

    /// No host is there: looks again later, or when the kernel signals one.
    fn wait_for_host(&mut self) {
        source::reopen_tty(&mut self.opened);
        self.look_again = Instant::now().checked_add(self.pause);
        let last = if self.opened.tty.is_some() { LAST_TTY_LOOK } else { LAST_LOOK };
        self.pause = self.pause.saturating_mul(2).min(last);
    }

    /// Ends the guest when what waits to be written has left.
    fn leave(&mut self, leave: Leave) {
        let deadline = Instant::now().checked_add(LAST_WORD);
        self.take_words();
        loop {
            let written = self.write();
            let control = &self.opened.link.control;
            if written.is_err()
                || !control.outlet.has_output()
                || deadline.is_none_or(|deadline| Instant::now() >= deadline)
            {
                break;
            }
            let limit = PollTimeout::from(50_u8);
            let _ = poll(&mut [PollFd::new(control.fd(), PollFlags::POLLOUT)], limit);
        }
        if let Err(errno) = control::power::leave(&leave) {
            eprintln!("guestline-agent: the guest does not end: {}", describe(errno));
        }
    }
}
