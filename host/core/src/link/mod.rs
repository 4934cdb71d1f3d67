//! The host's end of the link: one session with the agent over the control port.
//!
//! ```text
//! callers ── Order ──> session task ── frames ──> guest
//!         <─ replies ──┘  (owns the stream, the decoder and the requests under way)
//! ```
//! The guest is not trusted: a reply to a request that nobody made is dropped and counted, and bytes
//! that are no message of this protocol end the link. Every wait of a caller ends when the task does.

mod reserve;
mod session;

pub use reserve::{ReserveTrouble, listen as listen_to_reserve};

use guestline_protocol::{
    Envelope, FrameTooLong, HelloRequest, HelloResponse, NoCommonVersion, OLDEST_VERSION,
    RemoteError, Reply, Request, Session, VERSION, common_version, encode,
};
use session::Order;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

/// Replies to one request that wait for the caller; then the guest waits.
const REPLIES: usize = 32;

/// The link cannot be used (any more).
#[derive(Debug, Clone, thiserror::Error)]
pub enum LinkError {
    /// The stream ended or failed.
    #[error("the link is gone")]
    Closed,
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
    #[error("the agent refused: {0}")]
    Refused(RemoteError),
}

/// A session with an agent. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Link {
    orders: mpsc::Sender<Order>,
    next_id: Arc<AtomicU32>,
    end: session::EndWatch,
}

impl Link {
    /// Opens a session over a fresh stream: draws the nonce, says hello and waits for the answer,
    /// however long that takes. Cancel safe: dropping the future drops the stream.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn open(stream: UnixStream) -> Result<(Self, HelloResponse), LinkError> {
        // 80 of a ULID's bits are random; zero means no session.
        let random = (ulid::Ulid::generate().0 & u128::from(u64::MAX)) as u64;
        let session = Session(random.max(1));
        let (orders, end) = session::start(stream, session);
        let link = Self { orders, next_id: Arc::new(AtomicU32::new(1)), end };
        let hello = HelloRequest {
            min: OLDEST_VERSION,
            max: VERSION,
            build: env!("CARGO_PKG_VERSION").to_owned(),
            features: 0,
        };
        match link.ask(Request::Hello(hello)).await? {
            Reply::Hello(hello) => {
                let theirs = (hello.min, hello.max);
                match common_version((OLDEST_VERSION, VERSION), theirs) {
                    Ok(_) => Ok((link, hello)),
                    Err(source) => {
                        Err(LinkError::Version { build: printable(&hello.build), source })
                    }
                }
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Sends a request; its replies arrive on the receiver, which ends with the last one or with
    /// the link ([`Link::end`] says why then).
    ///
    /// # Errors
    /// [`LinkError::TooLong`], or why the link is gone.
    pub async fn request(&self, request: Request) -> Result<mpsc::Receiver<Reply>, LinkError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed).max(1);
        let body = encode(&Envelope { id, body: request });
        if body.len() > guestline_protocol::MAX_FRAME_LEN {
            return Err(FrameTooLong { len: body.len() }.into());
        }
        let (sender, receiver) = mpsc::channel(REPLIES);
        match self.orders.send(Order { id, body, sender }).await {
            Ok(()) => Ok(receiver),
            Err(_) => Err(self.end().await),
        }
    }

    /// A request with one reply.
    ///
    /// # Errors
    /// As [`Link::request`], and [`LinkError::Refused`].
    pub async fn ask(&self, request: Request) -> Result<Reply, LinkError> {
        let mut replies = self.request(request).await?;
        match replies.recv().await {
            Some(Reply::Error(error)) => Err(LinkError::Refused(clean(error))),
            Some(reply) => Ok(reply),
            None => Err(self.end().await),
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
}

/// The reply is of the wrong kind for its request.
pub(crate) fn unexpected(reply: &Reply) -> LinkError {
    let kind = match reply {
        Reply::Hello(_) => "hello",
        Reply::Ping(_) => "ping",
        Reply::ExecStarted(_) => "exec-started",
        Reply::ExecOutput(_) => "exec-output",
        Reply::ExecExited(_) => "exec-exited",
        Reply::PowerOff(_) => "power-off",
        Reply::Error(_) => "error",
        Reply::LinkTrouble(_) => "link-trouble",
    };
    LinkError::Broken { what: format!("a {kind} reply to another request") }
}

/// A remote error whose message may be shown.
pub(crate) fn clean(mut error: RemoteError) -> RemoteError {
    error.message = printable(&error.message);
    error
}

/// At most 300 characters of what the guest says, control characters escaped.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .take(300)
        .flat_map(|c| -> Box<dyn Iterator<Item = char>> {
            if c.is_control() { Box::new(c.escape_default()) } else { Box::new(std::iter::once(c)) }
        })
        .collect()
}

#[cfg(test)]
mod tests;
