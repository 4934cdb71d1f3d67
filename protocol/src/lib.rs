//! The link between the controller (host) and the agent (guest): messages, framing, limits, version.
//!
//! No I/O and no clock here: both ends feed bytes in and take frames out.
//!
//! # Channels
//! The host opens a channel by a [`Request`] on an id of its choice, never 0 and never one that is open; the guest
//! answers with one or more [`Reply`]s on it, the last of which closes it. While it is open, both sides may send data
//! frames on it within the credit that the other has granted ([`flow`]), and the host may send the requests that are
//! marked "on an open channel", which have no answer of their own. Channel 0 is the guest's own: a reply nobody
//! asked for.
//!
//! | id | [`Request`] | answered by | | id | [`Reply`] | closes |
//! |---|---|---|---|---|---|---|
//! | 0 | [`HelloRequest`] | 0 or 5 | | 0 | [`HelloResponse`] | yes |
//! | 1 | [`AttachRequest`] | 1 | | 1 | [`AttachResponse`] | yes |
//! | 2 | [`PingRequest`] | 2 | | 2 | [`PingResponse`] | yes |
//! | 3 | [`CancelEvent`] | on an open channel, which it closes by 5 or by its own end | | 3 | [`CreditEvent`] | |
//! | 4 | [`CreditEvent`] | on an open channel | | 4 | [`DoneResponse`] | yes |
//! | 5 | [`EndEvent`] | on an open channel | | 5 | [`RemoteError`] | yes |
//! | 6 | [`ExecRequest`] | 8, 9; or 5 | | 6 | [`EndEvent`] | |
//! | 7 | [`SignalEvent`] | on an open channel | | 7 | [`LinkTroubleEvent`] | unasked, channel 0 |
//! | 8 | [`TerminalSize`] | on an open channel | | 8 | [`ExecStartedEvent`] | |
//! | 9 | [`PushRequest`] | 10, 11; or 5 | | 9 | [`ExecExitedEvent`] | yes |
//! | 10 | [`PullRequest`] | 12 or 5 | | 10 | [`PushStartedEvent`] | |
//! | 11 | [`StatRequest`] | 13 or 5 | | 11 | [`PushDoneResponse`] | yes |
//! | 12 | [`ListRequest`] | 14 or 5 | | 12 | [`PullDoneResponse`] | yes |
//! | 13 | [`MakeFolderRequest`] | 4 or 5 | | 13 | [`FileInfo`] | yes |
//! | 14 | [`RemoveRequest`] | 4 or 5 | | 14 | [`ListResponse`] | without `more` |
//! | 15 | [`FollowRequest`] | 4 or 5 | | 15 | [`FactsResponse`] | yes |
//! | 16 | [`FactsRequest`] | 15 or 5 | | 16 | [`SampleEvent`] | |
//! | 17 | [`SampleRequest`] | 16…, 5 | | 17 | [`SetClockResponse`] | yes |
//! | 18 | [`SetClockRequest`] | 17 or 5 | | 18 | [`LeavingResponse`] | yes |
//! | 19 | [`AddEntropyRequest`] | 4 or 5 | | 19 | [`ConnectedEvent`] | |
//! | 20 | [`IdentityRequest`] | 4 or 5 | | 20 | [`ListeningEvent`] | |
//! | 21 | [`PowerRequest`] | 18 or 5 | | 21 | [`AcceptedEvent`] | |
//! | 22 | [`FreezeRequest`] | 4 or 5 | | | | |
//! | 23 | [`ThawRequest`] | 4 or 5 | | | | |
//! | 24 | [`ConnectRequest`] | 19, then 4; or 5 | | | | |
//! | 25 | [`ListenRequest`] | 20, 21…, 4; or 5 | | | | |
//! | 26 | [`AcceptRequest`] | 19, then 4; or 5 | | | | |
//!
//! # Bytes
//! A message is postcard 1.x: integers as varints, strings and byte strings length-prefixed, enum
//! variants by position. Variants and fields are therefore append-only, and a commit that changes
//! bytes raises [`VERSION`]. Every message has its golden bytes under `released/`. A message travels as the body of
//! one frame; [`framing`] has the layouts, [`tree`] and [`log`] what is in data frames. The hello messages never
//! change: they must be readable by any other version.
//!
//! # Session
//! The controller draws a non-zero [`Session`] nonce for each connection and stamps it on every
//! frame, the first being its hello; the agent adopts the session of the hello it answers. Bytes
//! that were written before a restore or a reconnect carry another nonce, and are dropped.
//!
//! # Order
//! Within one port bytes arrive in order. With a bulk port joined ([`AttachRequest`]), messages take the control port
//! and data the bulk port, so that no message waits behind data: a message that follows data therefore says how
//! much there was ([`EndEvent`], [`ExecExitedEvent`], [`PullDoneResponse`]), and the receiver waits for it. On a
//! single port a sender puts a message before data that it has not begun to write: at most [`MAX_QUEUED`] bytes of
//! data are ever written ahead of it.
#![forbid(unsafe_code)]
#![warn(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_possible_wrap)]

