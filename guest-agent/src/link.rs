//! The agent's end of the link: one or two files, what arrives on them and what waits to be written.

use crate::presence::Presence;
use crate::sys;
use guestline_protocol::{
    End, ErrorKind, FrameHead, Framing, PortFraming, RemoteError, Reply, Session, Stream,
    TtyFraming, encode,
};
use nix::poll::PollFlags;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

/// With so many bytes of data unsent, what makes more of them waits.
const HIGH_WATER: usize = 256 * 1024;

/// One read: a virtio port gives 4 KiB at most (Linux `drivers/char/virtio_console.c`), a socket more.
const READ_LEN: usize = 16 * 1024;

/// So many reads at most of what somebody left behind: more than a port has buffers.
const LEFT_READS: usize = 256;

/// Messages are written together up to so many bytes.
const TOGETHER: usize = 8 * 1024;

/// A message that nobody waits for is held back for so long, to go with the next.
const HOLD: Duration = Duration::from_millis(2);

/// One of the two ways.
pub(crate) struct Lane {
    file: File,
    pub(crate) framing: Box<dyn Framing>,
    pub(crate) host: Presence,
    /// The kernel signals when its host comes.
    has_news: bool,
    /// Frames that wait to be written; messages go before data.
    messages: VecDeque<Vec<u8>>,
    data: VecDeque<Vec<u8>>,
    /// What waits may wait until then, for more to be written with it.
    hold: Option<Instant>,
    /// The frame that is being written, and how much of it is.
    current: Option<(Vec<u8>, usize)>,
}

impl Lane {
    /// Over a line that loses bytes.
    pub(crate) fn tty(file: File) -> Self {
        Self::new(file, Box::new(TtyFraming::new(End::Guest)), Presence::Awaited)
    }

    /// Over a virtio-serial port.
    pub(crate) fn port(file: File) -> Self {
        Self::new(file, Box::new(PortFraming::default()), Presence::Awaited)
    }

    /// Over a socket.
    pub(crate) fn stream(file: File) -> Self {
        Self::new(file, Box::new(PortFraming::default()), Presence::Stream)
    }

