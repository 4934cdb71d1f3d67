//! What machines take of this host: memory while they are there, cores while they run a test. One account for all
//! processes of a user, so that two runs at once do not drive the host into swap.
//!
//! ```text
//! RUNTIME/              locked (flock(2)) while somebody looks and takes
//! RUNTIME/RUN/lock      held by the process that owns the run; what a dead one took is free
//! RUNTIME/RUN/1/slot.json
//! ```
//! Whoever finds no room waits for his turn: in one process in the order in which they asked, between processes for who
//! looks first. What can never fit is refused at once.

use super::memory::{MemoryError, OVERHEAD_MIB, RESERVE_MIB, available_mib};
use crate::dirs::lock_folder;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, Notify};

/// Between two looks whether another process has given something back.
const LOOK: Duration = Duration::from_millis(20);

/// Between two times that others are asked for room.
const ASK: Duration = Duration::from_millis(200);

const SLOT: &str = "slot.json";

/// The account. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Slots(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    runtime: PathBuf,
    /// Tests of all processes may run on so many cores together.
    cores: u32,
    /// Who waits for memory, and for cores: one after the other.
    memory_turn: Mutex<()>,
    cores_turn: Mutex<()>,
    freed: Notify,
}

/// What a machine has taken; given back when dropped.
#[derive(Debug)]
pub(super) struct Slot {
    slots: Slots,
    path: PathBuf,
    record: std::sync::Mutex<SlotRecord>,
}

/// `slot.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct SlotRecord {
    /// Memory that it may come to take, with QEMU's own, MiB.
    memory_mib: u64,
    /// Cores that its test runs on.
    cores: u32,
    /// QEMU's process, once it runs: what it has taken already is missing at the host.
    qemu: Option<u32>,
}

/// A machine has taken something.
#[derive(Debug, thiserror::Error)]
pub(super) enum SlotError {
    /// It never fits.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The account cannot be kept.
    #[error("cannot use `{path}`", path = path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What others have taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Taken {
    /// Machines.
    count: usize,
    /// Memory that they use, MiB.
    used_mib: u64,
    /// Memory that they may still come to take, MiB.
    owed_mib: u64,
    cores: u32,
}

#[derive(Debug, PartialEq, Eq)]
enum Decision {
    Fits,
    Wait,
    /// A machine could have so much at most, MiB.
    Never(u64),
}

impl Slots {
    /// The account of a user whose runs are in `runtime`.
    pub(super) fn new(runtime: &Path, cores: u32) -> Self {
        let runtime = runtime.to_owned();
        let (memory_turn, cores_turn, freed) = (Mutex::default(), Mutex::default(), Notify::new());
        Self(Arc::new(Inner { runtime, cores, memory_turn, cores_turn, freed }))
    }

    /// Waits until a machine of this memory fits; its work folder is `folder`. While it waits, who may give something back is
    /// asked now and then. Cancel safe.
    pub(super) async fn take(
        &self,
        folder: &Path,
        memory_mib: u64,
        ask_for_room: impl Fn(&Path),
    ) -> Result<Slot, SlotError> {
        let wanted = memory_mib.saturating_add(OVERHEAD_MIB);
        let _turn = self.0.memory_turn.lock().await;
        let mut next_ask = Instant::now();
        loop {
            let freed = self.0.freed.notified();
            {
                let _lock = self.lock()?;
                let taken = self.taken(None);
                match decide(available_mib(), taken, wanted) {
                    Decision::Fits => {
                        let record = SlotRecord { memory_mib: wanted, cores: 0, qemu: None };
                        let path = folder.join(SLOT);
                        return Slot::new(self, path, record);
                    }
                    Decision::Never(most_mib) => {
                        let free_mib = most_mib.saturating_sub(OVERHEAD_MIB);
                        return Err(MemoryError { asked_mib: memory_mib, free_mib }.into());
                    }
                    Decision::Wait => {}
                }
            }
            if Instant::now() >= next_ask {
                ask_for_room(&self.0.runtime);
                next_ask = Instant::now() + ASK;
            }
            let _ = tokio::time::timeout(LOOK, freed).await;
        }
    }

