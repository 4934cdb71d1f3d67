//! Leases of machines: whoever needs one gets it here, ready, and gives it back.
//!
//! ```text
//! MachineRequest ─> pool, where one has it ready ─────────────────────────────────────────┐
//!                └> work folder ─> memory (wait, or refuse) ─> template ─> restore ─> identity ─> Lease
//!                                                  └ none, or not wanted ─> boot ─────────┘
//! template: found and checked, else made: boot (or the template below) ─> set-up ─> quiet ─> saved, killed
//! ```
//! A lease owns its machine, its work folder and its share of the host's memory; ending or dropping
//! it gives all of that back. Each failure names the stage at which it happened. What is wrong with a template is never
//! a machine's failure: the template is dropped and made anew, or the machine boots.

mod beside;
mod cache;
mod devices;
mod editing;
mod hardware;
mod identity;
mod images;
mod layer;
mod lease;
mod making;
mod memory;
mod named;
mod opening;
pub mod pool;
mod pooled;
mod ready;
mod saving;
mod set_up;
mod slots;
mod snapshots;
mod spec;
mod start;
mod template;
mod workfolder;

pub use crate::kept::{Condition, Removal};
pub use cache::{
    ArchiveError, Arrival, Cache, CacheEntry, Content, ExportError, Exported, Finding, HEAD_LEN,
    ImportError, Imported, PruneSpec, Pruned, Reason, Verified, export_image, is_archive,
};
pub use devices::{DiskWanted, NicWanted, NotADisk, NotANic};
pub use editing::{DiskEditor, DiskFault, DiskInput, EditError, Edited, RootWork};
pub use hardware::Hardware;
pub use images::Images;
pub use layer::{Layer, LayerFiles};
pub use lease::{FailedLease, Lease, LeaseError, Pooled, Remains, SetUpFailure, SetUpStep};
pub use memory::{MemoryError, available_mib};
pub use named::{
    NamedTemplate, NamedTemplateError, NamedTemplates, NotATemplateName, TemplateName,
};
pub use opening::LinkChoice;
pub use template::{Notice, Template, TemplateId, TemplateKey, TemplateRecord, TemplateStore};
pub use workfolder::{WorkFolder, WorkRoot};

use crate::digest::Digest;
use crate::dirs::Dirs;
use crate::image::{Image, Kernels, OwnModules};
use crate::machine::{
    Accel, Disk, DiskBus, DiskFile, ExtraPort, FirmwareChoice, GDB_SOCKET, MachineSpec, Origin,
    Qemu, tsc_khz,
};
use crate::text;
use making::{NoTemplate, Plan, Provided};
use set_up::{SetUpTerms, not_set_up, set_up};
use slots::{Slot, SlotError, Slots};
use snapshots::MachineSnapshots;
use spec::{Prepared, PreparedId};
use start::{Launched, NotStarted, Running, launch};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use template::Draft;
use tokio::sync::Mutex;
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// How long a machine that was restored may take until its agent answers; it takes a tenth of a second.
const RESTORE: Duration = Duration::from_secs(15);

/// So often a template that does not do is made anew for one lease.
const ATTEMPTS: u32 = 2;

/// A machine, as wanted.
#[derive(Debug, Clone)]
pub struct MachineRequest {
    /// What it boots.
    pub image: Image,
    /// A kernel to boot instead of the image's, with its digest.
    pub kernel: Option<(PathBuf, Digest)>,
    /// The file with that kernel's configuration, and its digest.
    pub kconfig: Option<(PathBuf, Digest)>,
    /// That kernel's modules.
    pub modules: Option<OwnModules>,
    /// What comes at the end of the kernel's command line.
    pub cmdline: Option<String>,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Virtual CPUs.
    pub cpus: u32,
    /// How long it may take until the agent answers, when it boots.
    pub boot_timeout: Duration,
    /// Boot it, whatever templates there are.
    pub fresh_reboot: bool,
    /// It outlives a reboot of its guest.
    pub reboots: bool,
    /// What is done in it after its boot, before it is leased, each layer a template of its own.
    pub layers: Vec<Layer>,
    /// How long each of these lines may take.
    pub set_up_timeout: Duration,
    /// Its host name; one that no other machine has when none is given.
    pub hostname: Option<String>,
    /// Disks that only it writes to, at most [`MAX_DISKS`](crate::machine::MAX_DISKS).
    pub disks: Vec<DiskWanted>,
    /// Disks that are files of others, before the disks above; with one it has no template, and always boots.
    pub given: Vec<Disk>,
    /// Network cards, at most [`MAX_NICS`](crate::machine::MAX_NICS).
    pub nics: Vec<NicWanted>,
    /// Another QEMU than the provisioner's.
    pub qemu: Option<Qemu>,
    /// What stands at the end of QEMU's command line.
    pub qemu_args: Vec<String>,
    /// What starts it instead of what the image says, or what comes with QEMU.
    pub firmware: Option<FirmwareChoice>,
    /// What it is made of, where that is not the usual.
    pub hardware: Hardware,
    /// More ports; see [`Lease::ports`].
    pub ports: Vec<ExtraPort>,
    /// Over what the link goes.
    pub link: LinkChoice,
    /// It boots, and waits for a debugger, whose socket is told here.
    pub gdb: Option<UnboundedSender<PathBuf>>,
    /// See [`MachineSpec::ssh_port`].
    pub ssh_port: Option<u16>,
    /// It waits in a pool until somebody wants it.
    pub for_pool: bool,
}