    fn new(file: File, framing: Box<dyn Framing>, host: Presence) -> Self {
        let (messages, data) = (VecDeque::new(), VecDeque::new());
        Self { file, framing, host, has_news: false, messages, data, hold: None, current: None }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Has the kernel signal that the host comes, while that is waited for: each byte that comes is signalled, too.
    pub(crate) fn listen_for_host(&mut self) {
        let is_awaited = self.host == Presence::Awaited;
        if self.has_news != is_awaited {
            self.has_news = is_awaited;
            sys::signal_changes(self.fd(), is_awaited);
        }
    }

    /// What to poll for.
    pub(crate) fn interest(&self) -> PollFlags {
        let mut flags = PollFlags::POLLIN;
        flags.set(PollFlags::POLLOUT, self.has_output() && !self.is_held());
        flags
    }

    fn is_held(&self) -> bool {
        self.hold.is_some_and(|until| until > Instant::now())
    }

    /// When what is held back is to be written.
    pub(crate) fn held_until(&self) -> Option<Instant> {
        self.hold
    }

    pub(crate) fn has_output(&self) -> bool {
        self.current.is_some() || !self.messages.is_empty() || !self.data.is_empty()
    }

    /// So many bytes of data may still be queued.
    fn room(&self) -> usize {
        if self.framing.is_congested() {
            return 0;
        }
        HIGH_WATER.saturating_sub(self.data.iter().map(Vec::len).sum::<usize>())
    }

    /// Reads once; 0 bytes when the other end is closed, none when there is nothing.
    pub(crate) fn read(&mut self) -> io::Result<Option<usize>> {
        match self.file.read(self.framing.space(READ_LEN)) {
            Ok(len) => {
                self.framing.filled(len);
                Ok(Some(len))
            }
            Err(error) if is_transient(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes as much as is taken; `done` gets each buffer that is.
    pub(crate) fn write(&mut self, now_ms: u64, done: &mut dyn FnMut(Vec<u8>)) -> io::Result<()> {
        let due = self.framing.due(now_ms, !self.has_output());
        if !due.is_empty() {
            self.messages.push_back(due);
        }
        if self.is_held() {
            return Ok(());
        }
        self.hold = None;
        loop {
            if self.current.is_none() {
                let next = self.next_messages().or_else(|| self.data.pop_front());
                self.current = next.map(|frame| (frame, 0));
            }
            let Some((frame, written)) = &mut self.current else { return Ok(()) };
            match self.file.write(frame.get(*written..).unwrap_or_default()) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(len) => *written = written.saturating_add(len),
                Err(error) if is_transient(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
            if *written >= frame.len()
                && let Some((frame, _)) = self.current.take()
            {
                done(frame);
            }
        }
    }

    /// The messages that wait, several in one piece: a write costs more than its bytes.
    fn next_messages(&mut self) -> Option<Vec<u8>> {
        let mut piece = self.messages.pop_front()?;
        while let Some(next) = self.messages.front()
            && piece.len().saturating_add(next.len()) <= TOGETHER
        {
            piece.extend_from_slice(next);
            self.messages.pop_front();
        }
        Some(piece)
    }

    /// Drops what waits, but for a frame that is half out: the host must never see half of one.
    fn forget(&mut self) {
        self.messages.clear();
        self.data.clear();
        self.hold = None;
        if self.current.as_ref().is_some_and(|(_, written)| *written == 0) {
            self.current = None;
        }
    }

    /// The other end is gone: half a frame is of no use to the next, and what is left to be read is of nobody.
    fn reset(&mut self) {
        self.forget();
        self.framing.restart();
        self.current = None;
        self.host.leave();
        let mut buffer = [0; READ_LEN];
        for _ in 0..LEFT_READS {
            if !matches!(self.file.read(&mut buffer), Ok(1..)) {
                break;
            }
        }
    }
}

/// Why `read` or `write` moved nothing: try again later.
pub(crate) fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// All ways to the host.
pub(crate) struct Link {
    pub(crate) control: Lane,
    pub(crate) bulk: Option<Lane>,
    /// The session whose data takes the bulk lane.
    joined: Session,
    began: Instant,
}

impl Link {
    pub(crate) fn new(control: Lane, bulk: Option<Lane>) -> Self {
        Self { control, bulk, joined: Session::NONE, began: Instant::now() }
    }

    /// Milliseconds since the agent began; never 0.
    pub(crate) fn now_ms(&self) -> u64 {
        let ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        ms.saturating_add(1)
    }

    /// Data of this session takes the bulk lane from now on.
    pub(crate) fn join(&mut self, session: Session) {
        self.joined = session;
    }

    /// Sends a message on the control lane.
    #[inline(never)]
    pub(crate) fn message(&mut self, session: Session, channel: u32, reply: &Reply) {
        let now = self.now_ms();
        let head = FrameHead::message(session, channel);
        let frame = self.control.framing.seal(head, encode(reply), now).or_else(|too_long| {
            // Said all the same that there is an answer: nobody is to wait for it.
            let (kind, message) = (ErrorKind::System, too_long.to_string());
            let error = Reply::Error(RemoteError { kind, errno: None, message });
            self.control.framing.seal(head, encode(&error), now)
        });
        if let Ok(frame) = frame
            && !frame.is_empty()
        {
            self.control.messages.push_back(frame);
            self.control.hold = None;
        }
    }

    /// As [`Self::message`], but nobody waits for it: it may go with the next one.
    pub(crate) fn message_with_next(&mut self, session: Session, channel: u32, reply: &Reply) {
        let is_first = !self.control.has_output();
        let held = self.control.hold;
        self.message(session, channel, reply);
        if is_first || held.is_some() {
            self.control.hold = held.or_else(|| Instant::now().checked_add(HOLD));
        }
    }

    /// Sends a message on the bulk lane: the answer to joining it.
    pub(crate) fn bulk_message(&mut self, session: Session, channel: u32, reply: &Reply) {
        let now = self.now_ms();
        let Some(bulk) = &mut self.bulk else { return };
        let head = FrameHead::message(session, channel);
        if let Ok(frame) = bulk.framing.seal(head, encode(reply), now) {
            bulk.messages.push_back(frame);
        }
    }

    /// Sends data, whose buffer has its head spare.
    pub(crate) fn data(&mut self, session: Session, channel: u32, stream: Stream, buffer: Vec<u8>) {
        let now = self.now_ms();
        let lane = match &mut self.bulk {
            Some(bulk) if self.joined == session => bulk,
            _ => &mut self.control,
        };
        let head = FrameHead::data(session, channel, stream);
        let piece = lane.framing.data_len();
        let body = buffer.len().saturating_sub(guestline_protocol::HEADROOM);
        if body <= piece {
            if let Ok(frame) = lane.framing.seal(head, buffer, now)
                && !frame.is_empty()
            {
                lane.data.push_back(frame);
                lane.hold = None;
            }
            return;
        }
        let data = buffer.get(guestline_protocol::HEADROOM..).unwrap_or_default();
        lane.hold = None;
        for piece in data.chunks(piece) {
            let mut buffer = vec![0; guestline_protocol::HEADROOM];
            buffer.extend_from_slice(piece);
            if let Ok(frame) = lane.framing.seal(head, buffer, now)
                && !frame.is_empty()
            {
                lane.data.push_back(frame);
            }
        }
    }

    /// So many bytes of data may be queued now.
    pub(crate) fn room(&self, session: Session) -> usize {
        match &self.bulk {
            Some(bulk) if self.joined == session => bulk.room(),
            _ => self.control.room(),
        }
    }

    /// Should data wait?
    pub(crate) fn is_full(&self, session: Session) -> bool {
        self.room(session) == 0
    }

    /// A new session: nothing of the one before is sent any more.
    pub(crate) fn forget(&mut self) {
        self.control.forget();
        if let Some(bulk) = &mut self.bulk {
            bulk.forget();
        }
    }

    /// All lanes.
    pub(crate) fn lanes(&mut self) -> impl Iterator<Item = &mut Lane> {
        std::iter::once(&mut self.control).chain(&mut self.bulk)
    }

    /// The host has closed its end.
    pub(crate) fn hang_up(&mut self) {
        self.joined = Session::NONE;
        self.control.reset();
        if let Some(bulk) = &mut self.bulk {
            bulk.reset();
        }
    }
}