    /// Takes what a machine has that was another process's until now, which gives it back after this; with QEMU's own memory.
    pub(super) fn take_over(
        &self,
        folder: &Path,
        memory_mib: u64,
        qemu: u32,
    ) -> Result<Slot, SlotError> {
        let record = SlotRecord { memory_mib, cores: 0, qemu: Some(qemu) };
        Slot::new(self, folder.join(SLOT), record)
    }

    fn lock(&self) -> Result<Flock<File>, SlotError> {
        let path = &self.0.runtime;
        let wrong = |source| SlotError::File { path: path.clone(), source };
        lock_folder(path).map_err(wrong)
    }

    /// What all machines but one have taken.
    fn taken(&self, but: Option<&Path>) -> Taken {
        let mut taken = Taken::default();
        for run in fs::read_dir(&self.0.runtime).into_iter().flatten().flatten() {
            let run = run.path();
            if !is_alive(&run) {
                continue;
            }
            for machine in fs::read_dir(&run).into_iter().flatten().flatten() {
                let path = machine.path().join(SLOT);
                if Some(&*path) == but {
                    continue;
                }
                let Ok(text) = fs::read(&path) else { continue };
                let Ok(record) = serde_json::from_slice::<SlotRecord>(&text) else { continue };
                let used_mib = record.qemu.map_or(0, used_mib);
                taken.count += 1;
                taken.used_mib = taken.used_mib.saturating_add(used_mib);
                let owed_mib = record.memory_mib.saturating_sub(used_mib);
                taken.owed_mib = taken.owed_mib.saturating_add(owed_mib);
                taken.cores = taken.cores.saturating_add(record.cores);
            }
        }
        taken
    }
}

impl Slot {
    fn new(slots: &Slots, path: PathBuf, record: SlotRecord) -> Result<Self, SlotError> {
        let slot = Self { slots: slots.clone(), path, record: record.into() };
        slot.change(|_| ())?;
        Ok(slot)
    }

    /// Notes whose memory it is.
    pub(super) fn set_qemu(&self, pid: u32) {
        // Without it the machine counts in full.
        let _ = self.change(|record| record.qemu = Some(pid));
    }

    /// Notes that it has come to take more memory than it asked for.
    pub(super) fn add_memory(&self, memory_mib: u64) {
        let _ =
            self.change(|record| record.memory_mib = record.memory_mib.saturating_add(memory_mib));
    }

    /// What it may come to take, with QEMU's own, MiB.
    pub(super) fn memory_mib(&self) -> u64 {
        self.record().memory_mib
    }

    /// Waits until so many cores are free for a test; more than there are count as all of them. Cancel safe.
    pub(super) async fn take_cores(&self, cores: u32) -> Result<(), SlotError> {
        let slots = &self.slots;
        let cores = cores.min(slots.0.cores).max(1);
        let _turn = slots.0.cores_turn.lock().await;
        loop {
            let freed = slots.0.freed.notified();
            {
                let _lock = slots.lock()?;
                let taken = slots.taken(Some(&self.path)).cores;
                if taken.saturating_add(cores) <= slots.0.cores {
                    return self.change(|record| record.cores = cores);
                }
            }
            let _ = tokio::time::timeout(LOOK, freed).await;
        }
    }

    fn record(&self) -> std::sync::MutexGuard<'_, SlotRecord> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut SlotRecord)) -> Result<(), SlotError> {
        let mut record = self.record();
        change(&mut record);
        let path = &self.path;
        let fresh = path.with_extension("new");
        let written = serde_json::to_vec(&*record)
            .map_err(io::Error::from)
            .and_then(|text| fs::write(&fresh, text))
            .and_then(|()| fs::rename(&fresh, path));
        written.map_err(|source| SlotError::File { path: path.clone(), source })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
        self.slots.0.freed.notify_waiters();
    }
}

fn decide(available_mib: u64, taken: Taken, wanted_mib: u64) -> Decision {
    let here_mib = available_mib.saturating_sub(RESERVE_MIB);
    let most_mib = here_mib.saturating_add(taken.used_mib);
    if wanted_mib <= here_mib.saturating_sub(taken.owed_mib) {
        return Decision::Fits;
    }
    // Without others nothing will become free but by who is none of ours.
    match wanted_mib > most_mib || taken.count == 0 {
        true => Decision::Never(most_mib),
        false => Decision::Wait,
    }
}

/// Does somebody hold the lock of a run?
fn is_alive(run: &Path) -> bool {
    File::open(run.join("lock"))
        .is_ok_and(|file| Flock::lock(file, FlockArg::LockSharedNonblock).is_err())
}

