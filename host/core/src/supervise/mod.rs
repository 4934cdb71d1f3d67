//! Named machines: each is owned by a supervisor, a process of its own; clients attach to it and leave again.
//!
//! ```text
//! client ── link.sock, the link's own protocol ──> server ─ proxy ─┐
//! client ── ctl.sock, JSON lines ────────────────> control ── owner ┴──> lease: machine, link
//! ```
//! A client's session is a session as with the agent itself, so whatever works over a link works over the supervisor;
//! what a client started ends with it, as it would with the only host of an agent. Everything of a machine lives in
//! the folder of its supervisor's run, which goes when the supervisor does: that folder is the only register of
//! what is up ([`registry`]).
//!
//! The owner alone decides what becomes of the machine ([`life`], without I/O). A guest that reboots stays up: its
//! clients' requests end as lost, and new ones wait until it is back.

mod board;
mod budget;
mod control;
mod ending;
mod life;
mod name;
mod outbox;
mod owner;
mod proxy;
mod registry;
mod server;
mod supervision;

pub use control::{
    CONTROL_VERSION, ControlError, ControlRequest, Ended, How, MachineState, MachineStatus, down,
    status, wait_for_boot,
};
pub use name::{MachineName, NotAName};
pub use registry::{RegistryError, find, last_word, list};
pub use supervision::{Down, Finished, Source, SuperviseError, Supervision, supervise};

/// Lets a supervisor outlive the process that starts it, and its terminal.
pub fn detach(command: &mut std::process::Command) {
    crate::sys::detach(command);
}

use crate::dirs::Dirs;
use crate::guest::Guest;
use crate::link::{Lane, Link, LinkError, Transport, TransportKind};
use crate::local_socket;
use crate::pulse::Pulse;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;

/// No machine could be attached to.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// None of that name is up.
    #[error("`{name}` is not up")]
    NotUp {
        /// The name.
        name: MachineName,
    },
    /// Its supervisor does not answer.
    #[error("cannot reach the supervisor of `{name}`")]
    Unreachable {
        /// The name.
        name: MachineName,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The link.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The guest did not come back in time.
    #[error("`{name}` did not answer within {waited:.0?}")]
    Silent {
        /// The name.
        name: MachineName,
        /// How long was waited.
        waited: Duration,
    },
}

/// What has passed over a link so far, both ways, in bytes.
#[derive(Debug, Clone, Default)]
pub struct Passed(Arc<AtomicU64>);

impl Passed {
    /// So many bytes.
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Opens a session with the guest of a named machine, through its supervisor; waits for a guest that is booting.
///
/// # Errors
/// [`AttachError`].
pub async fn attach(
    dirs: &Dirs,
    name: &MachineName,
    patience: Duration,
) -> Result<(Guest, Passed), AttachError> {
    let folder = find(dirs, name).ok_or_else(|| AttachError::NotUp { name: name.clone() })?;
    let passed = Passed::default();
    match tokio::time::timeout(patience, open(name, &folder, &passed)).await {
        Ok(guest) => Ok((guest?, passed)),
        Err(_) => Err(AttachError::Silent { name: name.clone(), waited: patience }),
    }
}

async fn open(name: &MachineName, folder: &Path, passed: &Passed) -> Result<Guest, AttachError> {
    let stream =
        local_socket::connect(folder, registry::LINK_SOCKET).and_then(UnixStream::from_std);
    let stream =
        stream.map_err(|source| AttachError::Unreachable { name: name.clone(), source })?;
    let (reader, writer) = stream.into_split();
    let (reader, writer) = (
        Counted { inner: reader, passed: passed.clone() },
        Counted { inner: writer, passed: passed.clone() },
    );
    let transport = Transport::stream(TransportKind::UnixSocket, Lane::of(reader, writer));
    // Whether a silent guest is busy or dead is judged by the supervisor, which ends our session then.
    let (link, hello) = Link::open_watched(transport, Box::new(|| Pulse::Busy)).await?;
    Ok(Guest::new(link, hello))
}

/// A half of a stream that counts what passes.
struct Counted<S> {
    inner: S,
    passed: Passed,
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = std::pin::Pin::new(&mut self.inner).poll_read(context, buffer);
        let len = buffer.filled().len().saturating_sub(before);
        self.passed.0.fetch_add(len as u64, Ordering::Relaxed);
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
        bytes: &[u8],
    ) -> std::task::Poll<io::Result<usize>> {
        let polled = std::pin::Pin::new(&mut self.inner).poll_write(context, bytes);
        if let std::task::Poll::Ready(Ok(len)) = &polled {
            self.passed.0.fetch_add(*len as u64, Ordering::Relaxed);
        }
        polled
    }

    fn poll_flush(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.inner).poll_shutdown(context)
    }
}
