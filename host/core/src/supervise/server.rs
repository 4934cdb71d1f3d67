//! Serves clients on the link's socket: moves what [`super::proxy`] has judged.
//!
//! ```text
//! socket ── up task: frames, in order ──> relayed channels of the machine's link
//!        <── down task ── queue ── one pump for each channel ──┘
//! ```
//! Data that waits for a client is bounded by what it granted; messages that wait by [`MAX_BACKLOG`]. When a client is
//! gone, its channels are dropped, which ends in the guest what they did.

use super::proxy::{Action, ProxyState};
use crate::link::{Arrival, ChannelReader, ChannelWriter, Link, LinkError, data_buffer};
use guestline_protocol::{
    FrameHead, Framing, HelloResponse, OLDEST_VERSION, PortFraming, Reply, Request, Session,
    ThawRequest, VERSION, encode,
};
use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::debug;

/// At most so many clients at once; more wait.
const MAX_CLIENTS: usize = 512;

/// Messages that a client does not take may hold so many bytes; then it is cut off.
const MAX_BACKLOG: usize = 8 * 1024 * 1024;

/// What a message in the queue takes beside its bytes.
const OVERHEAD: usize = 64;

/// One read of a client.
const READ: usize = 64 * 1024;

/// Whether the guest can be reached.
#[derive(Debug, Clone)]
pub(super) enum Door {
    /// Not now.
    Closed,
    /// In this boot, over this link.
    Open { boot: u64, link: Link, hello: Box<HelloResponse>, heard: Instant },
}

impl Door {
    fn boot(&self) -> Option<u64> {
        match self {
            Self::Closed => None,
            Self::Open { boot, .. } => Some(*boot),
        }
    }
}

/// What clients' traffic tells the owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Notice {
    /// The agent does not know the session of this boot.
    Restarted { boot: u64 },
    /// The guest said that it is about to end or to boot.
    Leaving,
}

/// What every client needs.
#[derive(Clone)]
pub(super) struct Around {
    pub(super) door: watch::Receiver<Door>,
    pub(super) notices: mpsc::UnboundedSender<Notice>,
    /// All clients are to go.
    pub(super) over: CancellationToken,
}

/// Takes clients until it is over.
pub(super) async fn accept(listener: UnixListener, around: Around) {
    let places = Arc::new(Semaphore::new(MAX_CLIENTS));
    let mut clients = JoinSet::new();
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = around.over.cancelled() => break,
        };
        match accepted {
            Ok((stream, _)) => {
                while clients.try_join_next().is_some() {}
                let around = around.clone();
                clients.spawn(async move {
                    let _place = place;
                    serve(stream, around).await;
                });
            }
            // Too many files are open, say: those who are here go on.
            Err(error) => {
                debug!(%error, "a client was not accepted");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
    while clients.join_next().await.is_some() {}
}

/// One client, as its tasks share it.
struct Client {
    state: Mutex<ProxyState>,
    queue: mpsc::UnboundedSender<(FrameHead, Vec<u8>)>,
    backlog: AtomicUsize,
    notices: mpsc::UnboundedSender<Notice>,
    /// It is to be cut off.
    cut: CancellationToken,
}

impl Client {
    fn state(&self) -> MutexGuard<'_, ProxyState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say(&self, head: FrameHead, reply: &Reply) {
        let buffer = encode(reply);
        let waiting = self.backlog.fetch_add(buffer.len() + OVERHEAD, Ordering::Relaxed);
        if waiting > MAX_BACKLOG {
            self.cut.cancel();
        }
        let _ = self.queue.send((head, buffer));
    }

    /// The agent that this client spoke to is gone.
    fn lose(&self, channel: u32, boot: u64) {
        let mut state = self.state();
        if let Some((head, reply)) = state.on_restart(channel, boot) {
            self.say(head, &reply);
        }
    }

    /// Something came from the guest. The state stays locked until it is in the queue: frames keep their order.
    fn pass(&self, channel: u32, arrival: &Arrival) {
        let mut state = self.state();
        let Some(head) = state.on_arrival(channel, arrival) else { return };
        match arrival {
            Arrival::Reply(reply) => {
                self.say(head, reply);
                if matches!(reply, Reply::Leaving(_)) {
                    let _ = self.notices.send(Notice::Leaving);
                }
            }
            Arrival::Data { bytes, .. } => {
                let mut buffer = data_buffer(bytes.len());
                buffer.extend_from_slice(bytes);
                let _ = self.queue.send((head, buffer));
            }
        }
    }
}

async fn serve(stream: UnixStream, around: Around) {
    let (mut reader, writer) = stream.into_split();
    let (queue, queued) = mpsc::unbounded_channel();
    let client = Arc::new(Client {
        state: Mutex::default(),
        queue,
        backlog: AtomicUsize::new(0),
        notices: around.notices.clone(),
        cut: around.over.child_token(),
    });
    let down = tokio::spawn(down(writer, queued, client.clone()));
    let mut up = Up {
        client: client.clone(),
        door: around.door,
        writers: HashMap::new(),
        greeting: None,
        framing: PortFraming::default(),
    };
    let cut = client.cut.clone();
    tokio::select! {
        result = up.run(&mut reader) => {
            if let Err(error) = result {
                debug!(%error, "a client is cut off");
            }
        }
        () = cut.cancelled() => {}
    }
    up.drop_channels();
    let frozen = client.state().frozen();
    if let Door::Open { link, .. } = &*up.door.borrow()
        && !frozen.is_empty()
    {
        let link = link.clone();
        tokio::spawn(async move {
            for path in frozen {
                let _ = link.ask(&Request::Thaw(ThawRequest { path })).await;
            }
        });
    }
    down.abort();
}

