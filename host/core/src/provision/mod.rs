//! Leases of machines: whoever needs one gets it here, ready, and gives it back.
//!
//! ```text
//! MachineRequest ─> memory (wait, or refuse) ─> work folder ─> image ─> QEMU ─> hello ─> Lease
//! ```
//! A lease owns its machine, its work folder and its share of the host's memory; ending or dropping
//! it gives all of that back. Each failure names the stage at which it happened.

mod memory;
mod workfolder;

pub use memory::{MemoryError, MemoryLedger, available_mib};
pub use workfolder::{WorkFolder, WorkRoot};

use crate::capture::{Console, ConsoleLine};
use crate::digest::Digest;
use crate::guest::Guest;
use crate::image::{Image, KernelError, inspect_kernel};
use crate::link::{Lane, Link, LinkError, Transport, listen_to_reserve};
use crate::machine::{
    Accel, CpuShare, Ending, ExtraPort, Machine, MachineSpec, Origin, Qemu, StartError,
};
use crate::pulse::PulseWatch;
use guestline_protocol::HelloResponse;
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// A machine, as wanted.
#[derive(Debug, Clone)]
pub struct MachineRequest {
    /// What it boots.
    pub image: Image,
    /// A kernel to boot instead of the image's, with its digest.
    pub kernel: Option<(PathBuf, Digest)>,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Virtual CPUs.
    pub cpus: u32,
    /// How long it may take until the agent answers.
    pub boot_timeout: Duration,
    /// More ports; see [`Lease::ports`].
    pub ports: Vec<ExtraPort>,
    /// Over what the link goes.
    pub link: LinkChoice,
    /// See [`MachineSpec::ssh_port`].
    pub ssh_port: Option<u16>,
}

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
    fn cmdline(self, cmdline: &str) -> String {
        match self {
            Self::Auto => cmdline.to_owned(),
            Self::Serial => format!("guestline.link=tty:/dev/ttyS1 {cmdline}"),
            Self::VirtConsole => format!("guestline.link=tty:/dev/hvc0 {cmdline}"),
        }
    }
}

