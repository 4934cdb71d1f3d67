//! A test with a variant: the machine that it wants, what it needs, and whether that is there.

use super::PlanTerms;
use super::parts::{FirmwareNamed, qemu_program};
use super::surroundings::{Key, Surroundings};
use crate::job::{FirmwareWanted, MachineWanted, QemuWanted, Subject};
use crate::run::TrialTerms;
use crate::suite::known::known_of;
use crate::suite::settings::{Isolation, MachineSettings, On, Word};
use crate::suite::test::Test;
use crate::suite::{
    Answer, Axis, Candidate, Filter, Matrix, Requirement, Side, Undocumented, Unmet, Variant,
};
use crate::units;
use guestline::machine::{DiskBus, Qemu};
use guestline::provision::Hardware;
use guestline::supervise::MachineName;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What the command line says in the place of what tests say.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// Axes.
    pub matrix: Matrix,
    /// What machines boot.
    pub image: Option<String>,
    /// Their CPUs.
    pub cpus: Option<u32>,
    /// Their memory, MiB.
    pub memory_mib: Option<u64>,
    /// What every test has to have.
    pub requires: Vec<Requirement>,
    /// Machines boot, whatever is saved.
    pub fresh_reboot: bool,
    /// All machines boot a kernel that is known later.
    pub own_kernel: bool,
    /// What comes at the end of the kernel's command line.
    pub cmdline: Option<String>,
    /// The program of their QEMU.
    pub qemu: Option<PathBuf>,
    /// What stands at the end of QEMU's command line.
    pub qemu_args: Vec<String>,
    /// What starts them.
    pub firmware: Option<FirmwareNamed>,
    /// Files of packages that they get.
    pub install: Vec<PathBuf>,
    /// What was named, and is not judged.
    pub not_subjects: Vec<Subject>,
}

/// Whether a test can be run here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fit {
    /// It can, as far as is known.
    Fits,
    /// It lacks this.
    Lacks(Vec<Unmet>),
}

/// A test with a variant.
#[derive(Debug, Clone)]
pub struct Item {
    /// The test.
    pub test: Arc<Test>,
    /// The variant.
    pub variant: Variant,
    /// Whether it can be run here.
    pub fit: Fit,
    /// What has to be asked of the running guest.
    pub later: Vec<Requirement>,
    /// A file that takes the place of the image's kernel.
    pub kernel: Option<PathBuf>,
    /// Another QEMU than the usual one.
    pub qemu: Option<Qemu>,
    /// What starts its machines, where that is not the image's to say.
    pub firmware: Option<FirmwareNamed>,
}

/// The machine of an item, as far as its environment turns on it.
pub(super) struct Machine {
    pub(super) image: String,
    pub(super) cpus: u32,
    pub(super) memory_mib: Option<u64>,
    pub(super) fresh_reboot: bool,
}

impl Item {
    pub(super) fn new(
        test: &Arc<Test>,
        variant: Variant,
        terms: &PlanTerms,
        surroundings: &mut Surroundings,
    ) -> Result<Self, String> {
        let root = &test.suite.root;
        let qemu = match variant.get(&Axis::Qemu) {
            Some(word) => Some(qemu_program(word, root)?),
            None => terms.overrides.qemu.clone(),
        };
        check_hardware(&variant, qemu.as_deref(), surroundings)?;
        let qemu = qemu.map(|path| surroundings.named_qemu(&path)).transpose()?.flatten();
        let firmware = variant.get(&Axis::Firmware).map(|word| FirmwareNamed::of(word, root));
        let firmware = firmware.or_else(|| terms.overrides.firmware.clone());
        let kernel = variant.get(&Axis::Kernel).map(|path| test.suite.root.join(path));
        let mut item = Self {
            test: test.clone(),
            variant,
            fit: Fit::Fits,
            later: Vec::new(),
            kernel,
            qemu,
            firmware,
        };
        let needs = item.needs(terms)?;
        if needs.is_empty() {
            return Ok(item);
        }
        let environment = surroundings.of(&item.key(terms, &needs));
        let side = item.side();
        let is_unmet =
            needs.iter().any(|need| matches!(environment.answer(need, side), Answer::Unmet(_)));
        if is_unmet {
            item.fit = Fit::Lacks(environment.missing(&needs, side));
        }
        item.later = environment.unknown(&needs, side).into_iter().cloned().collect();
        Ok(item)
    }

    /// "net/mtu[nic=e1000]".
    pub fn name(&self) -> String {
        match self.variant.is_plain() {
            true => self.test.name.clone(),
            false => format!("{}[{}]", self.test.name, self.variant),
        }
    }