/// What a process has of the host's memory for itself (proc_pid_status(5)). Pages of files are none: they can be dropped.
fn used_mib(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kib = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0)
    };
    (kib("RssAnon:") + kib("RssShmem:")) / 1024
}

#[cfg(test)]
mod tests {
    use super::super::WorkRoot;
    use super::*;
    use crate::dirs::Dirs;

    #[test]
    fn what_fits_what_waits_and_what_never_does() {
        let none = Taken::default();
        assert_eq!(decide(1000, none, 1000 - RESERVE_MIB), Decision::Fits);
        let most = 1000 - RESERVE_MIB;
        assert_eq!(decide(1000, none, 1001 - RESERVE_MIB), Decision::Never(most));
        assert_eq!(decide(0, none, 1), Decision::Never(0));
        // Another may still come to take 300, and gives 100 back when it ends.
        let other = Taken { count: 1, used_mib: 100, owed_mib: 300, cores: 1 };
        assert_eq!(decide(1000, other, most - 300), Decision::Fits);
        assert_eq!(decide(1000, other, most - 299), Decision::Wait);
        assert_eq!(decide(1000, other, most + 100), Decision::Wait);
        assert_eq!(decide(1000, other, most + 101), Decision::Never(most + 100));
        assert_eq!(decide(1000, other, u64::MAX), Decision::Never(most + 100));
    }

    async fn soon<T>(future: impl Future<Output = T>) -> Option<T> {
        tokio::time::timeout(Duration::from_millis(200), future).await.ok()
    }

    #[tokio::test]
    async fn cores_are_shared_by_all_runs_and_the_dead_have_none() {
        let home = tempfile::tempdir().unwrap();
        let dirs = Dirs::below(home.path());
        // Two processes: each has an account and a run of its own.
        let roots = [0, 1].map(|_| WorkRoot::create(&dirs, false).unwrap());
        let accounts = [0, 1].map(|_| Slots::new(&dirs.runtime, 2));
        let folders: Vec<_> = roots.iter().map(|root| root.machine_folder().unwrap()).collect();
        let first = accounts[0].take(folders[0].path(), 10, |_| ()).await.unwrap();
        let second = accounts[1].take(folders[1].path(), 10, |_| ()).await.unwrap();
        assert_eq!(accounts[0].taken(None).count, 2);
        // More than there are count as all.
        first.take_cores(8).await.unwrap();
        assert!(soon(second.take_cores(1)).await.is_none());
        drop(first);
        soon(second.take_cores(1)).await.unwrap().unwrap();
        assert_eq!(accounts[0].taken(None), Taken { cores: 1, ..accounts[0].taken(None) });
        // A run that died: its folder and slot are there, and nobody has its lock.
        let dead = dirs.runtime.join("dead/1");
        fs::create_dir_all(&dead).unwrap();
        fs::write(dead.parent().unwrap().join("lock"), "").unwrap();
        fs::copy(folders[1].path().join(SLOT), dead.join(SLOT)).unwrap();
        assert_eq!(accounts[0].taken(None).count, 1);
        // A machine that changes hands is in one account, or for a moment in both.
        let third = roots[0].machine_folder().unwrap();
        let taken = accounts[0].take_over(third.path(), second.memory_mib(), u32::MAX).unwrap();
        assert_eq!(accounts[0].taken(None).count, 2);
        drop(second);
        let wanted = Taken { count: 1, owed_mib: 10 + OVERHEAD_MIB, ..Taken::default() };
        assert_eq!(accounts[1].taken(None), wanted);
        taken.add_memory(90);
        assert_eq!(accounts[1].taken(None).owed_mib, 100 + OVERHEAD_MIB);
    }

    #[tokio::test]
    async fn what_never_fits_is_refused_at_once() {
        let home = tempfile::tempdir().unwrap();
        let dirs = Dirs::below(home.path());
        let root = WorkRoot::create(&dirs, false).unwrap();
        let slots = Slots::new(&dirs.runtime, 1);
        let folder = root.machine_folder().unwrap();
        for wanted in [1 << 40, u64::MAX] {
            let refused = soon(slots.take(folder.path(), wanted, |_| ())).await.unwrap();
            assert!(matches!(refused, Err(SlotError::Memory(_))));
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
