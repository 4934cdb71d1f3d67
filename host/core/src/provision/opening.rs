//! The way to a machine's agent: over which of its lines.

use super::lease::LeaseError;
use crate::guest::Guest;
use crate::link::{Lane, Link, LinkError, Transport, TransportKind, listen_to_reserve};
use crate::pulse::PulseWatch;
use guestline_protocol::HelloResponse;
use std::sync::{Arc, PoisonError};
use tokio::net::UnixStream;
use tracing::warn;

/// Over what the link goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LinkChoice {
    /// The virtio-serial ports, or the serial line where the guest has none.
    #[default]
    Auto,
    /// The serial line, ttyS1, although there are ports.
    Serial,
    /// A virtual console, hvc0.
    VirtConsole,
}

impl LinkChoice {
    /// The kernel command line that has the agent take it.
    pub(super) fn cmdline(self, cmdline: &str) -> String {
        match self {
            Self::Auto => cmdline.to_owned(),
            Self::Serial => format!("guestline.link=tty:/dev/ttyS1 {cmdline}"),
            Self::VirtConsole => format!("guestline.link=tty:/dev/hvc0 {cmdline}"),
        }
    }

    /// For a machine that goes on from one whose link went over a terminal line, or over ports. That it has no port the agent
    /// says once, when it starts.
    pub(super) fn going_on(self, is_over_tty: bool) -> Self {
        match self {
            Self::Auto if is_over_tty => Self::Serial,
            choice => choice,
        }
    }
}

/// The agent of a guest is reached over a terminal line.
pub(super) fn is_over_tty(guest: &Guest) -> bool {
    guest.link().is_some_and(|link| link.transport() == TransportKind::Tty)
}

/// All that a link may go over.
pub(super) struct Lines {
    pub(super) control: UnixStream,
    pub(super) bulk: UnixStream,
    pub(super) reserve: UnixStream,
    pub(super) virt_console: Option<UnixStream>,
}

/// Opens the link: over the line that was chosen; else over the ports, or over the reserve line when the agent says
/// there that it has none.
pub(super) async fn open_link(
    lines: Lines,
    choice: LinkChoice,
    pulse: PulseWatch,
) -> Result<(Link, HelloResponse), LeaseError> {
    let Lines { control, bulk, mut reserve, virt_console } = lines;
    match (choice, virt_console) {
        (LinkChoice::Auto, _) => {}
        (LinkChoice::VirtConsole, Some(line)) => {
            drain(reserve);
            return open_tty(line, pulse).await;
        }
        (LinkChoice::Serial | LinkChoice::VirtConsole, _) => {
            return open_tty(reserve, pulse).await;
        }
    }
    let pulse = Arc::new(std::sync::Mutex::new(pulse));
    let watch = |pulse: &Arc<std::sync::Mutex<PulseWatch>>| -> PulseWatch {
        let pulse = pulse.clone();
        Box::new(move || (pulse.lock().unwrap_or_else(PoisonError::into_inner))())
    };
    let over_ports = Link::open_watched(Transport::virtio_serial(control, bulk), watch(&pulse));
    let trouble = tokio::select! {
        biased;
        opened = over_ports => {
            drain(reserve);
            return opened.map_err(LeaseError::Link);
        }
        trouble = listen_to_reserve(&mut reserve) => trouble,
    };
    let Some(trouble) = trouble else { return Err(LeaseError::Link(LinkError::Closed)) };
    warn!(kernel = %trouble.kernel, lacks = ?trouble.lacks, "the link goes over the serial line");
    match Link::open_watched(Transport::tty(Lane::socket(reserve)), watch(&pulse)).await {
        Ok(opened) => Ok(opened),
        Err(LinkError::Closed) => Err(LeaseError::Link(LinkError::Closed)),
        Err(_) => Err(LeaseError::NoPort { kernel: trouble.kernel, lacks: trouble.lacks }),
    }
}

async fn open_tty(
    line: UnixStream,
    pulse: PulseWatch,
) -> Result<(Link, HelloResponse), LeaseError> {
    let opened = Link::open_watched(Transport::tty(Lane::socket(line)), pulse).await;
    opened.map_err(LeaseError::Link)
}

/// Keeps a line open that no link goes over, so that nothing of the guest blocks on it.
fn drain(mut line: UnixStream) {
    tokio::spawn(async move { while listen_to_reserve(&mut line).await.is_some() {} });
}
