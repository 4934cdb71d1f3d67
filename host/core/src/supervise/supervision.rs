//! The supervisor of one named machine, from before its boot until nothing of it is left.
//!
//! ```text
//! claim the name ──> lease (or connect) ──> Owner ──> the end: last word, clients cut off, nothing left
//! ```

use super::board::Board;
use super::control::{self, Ended, How, MachineStatus};
use super::ending::in_words;
use super::name::MachineName;
use super::owner::{Ears, Owner};
use super::registry::{self, RegistryError};
use super::server::{self, Around, Door};
use crate::dirs::Dirs;
use crate::guest::Guest;
use crate::link::{Endpoint, EndpointError, Link};
use crate::provision::{FailedLease, Lease, MachineRequest, Provisioner, WorkRoot};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// How long those who wait for the end may take to read that it came.
const LAST_ANSWER: Duration = Duration::from_secs(1);

/// Where a machine comes from.
#[derive(Debug)]
pub enum Source {
    /// It is booted.
    Boot {
        /// By this; its machines must outlive reboots.
        provisioner: Box<Provisioner>,
        /// So.
        request: Box<MachineRequest>,
    },
    /// It is not ours: its agent is reached there.
    Connect(Endpoint),
}

/// A machine that is to be supervised.
#[derive(Debug)]
pub struct Supervision {
    /// Its name.
    pub name: MachineName,
    /// Where it comes from.
    pub source: Source,
    /// How long a boot, and so a reboot, may take.
    pub boot_timeout: Duration,
}

/// An order to take the machine down, such as a signal.
#[derive(Debug, Clone)]
pub struct Down(mpsc::UnboundedSender<bool>);

impl Down {
    /// And where the orders arrive.
    pub fn channel() -> (Self, mpsc::UnboundedReceiver<bool>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self(sender), receiver)
    }

    /// Takes it down; `force` without asking the guest.
    pub fn order(&self, force: bool) {
        let _ = self.0.send(force);
    }
}

