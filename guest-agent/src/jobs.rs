//! Work that may block, on threads of its own: whatever touches files, logs or devices. A file system that hangs,
//! hangs its job and nothing else.
//!
//! ```text
//! poll loop ── start, input, credit, cancel ──> Jobs ──> thread of the job
//!           <── words (replies, data, input used) ── eventfd ──┘
//! ```
//! Data waits in a short queue until the link has room, replies in another, so that none waits behind data of a
//! transfer. A job whose data takes the bulk port writes and reads there itself (see [`Bulk`]). A job that was cancelled
//! stops at its next look.

use crate::bulk::Bulk;
use crate::reading::Found;
use crate::refusal::system;
use crate::thread::{self, lock};
use guestline_protocol::{
    ErrorKind, FrameHead, FrameKind, HEADROOM, ReceiveCredit, RemoteError, Reply, SendCredit,
    Session, Stream,
};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// At most so many jobs at once.
const MAX_JOBS: usize = 32;

/// So many pieces of data may wait for the link.
const QUEUE: usize = 2;

/// Data that the host may have under way to one job, bytes: at most half of what the others leave of all.
const INPUT_WINDOW: u32 = 16 * 1024 * 1024;

/// To all jobs together, but for those that get the least.
const ALL_INPUT_WINDOWS: u32 = 2 * INPUT_WINDOW;

/// Every job is granted so much.
const LEAST_INPUT_WINDOW: u32 = 1024 * 1024;

/// With such a window a job need not be heard at once: what is left of it lasts until the poll loop is awake anyway.
const LARGE_INPUT_WINDOW: u32 = 8 * 1024 * 1024;

/// What a job says to the poll loop.
pub(crate) enum Word {
    Reply(Reply),
    /// It read a frame from the bulk port that is not its own.
    Frame(FrameHead, Input),
    /// The guest is to end, as soon as everything is said.
    Leave(crate::control::power::Leave),
}

/// A word, and of whom.
pub(crate) struct Said {
    pub(crate) session: Session,
    pub(crate) channel: u32,
    pub(crate) word: Word,
}

/// Data, with its head spare.
pub(crate) struct Piece {
    pub(crate) session: Session,
    pub(crate) channel: u32,
    pub(crate) buffer: Vec<u8>,
}

/// A piece of input: a buffer that the link read into, and where in it the input is.
pub(crate) struct Input {
    pub(crate) buffer: Vec<u8>,
    pub(crate) span: core::ops::Range<usize>,
}

impl Input {
    pub(crate) fn bytes(&self) -> &[u8] {
        self.buffer.get(self.span.clone()).unwrap_or_default()
    }
}

/// What a job works with.
pub(crate) struct Desk {
    /// Unlike its channel it is no other job's, whatever its session.
    serial: u32,
    session: Session,
    channel: u32,
    words: Sender<Said>,
    pieces: SyncSender<Piece>,
    wake: Arc<EventFd>,
    account: Arc<Account>,
    input: Option<Receiver<Input>>,
    window: Window,
    /// Its data takes this way.
    bulk: Option<Arc<Bulk>>,
    pool: Pool,
}

/// Large buffers that are used again: fresh ones would have to be mapped page by page.
#[derive(Clone, Default)]
pub(crate) struct Pool(Arc<Mutex<Vec<Vec<u8>>>>);

/// So many buffers are kept while there are jobs.
const POOLED: usize = 6;

/// Smaller ones are not worth keeping.
const LARGE: usize = 64 * 1024;

impl Pool {
    /// A buffer whose content is of no interest; perhaps an empty one.
    pub(crate) fn take(&self) -> Vec<u8> {
        lock(&self.0).pop().unwrap_or_default()
    }

    /// Keeps a buffer, if it is worth it.
    pub(crate) fn put(&self, buffer: Vec<u8>) {
        let mut pool = lock(&self.0);
        if buffer.capacity() >= LARGE && pool.len() < POOLED {
            pool.push(buffer);
        }
    }

    fn clear(&self) {
        *lock(&self.0) = Vec::new();
    }
}

/// A job's part of all windows, which ends with the job: what was sent to it takes memory until then.
struct Window {
    len: u32,
    taken: Arc<AtomicU32>,
}

