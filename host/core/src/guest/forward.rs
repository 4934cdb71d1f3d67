//! Sockets of the guest over the link: no network is needed.
//!
//! ```text
//! to the guest     client on the host ──> listener here ══ channel ══> agent ──> server in the guest
//! from the guest   client in the guest ──> agent's listener ══ channel ══> here ──> server on the host
//! ```

use super::Guest;
use crate::link::{
    Arrival, Channel, ChannelReader, ChannelWriter, Link, LinkError, WINDOW, clean, data_buffer,
    unexpected,
};
use crate::refusals::Refusals;
use guestline_protocol::{
    AcceptRequest, ConnectRequest, ListenRequest, Reply, Request, SocketAddress,
};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::debug;

/// One read of a socket.
const PIECE: usize = 64 * 1024;

/// At most so many connections at once in one forwarding; more wait.
const MAX_CONNECTIONS: usize = 64;

/// When this host's end of a connection is broken, what it had sent may take so long to get through.
const LINGER: Duration = Duration::from_secs(5);

/// What is asked of a transport here.
const FORWARD: &str = "forward sockets";

/// Sockets cannot be forwarded.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// The link, or the guest refused.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// This host.
    #[error("cannot listen on `{address}`")]
    Listen {
        /// Where.
        address: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// An address on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostTarget {
    /// TCP.
    Tcp(SocketAddr),
    /// A unix socket.
    Unix(PathBuf),
}

impl std::fmt::Display for HostTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

/// A forwarding to the guest. Dropping it ends it and its connections.
#[derive(Debug)]
pub struct Forwarding {
    address: HostTarget,
    task: JoinHandle<()>,
    troubles: mpsc::UnboundedReceiver<io::Error>,
    /// Removed at the end.
    socket: Option<PathBuf>,
}

impl Forwarding {
    /// Where it listens on this host.
    pub fn address(&self) -> &HostTarget {
        &self.address
    }

    /// Waits until connections cannot be accepted any more, for now, and tells why; the same trouble once. Cancel safe.
    pub async fn trouble(&mut self) -> io::Error {
        match self.troubles.recv().await {
            Some(error) => error,
            None => std::future::pending().await,
        }
    }
}

