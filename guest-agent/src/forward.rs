//! Sockets of the guest, connected with channels: all without blocking, in the poll loop.
//!
//! ```text
//! Connecting ── writable ──> Open ── both directions ended, or one broken ──> done, forgotten
//! Listening ── somebody comes ──> waiting for the host to accept ──> Open
//! ```

use crate::outlet::is_transient;
use crate::refusal::system;
use guestline_protocol::{
    AcceptRequest, AcceptedEvent, ConnectRequest, ConnectedEvent, DoneResponse, EndEvent,
    ErrorKind, HEADROOM, ListenRequest, ListeningEvent, ReceiveCredit, RemoteError, Reply,
    SendCredit, SocketAddress,
};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::sys::socket::{
    AddressFamily, Backlog, Shutdown, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6,
    SockaddrLike, SockaddrStorage, UnixAddr, accept4, bind, connect, getsockname, getsockopt,
    listen, setsockopt, shutdown, socket, sockopt,
};
use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Data that the host may have under way to a socket, bytes.
const WINDOW: u32 = 256 * 1024;

/// One read of a socket.
const PIECE: usize = 64 * 1024;

/// At most so many sockets at once, and so many connections that the host has not accepted.
const MAX_SOCKETS: usize = 128;
const MAX_WAITING: usize = 64;

/// When a connection cannot be accepted, for want of descriptors or memory, it is tried again after so long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a socket has to say.
pub(crate) enum Said {
    Reply(Reply),
    /// With the head spare.
    Data(Vec<u8>),
}

/// All sockets of the session.
#[derive(Default)]
pub(crate) struct Sockets {
    connections: Vec<Connection>,
    listeners: Vec<Listener>,
    /// Accepted by the kernel and not yet by the host.
    waiting: Vec<(u32, u32, OwnedFd)>,
    next: u32,
    /// Nothing could be accepted: listeners are left alone until then.
    pause: Option<Instant>,
}

struct Connection {
    channel: u32,
    file: File,
    connecting: bool,
    send: SendCredit,
    receive: ReceiveCredit,
    /// To be written, and how much of the first is.
    out: VecDeque<Vec<u8>>,
    written: usize,
    /// The socket has no more to say, and that was told.
    ended: bool,
    /// The host has no more to say after so many bytes.
    host_end: Option<u64>,
    shut: bool,
    broken: Option<Errno>,
}