/// A machine that is ready, and what it goes on from.
struct Begun {
    running: Running,
    template: Option<Template>,
    /// The template, as it was before it was written.
    draft: Option<Draft>,
}

impl Begun {
    fn into_lease(self, request: &MachineRequest, folder: WorkFolder, slot: Slot) -> Lease {
        let Self { running, template, draft } = self;
        let Running { machine, guest, console, ports, answered_in, skew, lines, .. } = running;
        let snapshots = MachineSnapshots::new(machine.snapshots(), guest.clone());
        Lease {
            guest: guest.with_snapshots(Arc::new(snapshots)),
            machine,
            ready_in: answered_in,
            answered_in,
            template: template.as_ref().map(Template::id),
            notices: Vec::new(),
            skew,
            ports,
            pooled: None,
            console,
            folder,
            slot,
            cpus: request.cpus,
            lines,
            _template: template,
            _draft: draft,
            _image: request.image.clone(),
        }
    }
}

/// Where a machine is to be: what it is, its folder and what it takes of the host.
struct Place {
    spec: MachineSpec,
    folder: WorkFolder,
    slot: Slot,
}

impl MachineRequest {
    /// A machine of an image with the defaults of everything else.
    pub fn new(image: Image, boot_timeout: Duration) -> Self {
        Self {
            memory_mib: image.manifest.memory_mib,
            image,
            kernel: None,
            kconfig: None,
            modules: None,
            cmdline: None,
            cpus: 1,
            boot_timeout,
            fresh_reboot: false,
            reboots: false,
            layers: Vec::new(),
            set_up_timeout: boot_timeout,
            hostname: None,
            disks: Vec::new(),
            given: Vec::new(),
            nics: Vec::new(),
            qemu: None,
            qemu_args: Vec::new(),
            firmware: None,
            hardware: Hardware::default(),
            ports: Vec::new(),
            link: LinkChoice::Auto,
            gdb: None,
            ssh_port: None,
            for_pool: false,
        }
    }

    /// Whatever templates there are.
    fn always_boots(&self) -> bool {
        let can_be_saved =
            self.disks.is_empty() || self.hardware.disk_bus.is_none_or(DiskBus::can_be_saved);
        self.fresh_reboot || self.gdb.is_some() || !self.given.is_empty() || !can_be_saved
    }
}

/// Restores or boots machines for leases, within the host's memory.
#[derive(Debug)]
pub struct Provisioner {
    qemu: Qemu,
    accel: Accel,
    slots: Slots,
    root: WorkRoot,
    reboots: bool,
    templates: TemplateStore,
    /// Where disks of machines are that nothing else knows.
    cache: PathBuf,
    /// How fast a guest's time stamp counter counts, where it has the host's.
    tsc_khz: Option<u64>,
    /// What makes room when a template was made, and how much may be taken.
    limit: Option<(Cache, u64)>,
    /// Digests that are being taken of templates' memory, and room that is being made.
    working: std::sync::Mutex<Vec<JoinHandle<()>>>,
    /// Kernels that were asked for: checked, and unpacked or copied into the run's folder once.
    kernels: Mutex<HashMap<PreparedId, Prepared>>,
    /// Initial RAM file systems with modules behind them, by a digest of both.
    initrds: Mutex<HashMap<Digest, PathBuf>>,
    /// What unpacks them.
    unpacker: Kernels,
}

