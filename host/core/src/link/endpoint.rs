//! Where an agent is to be found outside a machine of our own, as text: what `docs/transports.md` calls an endpoint.

use super::fd::FdStream;
use super::{Lane, LinkError, QgaHandle, Transport, TransportKind, program};
use crate::text::quote;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, VsockAddr, connect, getsockopt, socket, sockopt,
};
use std::fmt;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use tokio::net::UnixStream;
use tokio::process::Command;
use tokio_serial::SerialPortBuilderExt;

/// Speed of a serial line when none is given, in baud: that of Linux's serial consoles as most set them up.
const BAUD: u32 = 115_200;

/// The agent's name, to be found by the other end's shell.
const AGENT: &str = "guestline-agent";

/// Where an agent, or a qemu-guest-agent, is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// `tty:PATH[,BAUD]`: a serial line, or a pseudo terminal.
    Tty {
        /// The device.
        path: PathBuf,
        /// Its speed; 115200 when none is given.
        baud: Option<u32>,
    },
    /// `unix:PATH`: a unix socket on which an agent listens.
    Unix(PathBuf),
    /// `vsock:CID:PORT`: a vsock on which an agent listens (vsock(7)).
    Vsock {
        /// The guest's context id.
        cid: u32,
        /// The port.
        port: u32,
    },
    /// `exec:COMMAND LINE`: standard input and output of what a shell runs.
    Exec(String),
    /// `ssh:[USER@]HOST[:PORT][,AGENT]`: an agent that ssh starts.
    Ssh {
        /// `HOST` or `USER@HOST`.
        destination: String,
        /// Its port, when not ssh's own choice.
        port: Option<u16>,
        /// The agent's path there, when it is not on `PATH`.
        agent: Option<String>,
    },
    /// `qga:PATH`: the socket, or the character device, at whose other end a qemu-guest-agent is.
    Qga(PathBuf),
}

/// The text names no endpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is no endpoint: {why}; wanted is tty:PATH[,BAUD], unix:PATH, vsock:CID:PORT, exec:COMMAND, \
     ssh:[USER@]HOST[:PORT][,AGENT] or qga:PATH"
)]
pub struct NotAnEndpoint {
    /// As given.
    pub text: String,
    /// What is wrong with it.
    pub why: String,
}

/// An endpoint cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// It cannot be opened.
    #[error("cannot open `{endpoint}`")]
    Open {
        /// Which.
        endpoint: Endpoint,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Somebody else has the tty.
    #[error("cannot open `{endpoint}`: another program has it locked")]
    InUse {
        /// Which.
        endpoint: Endpoint,
    },
    /// The host's kernel has no vsock.
    #[error("cannot open `{endpoint}`: this host has no vsock")]
    NoVsock {
        /// Which.
        endpoint: Endpoint,
    },
    /// A qemu-guest-agent speaks another protocol than the link's.
    #[error("`{endpoint}` is a qemu-guest-agent's, which carries no link")]
    NoLink {
        /// Which.
        endpoint: Endpoint,
    },
    /// It is open, and no agent answers there as it should.
    #[error("no session with an agent at `{endpoint}`")]
    Session {
        /// Which.
        endpoint: Endpoint,
        /// Why.
        #[source]
        source: Box<LinkError>,
    },
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tty { path, baud: None } => write!(f, "tty:{}", path.display()),
            Self::Tty { path, baud: Some(baud) } => write!(f, "tty:{},{baud}", path.display()),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Vsock { cid, port } => write!(f, "vsock:{cid}:{port}"),
            Self::Exec(line) => write!(f, "exec:{line}"),
            Self::Ssh { destination, port, agent } => {
                match destination.rsplit_once('@') {
                    Some((user, host)) if host.contains(':') => write!(f, "ssh:{user}@[{host}]")?,
                    None if destination.contains(':') => write!(f, "ssh:[{destination}]")?,
                    _ => write!(f, "ssh:{destination}")?,
                }
                if let Some(port) = port {
                    write!(f, ":{port}")?;
                }
                match agent {
                    Some(agent) => write!(f, ",{agent}"),
                    None => Ok(()),
                }
            }
            Self::Qga(path) => write!(f, "qga:{}", path.display()),
        }
    }
}

impl FromStr for Endpoint {
    type Err = NotAnEndpoint;

    fn from_str(text: &str) -> Result<Self, NotAnEndpoint> {
        parse(text).map_err(|why| NotAnEndpoint { text: text.to_owned(), why })
    }
}

