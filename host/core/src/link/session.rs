//! The task that owns a link's transport.
//!
//! ```text
//! Opening ── hello answered, bulk port joined ──> Open ── agent knows no such session ──> Lost
//!    ^────────────────────── reopen ────────────────┴─────────────────────────────────────┘
//! ```
//! Messages go before data at every frame. While something is outstanding and the guest says nothing, it is
//! asked for a sign of life; when that fails to come, whoever watches the machine says whether to go on waiting.

use super::channel::Item;
use super::state::{Effect, SessionState};
use super::transport::Lane;
use super::{LinkError, Transport, clean, draw_session, unexpected};
use crate::pulse::{Pulse, PulseWatch};
use crate::text::printable;
use guestline_protocol::{
    AttachRequest, Frame, FrameHead, Framing, HelloRequest, HelloResponse, OLDEST_VERSION,
    PingRequest, PortFraming, Reply, Request, Stream, VERSION, common_version, encode,
};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tracing::{debug, trace};

/// A hello that was not answered is said again: the first one may have come before the agent did.
const HELLO_AGAIN: Duration = Duration::from_millis(500);

/// Said nothing for so long with something outstanding, the guest is asked for a sign of life.
const QUIET: Duration = Duration::from_secs(2);

/// A sign of life that is overdue for so long is looked into, and again.
const OVERDUE: Duration = Duration::from_secs(30);
const OVERDUE_AGAIN: Duration = Duration::from_secs(10);

/// Without anybody who knows what the guest does, it is given up after so long.
const GIVE_UP: Duration = Duration::from_secs(60);

/// How long it may take to learn why a stream ended.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Channels of the task itself have this bit.
const OWN: u32 = 0x8000_0000;

/// One read of a port.
const CONTROL_READ: usize = 64 * 1024;
const BULK_READ: usize = 256 * 1024;

/// What callers want of the task.
#[derive(Debug)]
pub(super) enum Order {
    Open {
        channel: u32,
        buffer: Vec<u8>,
        window: u32,
        /// See [`super::Link::relay`].
        relayed: bool,
        inbox: mpsc::UnboundedSender<Item>,
        granted: watch::Sender<u64>,
    },
    /// More credit for the guest, on a relayed channel.
    Grant {
        channel: u32,
        bytes: u32,
    },
    Tell {
        channel: u32,
        buffer: Vec<u8>,
    },
    UsedData {
        channel: u32,
        len: usize,
    },
    UsedReply {
        channel: u32,
        len: usize,
    },
    /// Nobody takes what comes; `ended` when the last reply was taken.
    Drop {
        channel: u32,
        ended: bool,
    },
    Reopen {
        done: oneshot::Sender<Result<HelloResponse, LinkError>>,
    },
}

/// Data to send, within the credit of its channel.
#[derive(Debug)]
pub(super) struct DataOrder {
    pub(super) channel: u32,
    pub(super) stream: Stream,
    pub(super) buffer: Vec<u8>,
}

/// The callers' ends.
pub(super) struct Started {
    pub(super) orders: mpsc::UnboundedSender<Order>,
    pub(super) data: mpsc::Sender<DataOrder>,
    pub(super) end: watch::Receiver<Option<LinkError>>,
    pub(super) silent_since: watch::Receiver<Option<Instant>>,
}

type Opened = oneshot::Sender<Result<HelloResponse, LinkError>>;

pub(super) fn start(
    transport: Transport,
    pulse: PulseWatch,
) -> (Started, oneshot::Receiver<Result<HelloResponse, LinkError>>) {
    let (orders, mut order_queue) = mpsc::unbounded_channel();
    let (data, mut data_queue) = mpsc::channel(2);
    let (ended, end) = watch::channel(None);
    let (silent, silent_since) = watch::channel(None);
    let (done, opened) = oneshot::channel();
    tokio::spawn(async move {
        let (_owned, last_words) = (transport.owned, transport.last_words);
        let mut task = Task {
            began: Instant::now(),
            control: Port::new(transport.control, transport.framing),
            bulk: transport.bulk.map(|lane| Port::new(lane, Box::new(PortFraming::default()))),
            state: SessionState::new(draw_session()),
            phase: Phase::Lost,
            inboxes: HashMap::new(),
            next_own: OWN,
            heard: Instant::now(),
            asked: None,
            looked: None,
            silent,
            pulse,
        };
        task.begin(done);
        let mut error = task.run(&mut order_queue, &mut data_queue).await;
        if let (LinkError::Closed, Some(last_words), false) =
            (&error, last_words, order_queue.is_closed())
        {
            error = tokio::time::timeout(LAST_WORDS, last_words).await.unwrap_or(error);
        }
        debug!(%error, "link ended");
        // Set before the inboxes end: who finds one ended asks for the reason.
        ended.send_replace(Some(error.clone()));
        task.lose_all(&error);
    });
    (Started { orders, data, end, silent_since }, opened)
}

