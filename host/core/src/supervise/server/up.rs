//! The way up: frames of a client, in order, to relayed channels of the machine's link.

use super::client::{Client, pump, thaw};
use super::{Around, Door};
use crate::link::{ChannelWriter, data_buffer};
use crate::supervise::budget::Budget;
use crate::supervise::proxy::{Action, Opening};
use guestline_protocol::{
    FrameHead, Framing, HelloResponse, OLDEST_VERSION, PortFraming, Reply, Request, Session,
    VERSION,
};
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use tokio::net::unix::OwnedReadHalf;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tracing::debug;

/// One read of a client.
const READ: usize = 64 * 1024;

pub(super) struct Up {
    client: Arc<Client>,
    door: watch::Receiver<Door>,
    /// Changes when a channel that waits for the budget may try again.
    freed: watch::Receiver<()>,
    channels: HashMap<u32, Relayed>,
    /// A hello that waits for the guest.
    greeting: Option<(Session, u32)>,
    framing: PortFraming,
}

/// A channel of the client, and the task that passes on what comes on it.
struct Relayed {
    writer: ChannelWriter,
    /// None when its end is waited for, whatever becomes of the client.
    pump: Option<AbortHandle>,
}

impl Relayed {
    fn is_over(&self) -> bool {
        self.pump.as_ref().is_some_and(AbortHandle::is_finished)
    }
}

impl Up {
    pub(super) fn new(client: Arc<Client>, around: &Around, budget: &Budget) -> Self {
        Self {
            client,
            door: around.door.clone(),
            freed: budget.freed(),
            channels: HashMap::new(),
            greeting: None,
            framing: PortFraming::default(),
        }
    }

    /// Ends when the client does, or breaks the protocol.
    pub(super) async fn run(&mut self, reader: &OwnedReadHalf) -> Result<(), io::Error> {
        loop {
            self.freed.mark_unchanged();
            let (granted, is_short) = {
                let proxy = &mut self.client.inner().proxy;
                (proxy.pass_on(), proxy.is_short())
            };
            for (channel, bytes) in granted {
                self.grant(channel, bytes);
            }
            tokio::select! {
                readable = reader.readable() => {
                    readable?;
                    match reader.try_read(self.framing.space(READ)) {
                        Ok(0) => return Ok(()),
                        Ok(len) => self.framing.filled(len),
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                        Err(error) => return Err(error),
                    }
                    self.take_frames().await?;
                }
                changed = self.door.changed(), if self.greeting.is_some() => {
                    changed.map_err(io::Error::other)?;
                    self.greet();
                }
                _ = self.freed.changed(), if is_short => {}
            }
        }
    }

    async fn take_frames(&mut self) -> Result<(), io::Error> {
        while let Some((head, span)) = self.framing.next_span() {
            let epoch = self.door.borrow().epoch();
            let body = self.framing.body(&span);
            let action = self.client.inner().proxy.on_frame(head, body, epoch);
            let Some(action) = action.map_err(io::Error::other)? else { continue };
            match action {
                Action::Data { channel, last } => {
                    let mut buffer = data_buffer(body.len());
                    buffer.extend_from_slice(body);
                    if let Some(Relayed { writer, .. }) = self.channels.get_mut(&channel) {
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
            Action::Open { opening, request, window } => {
                self.channels.retain(|_, relayed| !relayed.is_over());
                self.open(opening, &request, window).await;
            }
            Action::Tell { channel, request } => {
                if let Some(Relayed { writer, .. }) = self.channels.get(&channel) {
                    writer.tell(&request);
                }
            }
            Action::End { channel } => {
                if let Some(Relayed { writer, .. }) = self.channels.get(&channel) {
                    writer.end();
                }
            }
            Action::Grant { channel, bytes } => self.grant(channel, bytes),
            Action::Data { .. } => {}
        }
    }

    fn grant(&self, channel: u32, bytes: u32) {
        if let Some(Relayed { writer, .. }) = self.channels.get(&channel) {
            writer.grant(bytes);
        }
    }

    /// Answers a hello, if the guest is there.
    fn greet(&mut self) {
        let door = self.door.borrow_and_update().clone();
        let Door::Open { epoch, hello, heard, .. } = door else { return };
        let Some((session, channel)) = self.greeting.take() else { return };
        if self.client.open(session, epoch) {
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

    async fn open(&mut self, opening: Opening, request: &Request, window: u32) {
        let session_epoch = self.client.inner().proxy.epoch();
        let door = self.door.borrow().clone();
        let link = match door {
            Door::Open { epoch, link, .. } if epoch == session_epoch => link,
            // The guest went away in this moment.
            _ => return self.client.lose(opening.channel, session_epoch),
        };
        match link.relay(request, window).await {
            Ok(relayed) => {
                let (reader, writer) = relayed.split();
                let client = self.client.clone();
                let pump = tokio::spawn(pump(client, link, opening, reader, session_epoch));
                // What a client freezes in its last moment is to be thawed: when it is known to be frozen.
                let is_kept = matches!(request, Request::Freeze(_));
                let pump = (!is_kept).then(|| pump.abort_handle());
                self.channels.insert(opening.channel, Relayed { writer, pump });
            }
            // The owner cuts everybody off when it knows why.
            Err(error) => debug!(%error, "no channel"),
        }
    }

    fn drop_channels(&mut self) {
        for pump in self.channels.drain().filter_map(|(_, relayed)| relayed.pump) {
            pump.abort();
        }
    }

    /// The client is gone: what it did in the guest ends, and what it froze is thawed.
    pub(super) fn leave(&mut self) {
        self.drop_channels();
        let frozen = self.client.leave();
        if let Door::Open { link, .. } = &*self.door.borrow() {
            thaw(link, frozen);
        }
    }
}
