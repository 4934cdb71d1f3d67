//! One client, as its tasks share it.

use crate::link::{Arrival, ChannelReader, Link};
use crate::supervise::budget::Budget;
use crate::supervise::outbox::Outbox;
use crate::supervise::proxy::{Opening, ProxyState};
use crate::supervise::server::{Around, Notice};
use guestline_protocol::{ByteBuf, FrameHead, Framing, PortFraming, Reply, Request, ThawRequest};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::io::AsyncWriteExt;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// See the module.
pub(super) struct Client {
    inner: Mutex<Inner>,
    /// Something is in the outbox.
    filled: Notify,
    notices: mpsc::UnboundedSender<Notice>,
    /// It is to be cut off.
    pub(super) cut: CancellationToken,
}

/// What is decided and what waits to be written stay under one lock: frames keep their order.
pub(super) struct Inner {
    pub(super) proxy: ProxyState,
    outbox: Outbox,
}

impl Client {
    pub(super) fn new(around: &Around, budget: &Arc<Budget>) -> Self {
        let (proxy, outbox) = (ProxyState::new(budget.clone()), Outbox::new(budget.clone()));
        Self {
            inner: Mutex::new(Inner { proxy, outbox }),
            filled: Notify::new(),
            notices: around.notices.clone(),
            cut: around.over.child_token(),
        }
    }

    pub(super) fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers without the guest.
    pub(super) fn say(&self, head: FrameHead, reply: &Reply) {
        self.push(&mut self.inner(), head, None, reply);
    }

    fn push(&self, inner: &mut Inner, head: FrameHead, opening: Option<Opening>, reply: &Reply) {
        if !inner.outbox.push_message(head, opening, reply) {
            debug!("a client leaves its messages lying");
            self.cut.cancel();
        }
        self.filled.notify_one();
    }

    /// The agent that this client spoke to is gone.
    pub(super) fn lose(&self, channel: u32, epoch: u64) {
        let mut inner = self.inner();
        if let Some((head, reply)) = inner.proxy.on_restart(channel, epoch) {
            self.push(&mut inner, head, None, &reply);
        }
    }

    /// A hello is about to be answered. True when that ends what was before.
    pub(super) fn open(&self, session: guestline_protocol::Session, epoch: u64) -> bool {
        let mut inner = self.inner();
        let ends = inner.proxy.open(session, epoch);
        if ends {
            inner.outbox.clear();
        }
        ends
    }

    /// The client has left. Gives what it froze.
    pub(super) fn leave(&self) -> Vec<ByteBuf> {
        let mut inner = self.inner();
        inner.outbox.clear();
        inner.proxy.leave()
    }

    /// Something came from the guest. Gives what is to be thawed, since nobody is left who would.
    fn pass(&self, opening: Opening, arrival: &Arrival) -> Vec<ByteBuf> {
        let mut inner = self.inner();
        let Some(head) = inner.proxy.on_arrival(opening, arrival) else {
            return inner.proxy.frozen_late();
        };
        match arrival {
            Arrival::Reply(reply) => {
                self.push(&mut inner, head, Some(opening), reply);
                if matches!(reply, Reply::Leaving(_)) {
                    let _ = self.notices.send(Notice::Leaving);
                }
            }
            Arrival::Data { stream, bytes } => {
                inner.outbox.push_data(head, opening, *stream, bytes);
                self.filled.notify_one();
            }
        }
        Vec::new()
    }
}

/// Writes what waits, until the client does not read any more.
pub(super) async fn write(mut writer: OwnedWriteHalf, client: Arc<Client>) {
    let mut framing = PortFraming::default();
    loop {
        let Some(next) = client.inner().outbox.pop() else {
            client.filled.notified().await;
            continue;
        };
        let (len, opening, is_last) = (next.data_len(), next.opening, next.is_last);
        // What came in a frame fits in one.
        let Ok(bytes) = framing.seal(next.head, next.buffer, 0) else { continue };
        if writer.write_all(&bytes).await.is_err() {
            client.cut.cancel();
            return;
        }
        if let Some(opening) = opening {
            client.inner().proxy.on_written(opening, len, is_last);
        }
    }
}

/// Passes on what comes on a channel.
pub(super) async fn pump(
    client: Arc<Client>,
    link: Link,
    opening: Opening,
    mut reader: ChannelReader,
    epoch: u64,
) {
    loop {
        match reader.next().await {
            Ok(arrival) => {
                thaw(&link, client.pass(opening, &arrival));
                if matches!(&arrival, Arrival::Reply(reply) if reply.is_final()) {
                    return;
                }
            }
            Err(error) if error.is_session_lost() => {
                client.lose(opening.channel, epoch);
                let _ = client.notices.send(Notice::SessionLost { epoch, error });
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

/// Thaws what a client froze that has left.
pub(super) fn thaw(link: &Link, frozen: Vec<ByteBuf>) {
    for path in frozen {
        let link = link.clone();
        tokio::spawn(async move {
            if let Err(error) = link.ask(&Request::Thaw(ThawRequest { path })).await {
                warn!(%error, "what a client froze is not thawed");
            }
        });
    }
}
