//! The command line of the agent as a service. As init it takes everything from the kernel command line.

use guestline_protocol::CONTROL_PORT;
use std::ffi::OsString;
use std::os::fd::RawFd;

pub(crate) const USAGE: &str = "\
usage: guestline-agent [--port NAME | --fd N]

Serves Guestline's controller, as a service in any Linux.

  --port NAME  virtio-serial port to serve (default: org.guestline.control)
  --fd N       serve an open socket instead, such as one that a parent left
  --version    print version and build id";

/// Where the link comes from.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// A virtio-serial port of this name.
    Port(String),
    /// An open socket.
    Fd(RawFd),
}

/// How to serve.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ServeConfig {
    pub(crate) source: Source,
    /// Are we process 1?
    pub(crate) init: bool,
    /// What went wrong before, to be told when there is no port.
    pub(crate) troubles: Vec<String>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Serve(ServeConfig),
    Print(String),
}

pub(crate) fn parse(args: impl Iterator<Item = OsString>) -> Result<Action, String> {
    let mut source = Source::Port(CONTROL_PORT.to_owned());
    let mut args = args.map(|arg| arg.to_string_lossy().into_owned());
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--port" => source = Source::Port(args.next().ok_or("--port wants a NAME")?),
            "--fd" => {
                let number = args.next().ok_or("--fd wants a number")?;
                let fd = number.parse().ok().filter(|fd| *fd >= 0);
                source = Source::Fd(fd.ok_or_else(|| format!("--fd `{number}` is no number"))?);
            }
            "--version" => {
                let version = env!("CARGO_PKG_VERSION");
                return Ok(Action::Print(format!("guestline-agent {version} ({})", crate::BUILD)));
            }
            "--help" | "-h" => return Ok(Action::Print(USAGE.to_owned())),
            other => return Err(format!("unknown argument `{other}`")),
        }
    }
    Ok(Action::Serve(ServeConfig { source, init: false, troubles: Vec::new() }))
}
