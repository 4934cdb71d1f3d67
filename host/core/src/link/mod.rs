//! The host's end of the link: one session with the agent over any transport.
//!
//! ```text
//! callers ── orders ──> session task ── frames ──> guest        Link: opens channels
//!         <─ inbox ───┘   (owns transport, state, inboxes)       Channel: one request, its replies and data
//! ```
//! The guest is not trusted: what comes is held to what was granted ([`state`]), and bytes that are no message of
//! this protocol end the session. Every wait of a caller ends when the session does.

mod channel;
mod endpoint;
mod fd;
mod ids;
mod inbox;
mod names;
mod program;
pub(crate) mod qga;
mod reserve;
#[cfg(test)]
pub(crate) mod scripted;
mod session;
pub(crate) mod state;
mod transport;

pub use channel::{Arrival, Channel, ChannelReader, ChannelTeller, ChannelWriter, data_buffer};
pub use endpoint::{Endpoint, EndpointError, NotAnEndpoint};
pub use qga::QgaHandle;
pub use reserve::{ReserveTrouble, listen as listen_to_reserve};
pub use session::Reopened;
pub use transport::{Lane, Transport, TransportKind};

pub(crate) use names::{clean, unexpected};

use crate::pulse::{Pulse, PulseWatch};
use guestline_protocol::{
    FrameTooLong, HelloResponse, MAX_FRAME_LEN, NoCommonVersion, RemoteError, Reply, Request,
    Session, encode,
};
use ids::ChannelIds;
use names::name_of_request;
use session::{DataOrder, OpenOrder, Order};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

/// The synchronous part of the session, for fuzzers: not for use otherwise.
#[doc(hidden)]
pub mod fuzzing {
    pub use super::state::{Effect, SessionState};
}

/// Data that the guest may have under way on a channel, of a process, and of a transfer, in bytes.
pub(crate) const WINDOW: u32 = 384 * 1024;
pub(crate) const OUTPUT_WINDOW: u32 = 2 * 1024 * 1024;
pub(crate) const BULK_WINDOW: u32 = 12 * 1024 * 1024;

/// And on all channels together, of which a new one gets at most half of what is left, but never less than a little.
const ALL_WINDOWS: usize = 24 * 1024 * 1024;
const SMALL_WINDOW: u32 = 64 * 1024;

/// How long a small request may take.
const ANSWER: Duration = Duration::from_secs(60);

/// The link cannot be used (any more).
#[derive(Debug, Clone, thiserror::Error)]
pub enum LinkError {
    /// The stream ended or failed.
    #[error("the link is gone")]
    Closed,
    /// The program that carried the link ended.
    #[error("the link is gone: `{name}` {how}{}", after_colon(stderr))]
    ProgramEnded {
        /// What was run.
        name: String,
        /// How it ended, as in "exited with status 1".
        how: String,
        /// The end of its standard error.
        stderr: String,
    },
    /// The guest sent what is no message.
    #[error("the guest broke the protocol: {what}")]
    Broken {
        /// What it did.
        what: String,
    },
    /// The agent is of another time.
    #[error("agent build `{build}` cannot be used")]
    Version {
        /// The agent's build id.
        build: String,
        /// Both ranges.
        #[source]
        source: NoCommonVersion,
    },
    /// A request over the limit of a frame.
    #[error("the request is too long")]
    TooLong(#[from] FrameTooLong),
    /// The agent refused.
    #[error("{0}")]
    Refused(RemoteError),
    /// The agent knows nothing of the session: the guest rebooted, the agent was started anew, or another host had it
    /// meanwhile. [`Link::reopen`] tells which agent is there.
    #[error("the agent knows nothing of the session any more: what ran in it is lost")]
    Restarted,
    /// The agent gives no sign of life, and nothing says that its guest is just busy.
    #[error("the agent gave no sign of life for {waited:.0?}: {guest}")]
    Silent {
        /// For how long.
        waited: Duration,
        /// What the guest does meanwhile.
        guest: Pulse,
    },
    /// The guest takes nothing of what it is sent.
    #[error("the guest reads nothing: {bytes} bytes wait for it")]
    Unread {
        /// So many bytes of memory.
        bytes: usize,
    },
    /// A small request was not answered, though the agent lives.
    #[error("the agent did not answer a {what} request within {waited:.0?}")]
    NoAnswer {
        /// Which.
        what: &'static str,
        /// For how long.
        waited: Duration,
    },
    /// This transport has no way to do that.
    #[error("{transport} cannot {what}")]
    Unsupported {
        /// The transport.
        transport: TransportKind,
        /// What was asked, as in "freeze a file system".
        what: &'static str,
    },
}

fn after_colon(text: &str) -> String {
    match text.lines().last() {
        Some(line) => format!(": {line}"),
        None => String::new(),
    }
}

impl LinkError {
    /// Did the streams end, for whatever reason?
    pub fn is_closed(&self) -> bool {
        matches!(self, Self::Closed | Self::ProgramEnded { .. })
    }