/// A machine could not be leased.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// The host's memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The work folder.
    #[error("cannot make a work folder in `{path}`", path = path.display())]
    WorkFolder {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file of the run cannot be written.
    #[error("cannot write `{path}`", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel file.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The kernel file changed after it was chosen.
    #[error("kernel `{path}` changed while it was waited for", path = path.display())]
    KernelChanged {
        /// The file.
        path: PathBuf,
    },
    /// QEMU cannot be started.
    #[error(transparent)]
    Start(#[from] StartError),
    /// QEMU refused or died.
    #[error("QEMU {how}{}", after_colon(stderr))]
    QemuDied {
        /// How its process ended.
        how: String,
        /// The signal that killed it, when we did not send it.
        signal: Option<i32>,
        /// The end of its standard error.
        stderr: String,
    },
    /// The guest ended before its agent answered.
    #[error("the guest {} before its agent answered", ending_in_words(ending))]
    Ended {
        /// How.
        ending: Ending,
    },
    /// The agent has no port.
    #[error("kernel {kernel} has no link to the host: it lacks {}", lacks.join(", "))]
    NoPort {
        /// `uname -r`, as the guest says.
        kernel: String,
        /// What is missing, as the guest says.
        lacks: Vec<String>,
    },
    /// The link failed before the agent answered.
    #[error("no session with the agent")]
    Link(#[source] LinkError),
    /// The agent never answered.
    #[error("the agent did not answer within {waited:?}")]
    Silent {
        /// How long was waited.
        waited: Duration,
        /// The host kept QEMU from running for so much of it.
        starved: Duration,
    },
    /// Cancelled by the caller.
    #[error("cancelled")]
    Cancelled,
}

impl LeaseError {
    /// The machine ended before it was ready.
    fn ended(ending: Ending) -> Self {
        match ending {
            Ending::QemuDied { how, signal, stderr } => Self::QemuDied { how, signal, stderr },
            ending => Self::Ended { ending },
        }
    }
}

fn after_colon(text: &str) -> String {
    match text.lines().last() {
        Some(line) => format!(": {line}"),
        None => String::new(),
    }
}

/// "panicked", "powered off", "reset".
fn ending_in_words(ending: &Ending) -> &'static str {
    match ending {
        Ending::Panicked => "panicked",
        Ending::PoweredOff => "powered off",
        Ending::Reset => "reset",
        Ending::QemuDied { .. } => "lost its QEMU",
    }
}

/// A lease that failed, with what is left to look at.
#[derive(Debug)]
pub struct FailedLease {
    /// Why.
    pub error: LeaseError,
    /// The work folder, when there was one: console and command line.
    pub folder: Option<WorkFolder>,
    /// The console's last lines.
    pub console: Vec<ConsoleLine>,
}

impl<E: Into<LeaseError>> From<E> for FailedLease {
    fn from(error: E) -> Self {
        Self { error: error.into(), folder: None, console: Vec::new() }
    }
}

/// Boots machines for leases, within the host's memory.
#[derive(Debug)]
pub struct Provisioner {
    qemu: Qemu,
    accel: Accel,
    memory: MemoryLedger,
    root: WorkRoot,
    reboots: bool,
    /// Kernels that were asked for: checked, and copied into the run's folder once.
    kernels: Mutex<HashMap<Digest, PathBuf>>,
}

/// A ready machine.
#[derive(Debug)]
pub struct Lease {
    /// What may be done to it.
    pub guest: Guest,
    /// The machine itself.
    pub machine: Machine,
    /// From the start of QEMU to the agent's answer.
    pub ready_in: Duration,
    /// The host's ends of the ports that were asked for.
    pub ports: Vec<UnixStream>,
    console: Console,
    folder: WorkFolder,
    _memory: memory::Share,
}

/// What is left of a machine.
#[derive(Debug)]
pub struct Remains {
    /// Its work folder, removed when dropped.
    pub folder: WorkFolder,
    /// Its console's last lines.
    pub console: Vec<ConsoleLine>,
    /// Writing the console to disk failed.
    pub console_error: Option<io::Error>,
}

impl Provisioner {
    /// With this QEMU and accelerator, work folders below `root`.
    pub fn new(qemu: Qemu, accel: Accel, root: WorkRoot) -> Self {
        let memory = MemoryLedger::of_this_host();
        Self { qemu, accel, memory, root, reboots: false, kernels: Mutex::default() }
    }

    /// Its machines outlive a reboot of their guest.
    pub fn with_reboots(self) -> Self {
        Self { reboots: true, ..self }
    }

    /// Waits for memory, boots a machine and waits for its agent.
    ///
    /// # Errors
    /// [`FailedLease`]; nothing runs then.
    pub async fn lease(
        &self,
        request: &MachineRequest,
        cancel: &CancellationToken,
    ) -> Result<Lease, FailedLease> {
        let share = tokio::select! {
            share = self.memory.take(request.memory_mib) => share?,
            () = cancel.cancelled() => return Err(LeaseError::Cancelled.into()),
        };
        let folder = self.root.machine_folder().map_err(|source| LeaseError::WorkFolder {
            path: self.root.path().to_owned(),
            source,
        })?;
        let kernel = self.kernel(request).await?;
        let mut ports = request.ports.clone();
        if request.link == LinkChoice::VirtConsole {
            ports.push(ExtraPort::VirtConsole);
        }
        let spec = MachineSpec {
            memory_mib: request.memory_mib,
            cpus: request.cpus,
            kernel,
            initrd: request.image.initrd.clone(),
            cmdline: request.link.cmdline(&request.image.manifest.cmdline),
            accel: self.accel,
            reboots: self.reboots,
            ports,
            ssh_port: request.ssh_port,
        };
        let started = Instant::now();
        let (machine, mut channels) =
            Machine::start(&self.qemu, &spec, &Origin::Boot, folder.path())
                .await
                .map_err(LeaseError::from)?;
        let console = folder.path().join("console.log");
        let mut console = match Console::capture(channels.console, &console, started) {
            Ok(console) => console,
            Err(source) => {
                machine.kill().await;
                let path = folder.path().join("console.log");
                return Err(LeaseError::Write { path, source }.into());
            }
        };
        let pulse = machine.pulse();
        let virt_console = match request.link {
            LinkChoice::VirtConsole => channels.ports.pop(),
            LinkChoice::Auto | LinkChoice::Serial => None,
        };
        let lines = Lines {
            control: channels.control,
            bulk: channels.bulk,
            reserve: channels.reserve,
            virt_console,
        };
        let opening = open_link(lines, request.link, pulse);
        let opened = tokio::select! {
            // An end is told before its consequence, the closed link.
            biased;
            ending = machine.ended() => Err(LeaseError::ended(ending)),
            opened = opening => match opened {
                Ok(opened) => Ok(opened),
                Err(error) => Err(match machine.ended_soon().await {
                    Some(ending) => LeaseError::ended(ending),
                    None => error,
                }),
            },
            () = tokio::time::sleep(request.boot_timeout) => {
                let starved = machine.cpu_share().waited_since(&CpuShare::default());
                Err(LeaseError::Silent { waited: request.boot_timeout, starved })
            }
            () = cancel.cancelled() => Err(LeaseError::Cancelled),
        };
        match opened {
            Ok((link, hello)) => {
                let (guest, ready_in) = (Guest::new(link, hello), started.elapsed());
                let ports = channels.ports;
                Ok(Lease { guest, machine, ready_in, ports, console, folder, _memory: share })
            }
            Err(error) => {
                machine.kill().await;
                let _ = console.finish().await;
                let console = console.last_lines();
                Err(FailedLease { error, folder: Some(folder), console })
            }
        }
    }

    /// The kernel to boot: the image's, or a private copy of the one that was asked for, so that what
    /// was checked is what is booted.
    async fn kernel(&self, request: &MachineRequest) -> Result<PathBuf, LeaseError> {
        let Some((path, digest)) = &request.kernel else {
            return Ok(request.image.kernel.clone());
        };
        let mut kernels = self.kernels.lock().await;
        if let Some(copy) = kernels.get(digest) {
            return Ok(copy.clone());
        }
        let copy = self.root.path().join(format!("kernel-{}", digest.short()));
        let (from, to, wanted) = (path.clone(), copy.clone(), digest.clone());
        let copying = tokio::task::spawn_blocking(move || {
            let bytes = inspect_kernel(&from)?;
            if Digest::of(&bytes) != wanted {
                return Err(LeaseError::KernelChanged { path: from });
            }
            std::fs::write(&to, bytes).map_err(|source| LeaseError::Write { path: to, source })
        });
        match copying.await {
            Ok(copied) => copied?,
            Err(error) => {
                return Err(LeaseError::Write { path: copy, source: io::Error::other(error) });
            }
        }
        kernels.insert(digest.clone(), copy.clone());
        Ok(copy)
    }
}

/// All that a link may go over.
struct Lines {
    control: UnixStream,
    bulk: UnixStream,
    reserve: UnixStream,
    virt_console: Option<UnixStream>,
}

/// Opens the link: over the line that was chosen; else over the ports, or over the reserve line when the agent says
/// there that it has none.
async fn open_link(
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

impl Lease {
    /// The folder of the machine: its console and QEMU's command line.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The console's last lines so far.
    pub fn console(&self) -> Vec<ConsoleLine> {
        self.console.last_lines()
    }

    /// Kills the machine and hands over what is left of it.
    pub async fn end(mut self) -> Remains {
        self.machine.kill().await;
        let console_error = self.console.finish().await.err();
        Remains { folder: self.folder, console: self.console.last_lines(), console_error }
    }
}
