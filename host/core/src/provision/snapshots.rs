//! Snapshots inside a test: the machine is saved and put back, and the link, the clock and the guest's randomness are told.
//!
//! ```text
//! save    ── saved ──> clock
//! restore ── a session that is let go ──> load ──> a new session ──> clock, randomness
//!                 (what is on its way reaches the guest that goes, not the one that comes)
//! ```

use super::lease::ending_in_words;
use crate::guest::{Guest, Skew, SnapshotError, Snapshots, Verb};
use crate::machine::{Ending, SnapshotFault, SnapshotsHandle};
use crate::text;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;

/// A guest that runs takes all that is on its way to it, and answers a hello, within milliseconds; one that does not
/// is not waited for any longer.
const LET_GO: Duration = Duration::from_millis(300);

/// How long a machine that was put back may take until its agent has answered, and done what it is asked to.
const SETTLE: Duration = Duration::from_secs(30);

/// A leased machine and its guest.
#[derive(Debug, Clone)]
pub(super) struct MachineSnapshots(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    machine: SnapshotsHandle,
    /// Without a machine of its own.
    guest: Guest,
    /// One verb after the other: what is not settled yet is not to be saved.
    turn: Mutex<()>,
}

/// Which verb is carried out, on which name.
struct Doing {
    verb: &'static str,
    name: String,
}

impl MachineSnapshots {
    pub(super) fn new(machine: SnapshotsHandle, guest: Guest) -> Self {
        Self(Arc::new(Parts { machine, guest, turn: Mutex::default() }))
    }

    /// Carries a verb out, whether or not somebody goes on waiting: half of one would leave the link astray.
    fn whole<'a, T, F>(
        &self,
        verb: &'static str,
        name: &str,
        carry: impl FnOnce(Arc<Parts>, Doing) -> F + Send + 'a,
    ) -> Verb<'a, T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, SnapshotError>> + Send + 'static,
    {
        let (parts, name) = (self.0.clone(), name.to_owned());
        Box::pin(async move {
            let doing = Doing { verb, name: name.clone() };
            match tokio::spawn(carry(parts, doing)).await {
                Ok(done) => done,
                Err(error) => Err(SnapshotError::Refused { verb, name, reason: error.to_string() }),
            }
        })
    }
}

impl Snapshots for MachineSnapshots {
    fn save(&self, name: &str) -> Verb<'_, ()> {
        self.whole("save", name, |parts, doing| async move {
            let _turn = parts.turn.lock().await;
            let saved = parts.machine.save(&doing.name).await;
            // It stood meanwhile, and its clock with it. That it cannot be told is no fault of the snapshot.
            let _ = tokio::time::timeout(LET_GO, parts.guest.set_clock()).await;
            saved.map_err(|fault| doing.failed(fault))
        })
    }

    fn restore(&self, name: &str) -> Verb<'_, Skew> {
        self.whole("restore", name, |parts, doing| async move {
            let _turn = parts.turn.lock().await;
            parts.restore(doing).await
        })
    }

    fn delete(&self, name: &str) -> Verb<'_, ()> {
        self.whole("delete", name, |parts, doing| async move {
            let _turn = parts.turn.lock().await;
            parts.machine.delete(&doing.name).await.map_err(|fault| doing.failed(fault))
        })
    }

    fn names(&self) -> Verb<'_, Vec<String>> {
        Box::pin(async { Ok(self.0.machine.names().await) })
    }
}

impl Parts {
    async fn restore(&self, doing: Doing) -> Result<Skew, SnapshotError> {
        self.machine.find(&doing.name).await.map_err(|fault| doing.failed(fault))?;
        // The agent that will be there believes in the session that stood when it was saved, perhaps this one. Once
        // another session is open nothing of this one is left on the way, to be carried out there.
        let _ = tokio::time::timeout(LET_GO, self.guest.reconnect()).await;
        self.machine.load(&doing.name).await.map_err(|fault| doing.failed(fault))?;
        let settling = async {
            self.guest.reconnect_restored().await?;
            let (skew, seeded) = tokio::join!(self.guest.set_clock(), self.guest.add_entropy());
            seeded.and(skew)
        };
        tokio::select! {
            biased;
            ending = self.machine.ended() => Err(doing.failed(SnapshotFault::Ended(ending))),
            settled = settling => settled.map_err(|source| {
                SnapshotError::NoSession { name: doing.name, source }
            }),
            () = tokio::time::sleep(SETTLE) => {
                Err(doing.failed(SnapshotFault::TimedOut { waited: SETTLE }))
            }
        }
    }
}

impl Doing {
    fn failed(&self, fault: SnapshotFault) -> SnapshotError {
        let (verb, name) = (self.verb, self.name.clone());
        match fault {
            SnapshotFault::Unknown { there } => SnapshotError::Unknown { name, there },
            SnapshotFault::NoRoom { folder, free_mib } => {
                SnapshotError::NoRoom { name, folder: folder.display().to_string(), free_mib }
            }
            SnapshotFault::Ended(ending) => SnapshotError::Ended { verb, name, how: how(&ending) },
            SnapshotFault::TimedOut { waited } => SnapshotError::TimedOut { verb, name, waited },
            fault => SnapshotError::Refused { verb, name, reason: text::chain(&fault) },
        }
    }
}

fn how(ending: &Ending) -> String {
    match ending {
        Ending::QemuDied { how, .. } => format!("lost its QEMU, which {how}"),
        ending => ending_in_words(ending).to_owned(),
    }
}
