//! What carries a link: a stream each way, a framing, and perhaps a second pair of streams for data.

use super::LinkError;
use super::fd::FdStream;
use guestline_protocol::{End, Framing, PortFraming, TtyFraming};
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;

/// A stream each way.
pub struct Lane {
    pub(crate) reader: Box<dyn AsyncRead + Send + Unpin>,
    pub(crate) writer: Box<dyn AsyncWrite + Send + Unpin>,
}

impl Lane {
    /// Of a socket. It is closed when the lane is dropped, and not shut down: somebody else may have it, too.
    pub fn socket(stream: UnixStream) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        Self::of(reader, writer)
    }

    /// Of a stream socket of any family, such as a vsock.
    ///
    /// # Errors
    /// It cannot be waited for, as a file cannot.
    pub fn fd(socket: OwnedFd) -> io::Result<Self> {
        let (reader, writer) = tokio::io::split(FdStream::new(socket)?);
        Ok(Self::of(reader, writer))
    }

    /// Of any two streams.
    pub fn of(
        reader: impl AsyncRead + Send + Unpin + 'static,
        writer: impl AsyncWrite + Send + Unpin + 'static,
    ) -> Self {
        Self { reader: Box::new(reader), writer: Box::new(writer) }
    }
}

/// What carries a link.
pub struct Transport {
    pub(crate) kind: TransportKind,
    pub(crate) control: Lane,
    pub(crate) bulk: Option<Lane>,
    pub(crate) framing: Box<dyn Framing>,
    /// Lives as long as the link does, such as a child process.
    pub(crate) owned: Option<Box<dyn Send>>,
    /// Tells why the streams ended, where somebody knows.
    pub(crate) last_words: Option<LastWords>,
}

/// Ready when what carried the link has ended, with the reason.
pub(crate) type LastWords = Pin<Box<dyn Future<Output = LinkError> + Send>>;

/// The kinds of transports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TransportKind {
    /// Two virtio-serial ports.
    VirtioSerial,
    /// A serial line or a virtual one.
    Tty,
    /// Standard input and output of a child process.
    Stdio,
    /// A unix socket.
    UnixSocket,
    /// A vsock.
    Vsock,
    /// The QEMU guest agent, in guests that have no other.
    Qga,
}

impl std::fmt::Display for TransportKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::VirtioSerial => "virtio-serial",
            Self::Tty => "tty",
            Self::Stdio => "stdio",
            Self::UnixSocket => "unix socket",
            Self::Vsock => "vsock",
            Self::Qga => "qemu-guest-agent",
        })
    }
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bulk = self.bulk.is_some();
        f.debug_struct("Transport").field("kind", &self.kind).field("bulk", &bulk).finish()
    }
}

impl Transport {
    /// The host's ends of a machine's control port and bulk port.
    pub fn virtio_serial(control: UnixStream, bulk: UnixStream) -> Self {
        Self {
            kind: TransportKind::VirtioSerial,
            control: Lane::socket(control),
            bulk: Some(Lane::socket(bulk)),
            framing: Box::new(PortFraming::default()),
            owned: None,
            last_words: None,
        }
    }

    /// A lossless stream of this kind.
    pub fn stream(kind: TransportKind, lane: Lane) -> Self {
        let framing = Box::new(PortFraming::default());
        Self { kind, control: lane, bulk: None, framing, owned: None, last_words: None }
    }

    /// A line on which other bytes may mix in.
    pub fn tty(lane: Lane) -> Self {
        let framing = Box::new(TtyFraming::new(End::Host));
        Self {
            kind: TransportKind::Tty,
            control: lane,
            bulk: None,
            framing,
            owned: None,
            last_words: None,
        }
    }

    /// Keeps something alive for as long as the link is.
    pub fn owning(mut self, owned: impl Send + 'static) -> Self {
        self.owned = Some(Box::new(owned));
        self
    }
}