impl Window {
    /// For the next job.
    fn new(taken: &Arc<AtomicU32>, has_input: bool) -> Self {
        let left = ALL_INPUT_WINDOWS.saturating_sub(taken.load(Ordering::Acquire));
        let len = match has_input {
            true => (left / 2).clamp(LEAST_INPUT_WINDOW, INPUT_WINDOW),
            false => 0,
        };
        taken.fetch_add(len, Ordering::AcqRel);
        Self { len, taken: taken.clone() }
    }

    fn end(&mut self) {
        self.taken.fetch_sub(std::mem::take(&mut self.len), Ordering::AcqRel);
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        self.end();
    }
}

/// What the poll loop and a job share.
struct Account {
    state: Mutex<AccountState>,
    changed: Condvar,
    /// Readable once the job is to stop.
    stop: EventFd,
}

struct AccountState {
    credit: SendCredit,
    receive: ReceiveCredit,
    stopped: bool,
}

impl AccountState {
    /// So much input came. An error when the host was not granted that much.
    fn receive(&mut self, len: usize) -> Result<(), RemoteError> {
        self.receive
            .receive(len)
            .map_err(|overdrawn| RemoteError::new(ErrorKind::Protocol, overdrawn.to_string()))
    }
}

/// The job was cancelled, or its session is over.
pub(crate) struct Stopped;

impl Desk {
    /// Says something.
    pub(crate) fn say(&self, word: Word) {
        self.say_later(word);
        let _ = self.wake.write(1);
    }

    /// Says something that is heard when the poll loop is awake next.
    fn say_later(&self, word: Word) {
        let said = Said { session: self.session, channel: self.channel, word };
        // Without a loop there is no agent.
        let _ = self.words.send(said);
    }

    /// Waits for this much credit at least and returns how much there is.
    pub(crate) fn credit(&self, at_least: usize) -> Result<usize, Stopped> {
        let mut state = lock(&self.account.state);
        loop {
            if state.stopped {
                return Err(Stopped);
            }
            let left = state.credit.left();
            if left >= at_least {
                return Ok(left);
            }
            state = self.account.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A buffer for [`Desk::send`]: its first [`HEADROOM`] bytes are spare, and what is behind them of no interest.
    pub(crate) fn buffer(&self) -> Vec<u8> {
        self.pool.take()
    }

    /// Sends data, whose buffer has its head spare, within the credit that there is.
    pub(crate) fn send(&self, buffer: Vec<u8>) -> Result<(), Stopped> {
        let len = buffer.len().saturating_sub(HEADROOM);
        self.state().credit.spend(len);
        if let Some(bulk) = &self.bulk {
            let is_news = bulk.visit();
            let head = FrameHead::data(self.session, self.channel, Stream::Stdout);
            let ticket = bulk.data(head, buffer);
            let mut keep = |buffer| self.pool.put(buffer);
            let written = bulk.outlet.write_out(ticket, self.stop(), &mut keep);
            // What is left, after an error too, is the poll loop's.
            if is_news || written.is_err() || bulk.outlet.has_output() || bulk.is_unread() {
                let _ = self.wake.write(1);
            }
            return if self.is_stopped() { Err(Stopped) } else { Ok(()) };
        }
        let piece = Piece { session: self.session, channel: self.channel, buffer };
        let sent = self.pieces.send(piece);
        let _ = self.wake.write(1);
        if sent.is_err() || self.is_stopped() { Err(Stopped) } else { Ok(()) }
    }

    /// Bytes of data sent.
    pub(crate) fn sent(&self) -> u64 {
        self.state().credit.sent()
    }

    fn state(&self) -> MutexGuard<'_, AccountState> {
        lock(&self.account.state)
    }

    /// Waits for input.
    pub(crate) fn input(&self) -> Result<Input, RemoteError> {
        let stopped = || RemoteError::new(ErrorKind::Cancelled, "cancelled".to_owned());
        let queue = self.input.as_ref().ok_or_else(stopped)?;
        // Another one may have the port by now.
        if self.is_stopped() {
            return Err(stopped());
        }
        let input = match self.read_bulk(queue)? {
            Some(input) => input,
            None => queue.recv().map_err(|_| stopped())?,
        };
        if self.is_stopped() { Err(stopped()) } else { Ok(input) }
    }

    /// Reads the bulk port until a frame of its own comes. None when it has to wait for what others read.
    fn read_bulk(&self, queue: &Receiver<Input>) -> Result<Option<Input>, RemoteError> {
        let Some(bulk) = &self.bulk else { return Ok(None) };
        let Some(mut reading) = bulk.borrow(self.serial) else {
            if bulk.wants_turn() {
                let _ = self.wake.write(1);
            }
            return Ok(None);
        };
        if bulk.visit() {
            let _ = self.wake.write(1);
        }
        // What the poll loop read comes first; it reads nothing while this one may.
        if let Ok(input) = queue.try_recv() {
            return Ok(Some(input));
        }
        loop {
            let (head, input) = match reading.next_frame(self.pool.take(), self.stop()) {
                Found::Frame(head, buffer, span) => (head, Input { buffer, span }),
                Found::Stopped => return Ok(None),
                Found::Closed => {
                    bulk.take_back();
                    let _ = self.wake.write(1);
                    return Ok(None);
                }
            };
            let mine = (head.session, head.channel) == (self.session, self.channel);
            if mine && matches!(head.kind, FrameKind::Data(_)) {
                self.state().receive(input.span.len())?;
                return Ok(Some(input));
            }
            bulk.hand_over();
            self.say(Word::Frame(head, input));
        }
    }

    /// So much input is used, and its buffer is free.
    pub(crate) fn used(&self, input: Input) {
        self.pool.put(input.buffer);
        let credit = self.state().receive.use_up(input.span.len());
        let Some(credit) = credit else { return };
        let word = Word::Reply(Reply::Credit(credit));
        // The poll loop looks after a port that jobs are at (`bulk::GRACE`).
        let is_heard_soon = self.bulk.as_ref().is_some_and(|bulk| bulk.is_used());
        match is_heard_soon && self.window.len >= LARGE_INPUT_WINDOW {
            true => self.say_later(word),
            false => self.say(word),
        }
    }

    /// Was it cancelled?
    pub(crate) fn is_stopped(&self) -> bool {
        lock(&self.account.state).stopped
    }

    /// Readable once it is.
    pub(crate) fn stop(&self) -> BorrowedFd<'_> {
        self.account.stop.as_fd()
    }
}

