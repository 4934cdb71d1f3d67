//! One machine: a QEMU process with its QMP connection. Knows nothing of agents.
//!
//! ```text
//! spec ──> args ──> process (spawn, guard, reap) ──> engine (the process, or the one in its place) ──┐
//!                   qmp (events, commands) ──────────────────────────────────────────────────────────┤
//!          life: how it ended, if it ended <─────────────────────────────────────────────────────────┤
//!          state: saved, restored <──────────────────────────────────────────────────────────────────┤
//!          snapshot: saved while it runs, and put back <─────────────────────────────────────────────┤
//!          handover: from one process of ours to another <───────────────────────────────────────────┘
//! ```
//! A [`Machine`] runs from the moment it is made and dies with it. QEMU is told to pause, not to
//! exit, when the guest panics, resets or powers off (`-action`), so that the end is told by an
//! event and what the guest said last can still be read.

pub mod accel;
mod args;
mod buses;
mod disk;
mod engine;
mod firmware;
mod handover;
mod life;
mod offers;
mod process;
pub(crate) mod qcow2;
mod qemu;
mod qmp;
mod snapshot;
mod spec;
mod state;
mod tsc;

pub use accel::{Accel, AccelChoice, Acceleration};
pub use buses::{DiskBus, NotABus};
pub use disk::{Disk, DiskFile, DiskFormat};
pub use firmware::{Drive, Firmware, FirmwareChoice, FirmwareKind, Uefi, UefiError, find_ovmf};
pub use handover::Handover;
pub use life::Ending;
pub use offers::{NotOffered, Offers};
pub(crate) use process::is_there_still;
pub use process::{CpuShare, ForeignProcess};
pub use qcow2::NotUsable;
pub use qemu::{OLDEST_QEMU, Qemu, QemuError, QemuVersion, on_path};
pub use qmp::QmpError;
pub use snapshot::{SnapshotFault, SnapshotsHandle};
pub use spec::{ExtraPort, GDB_SOCKET, MAX_DISKS, MAX_NICS, MEMORY_MIB, MachineSpec, Nic};
pub use state::{Origin, StateError};
pub use tsc::tsc_khz;

use crate::pulse::{Pulse, PulseWatch};
use engine::{Engine, LastExit};
use life::{LifeEvent, LifeState};
use nix::sys::socket::{setsockopt, sockopt::SndBuf};
use qmp::{Qmp, QmpEvent};
use snapshot::Parts;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tracing::debug;