fn parse(text: &str) -> Result<Endpoint, String> {
    let (kind, rest) = text.split_once(':').ok_or("it has no `:`")?;
    let path = |path: &str| match path {
        "" => Err("it has no path".to_owned()),
        path if path.contains('\0') => Err("its path has a zero byte".to_owned()),
        path => Ok(PathBuf::from(path)),
    };
    match kind {
        "tty" => match rest.rsplit_once(',') {
            Some((device, baud)) => {
                let baud = number(baud, "baud rate")?;
                if baud == 0 {
                    return Err("a line of 0 baud is hung up".to_owned());
                }
                Ok(Endpoint::Tty { path: path(device)?, baud: Some(baud) })
            }
            None => Ok(Endpoint::Tty { path: path(rest)?, baud: None }),
        },
        "unix" => Ok(Endpoint::Unix(path(rest)?)),
        "vsock" => {
            let (cid, port) = rest.split_once(':').ok_or("it has no port")?;
            let (cid, port) = (number(cid, "context id")?, number(port, "port")?);
            Ok(Endpoint::Vsock { cid, port })
        }
        "exec" if rest.trim().is_empty() => Err("it has no command".to_owned()),
        "exec" => Ok(Endpoint::Exec(rest.to_owned())),
        "ssh" => parse_ssh(rest),
        "qga" => Ok(Endpoint::Qga(path(rest)?)),
        other => Err(format!("there is no transport `{other}`")),
    }
}

fn number<T: FromStr>(text: &str, what: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("`{text}` is no {what}"))
}

fn parse_ssh(text: &str) -> Result<Endpoint, String> {
    let (place, agent) = match text.split_once(',') {
        Some((_, "")) => return Err("it has no agent after the comma".to_owned()),
        Some((place, agent)) => (place, Some(agent.to_owned())),
        None => (text, None),
    };
    let (user, place) = match place.rsplit_once('@') {
        Some((user, place)) => (Some(user), place),
        None => (None, place),
    };
    // An IPv6 address stands in brackets, as in a URL.
    let (host, port) = match place.strip_prefix('[').map(|rest| rest.split_once(']')) {
        Some(Some((host, ""))) => (host, None),
        Some(Some((host, rest))) => {
            (host, Some(rest.strip_prefix(':').ok_or("it has no `:` before its port")?))
        }
        Some(None) => return Err("it has no `]`".to_owned()),
        None => match place.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (place, None),
        },
    };
    let port = port.map(|port| number(port, "port")).transpose()?;
    // What begins with a dash would be an option of ssh.
    let bad = |word: &str| {
        word.is_empty()
            || word.starts_with('-')
            || word.contains(|c: char| c.is_whitespace() || c.is_control())
    };
    if bad(host) || user.is_some_and(bad) {
        return Err("it has no host that could be one".to_owned());
    }
    let destination = user.map_or(host.to_owned(), |user| format!("{user}@{host}"));
    Ok(Endpoint::Ssh { destination, port, agent })
}

impl Endpoint {
    /// What carries a link there.
    pub fn kind(&self) -> TransportKind {
        match self {
            Self::Tty { .. } => TransportKind::Tty,
            Self::Unix(_) => TransportKind::UnixSocket,
            Self::Vsock { .. } => TransportKind::Vsock,
            Self::Exec(_) | Self::Ssh { .. } => TransportKind::Stdio,
            Self::Qga(_) => TransportKind::Qga,
        }
    }