impl Drop for Forwarding {
    fn drop(&mut self) {
        self.task.abort();
        if let Some(path) = &self.socket {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// A listener in the guest. Dropping it ends it and its connections.
#[derive(Debug)]
pub struct Listening {
    /// The port, of a TCP listener.
    pub port: Option<u16>,
    task: JoinHandle<LinkError>,
}

impl Listening {
    /// Waits until the guest ends it, and tells why. Cancel safe.
    pub async fn ended(&mut self) -> LinkError {
        (&mut self.task).await.unwrap_or(LinkError::Closed)
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.task.abort();
    }
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// A connection on this host.
trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Socket for S {}

impl Listener {
    async fn accept(&self) -> io::Result<Box<dyn Socket>> {
        Ok(match self {
            Self::Tcp(listener) => Box::new(listener.accept().await?.0),
            Self::Unix(listener) => Box::new(listener.accept().await?.0),
        })
    }
}

impl Guest {
    /// Connects to a socket in the guest.
    ///
    /// # Errors
    /// [`LinkError`]; [`LinkError::Refused`] when nobody listens there.
    pub async fn connect(
        &self,
        address: SocketAddress,
    ) -> Result<(ChannelReader, ChannelWriter), LinkError> {
        let link = self.link_to(FORWARD)?;
        let credit = link.window(WINDOW);
        let request = Request::Connect(ConnectRequest { address, credit });
        connected(link.channel(&request, credit).await?).await
    }

    /// Listens on this host, and connects whoever comes with a socket in the guest. With TCP, port 0 takes a free one.
    ///
    /// # Errors
    /// [`ForwardError`].
    pub async fn forward(
        &self,
        listen: &HostTarget,
        to: SocketAddress,
    ) -> Result<Forwarding, ForwardError> {
        self.link_to(FORWARD)?;
        let wrong = |source| ForwardError::Listen { address: listen.to_string(), source };
        let (listener, address, socket) = match listen {
            HostTarget::Tcp(address) => {
                let listener = TcpListener::bind(address).await.map_err(wrong)?;
                let address = listener.local_addr().map_err(wrong)?;
                (Listener::Tcp(listener), HostTarget::Tcp(address), None)
            }
            HostTarget::Unix(path) => {
                let listener = UnixListener::bind(path).map_err(wrong)?;
                (Listener::Unix(listener), listen.clone(), Some(path.clone()))
            }
        };
        let (trouble, troubles) = mpsc::unbounded_channel();
        let task = tokio::spawn(accept(listener, self.clone(), to, trouble));
        Ok(Forwarding { address, task, troubles, socket })
    }

    /// Listens in the guest, and connects whoever comes with a socket of this host.
    ///
    /// # Errors
    /// [`LinkError`]; [`LinkError::Refused`] when the guest cannot listen there.
    pub async fn listen(
        &self,
        listen: SocketAddress,
        to: HostTarget,
    ) -> Result<Listening, LinkError> {
        let request = Request::Listen(ListenRequest { address: listen });
        let link = self.link_to(FORWARD)?;
        let mut channel = link.channel(&request, 0).await?;
        match channel.reply().await? {
            Reply::Listening(listening) => {
                let task = tokio::spawn(serve(channel, link.clone(), to));
                Ok(Listening { port: listening.port, task })
            }
            Reply::Error(error) => Err(LinkError::Refused(clean(error))),
            other => Err(unexpected(&other)),
        }
    }
}

async fn connected(mut channel: Channel) -> Result<(ChannelReader, ChannelWriter), LinkError> {
    match channel.reply().await? {
        Reply::Connected(_) => Ok(channel.split()),
        Reply::Error(error) => Err(LinkError::Refused(clean(error))),
        other => Err(unexpected(&other)),
    }
}

async fn accept(
    listener: Listener,
    guest: Guest,
    to: SocketAddress,
    trouble: mpsc::UnboundedSender<io::Error>,
) {
    let mut connections = JoinSet::new();
    let mut refusals = Refusals::default();
    loop {
        while connections.try_join_next().is_some() {}
        if connections.len() >= MAX_CONNECTIONS {
            connections.join_next().await;
        }
        match listener.accept().await {
            Ok(stream) => {
                connections.spawn(to_guest(guest.clone(), to.clone(), stream));
            }
            Err(error) => {
                if refusals.is_news() {
                    let _ = trouble.send(error);
                }
                refusals.pause().await;
            }
        }
    }
}

async fn to_guest(guest: Guest, to: SocketAddress, stream: Box<dyn Socket>) {
    match guest.connect(to).await {
        Ok((reader, writer)) => pump(reader, writer, stream).await,
        // Whoever connected here sees his connection end, as with a proxy.
        Err(error) => debug!(%error, "no connection in the guest"),
    }
}

/// Takes the connections that a listener in the guest accepts.
async fn serve(mut channel: Channel, link: Link, to: HostTarget) -> LinkError {
    let mut connections = JoinSet::new();
    loop {
        let accepted = match channel.reply().await {
            Ok(Reply::Accepted(accepted)) => accepted,
            Ok(Reply::Done(_)) => return LinkError::Closed,
            Ok(Reply::Error(error)) => return LinkError::Refused(clean(error)),
            Ok(other) => return unexpected(&other),
            Err(error) => return error,
        };
        while connections.try_join_next().is_some() {}
        while connections.len() >= MAX_CONNECTIONS {
            connections.join_next().await;
        }
        let (link, to) = (link.clone(), to.clone());
        connections.spawn(async move {
            let credit = link.window(WINDOW);
            let connection = accepted.connection;
            let request = Request::Accept(AcceptRequest { connection, credit });
            let Ok(channel) = link.channel(&request, credit).await else { return };
            // A host that does not answer ends the guest's connection: its channel is dropped.
            let Ok((reader, writer)) = connected(channel).await else { return };
            match &to {
                HostTarget::Tcp(address) => {
                    if let Ok(stream) = TcpStream::connect(address).await {
                        pump(reader, writer, stream).await;
                    }
                }
                HostTarget::Unix(path) => {
                    if let Ok(stream) = UnixStream::connect(path).await {
                        pump(reader, writer, stream).await;
                    }
                }
            }
        });
    }
}

/// Moves bytes both ways until both ends have ended, or one is broken. What was sent before an end is broken still gets
/// through: only then is the channel dropped, since its cancelling would overtake the data.
async fn pump(mut reader: ChannelReader, mut writer: ChannelWriter, stream: impl Socket) {
    let (mut from, mut to) = tokio::io::split(stream);
    let broken = CancellationToken::new();
    let upward = async {
        let mut piece = vec![0; PIECE];
        loop {
            match from.read(&mut piece).await {
                Ok(0) => break,
                Ok(len) => {
                    let mut buffer = data_buffer(len);
                    buffer.extend_from_slice(&piece[..len]);
                    if writer.send(buffer).await.is_err() {
                        return;
                    }
                }
                Err(_) => {
                    broken.cancel();
                    break;
                }
            }
        }
        writer.end();
    };
    let downward = async {
        loop {
            match reader.next().await {
                // A guest that waits to be read takes nothing itself: it is read on, for nobody.
                Ok(Arrival::Data { .. }) if broken.is_cancelled() => {}
                Ok(Arrival::Data { bytes, .. }) => {
                    if to.write_all(&bytes).await.is_err() {
                        broken.cancel();
                    }
                }
                Ok(Arrival::Reply(Reply::End(_))) => {
                    let _ = to.shutdown().await;
                }
                Ok(Arrival::Reply(reply)) if reply.is_final() => return,
                Ok(Arrival::Reply(_)) => {}
                Err(_) => return,
            }
        }
    };
    let both = async {
        let mut downward = std::pin::pin!(downward);
        tokio::select! {
            () = &mut downward => {}
            // The last word is the guest's.
            () = upward => downward.await,
        }
    };
    let given_up = async {
        broken.cancelled().await;
        tokio::time::sleep(LINGER).await;
    };
    tokio::select! {
        () = both => {}
        () = given_up => {}
    }
}

#[cfg(test)]
mod tests;
