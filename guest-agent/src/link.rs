//! The agent's end of the link: one or two files, what arrives on them and what waits to be written.

use crate::bulk::Bulk;
use crate::outlet::Outlet;
use crate::presence::{HostEnd, Look, Presence};
use crate::reading::Reading;
use guestline_protocol::{
    End, ErrorKind, FrameHead, Framing, PortFraming, RemoteError, Reply, Session, Stream,
    TtyFraming, encode,
};
use nix::poll::PollFlags;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;

/// The control lane.
pub(crate) struct Lane {
    file: Arc<File>,
    pub(crate) reading: Reading,
    pub(crate) outlet: Outlet,
    host: HostEnd,
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

    fn new(file: File, framing: Box<dyn Framing>, presence: Presence) -> Self {
        let file = Arc::new(file);
        let (reading, outlet) = (Reading::new(file.clone(), framing), Outlet::new(file.clone()));
        Self { file, reading, outlet, host: HostEnd::new(presence) }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    pub(crate) fn framing(&mut self) -> &mut dyn Framing {
        &mut *self.reading.framing
    }

    /// What to poll for.
    pub(crate) fn interest(&self) -> PollFlags {
        self.outlet.interest()
    }

    /// So many bytes of data may still be queued.
    fn room(&self) -> usize {
        if self.reading.framing.is_congested() { 0 } else { self.outlet.room() }
    }

    /// Writes as much as is taken; `done` gets each buffer that is.
    pub(crate) fn write(&mut self, now_ms: u64, done: &mut dyn FnMut(Vec<u8>)) -> io::Result<()> {
        let due = self.reading.framing.due(now_ms, !self.outlet.has_output());
        if !due.is_empty() {
            self.outlet.add(due);
        }
        self.outlet.write(done)
    }
}

/// All ways to the host.
pub(crate) struct Link {
    pub(crate) control: Lane,
    pub(crate) bulk: Option<Arc<Bulk>>,
    bulk_host: HostEnd,
    /// The session whose data takes the bulk lane.
    joined: Session,
    began: Instant,
}

impl Link {
    pub(crate) fn new(control: Lane) -> Self {
        let bulk_host = HostEnd::new(Presence::Awaited);
        Self { control, bulk: None, bulk_host, joined: Session::NONE, began: Instant::now() }
    }

    /// What to poll: each file, whether it is the bulk port, and for what. A file whose host is not there is polled where
    /// `may_look` says so.
    pub(crate) fn polled(
        &self,
        may_look: bool,
    ) -> impl Iterator<Item = (bool, BorrowedFd<'_>, PollFlags)> {
        let control = (false, self.control.fd(), self.control.interest());
        let control = (may_look || self.control.host.is_polled()).then_some(control);
        let bulk = self.bulk.as_ref().filter(|_| may_look || self.bulk_host.is_polled());
        let bulk = bulk.and_then(|bulk| Some((true, bulk.fd(), bulk.interest()?)));
        control.into_iter().chain(bulk)
    }

    /// Is there a host at the bulk port?
    pub(crate) fn has_bulk_host(&self) -> bool {
        self.bulk_host.is_polled()
    }

    /// Poll found this on a lane.
    pub(crate) fn on_poll(&mut self, is_bulk: bool, found: PollFlags) -> Option<Look> {
        match (is_bulk, &self.bulk) {
            (true, bulk) => self.bulk_host.on_poll(found, bulk.as_ref()?.fd()),
            (false, _) => self.control.host.on_poll(found, self.control.file.as_fd()),
        }
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
    pub(crate) fn message(&mut self, session: Session, channel: u32, reply: &Reply) {
        self.send(session, channel, reply, false);
    }

    /// As [`Self::message`], but nobody waits for it: it may go with the next one.
    pub(crate) fn message_with_next(&mut self, session: Session, channel: u32, reply: &Reply) {
        self.send(session, channel, reply, true);
    }

    #[inline(never)]
    fn send(&mut self, session: Session, channel: u32, reply: &Reply, may_wait: bool) {
        let now = self.now_ms();
        let head = FrameHead::message(session, channel);
        let framing = self.control.framing();
        let frame = framing.seal(head, encode(reply), now).or_else(|too_long| {
            // Said all the same that there is an answer: nobody is to wait for it.
            let error = Reply::Error(RemoteError::new(ErrorKind::System, too_long.to_string()));
            framing.seal(head, encode(&error), now)
        });
        if let Ok(frame) = frame
            && !frame.is_empty()
        {
            self.control.outlet.message(frame, may_wait);
        }
    }

    /// Sends a message on the bulk lane: the answer to joining it.
    pub(crate) fn bulk_message(&mut self, session: Session, channel: u32, reply: &Reply) {
        let now = self.now_ms();
        let Some(bulk) = &self.bulk else { return };
        let head = FrameHead::message(session, channel);
        if let Ok(frame) = PortFraming::default().seal(head, encode(reply), now) {
            bulk.outlet.message(frame, false);
        }
    }

    /// The bulk port, if data of this session takes it.
    pub(crate) fn bulk_of(&self, session: Session) -> Option<&Arc<Bulk>> {
        self.bulk.as_ref().filter(|_| self.joined == session)
    }

    /// Sends data, whose buffer has its head spare.
    pub(crate) fn data(&mut self, session: Session, channel: u32, stream: Stream, buffer: Vec<u8>) {
        let head = FrameHead::data(session, channel, stream);
        if let Some(bulk) = self.bulk_of(session) {
            bulk.data(head, buffer);
            return;
        }
        let now = self.now_ms();
        let piece = self.control.framing().data_len();
        let body = buffer.len().saturating_sub(guestline_protocol::HEADROOM);
        if body <= piece {
            self.control_data(head, buffer, now);
            return;
        }
        let data = buffer.get(guestline_protocol::HEADROOM..).unwrap_or_default();
        for piece in data.chunks(piece) {
            let mut buffer = vec![0; guestline_protocol::HEADROOM];
            buffer.extend_from_slice(piece);
            self.control_data(head, buffer, now);
        }
    }

    fn control_data(&mut self, head: FrameHead, buffer: Vec<u8>, now: u64) {
        if let Ok(frame) = self.control.framing().seal(head, buffer, now)
            && !frame.is_empty()
        {
            self.control.outlet.data(frame);
        }
    }

    /// So many bytes of data may be queued now.
    pub(crate) fn room(&self, session: Session) -> usize {
        self.bulk_of(session).map_or_else(|| self.control.room(), |bulk| bulk.outlet.room())
    }

    /// Should data wait?
    pub(crate) fn is_full(&self, session: Session) -> bool {
        self.room(session) == 0
    }

    /// A new session: nothing of the one before is sent any more.
    pub(crate) fn forget(&mut self) {
        self.control.outlet.forget();
        if let Some(bulk) = &self.bulk {
            bulk.forget();
        }
    }

    /// The host has closed its end: half a frame is of no use to the next, and what is left to be read is of nobody.
    pub(crate) fn hang_up(&mut self) {
        self.joined = Session::NONE;
        self.control.outlet.reset();
        self.control.reading.restart();
        self.control.host.leave(self.control.file.as_fd());
        if let Some(bulk) = &self.bulk {
            bulk.hang_up();
            self.bulk_host.leave(bulk.fd());
        }
    }
}
