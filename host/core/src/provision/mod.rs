//! Leases of machines: whoever needs one gets it here, ready, and gives it back.
//!
//! ```text
//! MachineRequest ─> memory (wait, or refuse) ─> work folder ─> template ─> restore ─> identity ─> Lease
//!                                                  └ none, or not wanted ─> boot ───────┘
//! template: found and checked, else made: boot (or the template below) ─> set-up ─> quiet ─> saved, killed
//! ```
//! A lease owns its machine, its work folder and its share of the host's memory; ending or dropping
//! it gives all of that back. Each failure names the stage at which it happened. What is wrong with a template is never
//! a machine's failure: the template is dropped and made anew, or the machine boots.

mod beside;
mod cache;
mod identity;
mod lease;
mod making;
mod memory;
mod named;
mod opening;
pub mod pool;
mod saving;
mod set_up;
mod slots;
mod snapshots;
mod start;
mod template;
mod workfolder;

pub use crate::kept::{Condition, Removal};
pub use cache::{
    ArchiveError, Arrival, Cache, CacheEntry, Content, ExportError, Exported, Finding, Imported,
    PruneSpec, Pruned, Reason, Verified,
};
pub use lease::{FailedLease, Lease, LeaseError, Pooled, Remains, SetUpFailure};
pub use memory::{MemoryError, available_mib};
pub use named::{
    NamedTemplate, NamedTemplateError, NamedTemplates, NotATemplateName, TemplateName,
};
pub use opening::LinkChoice;
pub use template::{Notice, Template, TemplateId, TemplateKey, TemplateRecord, TemplateStore};
pub use workfolder::{WorkFolder, WorkRoot};

use crate::digest::Digest;
use crate::dirs::Dirs;
use crate::image::{Image, inspect_kernel};
use crate::machine::{Accel, ExtraPort, MachineSpec, Origin, Qemu, tsc_khz};
use crate::text;
use making::{NoTemplate, Plan, Provided};
use pool::{Taken, Wanted};
use set_up::{not_set_up, set_up};
use slots::{Slot, SlotError, Slots};
use snapshots::MachineSnapshots;
use start::{Launched, NotStarted, Running, launch};
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use template::{Draft, Found};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// How long a machine that was restored may take until its agent answers; it takes a tenth of a second.
const RESTORE: Duration = Duration::from_secs(15);

/// How long a machine out of a pool may take until its agent answers; it takes a hundredth of a second.
const HANDOVER: Duration = Duration::from_secs(3);

/// So often a template that does not do is made anew for one lease.
const ATTEMPTS: u32 = 2;

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
    /// How long it may take until the agent answers, when it boots.
    pub boot_timeout: Duration,
    /// Boot it, whatever templates there are.
    pub fresh_reboot: bool,
    /// Lines that are run in it after its boot, before it is leased, each layer a template of its own.
    pub layers: Vec<Vec<String>>,
    /// How long each of these lines may take.
    pub set_up_timeout: Duration,
    /// Its host name; one that no other machine has when none is given.
    pub hostname: Option<String>,
    /// More ports; see [`Lease::ports`].
    pub ports: Vec<ExtraPort>,
    /// Over what the link goes.
    pub link: LinkChoice,
    /// See [`MachineSpec::ssh_port`].
    pub ssh_port: Option<u16>,
    /// It waits in a pool until somebody wants it.
    pub is_spare: bool,
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
        let Running { machine, guest, console, ports, answered_in, skew, spare, .. } = running;
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
            spare,
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
            cpus: 1,
            boot_timeout,
            fresh_reboot: false,
            layers: Vec::new(),
            set_up_timeout: boot_timeout,
            hostname: None,
            ports: Vec::new(),
            link: LinkChoice::Auto,
            ssh_port: None,
            is_spare: false,
        }
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
    /// How fast a guest's time stamp counter counts, where it has the host's.
    tsc_khz: Option<u64>,
    /// What makes room when a template was made, and how much may be taken.
    limit: Option<(Cache, u64)>,
    /// Digests that are being taken of templates' memory, and room that is being made.
    working: std::sync::Mutex<Vec<JoinHandle<()>>>,
    /// Kernels that were asked for: checked, and copied into the run's folder once.
    kernels: Mutex<HashMap<Digest, PathBuf>>,
}

