//! Pools: machines of a kind that are ready before somebody wants them, kept by a process of their own.
//!
//! ```text
//! keeper (a process)   lease ─> warm-up line ─> ready ─── handed over ──> lent: kills it when its taker is gone
//!                        ^ as many as wanted ─────┘            │            tells when its QEMU has exited
//! taker (a check)      RUNTIME/RUN/pool.sock ── take ──> pid, descriptors ──> a session of its own ──> Lease
//! ```
//! A machine that is taken is its taker's in all but one: QEMU stays the keeper's child. A ready machine has never run a
//! test, and never runs a second one. Whoever finds no ready machine restores one, as without a pool.
//!
//! `RUNTIME/RUN/pool.json` says what a keeper keeps; it is believed when the socket answers.

mod keeper;
mod take;
mod wire;

pub use keeper::{KeeperError, NotReady, PoolSpec, keep};
pub use wire::PoolStatus;

pub(super) use take::{Taken, Wanted, ask_for_room, is_there, is_there_of, take};

use crate::dirs::Dirs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};
use wire::{Answer, Claim, Request, ask};

/// How long a keeper may take to be gone, and how often that is looked at.
const GOING: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(5);

/// A keeper does not do what it is asked.
#[derive(Debug, thiserror::Error)]
#[error("the keeper of pool {id}, process {pid}, does not answer as it should")]
pub struct PoolError {
    /// Of its machines' template.
    pub id: String,
    /// The keeper.
    pub pid: u32,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// The pools of a user, the one that began first before the others; and what is wrong with those that do not say what they
/// do.
pub async fn pools(dirs: &Dirs) -> (Vec<PoolStatus>, Vec<PoolError>) {
    let (mut all, mut stuck) = (Vec::new(), Vec::new());
    for (folder, claim) in wire::claims(&dirs.runtime) {
        match status(&folder, &claim, Request::Status).await {
            Ok(status) => all.push(status),
            // It has just gone.
            Err(error) if wire::is_gone(&error.source) => {}
            Err(error) => stuck.push(error),
        }
    }
    all.sort_by_key(|status| status.since_us);
    (all, stuck)
}

/// Ends a pool, and returns when nothing of it is left; where machines are lent, the keeper stays until they have come to
/// their end. Tells how many are; none when there is no pool of that id.
///
/// # Errors
/// [`PoolError`].
pub async fn stop(dirs: &Dirs, id: &str) -> Result<Option<u32>, PoolError> {
    for (folder, claim) in wire::claims(&dirs.runtime) {
        if claim.id != id {
            continue;
        }
        match status(&folder, &claim, Request::Stop).await {
            Ok(status) if status.lent > 0 => return Ok(Some(status.lent)),
            Ok(_) => {
                let until = Instant::now() + GOING;
                while folder.exists() {
                    if Instant::now() > until {
                        return Err(claim.error(io::ErrorKind::TimedOut.into()));
                    }
                    tokio::time::sleep(LOOK).await;
                }
                return Ok(Some(0));
            }
            Err(error) if wire::is_gone(&error.source) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

async fn status(folder: &Path, claim: &Claim, request: Request) -> Result<PoolStatus, PoolError> {
    match ask(folder, &request).await.map_err(|error| claim.error(error))? {
        Answer::Status { pool } => Ok(*pool),
        Answer::Error { message } => Err(claim.error(io::Error::other(message))),
        _ => Err(claim.error(io::Error::other("it answers something else than what was asked"))),
    }
}

impl Claim {
    fn error(&self, source: io::Error) -> PoolError {
        PoolError { id: crate::text::printable(&self.id), pid: self.pid, source }
    }
}
