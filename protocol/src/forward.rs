//! Sockets of the guest over the link, without a network.
//!
//! ```text
//! to the guest     ConnectRequest ->  data, End, Credit, Cancel ->
//!                                   <- Connected, data, Credit, End, Done     or Error
//! from the guest   ListenRequest ->   Cancel ->
//!                                   <- Listening, Accepted…, Done             or Error
//!                  AcceptRequest ->   as a connect, for a connection that was told by Accepted
//! ```
//! Each side says by End that it has no more to send, as shutdown(2) does; the channel is done when both have.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

/// An address in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SocketAddress {
    /// TCP: a literal address, IPv4 or IPv6, and a port; 0 lets the guest's kernel choose one to listen on.
    Tcp {
        /// Such as `127.0.0.1`.
        host: String,
        /// 0 to 65535.
        port: u16,
    },
    /// A unix socket, stream: its path.
    Unix(ByteBuf),
}

/// Connects to a socket in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectRequest {
    /// To what.
    pub address: SocketAddress,
    /// Credit for what comes out of it, bytes.
    pub credit: u32,
}

/// The connection stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectedEvent {
    /// Credit for what goes into it, bytes.
    pub credit: u32,
}

/// Listens in the guest until it is cancelled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenRequest {
    /// On what.
    pub address: SocketAddress,
}

/// Connections are accepted from now on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListeningEvent {
    /// The port, of a TCP socket.
    pub port: Option<u16>,
}

/// Somebody connected; the connection waits for [`AcceptRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcceptedEvent {
    /// Names the connection in [`AcceptRequest`].
    pub connection: u32,
}

/// Opens a channel for a connection that the guest accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcceptRequest {
    /// As [`AcceptedEvent`] named it.
    pub connection: u32,
    /// Credit for what comes out of it, bytes.
    pub credit: u32,
}