/// Writes what waits, until the client does not read any more.
async fn down(
    mut writer: OwnedWriteHalf,
    mut queued: mpsc::UnboundedReceiver<(FrameHead, Vec<u8>)>,
    client: Arc<Client>,
) {
    let mut framing = PortFraming::default();
    while let Some((head, buffer)) = queued.recv().await {
        let is_message = head.kind == guestline_protocol::FrameKind::Message;
        let weight = if is_message { buffer.len() + OVERHEAD } else { 0 };
        // What came in a frame fits in one.
        let Ok(bytes) = framing.seal(head, buffer, 0) else { continue };
        if writer.write_all(&bytes).await.is_err() {
            client.cut.cancel();
            return;
        }
        client.backlog.fetch_sub(weight, Ordering::Relaxed);
    }
}

struct Up {
    client: Arc<Client>,
    door: watch::Receiver<Door>,
    writers: HashMap<u32, (ChannelWriter, AbortHandle)>,
    /// A hello that waits for the guest.
    greeting: Option<(Session, u32)>,
    framing: PortFraming,
}

impl Up {
    async fn run(
        &mut self,
        reader: &mut (impl tokio::io::AsyncRead + Unpin),
    ) -> Result<(), io::Error> {
        loop {
            tokio::select! {
                read = reader.read(self.framing.space(READ)) => {
                    let len = read?;
                    if len == 0 {
                        return Ok(());
                    }
                    self.framing.filled(len);
                    self.take_frames().await?;
                }
                changed = self.door.changed(), if self.greeting.is_some() => {
                    changed.map_err(io::Error::other)?;
                    self.greet();
                }
            }
        }
    }

    async fn take_frames(&mut self) -> Result<(), io::Error> {
        while let Some((head, span)) = self.framing.next_span() {
            let boot = self.door.borrow().boot();
            let body = self.framing.body(&span);
            let action = self.client.state().on_frame(head, body, boot);
            let Some(action) = action.map_err(io::Error::other)? else { continue };
            match action {
                Action::Data { channel, last } => {
                    let mut buffer = data_buffer(body.len());
                    buffer.extend_from_slice(body);
                    if let Some((writer, _)) = self.writers.get_mut(&channel) {
                        // Waits for the machine's port only: the guest has granted it. A link that is gone
                        // is told by the channel.
                        let _ = writer.send(buffer).await;
                        if last {
                            writer.end();
                        }
                    }
                }
                action => self.act(action).await,
            }
        }
        Ok(())
    }

    async fn act(&mut self, action: Action) {
        match action {
            Action::Hello { session, channel } => {
                self.greeting = Some((session, channel));
                self.greet();
            }
            Action::Answer { head, reply } => self.client.say(head, &reply),
            Action::Open { channel, request, window } => {
                self.writers.retain(|_, (_, pump)| !pump.is_finished());
                self.open(channel, &request, window).await;
            }
            Action::Tell { channel, request } => {
                if let Some((writer, _)) = self.writers.get(&channel) {
                    writer.tell(&request);
                }
            }
            Action::End { channel } => {
                if let Some((writer, _)) = self.writers.get(&channel) {
                    writer.end();
                }
            }
            Action::Grant { channel, bytes } => {
                if let Some((writer, _)) = self.writers.get(&channel) {
                    writer.grant(bytes);
                }
            }
            Action::Data { .. } => {}
        }
    }

    /// Answers a hello, if the guest is there.
    fn greet(&mut self) {
        let door = self.door.borrow_and_update().clone();
        let Door::Open { boot, hello, heard, .. } = door else { return };
        let Some((session, channel)) = self.greeting.take() else { return };
        if self.client.state().open(session, boot) {
            self.drop_channels();
        }
        let since = u64::try_from(heard.elapsed().as_micros()).unwrap_or(u64::MAX);
        let hello = HelloResponse {
            min: OLDEST_VERSION,
            max: VERSION,
            bulk: false,
            clock_us: hello.clock_us.saturating_add(since),
            ..*hello
        };
        self.client.say(FrameHead::message(session, channel), &Reply::Hello(hello));
    }

    async fn open(&mut self, channel: u32, request: &Request, window: u32) {
        let session_boot = self.client.state().boot();
        let door = self.door.borrow().clone();
        let link = match door {
            Door::Open { boot, link, .. } if boot == session_boot => link,
            // The guest went away in this moment.
            _ => return self.client.lose(channel, session_boot),
        };
        match link.relay(request, window).await {
            Ok(relayed) => {
                let (reader, writer) = relayed.split();
                let pump = tokio::spawn(pump(self.client.clone(), channel, reader, session_boot));
                self.writers.insert(channel, (writer, pump.abort_handle()));
            }
            // The owner cuts everybody off when it knows why.
            Err(error) => debug!(%error, "no channel"),
        }
    }

    fn drop_channels(&mut self) {
        for (_, (_, pump)) in self.writers.drain() {
            pump.abort();
        }
    }
}

/// Passes on what comes on a channel.
async fn pump(client: Arc<Client>, channel: u32, mut reader: ChannelReader, boot: u64) {
    loop {
        match reader.next().await {
            Ok(arrival) => {
                client.pass(channel, &arrival);
                if matches!(&arrival, Arrival::Reply(reply) if reply.is_final()) {
                    return;
                }
            }
            Err(LinkError::Restarted) => {
                client.lose(channel, boot);
                let _ = client.notices.send(Notice::Restarted { boot });
                return;
            }
            // The owner cuts everybody off when it knows why.
            Err(error) => {
                debug!(%error, "a channel ended");
                return;
            }
        }
    }
}
