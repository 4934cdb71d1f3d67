//! Work that may block, on threads of its own: whatever touches files, logs or devices. A file system that hangs,
//! hangs its job and nothing else.
//!
//! ```text
//! poll loop ── start, input, credit, cancel ──> Jobs ──> thread of the job
//!           <── words (replies, data, input used) ── eventfd ──┘
//! ```
//! Data waits in a short queue until the link has room, replies in another, so that none waits behind data of a
//! transfer. A job that was cancelled stops at its next look.

use crate::refusal::system;
use crate::thread;
use guestline_protocol::{
    ErrorKind, HEADROOM, ReceiveCredit, RemoteError, Reply, SendCredit, Session,
};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// At most so many jobs at once.
const MAX_JOBS: usize = 32;

/// So many pieces of data may wait for the link.
const QUEUE: usize = 2;

/// Data that the host may have under way to a job, bytes.
pub(crate) const INPUT_WINDOW: u32 = 1024 * 1024;

/// What a job says to the poll loop.
pub(crate) enum Word {
    Reply(Reply),
    /// So many bytes of its input are used, and their buffer is free.
    Used(usize, Vec<u8>),
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

/// What a job works with.
pub(crate) struct Desk {
    session: Session,
    channel: u32,
    words: Sender<Said>,
    pieces: SyncSender<Piece>,
    wake: Arc<EventFd>,
    account: Arc<Account>,
    input: Option<Receiver<Input>>,
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
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    /// Keeps a buffer, if it is worth it.
    pub(crate) fn put(&self, buffer: Vec<u8>) {
        let mut pool = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if buffer.capacity() >= LARGE && pool.len() < POOLED {
            pool.push(buffer);
        }
    }

    fn clear(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Vec::new();
    }
}

/// What the poll loop and a job share.
struct Account {
    state: Mutex<AccountState>,
    changed: Condvar,
    /// Readable once the job is to stop.
    stop: EventFd,
}

#[derive(Default)]
struct AccountState {
    credit: SendCredit,
    stopped: bool,
}

/// The job was cancelled, or its session is over.
pub(crate) struct Stopped;

impl Desk {
    /// Says something.
    pub(crate) fn say(&self, word: Word) {
        let said = Said { session: self.session, channel: self.channel, word };
        // Without a loop there is no agent.
        let _ = self.words.send(said);
        let _ = self.wake.write(1);
    }

    /// Waits for this much credit at least and returns how much there is.
    pub(crate) fn credit(&self, at_least: usize) -> Result<usize, Stopped> {
        let mut state = self.account.state.lock().unwrap_or_else(PoisonError::into_inner);
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
        {
            let mut state = self.account.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.credit.spend(len);
        }
        let piece = Piece { session: self.session, channel: self.channel, buffer };
        let sent = self.pieces.send(piece);
        let _ = self.wake.write(1);
        if sent.is_err() || self.is_stopped() { Err(Stopped) } else { Ok(()) }
    }

    /// Bytes of data sent.
    pub(crate) fn sent(&self) -> u64 {
        self.account.state.lock().unwrap_or_else(PoisonError::into_inner).credit.sent()
    }

    /// Waits for input; none when there is no more.
    pub(crate) fn input(&self) -> Option<Input> {
        let input = self.input.as_ref()?.recv().ok()?;
        (!self.is_stopped()).then_some(input)
    }

    /// Was it cancelled?
    pub(crate) fn is_stopped(&self) -> bool {
        self.account.state.lock().unwrap_or_else(PoisonError::into_inner).stopped
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
    receive: ReceiveCredit,
}

/// The jobs of the session.
pub(crate) struct Jobs {
    list: Vec<Job>,
    words: (Sender<Said>, Receiver<Said>),
    pieces: (SyncSender<Piece>, Receiver<Piece>),
    wake: Arc<EventFd>,
    /// Threads that have not ended, of any session.
    running: Arc<()>,
    pool: Pool,
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
            pool: Pool::default(),
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

    /// Starts a job, with credit for what it sends, and perhaps with input. Its last word is its reply.
    #[inline(never)]
    pub(crate) fn start(
        &mut self,
        session: Session,
        channel: u32,
        credit: u32,
        has_input: bool,
        work: Box<dyn FnOnce(&Desk) -> Reply + Send>,
    ) -> Result<(), RemoteError> {
        // Those that hang after they were cancelled count, too.
        if Arc::strong_count(&self.running) > MAX_JOBS {
            let message = format!("{MAX_JOBS} jobs are at work already");
            return Err(RemoteError { kind: ErrorKind::Busy, errno: None, message });
        }
        let stop = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC);
        let stop = stop.map_err(|errno| system(errno, "cannot start a job"))?;
        let state = AccountState { credit: SendCredit::new(credit), stopped: false };
        let (state, changed) = (Mutex::new(state), Condvar::new());
        let account = Arc::new(Account { state, changed, stop });
        let (sender, receiver) = match has_input {
            true => {
                let (sender, receiver) = mpsc::channel();
                (Some(sender), Some(receiver))
            }
            false => (None, None),
        };
        let desk = Desk {
            session,
            channel,
            words: self.words.0.clone(),
            pieces: self.pieces.0.clone(),
            wake: self.wake.clone(),
            account: account.clone(),
            input: receiver,
            pool: self.pool.clone(),
        };
        let running = self.running.clone();
        let run = move || {
            let reply = work(&desk);
            // Before the last word: whoever has it may start another.
            drop(running);
            desk.say(Word::Reply(reply));
        };
        thread::spawn(Box::new(run)).map_err(|error| {
            let errno = nix::errno::Errno::from_raw(error.raw_os_error().unwrap_or(0));
            system(errno, "cannot start a thread")
        })?;
        let receive = ReceiveCredit::new(INPUT_WINDOW);
        self.list.push(Job { session, channel, account, input: sender, receive });
        Ok(())
    }

    /// Input for a job. An error when the host was not granted that much.
    pub(crate) fn input(&mut self, channel: u32, input: Input) -> Result<(), RemoteError> {
        let Some(job) = self.list.iter_mut().find(|job| job.channel == channel) else {
            return Ok(());
        };
        let received = job.receive.receive(input.span.len());
        received.map_err(|overdrawn| RemoteError {
            kind: ErrorKind::Protocol,
            errno: None,
            message: overdrawn.to_string(),
        })?;
        if let Some(sender) = &job.input {
            // A job that wants no more has said, or will say, why.
            let _ = sender.send(input);
        }
        Ok(())
    }

    /// A job used so much input: the credit to grant for it.
    pub(crate) fn used(&mut self, channel: u32, len: usize, buffer: Vec<u8>) -> Option<Reply> {
        self.pool.put(buffer);
        let job = self.list.iter_mut().find(|job| job.channel == channel)?;
        job.receive.use_up(len).map(Reply::Credit)
    }

    /// Large buffers, for whoever moves data.
    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The host grants credit.
    pub(crate) fn credit(&self, channel: u32, bytes: u32) {
        if let Some(job) = self.list.iter().find(|job| job.channel == channel) {
            let mut state = job.account.state.lock().unwrap_or_else(PoisonError::into_inner);
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
        let mut state = self.account.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.stopped = true;
        self.account.changed.notify_all();
        let _ = self.account.stop.write(1);
    }
}
