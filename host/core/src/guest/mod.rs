//! All that a test may do to a running guest: one API for every front end.
//!
//! ```text
//! exec      processes, with their input, output, terminal and signals
//! files     push, pull
//! folders   stat, list, make and remove
//! logs      the kernel's log, the journal, files, as they grow
//! facts     what the guest is, and what it is busy with
//! control   clock, randomness, identity, power, freezing
//! forward   sockets of the guest, without a network
//! snapshots the machine saved and put back, where it is one of ours
//! ```
//! A guest is reached through Guestline's agent, or through a qemu-guest-agent where it has only that. What this one
//! cannot do is [`LinkError::Unsupported`]: `docs/transports.md` has the table.

mod control;
mod exec;
mod facts;
mod files;
mod folders;
mod forward;
mod logs;
mod ping;
mod snapshots;

pub use control::Skew;
pub use exec::{ExecControl, ExecEvent, ExecHandle, ExecInput, ExecOutput};
pub use facts::{Cpu, Disk, Facts, Memory, Nic, Samples};
pub use files::{Brought, FilesError, PullOptions, PushOptions, Transferred};
pub use forward::{ForwardError, Forwarding, HostTarget, Listening};
pub use logs::{Log, LogLine, LogStream};
pub use ping::PingStatistics;
pub use snapshots::{SnapshotError, Snapshots, Verb};

use crate::link::qga::unsupported;
use crate::link::{Endpoint, EndpointError, Link, LinkError, QgaHandle, TransportKind};
use guestline_protocol::HelloResponse;
use std::sync::{Arc, PoisonError, RwLock};

/// A guest whose agent answers. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Guest {
    way: Way,
    hello: Arc<RwLock<HelloResponse>>,
    /// What saves and restores the machine, when it is one of ours.
    machine: Option<Arc<dyn Snapshots>>,
}

/// Through whom it is reached.
#[derive(Debug, Clone)]
enum Way {
    Agent(Link),
    Qga(QgaHandle),
}

impl Guest {
    /// Over a link that is open.
    pub fn new(link: Link, hello: HelloResponse) -> Self {
        Self { way: Way::Agent(link), hello: Arc::new(RwLock::new(hello)), machine: None }
    }

    /// Over a qemu-guest-agent that answers.
    pub fn over_qga(qga: QgaHandle) -> Self {
        let hello = Arc::new(RwLock::new(hello_of(&qga)));
        Self { way: Way::Qga(qga), hello, machine: None }
    }

    /// With a machine that can be saved and restored.
    pub(crate) fn with_snapshots(self, machine: Arc<dyn Snapshots>) -> Self {
        Self { machine: Some(machine), ..self }
    }

    /// Opens an endpoint and waits until the agent there answers, however long that takes. Cancel safe.
    ///
    /// # Errors
    /// [`EndpointError`].
    pub async fn open(endpoint: &Endpoint) -> Result<Self, EndpointError> {
        if endpoint.kind() == TransportKind::Qga {
            return Ok(Self::over_qga(endpoint.open_qga().await?));
        }
        let transport = endpoint.open().await?;
        match Link::open(transport).await {
            Ok((link, hello)) => Ok(Self::new(link, hello)),
            Err(source) => {
                let (endpoint, source) = (endpoint.clone(), source.into());
                Err(EndpointError::Session { endpoint, source })
            }
        }
    }

    /// What the agent said of itself; of a qemu-guest-agent only its version, as its build.
    pub fn agent(&self) -> HelloResponse {
        self.hello.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The link to its agent; none over a qemu-guest-agent.
    pub fn link(&self) -> Option<&Link> {
        match &self.way {
            Way::Agent(link) => Some(link),
            Way::Qga(_) => None,
        }
    }

    /// Over what it is reached.
    pub fn transport(&self) -> TransportKind {
        match &self.way {
            Way::Agent(link) => link.transport(),
            Way::Qga(_) => TransportKind::Qga,
        }
    }

    /// The link, for what a qemu-guest-agent cannot do.
    fn link_to(&self, what: &'static str) -> Result<&Link, LinkError> {
        self.link().ok_or_else(|| unsupported(what))
    }

    /// Opens a new session with the agent, after a reboot of the guest or another start of its agent; waits as long as that
    /// takes. What ran in the session before is lost. True when the agent is another one than before, or the guest has
    /// booted; of a qemu-guest-agent, which does not tell, always.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn reconnect(&self) -> Result<bool, LinkError> {
        let (hello, began_anew) = match &self.way {
            Way::Agent(link) => {
                let reopened = link.reopen().await?;
                (reopened.hello, reopened.began_anew)
            }
            Way::Qga(qga) => {
                qga.reopen().await?;
                (hello_of(qga), true)
            }
        };
        self.greeted(hello);
        Ok(began_anew)
    }

    /// As [`Guest::reconnect`], with a guest that was put back to another moment: it may be in the midst of a frame whose
    /// rest will never come.
    ///
    /// # Errors
    /// [`LinkError`].
    pub(crate) async fn reconnect_restored(&self) -> Result<(), LinkError> {
        let reopened = self.link_to("be restored")?.reopen_restored().await?;
        self.greeted(reopened.hello);
        Ok(())
    }

    fn greeted(&self, hello: HelloResponse) {
        *self.hello.write().unwrap_or_else(PoisonError::into_inner) = hello;
    }
}

/// What stands for a hello where none is said.
fn hello_of(qga: &QgaHandle) -> HelloResponse {
    HelloResponse {
        min: 0,
        max: 0,
        build: format!("qemu-guest-agent {}", qga.info().version),
        features: 0,
        init: false,
        bulk: false,
        incarnation: 0,
        clock_us: 0,
    }
}