pub mod error;
pub mod exec;
pub mod fact;
pub mod file;
pub mod flow;
pub mod forward;
pub mod framing;
pub mod hello;
pub mod identity;
mod limits;
pub mod log;
pub mod ping;
pub mod power;
pub mod tree;

pub use error::{ErrorKind, RemoteError};
pub use exec::{
    Command, EnvChange, ExecExitedEvent, ExecRequest, ExecStartedEvent, ExitStatus, Resource,
    ResourceLimit, ResourceUsage, SignalEvent, StdinSource, Stream, TerminalSize,
};
pub use fact::{FactsRequest, FactsResponse, SampleEvent, SampleRequest};
pub use file::{
    DeviceNumber, FileInfo, FileKind, FileTime, FolderEntry, ItemTrouble, ListRequest,
    ListResponse, MakeFolderRequest, PullDoneResponse, PullRequest, PushDoneResponse, PushRequest,
    PushStartedEvent, RemoveRequest, StatRequest, TreeCounts,
};
pub use flow::{CreditEvent, EndEvent, Overdrawn, ReceiveCredit, SendCredit, worth_granting};
pub use forward::{
    AcceptRequest, AcceptedEvent, ConnectRequest, ConnectedEvent, ListenRequest, ListeningEvent,
    SocketAddress,
};
pub use framing::{
    End, Frame, FrameHead, FrameKind, FrameTooLong, Framing, HEADROOM, PortFraming, Session,
    TtyFraming,
};
pub use hello::{
    AttachRequest, AttachResponse, HelloRequest, HelloResponse, LinkTroubleEvent, NoCommonVersion,
    common_version,
};
pub use identity::{
    AddEntropyRequest, IdentityRequest, NicIdentity, SetClockRequest, SetClockResponse,
};
pub use log::{FollowRequest, LogSource};
pub use ping::{PingRequest, PingResponse};
pub use power::{FreezeRequest, LeavingResponse, PowerAction, PowerRequest, ThawRequest};
pub use serde_bytes::ByteBuf;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The protocol version of this crate.
pub const VERSION: u16 = 1;

/// The oldest version that this crate still speaks.
pub const OLDEST_VERSION: u16 = 1;

/// The longest body of a frame, in bytes. A longer one is never sent, and never allocated for.
pub const MAX_FRAME_LEN: usize = 256 * 1024;

/// The most bytes of a stream in one frame: with its header it is 256 KiB, eight writes of a virtio-serial port.
pub const MAX_DATA_LEN: usize = MAX_FRAME_LEN - HEADROOM;

/// A sender has at most so many bytes of data written or queued ahead of a message.
pub const MAX_QUEUED: usize = 512 * 1024;

/// At most so many channels are open at once; one more is refused as [`ErrorKind::Busy`], by the host's link itself.
pub const MAX_CHANNELS: usize = 256;

/// Name of the virtio-serial port that carries the link.
pub const CONTROL_PORT: &str = "org.guestline.control";

/// Name of the virtio-serial port that carries data.
pub const BULK_PORT: &str = "org.guestline.bulk";

/// What the host asks of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Opens a session.
    Hello(HelloRequest),
    /// Joins the bulk port.
    Attach(AttachRequest),
    /// Asks for a sign of life.
    Ping(PingRequest),
    /// Ends what the channel does.
    Cancel(CancelEvent),
    /// More credit.
    Credit(CreditEvent),
    /// No more data.
    End(EndEvent),
    /// Starts a process.
    Exec(ExecRequest),
    /// Sends a signal.
    Signal(SignalEvent),
    /// The terminal has another size.
    Resize(TerminalSize),
    /// Receives files.
    Push(PushRequest),
    /// Sends files.
    Pull(PullRequest),
    /// What is at a path.
    Stat(StatRequest),
    /// What is in a folder.
    List(ListRequest),
    /// Makes a folder.
    MakeFolder(MakeFolderRequest),
    /// Removes.
    Remove(RemoveRequest),
    /// Follows a log.
    Follow(FollowRequest),
    /// What the guest is.
    Facts(FactsRequest),
    /// What the guest is busy with.
    Sample(SampleRequest),
    /// Sets the clock.
    SetClock(SetClockRequest),
    /// Adds randomness.
    AddEntropy(AddEntropyRequest),
    /// Gives an identity.
    Identity(IdentityRequest),
    /// Ends the guest.
    Power(PowerRequest),
    /// Freezes a file system.
    Freeze(FreezeRequest),
    /// Thaws a file system.
    Thaw(ThawRequest),
    /// Connects to a socket in the guest.
    Connect(ConnectRequest),
    /// Listens in the guest.
    Listen(ListenRequest),
    /// Takes a connection.
    Accept(AcceptRequest),
}