    /// A filter means it.
    pub fn is_meant(&self, filter: &Filter) -> bool {
        let settings = &self.test.settings;
        let own = settings.tags.iter().flatten().map(|tag| tag.as_str().to_owned());
        // A name that Guestline does not know is a tag, too.
        let free = settings.requires.iter().flatten().map(Requirement::name);
        let free = free.filter(|name| known_of(name).is_none()).map(ToString::to_string);
        let tags: Vec<String> = own.chain(free).collect();
        filter.matches(&Candidate {
            name: &self.test.name,
            tags: &tags,
            kind: self.test.kind.word(),
            owner: settings.owner.as_deref(),
            variant: Some(&self.variant),
        })
    }

    /// The side that a bare requirement speaks of.
    pub fn side(&self) -> Side {
        match self.test.on() {
            On::Host => Side::Host,
            On::Guest | On::Both => Side::Guest,
        }
    }

    /// What it needs, each once.
    pub fn needs(&self, terms: &PlanTerms) -> Result<Vec<Requirement>, String> {
        let own = self.test.settings.requires.iter().flatten();
        let mut needs: Vec<Requirement> = own.chain(&terms.overrides.requires).cloned().collect();
        for text in self.variant.requires() {
            let requirement: Requirement =
                text.parse().map_err(|error| format!("matrix: {error}"))?;
            if !needs.contains(&requirement) {
                needs.push(requirement);
            }
        }
        Ok(needs)
    }

    /// The names that it needs and nobody documented.
    pub(super) fn undocumented(&self, surroundings: &mut Surroundings) -> Vec<Undocumented> {
        let needs: Vec<Requirement> =
            self.test.settings.requires.iter().flatten().cloned().collect();
        surroundings.host().undocumented(&needs, self.side())
    }

    fn key(&self, terms: &PlanTerms, needs: &[Requirement]) -> Key {
        let Machine { image, cpus, memory_mib, fresh_reboot } = self.machine(terms, needs);
        let is_shared = self.isolation(terms) == Isolation::Suite;
        Key {
            image,
            cpus,
            memory_mib,
            fresh_reboot,
            is_shared,
            own_kernel: self.kernel.is_some() || terms.overrides.own_kernel,
            qemu: self.qemu.as_ref().map(|qemu| qemu.version.to_string()),
            target: terms.target,
        }
    }

    pub(super) fn isolation(&self, terms: &PlanTerms) -> Isolation {
        let wanted = terms.isolation.or(self.test.settings.isolation).unwrap_or_default();
        // Only what is judged by the guest alone, and ends there, can share one.
        let is_alone = terms.target == "machine"
            && self.test.on() == On::Guest
            && self.test.settings.machines.is_none()
            && self.test.settings.expect.is_none();
        if is_alone { wanted } else { Isolation::Machine }
    }

    fn machine(&self, terms: &PlanTerms, needs: &[Requirement]) -> Machine {
        let own = self.own_machine();
        let Overrides { image, cpus, memory_mib, fresh_reboot, .. } = &terms.overrides;
        let axis = |axis| self.variant.get(&axis);
        let wanted = image_name(
            axis(Axis::Image).or(image.as_deref()).or(own.image.as_ref().map(Word::as_str)),
            own.packages.as_deref().unwrap_or_default(),
            &self.test.suite.root,
        );
        let needs_reboot = needs.iter().any(|need| {
            need.name().path() == "fresh_reboot"
                && need.condition() == &crate::suite::Condition::Present
        });
        Machine {
            image: wanted,
            cpus: axis(Axis::Cpus)
                .and_then(|text| text.parse().ok())
                .or(*cpus)
                .or(own.cpus.map(|it| it.0))
                .unwrap_or(1),
            memory_mib: axis(Axis::Memory)
                .and_then(|text| units::memory(text).ok())
                .or(*memory_mib)
                .or(own.memory.map(|it| it.mib)),
            fresh_reboot: *fresh_reboot || needs_reboot,
        }
    }

    /// What the test says of its one machine.
    fn own_machine(&self) -> MachineSettings {
        let settings = &self.test.settings;
        MachineSettings {
            image: settings.image.clone(),
            packages: settings.packages.clone(),
            cpus: settings.cpus,
            memory: settings.memory,
            disks: settings.disks.clone(),
            nics: settings.nics.clone(),
        }
    }

    /// The machine without a name, as a job has it.
    pub(super) fn wanted(&self, terms: &PlanTerms) -> MachineWanted {
        let needs = self.needs(terms).unwrap_or_default();
        let own = self.own_machine();
        let Machine { image, cpus, memory_mib, fresh_reboot } = self.machine(terms, &needs);
        self.complete(own, terms, image, cpus, memory_mib, fresh_reboot)
    }

