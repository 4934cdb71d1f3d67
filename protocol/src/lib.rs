//! The link between the controller (host) and the agent (guest): messages, framing, limits, version.
//!
//! No I/O and no clock here: both ends feed bytes in and take frames out. The host sends a
//! [`Request`] in an [`Envelope`] with an id of its choice; the guest answers with one or more
//! [`Reply`]s under the same id. Id 0 is the guest's own: a reply nobody asked for.
//!
//! | id of the variant | [`Request`] | answered by | | id | [`Reply`] | ends the request |
//! |---|---|---|---|---|---|---|
//! | 0 | [`HelloRequest`] | 0 or 6 | | 0 | [`HelloResponse`] | yes |
//! | 1 | [`PingRequest`] | 1 | | 1 | [`PingResponse`] | yes |
//! | 2 | [`ExecRequest`] | 2, then 3…, then 4; or 6 | | 2 | [`ExecStartedEvent`] | |
//! | 3 | [`PowerOffRequest`] | 5 or 6 | | 3 | [`ExecOutputEvent`] | |
//! | | | | | 4 | [`ExecExitedEvent`] | yes |
//! | | | | | 5 | [`PowerOffResponse`] | yes |
//! | | | | | 6 | [`RemoteError`] | yes |
//! | | | | | 7 | [`LinkTroubleEvent`] | unasked, id 0, on the reserve link |
//!
//! # Bytes
//! A message is postcard 1.x: integers as varints, strings and byte strings length-prefixed, enum
//! variants by position. Variants and fields are therefore append-only, and a commit that changes
//! bytes raises [`VERSION`]. Every message has its golden bytes under `golden/`. A message travels as the body of
//! one frame; [`framing`] has the layouts. The hello messages never change: they must be readable
//! by any other version.
//!
//! # Session
//! The controller draws a non-zero [`Session`] nonce for each connection and stamps it on every
//! frame, the first being its hello; the agent adopts the session of the hello it answers. Bytes
//! that were written before a restore or a reconnect carry another nonce, and are dropped.
#![forbid(unsafe_code)]
#![warn(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_possible_wrap)]

pub mod error;
pub mod exec;
pub mod framing;
pub mod hello;
pub mod ping;
pub mod power;

pub use error::{ErrorKind, RemoteError};
pub use exec::{
    Command, ExecExitedEvent, ExecOutputEvent, ExecRequest, ExecStartedEvent, ExitStatus, Stream,
};
pub use framing::{Frame, FrameTooLong, Framing, PortFraming, Session, TtyFraming};
pub use hello::{HelloRequest, HelloResponse, LinkTroubleEvent, NoCommonVersion, common_version};
pub use ping::{PingRequest, PingResponse};
pub use power::{PowerOffRequest, PowerOffResponse};
pub use serde_bytes::ByteBuf;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The protocol version of this crate.
pub const VERSION: u16 = 1;

/// The oldest version that this crate still speaks.
pub const OLDEST_VERSION: u16 = 1;

/// The longest body of a frame, in bytes. A longer one is never sent, and never allocated for.
pub const MAX_FRAME_LEN: usize = 256 * 1024;

/// The most bytes of a stream in one message, so that short messages never wait behind long ones.
pub const MAX_DATA_LEN: usize = 64 * 1024;

/// Name of the virtio-serial port that carries the link.
pub const CONTROL_PORT: &str = "org.guestline.control";

/// Name of the virtio-serial port kept for bulk data.
pub const BULK_PORT: &str = "org.guestline.bulk";

/// A message and the request it belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope<T> {
    /// Chosen by the host, unique among the requests under way; 0 for what the guest says unasked.
    pub id: u32,
    /// The message.
    pub body: T,
}

/// What the host asks of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Opens a session.
    Hello(HelloRequest),
    /// Asks for a sign of life.
    Ping(PingRequest),
    /// Starts a process.
    Exec(ExecRequest),
    /// Powers the guest off.
    PowerOff(PowerOffRequest),
}

/// What the guest says to the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// The session is open.
    Hello(HelloResponse),
    /// A sign of life.
    Ping(PingResponse),
    /// The process runs.
    ExecStarted(ExecStartedEvent),
    /// The process wrote.
    ExecOutput(ExecOutputEvent),
    /// The process is gone.
    ExecExited(ExecExitedEvent),
    /// The guest is about to power off.
    PowerOff(PowerOffResponse),
    /// The request could not be carried out.
    Error(RemoteError),
    /// The agent runs but finds no port; said on the reserve link.
    LinkTrouble(LinkTroubleEvent),
}

impl Reply {
    /// Is this the last reply to its request?
    pub fn is_final(&self) -> bool {
        !matches!(self, Self::ExecStarted(_) | Self::ExecOutput(_) | Self::LinkTrouble(_))
    }
}

/// The bytes of a frame's body are no message of this version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotAMessage {
    /// Length of the body, in bytes.
    pub len: usize,
}

impl core::fmt::Display for NotAMessage {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "a frame of {} bytes holds no message of protocol version {VERSION}", self.len)
    }
}

impl core::error::Error for NotAMessage {}

/// Encodes a message into a frame's body.
///
/// # Panics
/// Never: these types have no value that postcard refuses to write into a growing buffer.
pub fn encode<T: Serialize>(message: &Envelope<T>) -> Vec<u8> {
    postcard::to_allocvec(message).unwrap_or_default()
}

/// Decodes a frame's body. Bytes left over after the message are an error.
///
/// # Errors
/// [`NotAMessage`] when the body is no `T`, whatever it is instead.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<Envelope<T>, NotAMessage> {
    match postcard::take_from_bytes(body) {
        Ok((message, [])) => Ok(message),
        _ => Err(NotAMessage { len: body.len() }),
    }
}