impl Request {
    /// Does it belong to a channel that is open, instead of opening one?
    pub fn is_on_channel(&self) -> bool {
        matches!(
            self,
            Self::Cancel(_) | Self::Credit(_) | Self::End(_) | Self::Signal(_) | Self::Resize(_)
        )
    }
}

/// What the guest says to the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// The session is open.
    Hello(HelloResponse),
    /// The bulk port is joined.
    Attach(AttachResponse),
    /// A sign of life.
    Ping(PingResponse),
    /// More credit.
    Credit(CreditEvent),
    /// It is done.
    Done(DoneResponse),
    /// The request could not be carried out.
    Error(RemoteError),
    /// No more data.
    End(EndEvent),
    /// The agent runs but finds no port; said on the reserve link.
    LinkTrouble(LinkTroubleEvent),
    /// The process runs.
    ExecStarted(ExecStartedEvent),
    /// The process is gone.
    ExecExited(ExecExitedEvent),
    /// Ready for files.
    PushStarted(PushStartedEvent),
    /// Files are in their place.
    PushDone(PushDoneResponse),
    /// Files are sent.
    PullDone(PullDoneResponse),
    /// What is at a path.
    Stat(FileInfo),
    /// What is in a folder.
    List(ListResponse),
    /// What the guest is.
    Facts(FactsResponse),
    /// What the guest is busy with.
    Sample(SampleEvent),
    /// The clock is set.
    SetClock(SetClockResponse),
    /// The guest is about to end.
    Leaving(LeavingResponse),
    /// The connection stands.
    Connected(ConnectedEvent),
    /// Connections are accepted.
    Listening(ListeningEvent),
    /// Somebody connected.
    Accepted(AcceptedEvent),
}

impl Reply {
    /// Is this the last reply on its channel?
    pub fn is_final(&self) -> bool {
        match self {
            Self::List(list) => !list.more,
            Self::Hello(_)
            | Self::Attach(_)
            | Self::Ping(_)
            | Self::Done(_)
            | Self::Error(_)
            | Self::ExecExited(_)
            | Self::PushDone(_)
            | Self::PullDone(_)
            | Self::Stat(_)
            | Self::Facts(_)
            | Self::SetClock(_)
            | Self::Leaving(_) => true,
            Self::Credit(_)
            | Self::End(_)
            | Self::LinkTrouble(_)
            | Self::ExecStarted(_)
            | Self::PushStarted(_)
            | Self::Sample(_)
            | Self::Connected(_)
            | Self::Listening(_)
            | Self::Accepted(_) => false,
        }
    }

    /// Credit for data to the guest that comes with this.
    pub fn credit(&self) -> u32 {
        match self {
            Self::Credit(credit) => credit.bytes,
            Self::ExecStarted(started) => started.credit,
            Self::PushStarted(started) => started.credit,
            Self::Connected(connected) => connected.credit,
            _ => 0,
        }
    }

    /// So many bytes of data were sent on the channel before this, where it says so.
    pub fn total(&self) -> Option<u64> {
        match self {
            Self::End(end) => Some(end.total),
            Self::ExecExited(exited) => Some(exited.total),
            Self::PullDone(done) => Some(done.total),
            _ => None,
        }
    }
}

/// Ends what the channel does: a process is killed with all that it started, a transfer undone. The channel closes by
/// its own end or by [`ErrorKind::Cancelled`]; data that is under way may still come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancelEvent {}

/// It is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DoneResponse {}

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

/// Encodes a message into a buffer for [`Framing::seal`]: its first [`HEADROOM`] bytes are spare.
///
/// # Panics
/// Never: these types have no value that postcard refuses to write into a growing buffer.
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    postcard::to_extend(message, vec![0; HEADROOM]).unwrap_or_default()
}

/// Decodes a frame's body. Bytes left over after the message are an error.
///
/// # Errors
/// [`NotAMessage`] when the body is no `T`, whatever it is instead.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, NotAMessage> {
    match postcard::take_from_bytes(body) {
        Ok((message, [])) => Ok(message),
        _ => Err(NotAMessage { len: body.len() }),
    }
}
