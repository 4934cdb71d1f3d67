//! The poll loop: owns the link, the signals, and all that runs for the host; [`SessionState`] decides.
//!
//! ```text
//! open the link ──> serve ── host closed ──> look again, or accept the next, or exit
//! ```
//! A port whose host side is closed polls as hung up at once, for ever. It is looked at again when the kernel signals a
//! change (`SIGIO`, fcntl(2)), and rarely without that; see [`crate::presence`].

use crate::args::ServeConfig;
use crate::control;
use crate::control::power::Leave;
use crate::exec::{PollKey, Processes, Said as ExecSaid, cgroup_parent};
use crate::forward::{Said as SocketSaid, Sockets};
use crate::jobs::{Desk, Input, Jobs, Word};
use crate::link::Lane;
use crate::presence::Look;
use crate::session::{self, Action, SessionState};
use crate::source::{self, Ending, Opened};
use crate::{linux, sys, thread, work};
use guestline_files::describe;
use guestline_files::ops;
use guestline_protocol::{
    DoneResponse, ErrorKind, FrameHead, PushStartedEvent, RemoteError, Reply, Request, Session,
    Stream,
};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::reboot::RebootMode;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// Between two looks at a link whose host side is closed: at first, and at last.
const FIRST_LOOK: Duration = Duration::from_millis(50);
const LAST_LOOK: Duration = Duration::from_secs(30);
const LAST_TTY_LOOK: Duration = Duration::from_secs(2);

/// So often is looked after a tty that others may set as they like: cooked, it may keep what is sent to itself.
const TTY_LOOK: Duration = Duration::from_secs(1);

/// So many reads of a lane before the other one is looked at: a request waits for no more.
const READS: usize = 16;

/// A read of a virtio port that gives less has emptied it.
const PORT_READ: usize = 4096;

/// How long a last word may take to leave.
const LAST_WORD: Duration = Duration::from_secs(1);