/// A machine never got there.
#[derive(Debug, thiserror::Error)]
pub enum SuperviseError {
    /// The name.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The machine.
    #[error("{}", .0.error)]
    Lease(Box<FailedLease>),
    /// The endpoint.
    #[error(transparent)]
    Connect(#[from] EndpointError),
    /// There is no agent of ours at the endpoint.
    #[error("`{0}` has no link that clients could share: a qemu-guest-agent answers there")]
    NoLink(Endpoint),
    /// Nobody answered at the endpoint.
    #[error("no agent answered at `{endpoint}` within {waited:.0?}")]
    Silent {
        /// Where.
        endpoint: Endpoint,
        /// How long was waited.
        waited: Duration,
    },
    /// It was taken down before.
    #[error("taken down while it booted")]
    Down,
}

/// A machine has ended; what waits for that can be told when nothing is left.
#[derive(Debug)]
pub struct Finished {
    /// How it ended, or why it never got there.
    pub result: Result<Ended, SuperviseError>,
    waiting: Vec<oneshot::Sender<Ended>>,
    over: CancellationToken,
    control: Option<JoinHandle<()>>,
}

impl Finished {
    /// Tells those who wait for the end. To be called when the run's folder is gone.
    pub async fn tell(self) {
        let ended = match &self.result {
            Ok(ended) => ended.clone(),
            Err(error) => registry::word(How::NeverUp, format!("it never came up: {error}")),
        };
        for waiting in self.waiting {
            let _ = waiting.send(ended.clone());
        }
        self.over.cancel();
        if let Some(control) = self.control {
            let _ = tokio::time::timeout(LAST_ANSWER, control).await;
        }
    }
}

/// Supervises a machine to its end. `ready` is told when its agent has answered, unless it ends before; when it answers
/// false, nobody is there who wanted the machine, and it is taken down.
pub async fn supervise(
    dirs: &Dirs,
    root: WorkRoot,
    supervision: Supervision,
    mut orders: mpsc::UnboundedReceiver<bool>,
    ready: impl FnOnce(&MachineStatus) -> bool,
) -> Finished {
    let over = CancellationToken::new();
    let refused = |error| Finished {
        result: Err(error),
        waiting: Vec::new(),
        over: over.clone(),
        control: None,
    };
    let Supervision { name, source, boot_timeout } = supervision;
    let sockets = match registry::claim(dirs, root.path(), &name) {
        Ok(sockets) => sockets,
        Err(error) => return refused(error.into()),
    };
    let wrong = |source| {
        SuperviseError::from(RegistryError::Folder { folder: root.path().to_owned(), source })
    };
    let listeners = tokio::net::UnixListener::from_std(sockets.control)
        .and_then(|control| Ok((control, tokio::net::UnixListener::from_std(sockets.link)?)));
    let (control_listener, link_listener) = match listeners {
        Ok(listeners) => listeners,
        Err(error) => return refused(wrong(error)),
    };

    let (changed, changes) = watch::channel(());
    let (door, doors) = watch::channel(Door::Closed);
    let board = Board::new(&name, &source, boot_timeout, doors.clone(), changed);
    let (downs, mut down_orders) = mpsc::unbounded_channel();
    let status = {
        let board = board.clone();
        Arc::new(move || board.read())
    };
    let control =
        tokio::spawn(control::answer(control_listener, status, changes, downs, over.clone()));
    let (notices, mut noticed) = mpsc::unbounded_channel();
    let cut = CancellationToken::new();
    let around = Around { door: doors, notices, over: cut.clone() };
    let serving = tokio::spawn(server::accept(link_listener, around));

    let mut waiting = Vec::new();
    let began = Instant::now();
    let had = {
        let cancel = CancellationToken::new();
        let mut having = std::pin::pin!(have(source, boot_timeout, &cancel));
        loop {
            tokio::select! {
                had = &mut having => break had,
                Some(_) = orders.recv() => cancel.cancel(),
                Some(order) = down_orders.recv() => {
                    waiting.extend(order.done);
                    cancel.cancel();
                }
            }
        }
    };
    let result = match had {
        Err(error) => Err(error),
        Ok(had) => {
            let up = registry::word(How::Up, "its supervisor was killed".to_owned());
            if let Err(error) = registry::keep_word(dirs, &name, &up) {
                warn!(%error, "cannot keep a word on the machine");
            }
            board.set(|status| {
                status.ready_in_us = u64::try_from(had.ready_in.as_micros()).ok();
                if let Some(lease) = &had.lease {
                    status.qemu_pid = Some(lease.machine.pid());
                    status.console = Some(lease.folder().join("console.log"));
                }
            });
            let (reached, is_ours) = ((had.guest, had.link), had.lease.is_some());
            let mut owner = Owner::new(reached, is_ours, began, board, door, boot_timeout);
            let mut ears = Ears { orders, downs: &mut down_orders, noticed: &mut noticed };
            let end = owner.own(had.lease.as_ref(), &mut ears, &mut waiting, ready).await;
            registry::release(root.path());
            let console = match had.lease {
                Some(lease) => lease.end().await.console,
                None => Vec::new(),
            };
            let why = in_words(&end, &console);
            let ended = registry::word(end.how, why);
            info!(%name, why = ended.why, "ended");
            if let Err(error) = registry::keep_word(dirs, &name, &ended) {
                warn!(%error, "cannot keep the last word on the machine");
            }
            Ok(ended)
        }
    };
    registry::release(root.path());
    // Only now, when the reason can be read, may clients notice.
    cut.cancel();
    let _ = tokio::time::timeout(LAST_ANSWER, serving).await;
    drop(root);
    while let Ok(order) = down_orders.try_recv() {
        waiting.extend(order.done);
    }
    Finished { result, waiting, over, control: Some(control) }
}

/// A machine that answers.
struct Had {
    lease: Option<Lease>,
    guest: Guest,
    link: Link,
    ready_in: Duration,
}

/// Boots the machine, or connects to it.
async fn have(
    source: Source,
    patience: Duration,
    cancel: &CancellationToken,
) -> Result<Had, SuperviseError> {
    match source {
        Source::Boot { provisioner, request } => match provisioner.lease(&request, cancel).await {
            Ok(lease) => {
                let guest = lease.guest.clone();
                let link = guest.link().cloned().ok_or(SuperviseError::Down)?;
                Ok(Had { ready_in: lease.ready_in, lease: Some(lease), guest, link })
            }
            Err(_) if cancel.is_cancelled() => Err(SuperviseError::Down),
            Err(failed) => Err(SuperviseError::Lease(Box::new(failed))),
        },
        Source::Connect(endpoint) => {
            let began = Instant::now();
            let guest = tokio::select! {
                guest = Guest::open(&endpoint) => guest?,
                () = tokio::time::sleep(patience) => {
                    return Err(SuperviseError::Silent { endpoint, waited: patience });
                }
                () = cancel.cancelled() => return Err(SuperviseError::Down),
            };
            let link = guest.link().cloned().ok_or(SuperviseError::NoLink(endpoint))?;
            Ok(Had { lease: None, guest, link, ready_in: began.elapsed() })
        }
    }
}

#[cfg(test)]
mod tests;