struct Listener {
    channel: u32,
    fd: OwnedFd,
    /// Removed at the end.
    path: Option<PathBuf>,
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Sockets {
    pub(crate) fn has(&self, channel: u32) -> bool {
        self.connections.iter().any(|connection| connection.channel == channel)
            || self.listeners.iter().any(|listener| listener.channel == channel)
    }

    fn check_room(&self) -> Result<(), RemoteError> {
        if self.connections.len().saturating_add(self.listeners.len()) < MAX_SOCKETS {
            return Ok(());
        }
        let message = format!("{MAX_SOCKETS} sockets are forwarded already");
        Err(RemoteError::new(ErrorKind::Busy, message))
    }

    /// Connects; when that takes time, a word says how it went.
    pub(crate) fn connect(
        &mut self,
        channel: u32,
        request: &ConnectRequest,
    ) -> Result<Option<ConnectedEvent>, RemoteError> {
        self.check_room()?;
        let address = Address::of(&request.address)?;
        let fd = address.socket()?;
        let connecting = match connect(fd.as_raw_fd(), address.as_sockaddr()) {
            Ok(()) => false,
            Err(Errno::EINPROGRESS) => true,
            Err(errno) => return Err(system(errno, &address.text)),
        };
        self.add(channel, fd, request.credit, connecting);
        Ok((!connecting).then_some(ConnectedEvent { credit: WINDOW }))
    }

    fn add(&mut self, channel: u32, fd: OwnedFd, credit: u32, connecting: bool) {
        self.connections.push(Connection {
            channel,
            file: File::from(fd),
            connecting,
            send: SendCredit::new(credit),
            receive: ReceiveCredit::new(WINDOW),
            out: VecDeque::new(),
            written: 0,
            ended: false,
            host_end: None,
            shut: false,
            broken: None,
        });
    }

    /// Listens.
    pub(crate) fn listen(
        &mut self,
        channel: u32,
        request: &ListenRequest,
    ) -> Result<ListeningEvent, RemoteError> {
        self.check_room()?;
        let address = Address::of(&request.address)?;
        let fd = address.socket()?;
        let wrong = |errno| system(errno, &address.text);
        let path = match &request.address {
            SocketAddress::Unix(path) => Some(PathBuf::from(OsStr::from_bytes(path))),
            SocketAddress::Tcp { .. } => {
                setsockopt(&fd, sockopt::ReuseAddr, &true).map_err(wrong)?;
                None
            }
        };
        bind(fd.as_raw_fd(), address.as_sockaddr()).map_err(wrong)?;
        listen(&fd, Backlog::MAXCONN).map_err(wrong)?;
        let name: SockaddrStorage = getsockname(fd.as_raw_fd()).map_err(wrong)?;
        let port = name
            .as_sockaddr_in()
            .map(SockaddrIn::port)
            .or_else(|| name.as_sockaddr_in6().map(SockaddrIn6::port));
        self.listeners.push(Listener { channel, fd, path });
        Ok(ListeningEvent { port })
    }

    /// Opens a channel for a connection that was told.
    pub(crate) fn accept(
        &mut self,
        channel: u32,
        request: &AcceptRequest,
    ) -> Result<ConnectedEvent, RemoteError> {
        let found = self.waiting.iter().position(|(_, id, _)| *id == request.connection);
        let Some(at) = found else {
            let message = format!("connection {} is gone", request.connection);
            return Err(RemoteError::new(ErrorKind::NotFound, message));
        };
        let (_, _, fd) = self.waiting.swap_remove(at);
        self.check_room()?;
        self.add(channel, fd, request.credit, false);
        Ok(ConnectedEvent { credit: WINDOW })
    }

    /// Data of the host.
    pub(crate) fn input(&mut self, channel: u32, bytes: &[u8]) -> Result<(), RemoteError> {
        let Some(connection) = self.find(channel) else { return Ok(()) };
        connection
            .receive
            .receive(bytes.len())
            .map_err(|overdrawn| RemoteError::new(ErrorKind::Protocol, overdrawn.to_string()))?;
        connection.out.push_back(bytes.to_vec());
        Ok(())
    }

    /// The host has no more to say after so many bytes.
    pub(crate) fn end_input(&mut self, channel: u32, total: u64) {
        if let Some(connection) = self.find(channel) {
            connection.host_end = Some(total);
        }
    }

    pub(crate) fn credit(&mut self, channel: u32, bytes: u32) {
        if let Some(connection) = self.find(channel) {
            connection.send.grant(bytes);
        }
    }

    /// Ends a connection or a listener at once. True when there was one.
    pub(crate) fn cancel(&mut self, channel: u32) -> bool {
        let had = self.has(channel);
        self.connections.retain(|connection| connection.channel != channel);
        self.listeners.retain(|listener| listener.channel != channel);
        self.waiting.retain(|(listener, _, _)| *listener != channel);
        had
    }

    pub(crate) fn end_session(&mut self) {
        *self = Self { next: self.next, ..Self::default() };
    }

    fn find(&mut self, channel: u32) -> Option<&mut Connection> {
        self.connections.iter_mut().find(|connection| connection.channel == channel)
    }

    /// What to poll for, and whose channels that are; `may_read` when the link has room.
    pub(crate) fn poll_fds<'a>(
        &'a self,
        may_read: bool,
        fds: &mut Vec<PollFd<'a>>,
        channels: &mut Vec<u32>,
    ) {
        for connection in &self.connections {
            let mut flags = PollFlags::empty();
            let wants = may_read && !connection.ended && connection.send.left() > 0;
            flags.set(PollFlags::POLLIN, wants && !connection.connecting);
            let writes = connection.connecting || !connection.out.is_empty();
            flags.set(PollFlags::POLLOUT, writes);
            // Without a wish an error would still be told, again and again.
            if !flags.is_empty() {
                fds.push(PollFd::new(connection.file.as_fd(), flags));
                channels.push(connection.channel);
            }
        }
        if self.waiting.len() < MAX_WAITING && self.deadline().is_none() {
            for listener in &self.listeners {
                fds.push(PollFd::new(listener.fd.as_fd(), PollFlags::POLLIN));
                channels.push(listener.channel);
            }
        }
    }

    /// When to poll for what could not be accepted for want of descriptors or memory.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.pause.filter(|until| *until > Instant::now())
    }

    /// Moves what can be moved: of the channels that poll found ready, and what the host sent.
    pub(crate) fn on_ready(&mut self, ready: &[(u32, PollFlags)], say: &mut dyn FnMut(u32, Said)) {
        let found = |channel| ready.iter().find(|(ready, _)| *ready == channel);
        let found = |channel| found(channel).map_or(PollFlags::empty(), |(_, found)| *found);
        for at in 0..self.listeners.len() {
            let listener =
                self.listeners.get(at).filter(|listener| !found(listener.channel).is_empty());
            if let Some((channel, fd)) = listener.map(|it| (it.channel, it.fd.as_raw_fd())) {
                self.accept_all(channel, fd, say);
            }
        }
        for connection in &mut self.connections {
            connection.step(found(connection.channel), say);
        }
        self.connections.retain(|connection| match connection.last_word() {
            Some(reply) => {
                // Data takes another port, perhaps: whoever hears of the end waits for all of it.
                if !connection.ended && !connection.connecting {
                    say(connection.channel, connection.end());
                }
                say(connection.channel, Said::Reply(reply));
                false
            }
            None => true,
        });
    }

    fn accept_all(&mut self, listener: u32, fd: RawFd, say: &mut dyn FnMut(u32, Said)) {
        while self.waiting.len() < MAX_WAITING {
            match accept4(fd, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC) {
                Ok(fd) => {
                    self.next = self.next.wrapping_add(1);
                    let connection = self.next;
                    self.waiting.push((listener, connection, crate::sys::owned(fd)));
                    say(listener, Said::Reply(Reply::Accepted(AcceptedEvent { connection })));
                }
                // Whoever wanted it has gone again.
                Err(Errno::ECONNABORTED | Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return,
                // It would be found ready at once, for ever.
                Err(_) => {
                    self.pause = Instant::now().checked_add(ACCEPT_PAUSE);
                    return;
                }
            }
        }
    }
}