impl Provisioner {
    /// With this QEMU and accelerator, work folders below `root`, templates in the cache folder.
    pub fn new(qemu: Qemu, accel: Accel, root: WorkRoot, dirs: &Dirs) -> Self {
        // A guest under TCG has the host's counter, and is told how fast it is.
        let tsc_khz = || tsc_khz(dirs, &template::host_cpu());
        Self {
            tsc_khz: (accel == Accel::Tcg).then(tsc_khz).flatten(),
            slots: Slots::new(root.runtime(), host_cores()),
            templates: TemplateStore::new(dirs),
            qemu,
            accel,
            root,
            reboots: false,
            limit: None,
            working: std::sync::Mutex::default(),
            kernels: Mutex::default(),
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
        let Place { spec, folder, mut slot } = self.place(request, cancel).await?;
        let began = Instant::now();
        let mut notices = Vec::new();
        let key = self.key(request, &spec);
        let plan = Plan { key: &key, request, spec: &spec, folder: folder.path(), cancel };
        match self.running(plan, &mut notices).await {
            Ok(Begun { running, template, draft }) => {
                slot.set_qemu(running.machine.pid());
                if draft.is_some() {
                    slot.add_memory(request.memory_mib);
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

    /// A machine that somebody's pool has ready; none, and no error, for whatever reason there is none.
    async fn lease_out_of_pool(
        &self,
        request: &MachineRequest,
        cancel: &CancellationToken,
    ) -> Result<Option<Lease>, LeaseError> {
        let runtime = self.root.runtime();
        let is_for_pools = !(request.fresh_reboot || request.is_spare || self.reboots);
        if !is_for_pools || !pool::is_there(runtime) {
            return Ok(None);
        }
        let began = Instant::now();
        let spec = self.spec(request).await?;
        let key = self.key(request, &spec);
        let Ok(folder) = self.root.machine_folder() else { return Ok(None) };
        // Its memory is mapped from there: it is looked at as at each use.
        let Found::Ready(template) = self.templates.open(&key) else { return Ok(None) };
        let (qemu, slots) = (&self.qemu, &self.slots);
        let ram = template.ram();
        let wanted = Wanted { qemu, spec: &spec, slots, ram: &ram, folder: folder.path() };
        let Some(taken) = pool::take(runtime, &key.id(), wanted).await else { return Ok(None) };
        let Taken { machine, channels, slot, warm_up, ready_for } = taken;
        let plan = Plan { key: &key, request, spec: &spec, folder: folder.path(), cancel };
        let hostname = request.hostname.clone().unwrap_or_else(|| plan.any_hostname());
        let launched = Launched { machine, channels, started: began };
        match launched.open(None, folder.path(), plan.terms(&hostname, HANDOVER)).await {
            Ok(running) => {
                let begun = Begun { running, template: Some(*template), draft: None };
                let (ready_in, pooled) = (began.elapsed(), Some(Pooled { ready_for, warm_up }));
                Ok(Some(Lease { ready_in, pooled, ..begun.into_lease(request, folder, slot) }))
            }
            Err(NotStarted { error: LeaseError::Cancelled, .. }) => Err(LeaseError::Cancelled),
            Err(NotStarted { error, .. }) => {
                tracing::warn!(error = %text::chain(&error), "a machine out of a pool is of no use");
                Ok(None)
            }
        }
    }

    /// The id of the template of a machine, be there one or not.
    ///
    /// # Errors
    /// [`LeaseError`] of the kernel that was asked for.
    pub async fn id_of(&self, request: &MachineRequest) -> Result<TemplateId, LeaseError> {
        let spec = self.spec(request).await?;
        Ok(self.key(request, &spec).id())
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
        let Place { spec, folder, slot: _slot } = self.place(request, cancel).await?;
        let mut notices = Vec::new();
        let key = self.key(request, &spec);
        let plan = Plan { key: &key, request, spec: &spec, folder: folder.path(), cancel };
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
            if !request.is_spare {
                pool::ask_for_room(runtime);
            }
        };
        let slot = tokio::select! {
            slot = self.slots.take(folder.path(), request.memory_mib, ask_for_room) => slot?,
            () = cancel.cancelled() => return Err(LeaseError::Cancelled),
        };
        Ok(Place { spec: self.spec(request).await?, folder, slot })
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
            if plan.request.fresh_reboot || plan.request.ssh_port.is_some() {
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
            let launched = launch(&self.qemu, plan.spec, origin, plan.folder).await?;
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
        let launched = launch(&self.qemu, plan.spec, Origin::Boot, plan.folder).await?;
        let terms = plan.terms(&hostname, plan.request.boot_timeout);
        let running = launched.open(None, plan.folder, terms).await?;
        for lines in &plan.key.layers {
            if let Err(error) = set_up(plan, &running.machine, &running.guest, lines).await {
                return Err(not_set_up(running, error).await);
            }
        }
        Ok(Begun { running, template: None, draft: None })
    }

    /// The machine that is wanted.
    async fn spec(&self, request: &MachineRequest) -> Result<MachineSpec, LeaseError> {
        let mut ports = request.ports.clone();
        if request.link == LinkChoice::VirtConsole {
            ports.push(ExtraPort::VirtConsole);
        }
        Ok(MachineSpec {
            memory_mib: request.memory_mib,
            cpus: request.cpus,
            kernel: self.kernel(request).await?,
            initrd: request.image.initrd.clone(),
            cmdline: self.cmdline(request),
            accel: self.accel,
            reboots: self.reboots,
            ports,
            ssh_port: request.ssh_port,
        })
    }

    /// The kernel's command line: the image's, with what it has to know of this host.
    fn cmdline(&self, request: &MachineRequest) -> String {
        let line = request.link.cmdline(&request.image.manifest.cmdline);
        match self.tsc_khz {
            Some(khz) => format!("tsc_early_khz={khz} {line}"),
            None => line,
        }
    }

    /// What its template depends on.
    fn key(&self, request: &MachineRequest, spec: &MachineSpec) -> TemplateKey {
        TemplateKey {
            format: template::FORMAT,
            image: request.image.manifest.digest(),
            agent: request.image.manifest.agent.clone(),
            kernel: request.kernel.as_ref().map(|(_, digest)| digest.clone()),
            cmdline: spec.cmdline.clone(),
            machine: spec.seen_by_guest(self.qemu.version),
            host_cpu: self.tsc_khz.is_none().then(template::host_cpu),
            qemu: self.qemu.digest.clone(),
            layers: request.layers.clone(),
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
