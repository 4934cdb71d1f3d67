//! The QEMU process of a machine, which may be replaced by another one with the same sockets.
//!
//! ```text
//! start ──> process ── replace ──> killed, reaped ──> another process, which stands
//!              └── exits ──> the machine's end; the machine's ends of its sockets are closed
//! ```
//! The machine's ends are kept here for the next process. Whoever reads the host's ends finds them closed when the machine
//! has ended, as if they were not.

use super::args::{Ends, command_line};
use super::process::{self, ExitWatch, Process};
use super::{MachineSpec, Origin, Qemu};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::mpsc;
use tracing::debug;

/// See the module.
#[derive(Debug)]
pub(super) struct Engine {
    process: tokio::sync::Mutex<Option<Process>>,
    pub(super) share: Arc<Share>,
    qemu: Qemu,
    spec: MachineSpec,
    /// The file that the guest's memory is mapped from, for a machine that was restored.
    ram: Option<PathBuf>,
    folder: PathBuf,
    next: mpsc::UnboundedSender<ExitWatch>,
}

/// What is known of the process by those who do not own it.
#[derive(Debug, Default)]
pub(super) struct Share {
    pid: AtomicU32,
    /// So many exits are not the machine's.
    replaced: AtomicU32,
    ends: Mutex<Vec<OwnedFd>>,
}

impl Share {
    pub(super) fn pid(&self) -> u32 {
        self.pid.load(Ordering::Acquire)
    }

    fn ends(&self) -> MutexGuard<'_, Vec<OwnedFd>> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes the machine's ends: it has ended.
    pub(super) fn close(&self) {
        self.ends().clear();
    }
}

/// Tells when the process exits that is the machine's last.
pub(super) struct LastExit {
    share: Arc<Share>,
    exit: ExitWatch,
    /// So many of them were seen.
    seen: u32,
    next: mpsc::UnboundedReceiver<ExitWatch>,
}

impl LastExit {
    /// Cancel safe.
    pub(super) async fn wait(&mut self) -> process::Exit {
        loop {
            let exit = self.exit.wait().await;
            if self.share.replaced.load(Ordering::Acquire) == self.seen {
                return exit;
            }
            match self.next.recv().await {
                Some(next) => (self.exit, self.seen) = (next, self.seen.wrapping_add(1)),
                None => return exit,
            }
        }
    }
}

impl Engine {
    pub(super) async fn start(
        qemu: &Qemu,
        spec: &MachineSpec,
        origin: &Origin<'_>,
        folder: &Path,
        ends: Vec<OwnedFd>,
    ) -> io::Result<(Self, LastExit)> {
        let ram = match origin {
            Origin::Boot | Origin::Again { ram: None } => None,
            Origin::BootSavable { ram }
            | Origin::Restore { ram }
            | Origin::RestoreSavable { ram }
            | Origin::Again { ram: Some(ram) } => Some((*ram).to_owned()),
        };
        let kept = ends.iter().map(OwnedFd::try_clone).collect::<io::Result<Vec<_>>>()?;
        let process = spawn(qemu, spec, origin, folder, ends).await?;
        Ok(Self::with(process, qemu, spec, ram, folder, kept))
    }

    /// Of a process that runs already, with the machine's ends of its sockets.
    pub(super) fn with(
        process: Process,
        qemu: &Qemu,
        spec: &MachineSpec,
        ram: Option<PathBuf>,
        folder: &Path,
        ends: Vec<OwnedFd>,
    ) -> (Self, LastExit) {
        let share = Arc::new(Share { pid: process.pid().into(), ..Share::default() });
        *share.ends() = ends;
        let (sender, next) = mpsc::unbounded_channel();
        let last = LastExit { share: share.clone(), exit: process.exit(), seen: 0, next };
        let engine = Self {
            process: tokio::sync::Mutex::new(Some(process)),
            share,
            qemu: qemu.clone(),
            spec: spec.clone(),
            ram,
            folder: folder.to_owned(),
            next: sender,
        };
        (engine, last)
    }

    /// What another process needs of it: the file that the guest's memory is mapped from, those that its disks are written
    /// to, and the machine's ends of its sockets, which are not here any more then.
    pub(super) fn give_away(&self) -> (Option<PathBuf>, Vec<PathBuf>, Vec<OwnedFd>) {
        let written = self.spec.writable_disks().filter_map(|disk| disk.files.last());
        let disks = written.map(|file| file.path().to_owned()).collect();
        (self.ram.clone(), disks, std::mem::take(&mut *self.share.ends()))
    }

    /// Kills the process and starts another one of the same machine, which stands until it has loaded what it is to be.
    ///
    /// # Errors
    /// What starting it gives; the machine has ended then.
    pub(super) async fn replace(&self) -> io::Result<()> {
        let mut process = self.process.lock().await;
        let Some(mut old) = process.take() else { return Err(io::ErrorKind::NotFound.into()) };
        let ends = self.share.ends().iter().map(OwnedFd::try_clone).collect::<io::Result<_>>()?;
        self.share.replaced.fetch_add(1, Ordering::AcqRel);
        old.kill().await;
        let origin = Origin::Again { ram: self.ram.as_deref() };
        let spawned = spawn(&self.qemu, &self.spec, &origin, &self.folder, ends).await;
        let spawned = spawned.inspect_err(|_| {
            // The exit that was not to be the machine's is, after all.
            let _ = self.next.send(old.exit());
        })?;
        self.share.pid.store(spawned.pid(), Ordering::Release);
        let _ = self.next.send(spawned.exit());
        *process = Some(spawned);
        Ok(())
    }

    /// Kills the process and waits until it is reaped.
    pub(super) async fn kill(&self) {
        if let Some(mut process) = self.process.lock().await.take() {
            process.kill().await;
        }
    }
}

async fn spawn(
    qemu: &Qemu,
    spec: &MachineSpec,
    origin: &Origin<'_>,
    folder: &Path,
    ends: Vec<OwnedFd>,
) -> io::Result<Process> {
    let args = command_line(spec, qemu.version, origin, &Ends::of(&ends));
    debug!(qemu = %qemu.path.display(), ?args, "starting");
    let program = qemu.path.to_string_lossy();
    let words = std::iter::once(&*program).chain(args.iter().map(String::as_str));
    let record = format!("{}\n", crate::text::shell_line(words));
    // For the reader of a work folder that was kept; its absence harms nothing.
    let _ = std::fs::write(folder.join("qemu.cmdline"), record);
    process::spawn(&qemu.path, args, ends, folder.to_owned()).await
}