/// A machine could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The channels between QEMU and us.
    #[error("cannot make the machine's channels")]
    Channels(#[source] io::Error),
    /// The process.
    #[error("cannot start `{qemu}`")]
    Spawn {
        /// The program.
        qemu: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The host's ends of what a machine is connected to.
#[derive(Debug)]
pub struct Channels {
    /// The control port.
    pub control: UnixStream,
    /// ttyS0.
    pub console: UnixStream,
    /// ttyS1.
    pub reserve: UnixStream,
    /// The bulk port.
    pub bulk: UnixStream,
    /// The other ports of the spec, in its order.
    pub ports: Vec<UnixStream>,
}

/// A running machine. Dropping it kills it.
#[derive(Debug)]
pub struct Machine {
    engine: Arc<Engine>,
    qmp: Qmp,
    version: QemuVersion,
    ending: watch::Receiver<Option<Ending>>,
    reboots: watch::Receiver<u64>,
    /// QEMU lets the guest stand: it saves or loads it.
    held: Arc<AtomicBool>,
    snapshots: SnapshotsHandle,
}

impl Machine {
    /// Spawns QEMU; a guest that boots does so at once, one that is restored waits for [`Machine::restore`]. `folder`
    /// becomes QEMU's working folder.
    ///
    /// # Errors
    /// [`StartError`]; nothing runs then. That QEMU itself refuses is told by [`Machine::ended`].
    pub async fn start(
        qemu: &Qemu,
        spec: &MachineSpec,
        origin: &Origin<'_>,
        folder: &Path,
    ) -> Result<(Self, Channels), StartError> {
        let mut inherited = Vec::new();
        let mut ours = Vec::new();
        for number in 0..5 + spec.ports.len() {
            let (host, machine) = channel().map_err(StartError::Channels)?;
            if number == BULK {
                enlarge(&host);
                enlarge(&machine);
            }
            ours.push(host);
            inherited.push(machine);
        }
        let started = Engine::start(qemu, spec, origin, folder, inherited).await;
        let (engine, exit) = started.map_err(|source| StartError::Spawn {
            qemu: qemu.path.display().to_string(),
            source,
        })?;
        let mut ours = ours.into_iter();
        let mut next = || ours.next().ok_or(StartError::Channels(io::ErrorKind::NotFound.into()));
        let (qmp, control, console) = (next()?, next()?, next()?);
        let (reserve, bulk) = (next()?, next()?);
        let machine = Self::of(engine, exit, Qmp::connect(qmp), qemu, spec, folder);
        Ok((machine, Channels { control, console, reserve, bulk, ports: ours.collect() }))
    }

    /// Follows the life of what runs.
    fn of(
        engine: Engine,
        mut exit: LastExit,
        (qmp, mut events): (Qmp, mpsc::Receiver<QmpEvent>),
        qemu: &Qemu,
        spec: &MachineSpec,
        folder: &Path,
    ) -> Self {
        let (share, engine) = (engine.share.clone(), Arc::new(engine));
        let (ended, ending) = watch::channel(None);
        let (rebooted, reboots) = watch::channel(0);
        tokio::spawn(async move {
            let mut life = LifeState::default();
            loop {
                let event = tokio::select! {
                    // What QEMU said before it died is heard before its death.
                    biased;
                    Some(event) = events.recv() => LifeEvent::Qmp(event),
                    exit = exit.wait() => LifeEvent::Exited(exit),
                };
                let last = matches!(event, LifeEvent::Exited(_));
                if matches!(event, LifeEvent::Qmp(QmpEvent::GuestReboots)) {
                    rebooted.send_modify(|times| *times += 1);
                }
                if let Some(ending) = life.on_event(event) {
                    debug!(?ending, "machine ended");
                    ended.send_replace(Some(ending));
                }
                if last {
                    share.close();
                    return;
                }
            }
        });
        let held = Arc::<AtomicBool>::default();
        let parts = Parts {
            qmp: qmp.clone(),
            ending: ending.clone(),
            held: held.clone(),
            engine: Arc::downgrade(&engine),
            folder: folder.to_owned(),
            memory_mib: spec.memory_mib,
            disks: snapshot::disk_nodes(spec),
        };
        let snapshots = SnapshotsHandle::new(parts);
        Self { engine, qmp, version: qemu.version, ending, reboots, held, snapshots }
    }

    /// Waits until QEMU takes commands, when all of the machine is there, and tells whether its guest runs.
    ///
    /// # Errors
    /// [`QmpError`]; [`Machine::ended`] tells what QEMU said.
    pub async fn is_running(&self) -> Result<bool, QmpError> {
        let status = self.qmp.execute_plain("query-status", serde_json::json!({})).await?;
        Ok(status["running"] == true)
    }

    /// Waits for the machine to end by itself. Cancel safe.
    pub async fn ended(&self) -> Ending {
        ended(&self.ending).await
    }

    /// How it ended, given a moment for the news to arrive: when the link closes, the reason is
    /// often on its way.
    pub async fn ended_soon(&self) -> Option<Ending> {
        tokio::time::timeout(NEWS, self.ended()).await.ok()
    }

    /// Has it ended?
    pub fn has_ended(&self) -> bool {
        self.ending.borrow().is_some()
    }

    /// How often its guest has booted again; changes as it does so.
    pub fn reboots(&self) -> watch::Receiver<u64> {
        self.reboots.clone()
    }

    /// What saves it while it runs, and puts it back.
    pub fn snapshots(&self) -> SnapshotsHandle {
        self.snapshots.clone()
    }

    /// QEMU's process id; another one after a snapshot was loaded.
    pub fn pid(&self) -> u32 {
        self.engine.share.pid()
    }

    /// How the host treated QEMU's threads since its start.
    pub fn cpu_share(&self) -> CpuShare {
        process::cpu_share(self.pid())
    }

    /// What QEMU's threads have taken of the host's CPUs so far.
    pub fn cpu_time(&self) -> Duration {
        self.cpu_share().ran_since(&CpuShare::default())
    }

    /// Tells, each time it is asked, what the guest's CPUs did since the time before.
    pub fn pulse(&self) -> PulseWatch {
        let (share, held) = (self.engine.share.clone(), self.held.clone());
        let mut last = (Instant::now(), process::cpu_share(share.pid()));
        Box::new(move || {
            let now = (Instant::now(), process::cpu_share(share.pid()));
            let (took, before) =
                (now.0.duration_since(last.0), std::mem::replace(&mut last, now).1);
            if held.load(Ordering::Acquire) {
                return Pulse::Starved;
            }
            judge_pulse(took, last.1.ran_since(&before), last.1.waited_since(&before), &last.1)
        })
    }

    /// Kills QEMU and waits until it is reaped.
    pub async fn kill(self) {
        self.engine.kill().await;
    }
}

/// Waits for the end that is told there.
async fn ended(ending: &watch::Receiver<Option<Ending>>) -> Ending {
    match ending.clone().wait_for(Option::is_some).await {
        Ok(ending) => ending.clone().unwrap_or(Ending::unknown()),
        Err(_) => Ending::unknown(),
    }
}

/// What a guest does whose QEMU ran, and waited for a CPU, for so long.
fn judge_pulse(took: Duration, ran: Duration, waited: Duration, share: &CpuShare) -> Pulse {
    if share.is_stopped() || waited > took / 2 {
        return Pulse::Starved;
    }
    // An idle guest's timers take QEMU a few percent of a CPU.
    if ran > took / 5 { Pulse::Busy } else { Pulse::Idle }
}

/// How long the news of an end may take: longer than the last words of a dead QEMU.
const NEWS: Duration = Duration::from_secs(1);

/// Which of the channels is the bulk port's.
const BULK: usize = 4;

/// What the bulk port's socket holds each way, bytes: a host that is busy for a moment does not stop the guest.
const BULK_LEN: usize = 1024 * 1024;

/// As far as the system allows (socket(7), `wmem_max`).
fn enlarge(socket: &impl AsFd) {
    let _ = setsockopt(socket, SndBuf, &BULK_LEN);
}

/// A connected pair: ours for tokio, and the one QEMU inherits.
fn channel() -> io::Result<(UnixStream, OwnedFd)> {
    let (host, machine) = std::os::unix::net::UnixStream::pair()?;
    host.set_nonblocking(true)?;
    Ok((UnixStream::from_std(host)?, machine.into()))
}