impl Connection {
    fn step(&mut self, found: PollFlags, say: &mut dyn FnMut(u32, Said)) {
        if self.connecting {
            if found.is_empty() {
                return;
            }
            match getsockopt(&self.file, sockopt::SocketError) {
                Ok(0) if is_connected(&self.file) => self.connecting = false,
                Ok(0) => return,
                Ok(errno) => {
                    self.broken = Some(Errno::from_raw(errno));
                    return;
                }
                Err(errno) => {
                    self.broken = Some(errno);
                    return;
                }
            }
            let connected = Reply::Connected(ConnectedEvent { credit: WINDOW });
            say(self.channel, Said::Reply(connected));
        }
        self.write(say);
        if found.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR) {
            self.read(say);
        }
    }

    fn write(&mut self, say: &mut dyn FnMut(u32, Said)) {
        while let Some(first) = self.out.front() {
            match self.file.write(first.get(self.written..).unwrap_or_default()) {
                Ok(len) => {
                    self.written = self.written.saturating_add(len);
                    if let Some(credit) = self.receive.use_up(len) {
                        say(self.channel, Said::Reply(Reply::Credit(credit)));
                    }
                }
                Err(error) if is_transient(&error) => return,
                Err(error) => {
                    self.broken = Some(Errno::from_raw(error.raw_os_error().unwrap_or(0)));
                    return;
                }
            }
            if self.written >= first.len() {
                self.out.pop_front();
                self.written = 0;
            }
        }
        let all_came = self.host_end.is_some_and(|total| total <= self.receive.received());
        if all_came && !self.shut {
            self.shut = true;
            let _ = shutdown(self.file.as_raw_fd(), Shutdown::Write);
        }
    }

    fn read(&mut self, say: &mut dyn FnMut(u32, Said)) {
        let room = self.send.left().min(PIECE);
        if room == 0 || self.ended {
            return;
        }
        let mut buffer = vec![0; HEADROOM.saturating_add(room)];
        match self.file.read(buffer.get_mut(HEADROOM..).unwrap_or_default()) {
            Ok(0) => {
                self.ended = true;
                say(self.channel, self.end());
            }
            Ok(len) => {
                buffer.truncate(HEADROOM.saturating_add(len));
                self.send.spend(len);
                say(self.channel, Said::Data(buffer));
            }
            Err(error) if is_transient(&error) => {}
            Err(error) => {
                self.broken = Some(Errno::from_raw(error.raw_os_error().unwrap_or(0)));
            }
        }
    }

    /// The socket has no more to say.
    fn end(&self) -> Said {
        Said::Reply(Reply::End(EndEvent { total: self.send.sent() }))
    }

    fn last_word(&self) -> Option<Reply> {
        if let Some(errno) = self.broken {
            return Some(Reply::Error(system(errno, "the connection")));
        }
        (self.ended && self.shut).then_some(Reply::Done(DoneResponse {}))
    }
}

/// Has a connect that was under way come to its end? (connect(2): a socket without a peer has not.)
fn is_connected(file: &File) -> bool {
    nix::sys::socket::getpeername::<SockaddrStorage>(file.as_raw_fd()).is_ok()
}

/// An address that the kernel takes.
struct Address {
    storage: Storage,
    text: String,
}

enum Storage {
    Inet(SockaddrStorage),
    Unix(UnixAddr),
}

impl Address {
    fn of(address: &SocketAddress) -> Result<Self, RemoteError> {
        let invalid = |message| RemoteError::new(ErrorKind::Invalid, message);
        match address {
            SocketAddress::Tcp { host, port } => {
                let ip: IpAddr = host.parse().map_err(|_| {
                    invalid(format!("`{host}` is no literal address, such as 127.0.0.1"))
                })?;
                let address = SocketAddr::new(ip, *port);
                let text = address.to_string();
                Ok(Self { storage: Storage::Inet(address.into()), text })
            }
            SocketAddress::Unix(path) => {
                let text = OsStr::from_bytes(path).display().to_string();
                let address = UnixAddr::new(OsStr::from_bytes(path));
                let address = address.map_err(|errno| system(errno, &text))?;
                Ok(Self { storage: Storage::Unix(address), text })
            }
        }
    }

    fn as_sockaddr(&self) -> &dyn SockaddrLike {
        match &self.storage {
            Storage::Inet(storage) => storage,
            Storage::Unix(address) => address,
        }
    }

    fn socket(&self) -> Result<OwnedFd, RemoteError> {
        let family = self.as_sockaddr().family().unwrap_or(AddressFamily::Unspec);
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let none: Option<SockProtocol> = None;
        socket(family, SockType::Stream, flags, none).map_err(|errno| system(errno, &self.text))
    }
}

#[cfg(test)]
mod tests;