/// One stream each way, with its framing and what waits to be written.
struct Port {
    lane: Lane,
    framing: Box<dyn Framing>,
    out: Out,
}

impl Port {
    fn new(lane: Lane, framing: Box<dyn Framing>) -> Self {
        Self { lane, framing, out: Out::default() }
    }

    fn send(&mut self, head: FrameHead, buffer: Vec<u8>, now_ms: u64) {
        // A body over the limit was refused where it was made.
        if let Ok(bytes) = self.framing.seal(head, buffer, now_ms) {
            self.out.push(bytes);
        }
    }
}

/// Bytes that wait to be written.
#[derive(Default)]
struct Out {
    frames: VecDeque<Vec<u8>>,
    /// Bytes of the first one that are written.
    written: usize,
}

impl Out {
    fn push(&mut self, bytes: Vec<u8>) {
        if !bytes.is_empty() {
            self.frames.push_back(bytes);
        }
    }

    fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Drops what waits but for a frame that is half out: the guest must never see half of one.
    fn forget(&mut self) {
        self.frames.truncate(usize::from(self.written > 0));
    }

    /// Writes once. Cancel safe.
    async fn write(&mut self, writer: &mut (dyn AsyncWrite + Send + Unpin)) -> io::Result<()> {
        let Some(first) = self.frames.front() else { return std::future::pending().await };
        let len = writer.write(&first[self.written..]).await?;
        if len == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.written += len;
        if self.written >= first.len() {
            self.frames.pop_front();
            self.written = 0;
        }
        Ok(())
    }
}

struct Inbox {
    items: mpsc::UnboundedSender<Item>,
    granted: watch::Sender<u64>,
}

enum Phase {
    Opening {
        done: Opened,
        channel: u32,
        hello: Option<HelloResponse>,
        attached: bool,
        again: Instant,
        /// The hello was said once at least: what a framing still has to send may be of the session before.
        said: bool,
    },
    /// `bulk`: data takes the bulk port.
    Open {
        bulk: bool,
    },
    Lost,
}

struct Task {
    began: Instant,
    control: Port,
    bulk: Option<Port>,
    state: SessionState,
    phase: Phase,
    inboxes: HashMap<u32, Inbox>,
    next_own: u32,
    /// When the guest was last heard.
    heard: Instant,
    /// Since when it owes a sign of life.
    asked: Option<Instant>,
    /// When its silence was last looked into.
    looked: Option<Instant>,
    silent: watch::Sender<Option<Instant>>,
    pulse: PulseWatch,
}