    /// Opens it, for [`super::Link::open`].
    ///
    /// # Errors
    /// [`EndpointError`]; [`EndpointError::NoLink`] for a qemu-guest-agent, which is opened with
    /// [`Endpoint::open_qga`].
    pub async fn open(&self) -> Result<Transport, EndpointError> {
        let wrong = |source| EndpointError::Open { endpoint: self.clone(), source };
        match self {
            Self::Tty { path, baud } => {
                Ok(Transport::tty(self.open_tty(path, baud.unwrap_or(BAUD))?))
            }
            Self::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(wrong)?;
                Ok(Transport::stream(TransportKind::UnixSocket, Lane::socket(stream)))
            }
            Self::Vsock { cid, port } => {
                let stream = match open_vsock(*cid, *port).await {
                    Ok(stream) => stream,
                    Err(error) if error.raw_os_error() == Some(Errno::EAFNOSUPPORT as i32) => {
                        return Err(EndpointError::NoVsock { endpoint: self.clone() });
                    }
                    Err(error) => return Err(wrong(error)),
                };
                let (reader, writer) = tokio::io::split(stream);
                Ok(Transport::stream(TransportKind::Vsock, Lane::of(reader, writer)))
            }
            Self::Exec(line) => {
                let mut command = Command::new("/bin/sh");
                command.args(["-c", line]);
                self.open_program(command, line.clone())
            }
            Self::Ssh { destination, port, agent } => {
                let mut command = Command::new("ssh");
                command.args(["-T", "-o", "BatchMode=yes"]);
                if let Some(port) = port {
                    command.arg("-p").arg(port.to_string());
                }
                let agent = quote(agent.as_deref().unwrap_or(AGENT));
                command.arg("--").arg(destination).arg(format!("exec {agent} --link stdio"));
                self.open_program(command, format!("ssh {destination}"))
            }
            Self::Qga(_) => Err(EndpointError::NoLink { endpoint: self.clone() }),
        }
    }

    /// Opens a qemu-guest-agent's endpoint, and waits until it answers, however long that takes.
    ///
    /// # Errors
    /// [`EndpointError`]; [`EndpointError::NoLink`] for any other endpoint, where the wrong agent is.
    pub async fn open_qga(&self) -> Result<QgaHandle, EndpointError> {
        let Self::Qga(path) = self else {
            return Err(EndpointError::NoLink { endpoint: self.clone() });
        };
        let lane = self.dial_qga(path).await?;
        QgaHandle::open(lane, Some(self.clone())).await.map_err(|source| EndpointError::Session {
            endpoint: self.clone(),
            source: source.into(),
        })
    }

    /// The stream to a qemu-guest-agent.
    pub(super) async fn dial_qga(&self, path: &Path) -> Result<Lane, EndpointError> {
        let wrong = |source| EndpointError::Open { endpoint: self.clone(), source };
        let found = tokio::fs::metadata(path).await.map_err(wrong)?;
        if found.file_type().is_char_device() {
            return self.open_tty(path, BAUD);
        }
        Ok(Lane::socket(UnixStream::connect(path).await.map_err(wrong)?))
    }

    fn open_tty(&self, path: &Path, baud: u32) -> Result<Lane, EndpointError> {
        let wrong = |source| EndpointError::Open { endpoint: self.clone(), source };
        let name = path.to_str().ok_or_else(|| wrong(io::ErrorKind::InvalidInput.into()))?;
        match tokio_serial::new(name, baud).open_native_async() {
            Ok(stream) => {
                let (reader, writer) = tokio::io::split(stream);
                Ok(Lane::of(reader, writer))
            }
            Err(error) => Err(match error.kind() {
                tokio_serial::ErrorKind::NoDevice => {
                    EndpointError::InUse { endpoint: self.clone() }
                }
                _ => wrong(error.into()),
            }),
        }
    }

    fn open_program(&self, command: Command, name: String) -> Result<Transport, EndpointError> {
        let wrong = |source| EndpointError::Open { endpoint: self.clone(), source };
        let (lane, guard, last_words) = program::start(command, name).map_err(wrong)?;
        let mut transport = Transport::stream(TransportKind::Stdio, lane).owning(guard);
        transport.last_words = Some(last_words);
        Ok(transport)
    }
}

/// Connects without blocking (connect(2), `EINPROGRESS`).
async fn open_vsock(cid: u32, port: u32) -> io::Result<FdStream> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Vsock, SockType::Stream, flags, None)?;
    let begun = connect(fd.as_raw_fd(), &VsockAddr::new(cid, port));
    let stream = FdStream::new(fd)?;
    match begun {
        Ok(()) => return Ok(stream),
        Err(Errno::EINPROGRESS | Errno::EAGAIN) => {}
        Err(errno) => return Err(errno.into()),
    }
    stream.writable().await?;
    match getsockopt(stream.fd(), sockopt::SocketError)? {
        0 => Ok(stream),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_and_written_alike() {
        for text in [
            "tty:/dev/ttyUSB0",
            "tty:/dev/ttyS0,9600",
            "unix:/run/agent.sock",
            "vsock:3:5000",
            "exec:cat | cat",
            "ssh:host",
            "ssh:user@host:2222,/opt/agent",
            "ssh:user@[::1]:22",
            "qga:/run/qga.sock",
        ] {
            let endpoint: Endpoint = text.parse().unwrap();
            assert_eq!(endpoint.to_string(), text);
        }
        let ssh: Endpoint = "ssh:root@[fe80::1]".parse().unwrap();
        let destination = "root@fe80::1".to_owned();
        assert_eq!(ssh, Endpoint::Ssh { destination, port: None, agent: None });
    }

    #[test]
    fn what_is_no_endpoint_says_why() {
        let why = |text: &str| text.parse::<Endpoint>().unwrap_err().why;
        for (text, wanted) in [
            ("", "it has no `:`"),
            ("tcp:host:1", "there is no transport `tcp`"),
            ("tty:", "it has no path"),
            ("tty:/dev/ttyS0,fast", "`fast` is no baud rate"),
            ("tty:/dev/ttyS0,0", "a line of 0 baud is hung up"),
            ("unix:", "it has no path"),
            ("vsock:3", "it has no port"),
            ("vsock:3:-1", "`-1` is no port"),
            ("vsock:x:1", "`x` is no context id"),
            ("exec: ", "it has no command"),
            ("ssh:", "it has no host that could be one"),
            ("ssh:-oProxyCommand=x", "it has no host that could be one"),
            ("ssh:a b", "it has no host that could be one"),
            ("ssh:host:99999", "`99999` is no port"),
            ("ssh:host,", "it has no agent after the comma"),
            ("ssh:[::1", "it has no `]`"),
        ] {
            assert_eq!(why(text), wanted, "{text}");
        }
        let error = "x".parse::<Endpoint>().unwrap_err().to_string();
        assert!(
            error.starts_with("`x` is no endpoint: it has no `:`; wanted is tty:PATH"),
            "{error}"
        );
    }
}