/// Serves until the link is over for good (service), or for ever.
pub(crate) fn run(config: &ServeConfig) -> io::Result<()> {
    // Blocked before any child is there: none of their ends is missed.
    let signals = signals(config.init)?;
    let mut server = Server {
        opened: source::open(config)?,
        init: config.init,
        incarnation: sys::random_u64(),
        signals,
        session: SessionState::default(),
        processes: Processes::new(
            config.init.then_some(linux::ENVIRONMENT),
            cgroup_parent(config.init),
        ),
        jobs: Jobs::new()?,
        sockets: Sockets::default(),
        frozen: Vec::new(),
        pieces_left: false,
        leaving: None,
        look_again: None,
        pause: FIRST_LOOK,
        tty_look: None,
    };
    loop {
        server.serve()?;
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
}

/// What poll found.
#[derive(Default)]
struct Ready {
    signals: bool,
    control: Option<Look>,
    bulk: Option<Look>,
    processes: Vec<(PollKey, PollFlags)>,
}

impl Server {
    /// Serves until the link's other end is closed for good.
    fn serve(&mut self) -> io::Result<()> {
        loop {
            let ready = self.wait()?;
            if ready.signals {
                self.take_signal();
            }
            self.keep_tty_raw();
            let looks = [ready.control, ready.bulk];
            let mut open = !looks.contains(&Some(Look::Left));
            if ready.control == Some(Look::Read) && open {
                open = self.read_lane(false)?;
            }
            if ready.bulk == Some(Look::Read) && open {
                open = self.read_lane(true)?;
            }
            if looks.contains(&Some(Look::Wait)) {
                self.wait_for_host();
            }
            self.take_words();
            self.move_data(&ready.processes);
            if self.write().is_err() {
                open = false;
            }
            if !open {
                self.hang_up();
                if self.opened.ending != Ending::LookAgain {
                    return Ok(());
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
        match &mut link.bulk {
            Some(bulk) => written.and(bulk.write(now, &mut done)),
            None => written,
        }
    }

    /// Sleeps until something is to be done.
    fn wait(&mut self) -> io::Result<Ready> {
        let now = Instant::now();
        if self.look_again.is_some_and(|then| then <= now) {
            self.look_again = None;
        }
        let link = &self.opened.link;
        let framing = link.control.framing.deadline_ms().map(|at| {
            let left = Duration::from_millis(at.saturating_sub(link.now_ms()));
            now.checked_add(left).unwrap_or(now)
        });
        let held = link.control.held_until();
        let wakes = [self.look_again, self.processes.deadline(), framing, held, self.tty_look];
        let timeout = wakes.into_iter().flatten().min().map_or(PollTimeout::NONE, |wake| {
            // Rounded up, so that the deadline has passed when poll returns.
            let left = wake.saturating_duration_since(now).saturating_add(Duration::from_millis(1));
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        let may_send = !link.is_full(self.session.current());
        let timeout = if self.pieces_left && may_send { PollTimeout::ZERO } else { timeout };
        let mut fds = vec![
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.jobs.wake_fd(), PollFlags::POLLIN),
        ];
        let may_look = self.look_again.is_none();
        let [mut control, mut bulk] = [None, None];
        for (lane, at) in [(Some(&link.control), &mut control), (link.bulk.as_ref(), &mut bulk)] {
            if let Some(lane) = lane.filter(|lane| may_look || lane.host.is_polled()) {
                *at = Some(fds.len());
                fds.push(PollFd::new(lane.fd(), lane.interest()));
            }
        }
        let (first, mut keys) = (fds.len(), Vec::new());
        self.processes.poll_fds(may_send, &mut fds, &mut keys);
        self.sockets.poll_fds(may_send, &mut fds);
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            // The kernel has no memory for it (poll(2)): it may have some later.
            Err(_) => {
                std::thread::sleep(FIRST_LOOK);
                return Ok(Ready::default());
            }
        }
        let found: Vec<_> =
            fds.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty())).collect();
        let is_ready = |at: usize| found.get(at).is_some_and(|events| !events.is_empty());
        let found_at = |at: Option<usize>| at.and_then(|at| found.get(at)).copied();
        let events = found.iter().copied().skip(first);
        let processes = keys.into_iter().zip(events).filter(|(_, events)| !events.is_empty());
        let link = &mut self.opened.link;
        let control = found_at(control).and_then(|found| link.control.host.on_poll(found));
        let bulk = link.bulk.as_mut().zip(found_at(bulk));
        let bulk = bulk.and_then(|(bulk, found)| bulk.host.on_poll(found));
        link.lanes().for_each(Lane::listen_for_host);
        let ready = Ready { signals: is_ready(0), control, bulk, processes: processes.collect() };
        if is_ready(1) {
            self.jobs.awake();
        }
        Ok(ready)
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

    fn lane(&mut self, bulk: bool) -> Option<&mut Lane> {
        if bulk { self.opened.link.bulk.as_mut() } else { Some(&mut self.opened.link.control) }
    }

    /// Reads what the host sent. False when its end is closed.
    fn read_lane(&mut self, bulk: bool) -> io::Result<bool> {
        let mut is_drained = false;
        for _ in 0..READS {
            if is_drained {
                break;
            }
            let Some(lane) = self.lane(bulk) else { return Ok(true) };
            let dropped = lane.framing.dropped();
            match lane.read() {
                Ok(Some(0)) => return Ok(false),
                Ok(Some(len)) => {
                    self.pause = FIRST_LOOK;
                    is_drained = len < PORT_READ;
                }
                Ok(None) => return Ok(true),
                // Whatever it is, this host is gone.
                Err(_) => return Ok(false),
            }
            let mut any = false;
            while let Some(lane) = self.lane(bulk)
                && let Some((head, span)) = lane.framing.next_span()
            {
                any = true;
                let link = &self.opened.link;
                let lane = if bulk { link.bulk.as_ref() } else { Some(&link.control) };
                let body = lane.map_or(&[][..], |lane| lane.framing.body(&span));
                let action = self.session.on_frame(head, body, linux::clock_us());
                if let Some(action) = action {
                    self.act(action, head, span, bulk);
                }
            }
            if self.opened.tty.is_some()
                && !any
                && self.opened.link.control.framing.dropped() > dropped
            {
                // Somebody else, such as a getty, may have set the line as he likes it.
                let _ = source::make_raw(self.opened.link.control.fd(), None);
            }
        }
        Ok(true)
    }

    fn act(&mut self, action: Action, head: FrameHead, span: core::ops::Range<usize>, bulk: bool) {
        // An answer goes out under the session it answers, also where that was refused.
        let session = head.session;
        match action {
            Action::Send { channel, reply } => match bulk {
                true => self.opened.link.bulk_message(session, channel, &reply),
                false => self.opened.link.message(session, channel, &reply),
            },
            Action::Hello { channel, bulk } => self.hello(session, channel, bulk),
            Action::Join { channel } => {
                if self.session.is_attached() {
                    self.opened.link.join(session);
                }
                self.opened.link.bulk_message(session, channel, &session::joined());
            }
            Action::Carry { channel, request } => {
                if let Err(error) = self.carry(session, channel, request) {
                    self.opened.link.message(session, channel, &Reply::Error(error));
                }
            }
            Action::Data { channel, stream: _ } => {
                if let Err(error) = self.input(channel, span, bulk) {
                    self.cancel(channel);
                    self.opened.link.message(session, channel, &Reply::Error(error));
                }
            }
        }
    }

    fn hello(&mut self, session: Session, channel: u32, bulk: bool) {
        let is_new = self.session.open(session);
        if is_new {
            self.end_session();
            self.opened.link.forget();
        }
        // A hello that is said again has waited for it already.
        if bulk
            && is_new
            && self.opened.link.bulk.is_none()
            && self.opened.ending == Ending::LookAgain
            && self.opened.tty.is_none()
        {
            self.opened.link.bulk = source::bulk_port().map(Lane::port);
        }
        if self.session.is_attached() {
            self.opened.link.join(session);
        }
        let has_bulk = bulk && self.opened.link.bulk.is_some();
        let hello = session::hello(self.init, has_bulk, self.incarnation, linux::clock_us());
        self.opened.link.message(session, channel, &hello);
    }

    /// Data of the host, for whoever has the channel.
    fn input(
        &mut self,
        channel: u32,
        span: core::ops::Range<usize>,
        bulk: bool,
    ) -> Result<(), RemoteError> {
        if self.jobs.has(channel) {
            let spare = self.jobs.pool().take();
            let Some(lane) = self.lane(bulk) else { return Ok(()) };
            let buffer = lane.framing.detach(spare);
            return self.jobs.input(channel, Input { buffer, span });
        }
        let lane = match bulk {
            true => self.opened.link.bulk.as_ref(),
            false => Some(&self.opened.link.control),
        };
        let Some(lane) = lane else { return Ok(()) };
        let body = lane.framing.body(&span);
        if self.processes.has(channel) {
            return self.processes.input(channel, body);
        }
        self.sockets.input(channel, body)
    }

    fn is_open(&self, channel: u32) -> bool {
        self.jobs.has(channel) || self.processes.has(channel) || self.sockets.has(channel)
    }

    /// Carries a request out, or sees to it that it is.
    fn carry(
        &mut self,
        session: Session,
        channel: u32,
        request: Request,
    ) -> Result<(), RemoteError> {
        if !request.is_on_channel() {
            self.check_channel(channel)?;
        }
        let mut job = |credit, work: Box<dyn FnOnce(&Desk) -> Reply + Send>| {
            self.jobs.start(session, channel, credit, false, work)
        };
        match request {
            Request::Cancel(_) => {
                self.cancel(channel);
                Ok(())
            }
            Request::Credit(credit) => {
                self.jobs.credit(channel, credit.bytes);
                self.processes.credit(channel, credit.bytes);
                self.sockets.credit(channel, credit.bytes);
                Ok(())
            }
            Request::End(end) => {
                self.processes.end_input(channel, end.total);
                self.sockets.end_input(channel, end.total);
                Ok(())
            }
            Request::Signal(signal) => {
                self.processes.signal(channel, &signal);
                Ok(())
            }
            Request::Resize(size) => {
                self.processes.resize(channel, size);
                Ok(())
            }
            Request::Exec(request) => {
                let started = self.processes.spawn(channel, &request)?;
                let waits = started.credit > 0;
                let reply = Reply::ExecStarted(started);
                match waits {
                    true => self.opened.link.message(session, channel, &reply),
                    // Most commands are short: their exit comes with it.
                    false => self.opened.link.message_with_next(session, channel, &reply),
                }
                Ok(())
            }
            Request::Push(request) => {
                let work = Box::new(move |desk: &Desk| work::push(desk, &request));
                self.jobs.start(session, channel, 0, true, work)?;
                let started = PushStartedEvent { credit: crate::jobs::INPUT_WINDOW };
                self.opened.link.message(session, channel, &Reply::PushStarted(started));
                Ok(())
            }
            Request::Pull(request) => {
                job(request.credit, Box::new(move |desk| work::pull(desk, &request)))
            }
            Request::Stat(request) => job(
                0,
                Box::new(move |_| {
                    let stat =
                        work::path(&request.path).and_then(|path| ops::stat(&path, request.follow));
                    stat.map_or_else(Reply::Error, Reply::Stat)
                }),
            ),
            Request::List(request) => job(0, Box::new(move |desk| work::list(desk, &request))),
            Request::MakeFolder(request) => {
                job(
                    0,
                    Box::new(move |_| {
                        work::done(work::path(&request.path).and_then(|path| {
                            ops::make_folder(&path, request.mode, request.parents)
                        }))
                    }),
                )
            }
            Request::Remove(request) => {
                job(
                    0,
                    Box::new(move |_| {
                        work::done(work::path(&request.path).and_then(|path| {
                            ops::remove(&path, request.recursive, request.missing_ok)
                        }))
                    }),
                )
            }
            Request::Follow(request) => {
                job(request.credit, Box::new(move |desk| work::follow(desk, &request)))
            }
            Request::Facts(_) => job(0, Box::new(|_| Reply::Facts(control::facts::gather()))),
            Request::Sample(request) => job(0, Box::new(move |desk| work::sample(desk, &request))),
            // Quick, and wanted at once: a restored machine waits for it.
            Request::SetClock(request) => {
                let reply = Reply::SetClock(control::clock::set(&request)?);
                self.opened.link.message(session, channel, &reply);
                Ok(())
            }
            Request::AddEntropy(request) => {
                control::entropy::add(&request)?;
                self.opened.link.message(session, channel, &Reply::Done(DoneResponse {}));
                Ok(())
            }
            Request::Identity(request) => {
                job(0, Box::new(move |_| work::done(control::identity::apply(&request))))
            }
            Request::Power(request) => {
                let init = self.init;
                job(0, Box::new(move |desk| work::power(desk, &request, init)))
            }
            Request::Freeze(request) => {
                let path = request.path.to_vec();
                job(0, Box::new(move |_| work::done(control::freeze::freeze(&request.path))))?;
                if !self.frozen.contains(&path) {
                    self.frozen.push(path);
                }
                Ok(())
            }
            Request::Thaw(request) => {
                self.frozen.retain(|frozen| frozen[..] != request.path[..]);
                job(0, Box::new(move |_| work::done(control::freeze::thaw(&request.path))))
            }
            Request::Connect(request) => {
                if let Some(connected) = self.sockets.connect(channel, &request)? {
                    self.opened.link.message(session, channel, &Reply::Connected(connected));
                }
                Ok(())
            }
            Request::Listen(request) => {
                let listening = self.sockets.listen(channel, &request)?;
                self.opened.link.message(session, channel, &Reply::Listening(listening));
                Ok(())
            }
            Request::Accept(request) => {
                let connected = self.sockets.accept(channel, &request)?;
                self.opened.link.message(session, channel, &Reply::Connected(connected));
                Ok(())
            }
            Request::Hello(_) | Request::Attach(_) | Request::Ping(_) => Ok(()),
        }
    }

    fn check_channel(&self, channel: u32) -> Result<(), RemoteError> {
        if !self.is_open(channel) {
            return Ok(());
        }
        let message = format!("channel {channel} is open already");
        Err(RemoteError { kind: ErrorKind::Protocol, errno: None, message })
    }

    fn cancel(&mut self, channel: u32) {
        self.jobs.cancel(channel);
        self.processes.cancel(channel);
        if self.sockets.cancel(channel) {
            let session = self.session.current();
            self.opened.link.message(session, channel, &work::cancelled());
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
                Word::Used(len, buffer) => {
                    let credit = self.jobs.used(said.channel, len, buffer);
                    if let (Some(credit), true) = (credit, ours) {
                        self.opened.link.message(current, said.channel, &credit);
                    }
                }
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
    fn move_data(&mut self, ready: &[(PollKey, PollFlags)]) {
        let session = self.session.current();
        let link = &mut self.opened.link;
        let room = link.room(session);
        let mut say = |channel, said| match said {
            ExecSaid::Data { stream, buffer } => link.data(session, channel, stream, buffer),
            ExecSaid::Exited(exited) => link.message(session, channel, &Reply::ExecExited(exited)),
            ExecSaid::Credit(credit) => link.message(session, channel, &Reply::Credit(credit)),
        };
        self.processes.on_ready(ready, room, &mut say);
        self.processes.finish(&mut say);
        let link = &mut self.opened.link;
        let may_send = !link.is_full(session);
        let mut say = |channel, said| match said {
            SocketSaid::Data(buffer) => link.data(session, channel, Stream::Stdout, buffer),
            SocketSaid::Reply(reply) => link.message(session, channel, &reply),
        };
        self.sockets.on_ready(may_send, &mut say);
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
        self.opened.link.lanes().for_each(Lane::listen_for_host);
    }

    /// Ends the guest when what waits to be written has left.
    fn leave(&mut self, leave: Leave) {
        let deadline = Instant::now().checked_add(LAST_WORD);
        self.take_words();
        loop {
            let written = self.write();
            let control = &self.opened.link.control;
            if written.is_err()
                || !control.has_output()
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