impl Task {
    async fn run(
        &mut self,
        orders: &mut mpsc::UnboundedReceiver<Order>,
        data: &mut mpsc::Receiver<DataOrder>,
    ) -> LinkError {
        loop {
            let deadline = match self.on_time() {
                Ok(deadline) => deadline,
                Err(error) => return error,
            };
            let may_send = self.may_send_data();
            let Port { lane: Lane { reader, writer }, framing, out } = &mut self.control;
            let control_waits = !out.is_empty();
            let read_control = read(reader, framing, CONTROL_READ);
            let write_control = out.write(&mut **writer);
            let (read_bulk, write_bulk, bulk_waits) = match &mut self.bulk {
                Some(Port { lane: Lane { reader, writer }, framing, out }) => {
                    let waits = !out.is_empty();
                    let read = read(reader, framing, BULK_READ);
                    (OptionFuture(Some(read)), OptionFuture(Some(out.write(&mut **writer))), waits)
                }
                None => (OptionFuture(None), OptionFuture(None), false),
            };
            // Which of them came; acted upon when the borrows are over.
            enum Came {
                Written(io::Result<()>),
                Order(Option<Order>),
                Read(io::Result<usize>),
                BulkRead(io::Result<usize>),
                Data(Option<DataOrder>),
                Time,
            }
            let came = tokio::select! {
                biased;
                written = write_control, if control_waits => Came::Written(written),
                order = orders.recv() => Came::Order(order),
                read = read_control => Came::Read(read),
                written = write_bulk.wait(), if bulk_waits => Came::Written(written),
                read = read_bulk.wait() => Came::BulkRead(read),
                Some(order) = data.recv(), if may_send => Came::Data(Some(order)),
                () = sleep_until(deadline) => Came::Time,
            };
            let result = match came {
                Came::Written(Ok(())) | Came::Time | Came::Data(None) => Ok(()),
                Came::Written(Err(_)) => return LinkError::Closed,
                Came::Order(Some(order)) => {
                    self.obey(order);
                    Ok(())
                }
                Came::Order(None) => return LinkError::Closed,
                Came::Read(Ok(0) | Err(_)) | Came::BulkRead(Ok(0) | Err(_)) => {
                    return LinkError::Closed;
                }
                Came::Read(Ok(_)) => self.take_frames(false),
                Came::BulkRead(Ok(_)) => self.take_frames(true),
                Came::Data(Some(order)) => {
                    self.send_data(order);
                    Ok(())
                }
            };
            match result {
                Ok(()) => {}
                Err(LinkError::Restarted) => self.lose(),
                Err(error) => return error,
            }
        }
    }