struct Job {
    session: Session,
    channel: u32,
    account: Arc<Account>,
    input: Option<Sender<Input>>,
}

/// The jobs of the session.
pub(crate) struct Jobs {
    list: Vec<Job>,
    words: (Sender<Said>, Receiver<Said>),
    pieces: (SyncSender<Piece>, Receiver<Piece>),
    wake: Arc<EventFd>,
    /// Threads that have not ended, of any session.
    running: Arc<()>,
    /// Bytes of input that all of them are granted.
    windows: Arc<AtomicU32>,
    pool: Pool,
    /// Of the last one.
    serial: u32,
}

impl Jobs {
    pub(crate) fn new() -> nix::Result<Self> {
        let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Ok(Self {
            list: Vec::new(),
            words: mpsc::channel(),
            pieces: mpsc::sync_channel(QUEUE),
            wake: Arc::new(wake),
            running: Arc::new(()),
            windows: Arc::default(),
            pool: Pool::default(),
            serial: 0,
        })
    }

    /// Readable when a job has said something.
    pub(crate) fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(crate) fn has(&self, channel: u32) -> bool {
        self.list.iter().any(|job| job.channel == channel)
    }

    /// Starts a job, with credit for what it sends, and perhaps with input, of which it gives the window. The job's last word
    /// is its reply.
    #[inline(never)]
    pub(crate) fn start(
        &mut self,
        session: Session,
        channel: u32,
        credit: u32,
        has_input: bool,
        bulk: Option<&Arc<Bulk>>,
        work: Box<dyn FnOnce(&Desk) -> Reply + Send>,
    ) -> Result<u32, RemoteError> {
        // Those that hang after they were cancelled count, too.
        if Arc::strong_count(&self.running) > MAX_JOBS {
            let message = format!("{MAX_JOBS} jobs are at work already");
            return Err(RemoteError::new(ErrorKind::Busy, message));
        }
        let stop = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC);
        let stop = stop.map_err(|errno| system(errno, "cannot start a job"))?;
        let window = Window::new(&self.windows, has_input);
        let granted = window.len;
        let (credit, receive) = (SendCredit::new(credit), ReceiveCredit::new(granted));
        let state = AccountState { credit, receive, stopped: false };
        let (state, changed) = (Mutex::new(state), Condvar::new());
        let account = Arc::new(Account { state, changed, stop });
        let (sender, receiver) = match has_input {
            true => {
                let (sender, receiver) = mpsc::channel();
                (Some(sender), Some(receiver))
            }
            false => (None, None),
        };
        self.serial = self.serial.wrapping_add(1).max(1);
        let serial = self.serial;
        let mut desk = Desk {
            serial,
            session,
            channel,
            words: self.words.0.clone(),
            pieces: self.pieces.0.clone(),
            wake: self.wake.clone(),
            account: account.clone(),
            input: receiver,
            window,
            bulk: bulk.cloned(),
            pool: self.pool.clone(),
        };
        if let (true, Some(bulk)) = (has_input, bulk) {
            bulk.keep_for(serial);
        }
        let running = self.running.clone();
        let run = move || {
            let reply = work(&desk);
            if let Some(bulk) = &desk.bulk {
                bulk.give_back(serial);
            }
            // Before the last word: whoever has it may start another.
            drop(running);
            desk.window.end();
            desk.say(Word::Reply(reply));
        };
        thread::spawn(Box::new(run)).map_err(|error| {
            if let Some(bulk) = bulk {
                bulk.give_back(serial);
            }
            let errno = nix::errno::Errno::from_raw(error.raw_os_error().unwrap_or(0));
            system(errno, "cannot start a thread")
        })?;
        self.list.push(Job { session, channel, account, input: sender });
        Ok(granted)
    }

    /// Input for a job. An error when the host was not granted that much.
    pub(crate) fn input(&mut self, channel: u32, input: Input) -> Result<(), RemoteError> {
        let Some(job) = self.list.iter_mut().find(|job| job.channel == channel) else {
            return Ok(());
        };
        let mut state = lock(&job.account.state);
        state.receive(input.span.len())?;
        drop(state);
        if let Some(sender) = &job.input {
            // A job that wants no more has said, or will say, why.
            let _ = sender.send(input);
        }
        Ok(())
    }

    /// Large buffers, for whoever moves data.
    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The host grants credit.
    pub(crate) fn credit(&self, channel: u32, bytes: u32) {
        if let Some(job) = self.list.iter().find(|job| job.channel == channel) {
            let mut state = lock(&job.account.state);
            state.credit.grant(bytes);
            job.account.changed.notify_all();
        }
    }

    /// Tells a job to stop; its last word still comes.
    pub(crate) fn cancel(&mut self, channel: u32) {
        if let Some(job) = self.list.iter_mut().find(|job| job.channel == channel) {
            job.stop();
        }
    }

    /// The session is over: all jobs stop, and what they still say is nobody's.
    pub(crate) fn end_session(&mut self) {
        for mut job in self.list.drain(..) {
            job.stop();
        }
        self.pool.clear();
    }

    /// Clears the wake-up.
    pub(crate) fn awake(&self) {
        let _ = self.wake.read();
    }

    /// The next word.
    pub(crate) fn word(&mut self) -> Option<Said> {
        let said = self.words.1.try_recv().ok()?;
        if let Word::Reply(reply) = &said.word
            && reply.is_final()
        {
            self.list.retain(|job| (job.session, job.channel) != (said.session, said.channel));
            if self.list.is_empty() {
                self.pool.clear();
            }
        }
        Some(said)
    }

    /// The next piece of data.
    pub(crate) fn piece(&self) -> Option<Piece> {
        self.pieces.1.try_recv().ok()
    }
}

impl Job {
    fn stop(&mut self) {
        self.input = None;
        let mut state = lock(&self.account.state);
        state.stopped = true;
        self.account.changed.notify_all();
        let _ = self.account.stop.write(1);
    }
}

#[cfg(test)]
mod tests;