impl Provisioner {
    /// With this QEMU, where a machine wants no other, and accelerator, work folders below `root`, templates in the cache folder.
    pub fn new(qemu: Qemu, accel: Accel, root: WorkRoot, dirs: &Dirs) -> Self {
        // A guest under TCG has the host's counter, and is told how fast it is.
        let tsc_khz = || tsc_khz(dirs, &template::host_cpu());
        Self {
            tsc_khz: (accel == Accel::Tcg).then(tsc_khz).flatten(),
            slots: Slots::new(root.runtime(), host_cores()),
            templates: TemplateStore::new(dirs),
            cache: dirs.cache.clone(),
            qemu,
            accel,
            root,
            reboots: false,
            limit: None,
            working: std::sync::Mutex::default(),
            kernels: Mutex::default(),
            initrds: Mutex::default(),
            unpacker: Kernels::new(dirs),
        }
    }

    /// Tests of its machines may run on so many cores, with those of the user's other runs, instead of as many as the host
    /// has.
    pub fn with_cores(self, cores: u32) -> Self {
        Self { slots: Slots::new(self.root.runtime(), cores.max(1)), ..self }
    }

    /// When it has made a template, what was used least recently goes until the cache takes at most `bytes`.
    pub fn with_limit(self, cache: Cache, bytes: u64) -> Self {
        Self { limit: Some((cache, bytes)), ..self }
    }

    /// Its machines outlive a reboot of their guest.
    pub fn with_reboots(self) -> Self {
        Self { reboots: true, ..self }
    }

    /// Waits for memory, and gives a machine whose agent answers: restored from its template, which is made first when
    /// there is none, or booted.
    ///
    /// # Errors
    /// [`FailedLease`]; nothing runs then.
    pub async fn lease(
        &self,
        request: &MachineRequest,
        cancel: &CancellationToken,
    ) -> Result<Lease, FailedLease> {
        if let Some(lease) = self.lease_out_of_pool(request, cancel).await? {
            return Ok(lease);
        }
        let Place { spec, folder, slot } = self.place(request, cancel).await?;
        let began = Instant::now();
        let mut notices = Vec::new();
        let key = self.key(request, &spec);
        let plan =
            Plan { key: &key, request, spec: &spec, folder: folder.path(), slot: &slot, cancel };
        match self.running(plan, &mut notices).await {
            Ok(Begun { running, template, draft }) => {
                if let Some(draft) = &draft {
                    slot.add_memory(draft.size_mib());
                }
                let begun = Begun { running, template, draft };
                let ready_in = began.elapsed();
                Ok(Lease { notices, ready_in, ..begun.into_lease(request, folder, slot) })
            }
            Err(NotStarted { error, console }) => {
                Err(FailedLease { error, folder: Some(folder), console, notices })
            }
        }
    }

    /// The template of a machine, made when there is none, and the machine that is restored from it.
    ///
    /// # Errors
    /// [`FailedLease`]; [`LeaseError::NoTemplate`] where none can be kept.
    pub async fn template_of(
        &self,
        request: &MachineRequest,
        cancel: &CancellationToken,
    ) -> Result<(MachineSpec, Template, Vec<Notice>), FailedLease> {
        let Place { spec, folder, slot } = self.place(request, cancel).await?;
        let mut notices = Vec::new();
        let key = self.key(request, &spec);
        let plan =
            Plan { key: &key, request, spec: &spec, folder: folder.path(), slot: &slot, cancel };
        match self.template(plan, &mut notices).await {
            Ok(template) => Ok((spec, template, notices)),
            Err(NoTemplate::Impossible(why)) => {
                let (error, console) = (LeaseError::NoTemplate { why }, Vec::new());
                Err(FailedLease { error, folder: Some(folder), console, notices })
            }
            Err(NoTemplate::NotStarted(NotStarted { error, console })) => {
                Err(FailedLease { error, folder: Some(folder), console, notices })
            }
        }
    }

    /// The QEMU of a machine.
    fn qemu<'a>(&'a self, request: &'a MachineRequest) -> &'a Qemu {
        request.qemu.as_ref().unwrap_or(&self.qemu)
    }

    /// Waits until the host has room for a machine, and makes its folder.
    async fn place(
        &self,
        request: &MachineRequest,
        cancel: &CancellationToken,
    ) -> Result<Place, LeaseError> {
        let folder = self.root.machine_folder().map_err(|source| LeaseError::WorkFolder {
            path: self.root.path().to_owned(),
            source,
        })?;
        // What waits in pools goes before what is wanted; not for more of the same.
        let ask_for_room = |runtime: &Path| {
            if !request.for_pool {
                pool::ask_for_room(runtime);
            }
        };
        let slot = tokio::select! {
            slot = self.slots.take(folder.path(), request.memory_mib, ask_for_room) => slot?,
            () = cancel.cancelled() => return Err(LeaseError::Cancelled),
        };
        Ok(Place { spec: self.spec(request).await?, folder, slot })
    }