    /// Is only the session over, and whoever is at the other end of the link may be greeted anew ([`Link::reopen`])?
    pub fn is_session_lost(&self) -> bool {
        matches!(self, Self::Restarted | Self::Silent { .. } | Self::Unread { .. })
    }

    fn broken(what: String) -> Self {
        Self::Broken { what }
    }
}

/// A session with an agent. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Link {
    orders: mpsc::UnboundedSender<Order>,
    data: mpsc::Sender<DataOrder>,
    ids: Arc<ChannelIds>,
    /// Windows of the channels that are open, bytes.
    windows: Arc<AtomicUsize>,
    end: watch::Receiver<Option<LinkError>>,
    silent_since: watch::Receiver<Option<Instant>>,
    kind: TransportKind,
}

impl Link {
    /// Opens a session over a transport: draws the nonce, says hello and waits for the answer,
    /// however long that takes. Cancel safe: dropping the future drops the transport.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn open(transport: Transport) -> Result<(Self, HelloResponse), LinkError> {
        Self::open_watched(transport, Box::new(|| Pulse::Unknown)).await
    }

    /// As [`Link::open`], with somebody who can tell a busy guest from a dead one.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn open_watched(
        transport: Transport,
        pulse: PulseWatch,
    ) -> Result<(Self, HelloResponse), LinkError> {
        let kind = transport.kind;
        let (started, opened) = session::start(transport, pulse);
        let link = Self {
            orders: started.orders,
            data: started.data,
            ids: Arc::default(),
            windows: Arc::default(),
            end: started.end,
            silent_since: started.silent_since,
            kind,
        };
        let opened = opened.await.unwrap_or(Err(LinkError::Closed))?;
        Ok((link, opened.hello))
    }

    /// Opens a new session over the same transport: after a reboot of the guest, another start of its agent, or a
    /// silence. What is open ends with [`LinkError::Restarted`]. Waits as [`Link::open`] does, and says hello for as
    /// long.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn reopen(&self) -> Result<Reopened, LinkError> {
        self.open_again(false).await
    }

    /// As [`Link::reopen`], with a guest that was put back to an earlier moment: it may wait for the rest of a frame that
    /// was on its way then. A hello that is not answered is therefore said again behind what fills up any frame.
    pub(crate) async fn reopen_restored(&self) -> Result<Reopened, LinkError> {
        self.open_again(true).await
    }

    async fn open_again(&self, is_restored: bool) -> Result<Reopened, LinkError> {
        let (done, opened) = oneshot::channel();
        if self.orders.send(Order::Reopen { done, is_restored }).is_err() {
            return Err(self.end().await);
        }
        opened.await.unwrap_or(Err(LinkError::Closed))
    }

    /// Over what the link goes.
    pub fn transport(&self) -> TransportKind {
        self.kind
    }

    /// A window for data from the guest, in bytes, as wanted or less.
    pub(crate) fn window(&self, wanted: u32) -> u32 {
        let left = ALL_WINDOWS.saturating_sub(self.windows.load(Ordering::Relaxed));
        let share = u32::try_from(left / 2).unwrap_or(u32::MAX);
        wanted.min(share.max(SMALL_WINDOW))
    }

    /// Opens a channel with a request, which grants `window` bytes of credit for data from the guest (0 where
    /// none comes). With [`guestline_protocol::MAX_CHANNELS`] of them open it is answered by an error of kind
    /// [`guestline_protocol::ErrorKind::Busy`], as by the agent itself.
    ///
    /// # Errors
    /// [`LinkError::TooLong`], or why the link is gone.
    pub async fn channel(&self, request: &Request, window: u32) -> Result<Channel, LinkError> {
        self.open_channel(request, window, false).await
    }

    /// As [`Link::channel`], on behalf of another session whose ends keep the accounts themselves: data that is taken
    /// gives the guest no credit, [`ChannelWriter::grant`] does; and what the guest grants arrives as the replies it
    /// is.
    ///
    /// # Errors
    /// As [`Link::channel`].
    pub async fn relay(&self, request: &Request, window: u32) -> Result<Channel, LinkError> {
        self.open_channel(request, window, true).await
    }

    async fn open_channel(
        &self,
        request: &Request,
        window: u32,
        relayed: bool,
    ) -> Result<Channel, LinkError> {
        let buffer = encode(request);
        let len = buffer.len() - guestline_protocol::HEADROOM;
        if len > MAX_FRAME_LEN {
            return Err(FrameTooLong { len }.into());
        }
        let (sender, inbox) = inbox::inbox();
        let (granted, grants) = watch::channel(0);
        let id = Arc::new(self.ids.take());
        let order = OpenOrder { id: id.clone(), buffer, window, relayed, inbox: sender, granted };
        if self.orders.send(Order::Open(order)).is_err() {
            return Err(self.end().await);
        }
        Ok(Channel::new(id, self.clone(), inbox, grants, window, relayed))
    }

    /// A request with one reply, which must come within a minute.
    ///
    /// # Errors
    /// As [`Link::channel`], [`LinkError::Refused`] and [`LinkError::NoAnswer`].
    pub async fn ask(&self, request: &Request) -> Result<Reply, LinkError> {
        self.ask_within(request, ANSWER).await
    }

    /// As [`Link::ask`], with another limit.
    ///
    /// # Errors
    /// As [`Link::ask`].
    pub async fn ask_within(&self, request: &Request, limit: Duration) -> Result<Reply, LinkError> {
        let mut channel = self.channel(request, 0).await?;
        match tokio::time::timeout(limit, channel.reply()).await {
            Ok(Ok(Reply::Error(error))) => Err(LinkError::Refused(clean(error))),
            Ok(reply) => reply,
            Err(_) => Err(LinkError::NoAnswer { what: name_of_request(request), waited: limit }),
        }
    }

    /// Waits for the link's end and tells why it came. Cancel safe.
    pub async fn end(&self) -> LinkError {
        let mut end = self.end.clone();
        match end.wait_for(Option::is_some).await {
            Ok(error) => error.clone().unwrap_or(LinkError::Closed),
            Err(_) => LinkError::Closed,
        }
    }

    /// Waits, without holding it, until nobody has the link any more and its transport is closed.
    pub(crate) async fn closed(self) {
        let mut end = self.end.clone();
        drop(self);
        // The link's task sets it, and drops it last.
        while end.changed().await.is_ok() {}
    }

    /// How long the agent has owed a sign of life; none when it owes none.
    pub fn silence(&self) -> Option<Duration> {
        self.silent_since.borrow().map(|since| since.elapsed())
    }
}

/// A nonce for a session.
fn draw_session() -> Session {
    // 80 of a ULID's bits are random; zero means no session.
    let random = (ulid::Ulid::generate().0 & u128::from(u64::MAX)) as u64;
    Session(random.max(1))
}

#[cfg(test)]
mod tests;
