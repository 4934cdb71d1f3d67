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

pub use keeper::{KeeperError, PoolSpec, keep};
pub use wire::PoolStatus;

pub(super) use take::{Taken, Wanted, ask_for_room, is_there, take};

use crate::dirs::Dirs;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use wire::{Answer, Request, ask};

/// A keeper without machines is gone sooner, and how often that is looked at.
const GOING: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(5);

/// A keeper could not be asked.
#[derive(Debug, thiserror::Error)]
#[error("cannot ask the pool in `{folder}`", folder = folder.display())]
pub struct PoolError {
    /// Its folder.
    pub folder: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// The pools of a user that answer, the one that began first before the others.
///
/// # Errors
/// [`PoolError`] of one that is there and does not say what it does.
pub async fn pools(dirs: &Dirs) -> Result<Vec<PoolStatus>, PoolError> {
    let mut all = Vec::new();
    for (folder, _) in wire::claims(&dirs.runtime) {
        match status(&folder, Request::Status).await {
            Ok(status) => all.push(status),
            // It has just gone.
            Err(error) if wire::is_gone(&error.source) => {}
            Err(error) => return Err(error),
        }
    }
    all.sort_by_key(|status| status.since_us);
    Ok(all)
}

/// Ends a pool, and returns when nothing of it is left; where machines are lent, the keeper stays until they have come to
/// their end. False when there is none of that id.
///
/// # Errors
/// [`PoolError`].
pub async fn stop(dirs: &Dirs, id: &str) -> Result<bool, PoolError> {
    let mut found = false;
    for (folder, claim) in wire::claims(&dirs.runtime) {
        if claim.id != id {
            continue;
        }
        match status(&folder, Request::Stop).await {
            Ok(status) => {
                found = true;
                let until = Instant::now() + GOING;
                while status.lent == 0 && folder.exists() && Instant::now() < until {
                    tokio::time::sleep(LOOK).await;
                }
            }
            Err(error) if wire::is_gone(&error.source) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

async fn status(folder: &std::path::Path, request: Request) -> Result<PoolStatus, PoolError> {
    let wrong = |source| PoolError { folder: folder.to_owned(), source };
    match ask(folder, &request).await.map_err(wrong)? {
        Answer::Status { pool } => Ok(*pool),
        Answer::Error { message } => Err(wrong(io::Error::other(message))),
        _ => Err(wrong(io::Error::other("it answers something else than what was asked"))),
    }
}