    fn now_ms(&self) -> u64 {
        // 1 at least: the framing's clock may take 0 for "at once".
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1)
    }

    /// A new session, with a hello.
    fn begin(&mut self, done: Opened) {
        self.state = SessionState::new(draw_session());
        let session = self.state.session();
        self.control.framing.accept_only(session);
        self.control.out.forget();
        if let Some(bulk) = &mut self.bulk {
            bulk.framing.accept_only(session);
            bulk.out.forget();
        }
        let channel = self.own_channel();
        let again = Instant::now();
        self.phase =
            Phase::Opening { done, channel, hello: None, attached: false, again, said: false };
        (self.asked, self.looked) = (None, None);
        self.silent.send_replace(None);
    }

    fn own_channel(&mut self) -> u32 {
        self.next_own = self.next_own.wrapping_add(1) | OWN;
        self.next_own
    }

    fn say_hello(&mut self, channel: u32) {
        let hello = HelloRequest {
            min: OLDEST_VERSION,
            max: VERSION,
            build: env!("CARGO_PKG_VERSION").to_owned(),
            features: 0,
            bulk: self.bulk.is_some(),
        };
        let head = FrameHead::message(self.state.session(), channel);
        let now = self.now_ms();
        self.control.send(head, encode(&Request::Hello(hello)), now);
        if let Some(bulk) = &mut self.bulk {
            bulk.send(head, encode(&Request::Attach(AttachRequest {})), now);
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Open { channel, buffer, window, relayed, inbox, granted } => {
                if matches!(self.phase, Phase::Lost) {
                    let _ = inbox.send(Item::Lost(LinkError::Restarted));
                    return;
                }
                match relayed {
                    true => self.state.open_relayed(channel, window),
                    false => self.state.open(channel, window),
                }
                self.inboxes.insert(channel, Inbox { items: inbox, granted });
                self.send(channel, buffer);
            }
            Order::Tell { channel, buffer } => {
                if self.state.is_open(channel) {
                    self.send(channel, buffer);
                }
            }
            Order::UsedData { channel, len } => {
                if let Some(request) = self.state.use_data(channel, len) {
                    self.send(channel, encode(&request));
                }
            }
            Order::Grant { channel, bytes } => {
                if let Some(request) = self.state.grant(channel, bytes) {
                    self.send(channel, encode(&request));
                }
            }
            Order::UsedReply { channel, len } => self.state.use_reply(channel, len),
            Order::Drop { channel, ended } => {
                self.inboxes.remove(&channel);
                if self.state.cancel(channel) && !ended {
                    let cancel = Request::Cancel(guestline_protocol::CancelEvent {});
                    self.send(channel, encode(&cancel));
                }
            }
            Order::Reopen { done } => {
                self.lose();
                self.begin(done);
            }
        }
    }

    fn send(&mut self, channel: u32, buffer: Vec<u8>) {
        let head = FrameHead::message(self.state.session(), channel);
        let now = self.now_ms();
        self.control.send(head, buffer, now);
    }

    fn may_send_data(&self) -> bool {
        let port = match (&self.phase, &self.bulk) {
            (Phase::Open { bulk: true }, Some(bulk)) => bulk,
            (Phase::Open { .. } | Phase::Opening { .. }, _) => &self.control,
            (Phase::Lost, _) => return true,
        };
        port.out.is_empty() && !port.framing.is_congested()
    }

    fn send_data(&mut self, order: DataOrder) {
        // Data for a channel that is over is dropped.
        if !self.state.is_open(order.channel) {
            return;
        }
        let head = FrameHead::data(self.state.session(), order.channel, order.stream);
        let now = self.now_ms();
        let port = match (&self.phase, &mut self.bulk) {
            (Phase::Open { bulk: true }, Some(bulk)) => bulk,
            _ => &mut self.control,
        };
        let piece = port.framing.data_len();
        if order.buffer.len() <= piece + guestline_protocol::HEADROOM {
            port.send(head, order.buffer, now);
            return;
        }
        let data = &order.buffer[guestline_protocol::HEADROOM..];
        for data in data.chunks(piece) {
            let mut buffer = super::data_buffer(data.len());
            buffer.extend_from_slice(data);
            port.send(head, buffer, now);
        }
    }

    /// Acts on the frames that have arrived.
    fn take_frames(&mut self, on_bulk: bool) -> Result<(), LinkError> {
        loop {
            let port = match (on_bulk, &mut self.bulk) {
                (true, Some(bulk)) => bulk,
                _ => &mut self.control,
            };
            let Some(frame) = port.framing.next_frame() else { break };
            if frame.head.session != self.state.session() {
                continue;
            }
            self.heard = Instant::now();
            if self.asked.take().is_some() {
                self.looked = None;
                self.silent.send_replace(None);
            }
            if let Some(reply) = opening_reply(&self.phase, &frame)? {
                self.on_opening(reply);
                continue;
            }
            if frame.head.channel & OWN != 0 && !self.state.is_open(frame.head.channel) {
                // Another answer to a hello that was said again, or to a ping of the session before.
                continue;
            }
            for effect in self.state.on_frame(&frame)? {
                match effect {
                    Effect::Reply { channel, reply, len, last } => {
                        let inbox = self.inboxes.get(&channel);
                        let taken = inbox.map(|inbox| inbox.items.send(Item::Reply { reply, len }));
                        if !matches!(taken, Some(Ok(()))) {
                            // A ping of our own, or a caller that went away: nobody will say that it is used.
                            self.state.use_reply(channel, len);
                        }
                        if last {
                            self.inboxes.remove(&channel);
                        }
                    }
                    Effect::Data { channel, stream } => {
                        if let Some(inbox) = self.inboxes.get(&channel) {
                            let bytes = frame.body.to_vec();
                            let _ = inbox.items.send(Item::Data { stream, bytes });
                        }
                    }
                    Effect::Granted { channel, bytes } => {
                        if let Some(inbox) = self.inboxes.get(&channel) {
                            inbox
                                .granted
                                .send_modify(|all| *all = all.saturating_add(bytes.into()));
                        }
                    }
                }
            }
        }
        trace!(on_bulk, "read");
        Ok(())
    }

    fn on_opening(&mut self, reply: Reply) {
        let Phase::Opening { hello, attached, .. } = &mut self.phase else { return };
        let outcome = match reply {
            Reply::Hello(answer) => {
                match common_version((OLDEST_VERSION, VERSION), (answer.min, answer.max)) {
                    Ok(_) => {
                        *hello = Some(answer);
                        None
                    }
                    Err(source) => {
                        Some(LinkError::Version { build: printable(&answer.build), source })
                    }
                }
            }
            Reply::Attach(_) => {
                *attached = true;
                None
            }
            Reply::Error(error) => Some(LinkError::Refused(clean(error))),
            other => Some(unexpected(&other)),
        };
        let ready =
            hello.as_ref().is_some_and(|hello| *attached || !hello.bulk || self.bulk.is_none());
        let result = match outcome {
            Some(error) => Err(error),
            None if ready => match hello.take() {
                Some(hello) => Ok(hello),
                None => return,
            },
            None => return,
        };
        let bulk = result.as_ref().is_ok_and(|hello| hello.bulk) && self.bulk.is_some();
        let phase = if result.is_ok() { Phase::Open { bulk } } else { Phase::Lost };
        if let Phase::Opening { done, .. } = std::mem::replace(&mut self.phase, phase) {
            let _ = done.send(result);
        }
    }

    /// What is due by the clock; returns when to look again.
    fn on_time(&mut self) -> Result<Option<Instant>, LinkError> {
        let now = Instant::now();
        let now_ms = self.now_ms();
        let mut deadline: Option<Instant> = None;
        let mut soon = |at: Instant| deadline = Some(deadline.map_or(at, |before| before.min(at)));
        if let Phase::Opening { channel, again, said, .. } = &mut self.phase {
            let channel = *channel;
            if *again <= now {
                // Where the framing itself sees to it, once is enough.
                let once =
                    std::mem::replace(said, true) && self.control.framing.deadline_ms().is_some();
                *again = now + HELLO_AGAIN;
                if !once {
                    self.say_hello(channel);
                }
            }
            soon(now + HELLO_AGAIN);
        }
        if matches!(self.phase, Phase::Open { .. }) && !self.state.is_idle() {
            match self.asked {
                None if now.duration_since(self.heard) >= QUIET => {
                    self.asked = Some(now);
                    (self.pulse)();
                    self.silent.send_replace(Some(now));
                    let channel = self.own_channel();
                    self.state.open(channel, 0);
                    self.send(channel, encode(&Request::Ping(PingRequest { token: 0 })));
                    soon(now + OVERDUE);
                }
                None => soon(self.heard + QUIET),
                Some(asked) => {
                    let look = self.looked.map_or(asked + OVERDUE, |looked| looked + OVERDUE_AGAIN);
                    if look <= now {
                        self.looked = Some(now);
                        self.look_into(now.duration_since(asked))?;
                        soon(now + OVERDUE_AGAIN);
                    } else {
                        soon(look);
                    }
                }
            }
        }
        let due = self.control.framing.due(now_ms);
        self.control.out.push(due);
        if let Some(at) = self.control.framing.deadline_ms() {
            soon(now + Duration::from_millis(at.saturating_sub(now_ms).max(1)));
        }
        Ok(deadline)
    }

    /// The guest owes a sign of life: is it busy, or dead?
    fn look_into(&mut self, waited: Duration) -> Result<(), LinkError> {
        let guest = (self.pulse)();
        debug!(?waited, ?guest, "no sign of life");
        match guest {
            Pulse::Idle => Err(LinkError::Silent { waited, guest }),
            Pulse::Unknown if waited >= GIVE_UP => Err(LinkError::Silent { waited, guest }),
            _ => Ok(()),
        }
    }

    /// The agent knows nothing of this session any more.
    fn lose(&mut self) {
        if let Phase::Opening { done, .. } = std::mem::replace(&mut self.phase, Phase::Lost) {
            let _ = done.send(Err(LinkError::Restarted));
        }
        self.lose_all(&LinkError::Restarted);
        self.state = SessionState::new(self.state.session());
        self.asked = None;
        self.silent.send_replace(None);
    }

    fn lose_all(&mut self, error: &LinkError) {
        if let Phase::Opening { done, .. } = std::mem::replace(&mut self.phase, Phase::Lost) {
            let _ = done.send(Err(error.clone()));
        }
        for (_, inbox) in self.inboxes.drain() {
            let _ = inbox.items.send(Item::Lost(error.clone()));
        }
    }
}

/// While a session is being opened, the answer to that.
fn opening_reply(phase: &Phase, frame: &Frame<'_>) -> Result<Option<Reply>, LinkError> {
    match phase {
        Phase::Opening { channel, .. } if *channel == frame.head.channel => {
            let reply = guestline_protocol::decode(frame.body);
            reply.map(Some).map_err(|error| LinkError::broken(error.to_string()))
        }
        _ => Ok(None),
    }
}

/// Reads once. Cancel safe.
async fn read(
    reader: &mut (dyn AsyncRead + Send + Unpin),
    framing: &mut Box<dyn Framing>,
    len: usize,
) -> io::Result<usize> {
    let len = reader.read(framing.space(len)).await?;
    framing.filled(len);
    Ok(len)
}

/// A future that may not be there; then it is never ready.
struct OptionFuture<F>(Option<F>);

impl<F: Future> OptionFuture<F> {
    async fn wait(self) -> F::Output {
        match self.0 {
            Some(future) => future.await,
            None => std::future::pending().await,
        }
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
