//! The client's end of the socket: hello, then requests in sequence.

use crate::SOCKET;
use crate::protocol::{ErrorKind, MAX_LINE, Reply, Request, VERSION};
use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// A connection that has been greeted.
#[derive(Debug)]
pub struct Connection {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
    socket: PathBuf,
}

/// The controller cannot be asked.
#[derive(Debug)]
pub enum ConnectionError {
    /// The variable is not set.
    NoTest,
    /// Nobody listens there.
    Connect {
        /// Where.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It ended or failed.
    Lost {
        /// Where.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The other end said what is no reply.
    Broken {
        /// In words.
        what: String,
    },
    /// The other end refused the hello.
    Refused {
        /// Its kind.
        kind: ErrorKind,
        /// In words.
        message: String,
    },
}

impl ConnectionError {
    /// Its word in messages.
    pub fn word(&self) -> &'static str {
        match self {
            Self::NoTest => "no-test",
            Self::Connect { .. } | Self::Lost { .. } => "ended",
            Self::Broken { .. } => "protocol",
            Self::Refused { kind, .. } => kind.word(),
        }
    }
}

impl fmt::Display for ConnectionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoTest => {
                write!(f, "{SOCKET} is not set: this runs only within a test: guestline run …")
            }
            Self::Connect { socket, source } => {
                let socket = socket.display();
                write!(f, "nobody answers at `{socket}`: {source}; has its test ended?")
            }
            Self::Lost { socket, source } => {
                write!(f, "the connection to `{}` is lost: {source}", socket.display())
            }
            Self::Broken { what } => write!(f, "what the controller says is no reply: {what}"),
            Self::Refused { message, .. } => f.write_str(message),
        }
    }
}

impl std::error::Error for ConnectionError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Connect { source, .. } | Self::Lost { source, .. } => Some(source),
            _ => None,
        }
    }
}

impl Connection {
    /// To the socket that the environment names.
    ///
    /// # Errors
    /// [`ConnectionError`].
    pub fn open_named() -> Result<Self, ConnectionError> {
        let socket = std::env::var_os(SOCKET).filter(|socket| !socket.is_empty());
        Self::open(Path::new(&socket.ok_or(ConnectionError::NoTest)?))
    }

    /// To this socket.
    ///
    /// # Errors
    /// [`ConnectionError`].
    pub fn open(socket: &Path) -> Result<Self, ConnectionError> {
        let wrong = |source| ConnectionError::Connect { socket: socket.to_owned(), source };
        let writer = UnixStream::connect(socket).map_err(wrong)?;
        let reader = BufReader::new(writer.try_clone().map_err(wrong)?);
        let mut connection = Self { reader, writer, socket: socket.to_owned() };
        let client = Some(format!("guest {}", env!("CARGO_PKG_VERSION")));
        // A controller that has no room says so and hangs up before it has read this.
        let sent = connection.send(&Request::Hello { version: VERSION, client });
        match connection.reply() {
            Ok(Reply::Hello { version: VERSION, .. }) => sent.map(|()| connection),
            Ok(Reply::Hello { version, .. }) => Err(ConnectionError::Broken {
                what: format!(
                    "it greets with guest protocol {version}, and was asked for {VERSION}"
                ),
            }),
            Ok(Reply::Error { kind, message }) => Err(ConnectionError::Refused { kind, message }),
            Ok(_) => Err(ConnectionError::Broken { what: "it does not greet".to_owned() }),
            Err(error) => Err(error),
        }
    }

    /// Sends a request.
    ///
    /// # Errors
    /// [`ConnectionError::Lost`].
    pub fn send(&mut self, request: &Request) -> Result<(), ConnectionError> {
        send(&mut self.writer, request).map_err(|source| self.lost(source))
    }

    /// The next reply.
    ///
    /// # Errors
    /// [`ConnectionError`].
    pub fn reply(&mut self) -> Result<Reply, ConnectionError> {
        let mut line = Vec::new();
        let limit = MAX_LINE as u64 + 1;
        let read = (&mut self.reader).take(limit).read_until(b'\n', &mut line);
        read.map_err(|source| self.lost(source))?;
        match line.pop() {
            Some(b'\n') => serde_json::from_slice(&line)
                .map_err(|error| ConnectionError::Broken { what: error.to_string() }),
            Some(_) if line.len() >= MAX_LINE => {
                Err(ConnectionError::Broken { what: "a line without end".to_owned() })
            }
            _ => {
                Err(self
                    .lost(io::Error::new(io::ErrorKind::UnexpectedEof, "the controller hung up")))
            }
        }
    }

    /// What can send beside the one who reads replies.
    pub(crate) fn writer(&self) -> io::Result<UnixStream> {
        self.writer.try_clone()
    }

    fn lost(&self, source: io::Error) -> ConnectionError {
        ConnectionError::Lost { socket: self.socket.clone(), source }
    }
}

pub(crate) fn send(mut to: impl Write, request: &Request) -> io::Result<()> {
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    to.write_all(&line)
}