    /// The machines with names, as a job has them.
    pub(super) fn wanted_by_name(&self, terms: &PlanTerms) -> BTreeMap<MachineName, MachineWanted> {
        let needs = self.needs(terms).unwrap_or_default();
        let all = self.machine(terms, &needs);
        let named = self.test.settings.machines.iter().flatten();
        let wanted = named.map(|(name, own)| {
            let Overrides { cpus, memory_mib, .. } = &terms.overrides;
            let image = match (&own.image, self.variant.get(&Axis::Image)) {
                (Some(image), _) => Some(image.as_str()),
                (None, image) => image.or(terms.overrides.image.as_deref()),
            };
            let image = image_name(
                image,
                own.packages.as_deref().unwrap_or_default(),
                &self.test.suite.root,
            );
            let cpus = own.cpus.map(|it| it.0).or(*cpus).unwrap_or(all.cpus);
            let memory_mib = own.memory.map(|it| it.mib).or(*memory_mib).or(all.memory_mib);
            let fresh_reboot = all.fresh_reboot;
            let wanted = self.complete(own.clone(), terms, image, cpus, memory_mib, fresh_reboot);
            (name.clone(), wanted)
        });
        wanted.collect()
    }

    fn complete(
        &self,
        own: MachineSettings,
        terms: &PlanTerms,
        image: String,
        cpus: u32,
        memory_mib: Option<u64>,
        fresh_reboot: bool,
    ) -> MachineWanted {
        let more = [
            self.test.settings.cmdline.as_deref(),
            self.variant.get(&Axis::Cmdline),
            terms.overrides.cmdline.as_deref(),
        ];
        let cmdline: Vec<_> =
            more.into_iter().flatten().filter(|text| !text.trim().is_empty()).collect();
        MachineWanted {
            image,
            kernel: None,
            kconfig: None,
            modules: None,
            cmdline: (!cmdline.is_empty()).then(|| cmdline.join(" ")),
            memory_mib,
            cpus,
            disks: own.disks.iter().flatten().map(|size| size.0).collect(),
            nics: own.nics.clone().unwrap_or_default(),
            qemu: self.qemu.as_ref().map(|qemu| QemuWanted {
                digest: qemu.digest.clone(),
                version: qemu.version.to_string(),
            }),
            qemu_args: terms.overrides.qemu_args.clone(),
            // A file is known by its digest later.
            firmware: match self.firmware {
                Some(FirmwareNamed::Bios) => Some(FirmwareWanted::Bios),
                Some(FirmwareNamed::Uefi) => Some(FirmwareWanted::Uefi),
                Some(FirmwareNamed::File(_)) | None => None,
            },
            hardware: hardware_of(&self.variant),
            with: Vec::new(),
            fresh_reboot,
            layers: Vec::new(),
        }
    }

    /// How often it is run.
    pub(super) fn trial(&self, terms: &PlanTerms) -> TrialTerms {
        let settings = &self.test.settings;
        TrialTerms {
            retries: terms.retries.or(settings.retries).unwrap_or(0),
            flaky: settings.flaky,
            repeat: terms.repeat,
            known_issue: settings.known_issue.clone(),
        }
    }
}

/// The hardware that a variant has.
fn hardware_of(variant: &Variant) -> Hardware {
    let text = |axis| variant.get(&axis).map(str::to_owned);
    Hardware {
        machine: text(Axis::Machine),
        cpu: text(Axis::Cpu),
        // What is none was told when the plan was made.
        disk_bus: variant.get(&Axis::DiskBus).and_then(|bus| bus.parse().ok()),
        nic_model: text(Axis::Nic),
    }
}

/// Looks whether there can be a machine with a variant's hardware.
fn check_hardware(
    variant: &Variant,
    qemu: Option<&Path>,
    surroundings: &mut Surroundings,
) -> Result<(), String> {
    let fault = |axis: Axis, why: String| format!("axis `{axis}`: {why}");
    if let Some(bus) = variant.get(&Axis::DiskBus) {
        bus.parse::<DiskBus>()
            .map_err(|error| fault(Axis::DiskBus, format!("`{bus}`: {error}")))?;
    }
    let hardware = hardware_of(variant);
    if let Some(why) = hardware.fault() {
        return Err(why);
    }
    surroundings.check(&hardware, qemu)
}

/// The name of an image, with its packages; one that is a path begins in the suite's folder.
fn image_name(image: Option<&str>, packages: &[Word], root: &Path) -> String {
    let image = image.unwrap_or("tiny");
    let is_path = image.starts_with("./") || image.starts_with("../");
    let mut name = if is_path { root.join(image).display().to_string() } else { image.to_owned() };
    if !packages.is_empty() {
        let mut packages: Vec<_> = packages.iter().map(Word::as_str).collect();
        packages.sort_unstable();
        packages.dedup();
        name = format!("{name}+{}", packages.join(","));
    }
    name
}
