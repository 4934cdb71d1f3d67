//! The task that owns a link's transport.
//!
//! ```text
//! Opening ── hello answered, bulk port joined ──> Open ── agent knows no such session, silent, reads nothing ──> Lost
//!    ^────────────────────── reopen ────────────────┴──────────────────────────────────────────────────────────────┘
//! ```
//! Messages go before data at every frame. While something is outstanding and the guest says nothing, it is
//! asked for a sign of life; when that fails to come, whoever watches the machine says whether to go on waiting
//! ([`silence`]). A session that is lost fails what is outstanding by name, and the transport stays: whoever was at its
//! other end may come back, and is greeted when the link is opened again. What breaks the protocol ends the link.

mod arrivals;
mod callers;
mod credits;
mod opening;
mod port;
mod silence;
mod task;

use super::ids::ChannelId;
use super::inbox::InboxSender;
use super::{LinkError, Transport};
use crate::pulse::PulseWatch;
use guestline_protocol::{HelloResponse, Stream};
use std::sync::Arc;
use std::time::Duration;
use task::Task;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tracing::debug;

/// How long it may take to learn why a stream ended.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// What callers want of the task.
#[derive(Debug)]
pub(super) enum Order {
    Open(OpenOrder),
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
        done: Opened,
        /// See [`super::Link::reopen_restored`].
        is_restored: bool,
    },
    #[cfg(test)]
    Weigh {
        done: oneshot::Sender<Weight>,
    },
}

/// What a session holds.
#[cfg(test)]
#[derive(Debug)]
pub(super) struct Weight {
    /// Bytes that wait to be written.
    pub(super) backlog: usize,
    /// Channels that are open.
    pub(super) channels: usize,
}

/// A channel to open.
#[derive(Debug)]
pub(super) struct OpenOrder {
    pub(super) id: Arc<ChannelId>,
    pub(super) buffer: Vec<u8>,
    pub(super) window: u32,
    /// See [`super::Link::relay`].
    pub(super) relayed: bool,
    pub(super) inbox: InboxSender,
    pub(super) granted: watch::Sender<u64>,
}

/// Data to send, within the credit of its channel.
#[derive(Debug)]
pub(super) struct DataOrder {
    pub(super) channel: u32,
    pub(super) stream: Stream,
    pub(super) buffer: Vec<u8>,
}

/// Who answered a hello.
#[derive(Debug, Clone)]
pub struct Reopened {
    /// What the agent says of itself.
    pub hello: HelloResponse,
    /// It is another agent than before, or another boot of the guest ([`HelloResponse::incarnation`]): nothing is left
    /// of what ran. Else the agent is the same and runs on; what the session before had running it has ended.
    pub began_anew: bool,
}

type Opened = oneshot::Sender<Result<Reopened, LinkError>>;

/// The callers' ends.
pub(super) struct Started {
    pub(super) orders: mpsc::UnboundedSender<Order>,
    pub(super) data: mpsc::Sender<DataOrder>,
    pub(super) end: watch::Receiver<Option<LinkError>>,
    pub(super) silent_since: watch::Receiver<Option<Instant>>,
}

pub(super) fn start(
    mut transport: Transport,
    pulse: PulseWatch,
) -> (Started, oneshot::Receiver<Result<Reopened, LinkError>>) {
    let (orders, mut order_queue) = mpsc::unbounded_channel();
    let (data, mut data_queue) = mpsc::channel(2);
    let (ended, end) = watch::channel(None);
    let (silent, silent_since) = watch::channel(None);
    let (done, opened) = oneshot::channel();
    tokio::spawn(async move {
        let (_owned, last_words) = (transport.owned.take(), transport.last_words.take());
        let mut task = Task::new(transport, pulse, silent);
        task.begin(done, false);
        let mut error = task.run(&mut order_queue, &mut data_queue).await;
        if let (LinkError::Closed, Some(last_words), false) =
            (&error, last_words, order_queue.is_closed())
        {
            error = tokio::time::timeout(LAST_WORDS, last_words).await.unwrap_or(error);
        }
        debug!(%error, "link ended");
        // Set before the inboxes end: who finds one ended asks for the reason.
        ended.send_replace(Some(error.clone()));
        task.lose(error);
    });
    (Started { orders, data, end, silent_since }, opened)
}
