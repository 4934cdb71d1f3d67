//! Where the link comes from: the command line, the kernel command line, or a file, in this order.

use crate::linux;
use guestline_protocol::CONTROL_PORT;
use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::PathBuf;

pub(crate) const USAGE: &str = "\
usage: guestline-agent [--link LINK]

Serves Guestline's controller, as init or as a service in any Linux. LINK is one of:

  auto                the virtio-serial port; as init, ttyS1 where the kernel has none (default)
  virtio[:NAME]       the virtio-serial port of this name (org.guestline.control), and its bulk port
  tty:PATH[,BAUD]     a serial line, a virtual console, such as tty:/dev/hvc0 or tty:/dev/ttyS0,115200
  unix:PATH           a unix socket, listened on
  vsock:PORT          a vsock, listened on
  stdio               standard input and output, as under ssh
  fd:N                an open socket that a parent left

  --version           print version and build id

Without --link: the kernel parameter guestline.link=LINK, else a line `link = LINK` in
/etc/guestline/agent.conf, else auto.";

/// Where a file may say what link to take.
const CONFIG: &str = "/etc/guestline/agent.conf";

/// Name of the kernel parameter that says what link to take.
const LINK_PARAMETER: &str = "guestline.link";

/// Where the link comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// The port, or the reserve line where there is none.
    Auto,
    /// A virtio-serial port of this name.
    Port(String),
    /// A tty at this speed, if one is given.
    Tty(PathBuf, Option<u32>),
    /// A unix socket to listen on.
    Unix(PathBuf),
    /// A vsock port to listen on.
    Vsock(u32),
    /// Standard input and output.
    Stdio,
    /// An open socket.
    Fd(RawFd),
}

impl Source {
    fn parse(text: &str) -> Result<Self, String> {
        let (kind, rest) = text.split_once(':').unwrap_or((text, ""));
        let number = |text: &str| text.parse::<u32>().map_err(|_| format!("`{text}` is no number"));
        Ok(match (kind, rest) {
            ("auto", "") => Self::Auto,
            ("virtio", "") => Self::Port(CONTROL_PORT.to_owned()),
            ("virtio", name) => Self::Port(name.to_owned()),
            ("stdio", "") => Self::Stdio,
            ("tty", path) if path.starts_with('/') => match path.split_once(',') {
                Some((path, baud)) => Self::Tty(path.into(), Some(number(baud)?)),
                None => Self::Tty(path.into(), None),
            },
            ("unix", path) if path.starts_with('/') => Self::Unix(path.into()),
            ("vsock", port) => Self::Vsock(number(port)?),
            ("fd", fd) => {
                Self::Fd(RawFd::try_from(number(fd)?).map_err(|_| format!("no fd {fd}"))?)
            }
            _ => return Err(format!("`{text}` is no link")),
        })
    }
}

/// What the agent is to the system that it runs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Process 1.
    Init,
    /// It was process 1 of a JeOS, and lives on beside the init that it gave that place to.
    Companion,
    /// One service of many.
    Service,
}

impl Role {
    /// Is the system one that was made for us?
    pub(crate) fn is_at_home(self) -> bool {
        self != Self::Service
    }
}

/// How to serve.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ServeConfig {
    pub(crate) source: Source,
    pub(crate) role: Role,
    /// What went wrong before, to be told when there is no port.
    pub(crate) troubles: Vec<String>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Serve(ServeConfig),
    Print(String),
}

pub(crate) fn parse(args: impl Iterator<Item = OsString>) -> Result<Action, String> {
    let mut source = None;
    let mut args = args.map(|arg| arg.to_string_lossy().into_owned());
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--link" => source = Some(Source::parse(&args.next().ok_or("--link wants a LINK")?)?),
            "--version" => {
                let version = env!("CARGO_PKG_VERSION");
                return Ok(Action::Print(format!("guestline-agent {version} ({})", crate::BUILD)));
            }
            "--help" | "-h" => return Ok(Action::Print(USAGE.to_owned())),
            other => return Err(format!("unknown argument `{other}`")),
        }
    }
    let source = match source {
        Some(source) => source,
        None => configured()?,
    };
    Ok(Action::Serve(ServeConfig { source, role: Role::Service, troubles: Vec::new() }))
}

/// The link that the kernel command line names, or the file.
pub(crate) fn configured() -> Result<Source, String> {
    if let Some(link) = linux::parameter(LINK_PARAMETER) {
        return Source::parse(&link).map_err(|error| format!("{LINK_PARAMETER}: {error}"));
    }
    match std::fs::read_to_string(CONFIG) {
        Ok(text) => in_file(&text).map_err(|error| format!("{CONFIG}: {error}")),
        Err(_) => Ok(Source::Auto),
    }
}

fn in_file(text: &str) -> Result<Source, String> {
    let mut source = Source::Auto;
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match line.split_once('=').map(|(key, value)| (key.trim(), value.trim())) {
            Some(("link", link)) => source = Source::parse(link)?,
            _ => return Err(format!("`{line}` is not `link = LINK`")),
        }
    }
    Ok(source)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_read() {
        let parse = |text| Source::parse(text);
        assert_eq!(parse("auto"), Ok(Source::Auto));
        assert_eq!(parse("virtio"), Ok(Source::Port(CONTROL_PORT.into())));
        assert_eq!(parse("virtio:x.y"), Ok(Source::Port("x.y".into())));
        assert_eq!(parse("tty:/dev/hvc0"), Ok(Source::Tty("/dev/hvc0".into(), None)));
        assert_eq!(parse("tty:/dev/ttyS0,9600"), Ok(Source::Tty("/dev/ttyS0".into(), Some(9600))));
        assert_eq!(parse("vsock:5"), Ok(Source::Vsock(5)));
        assert_eq!(parse("fd:0"), Ok(Source::Fd(0)));
        for wrong in ["", "tty:", "tty:hvc0", "vsock:", "fd:-1", "unix:x", "stdio:1", "nonsense"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_file_names_a_link_and_nothing_else() {
        assert_eq!(in_file("# why\n\nlink = stdio\n"), Ok(Source::Stdio));
        assert_eq!(in_file(""), Ok(Source::Auto));
        assert!(in_file("port = x").is_err());
        assert!(in_file("link").is_err());
    }
}