    /// Starts QEMU of a machine, and notes that its memory is that process's.
    async fn launch(
        &self,
        plan: Plan<'_>,
        spec: &MachineSpec,
        origin: Origin<'_>,
    ) -> Result<Launched, LeaseError> {
        let launched = launch(self.qemu(plan.request), spec, origin, plan.folder).await?;
        plan.slot.set_qemu(launched.machine.pid());
        Ok(launched)
    }

    /// The machine, with disks of its own upon those of what it goes on from.
    fn with_own_disks(
        &self,
        plan: Plan<'_>,
        below: Vec<DiskFile>,
    ) -> Result<MachineSpec, LeaseError> {
        let spec = plan.spec.upon(below);
        let make = |disk: &Disk| {
            // A cache that cannot be written to may still be read.
            DiskFile::unnamed(&self.cache, disk.size)
                .or_else(|_| DiskFile::unnamed(plan.folder, disk.size))
                .map_err(|source| LeaseError::Write { path: self.cache.clone(), source })
        };
        let own = spec.writable_disks().map(make).collect::<Result<Vec<_>, _>>()?;
        Ok(spec.upon(own))
    }

    /// A machine that is ready.
    async fn running(
        &self,
        plan: Plan<'_>,
        notices: &mut Vec<Notice>,
    ) -> Result<Begun, NotStarted> {
        let hostname = plan.request.hostname.clone();
        let hostname = hostname.unwrap_or_else(|| plan.any_hostname());
        for _ in 0..ATTEMPTS {
            // What goes to a fixed port of the host cannot be restored twice at once.
            if plan.request.always_boots() || plan.request.ssh_port.is_some() {
                break;
            }
            let terms = plan.terms(&hostname, RESTORE);
            let template = match self.provide(plan, Some(terms), notices).await {
                Ok(Provided { template, running: Some(running) }) => {
                    let (running, draft) = *running;
                    return Ok(Begun { running, template, draft: Some(draft) });
                }
                Ok(Provided { template: Some(template), running: None }) => template,
                Ok(Provided { template: None, running: None }) => continue,
                Err(NoTemplate::NotStarted(not)) => return Err(not),
                Err(NoTemplate::Impossible(why)) => {
                    notices.push(Notice::Without { why });
                    break;
                }
            };
            let origin = Origin::Restore { ram: &template.ram() };
            let spec = self.with_own_disks(plan, template.disks())?;
            let launched = self.launch(plan, &spec, origin).await?;
            let terms = terms.going_on(template.record.tty_link);
            match launched.open(Some(&template.state()), plan.folder, terms).await {
                Ok(running) => {
                    return Ok(Begun { running, template: Some(template), draft: None });
                }
                Err(not) if !not.error.is_templates_fault() => return Err(not),
                Err(not) => {
                    self.templates.drop_id(&template.id());
                    let why = text::chain(&not.error);
                    notices.push(Notice::Dropped { id: template.id(), why });
                }
            }
        }
        let spec = self.with_own_disks(plan, Vec::new())?;
        let launched = self.launch(plan, &spec, Origin::Boot).await?;
        if let Some(gdb) = &plan.request.gdb {
            // The socket is there when QEMU takes commands; should it not come so far, its end is told.
            let _ = launched.machine.is_running().await;
            let _ = gdb.send(plan.folder.join(GDB_SOCKET));
        }
        let terms = plan.terms(&hostname, plan.request.boot_timeout);
        let running = launched.open(None, plan.folder, terms).await?;
        for layer in &plan.request.layers {
            let terms = SetUpTerms::of(plan);
            if let Err(error) = set_up(terms, &running.machine, &running.guest, layer).await {
                return Err(not_set_up(running, error).await);
            }
        }
        Ok(Begun { running, template: None, draft: None })
    }
}

fn host_cores() -> u32 {
    std::thread::available_parallelism().map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(1))
}

impl From<SlotError> for LeaseError {
    fn from(error: SlotError) -> Self {
        match error {
            SlotError::Memory(error) => Self::Memory(error),
            SlotError::File { path, source } => Self::WorkFolder { path, source },
        }
    }
}
