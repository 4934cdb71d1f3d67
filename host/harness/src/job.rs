//! A job: all that an executor needs to know, as one serialisable value; no path of this host.

use crate::suite::Requirement;
use crate::suite::settings::{Expected, Format, On, Statuses};
use crate::suite::test::{Kind, Origin};
use guestline::digest::Digest;
use guestline::provision::{DiskWanted, Hardware, NicWanted};
use guestline::supervise::MachineName;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// What to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TestCommand {
    /// A line for the shell, with `-c`: `/bin/sh`, unless the image says another.
    Line(String),
    /// A program and its arguments.
    Argv(Vec<String>),
    /// A file of the test's content, with arguments.
    File {
        /// Its path in the content.
        path: String,
        /// What it is given.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        args: Vec<String>,
    },
    /// A function of a Python file of the test's content.
    Python {
        /// The file's path in the content.
        path: String,
        /// `setup`, `run` or `teardown`.
        function: String,
    },
}

impl TestCommand {
    /// As a user would type it behind `guestline check`.
    pub fn to_arguments(&self) -> String {
        match self {
            Self::Line(line) => crate::text::quote(line),
            _ => format!("-- {}", self.name()),
        }
    }

    /// The test's name in reports, where it has no other.
    pub fn name(&self) -> String {
        match self {
            Self::Line(line) => line.clone(),
            Self::Argv(words) => {
                words.iter().map(|word| crate::text::quote(word)).collect::<Vec<_>>().join(" ")
            }
            Self::File { path, .. } | Self::Python { path, .. } => path.clone(),
        }
    }
}

/// Modules of a kernel, packed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModulesWanted {
    /// What comes behind the image's initial RAM file system.
    pub early: Digest,
    /// What is in it: what the agent is to load, if it is wanted.
    pub names: Vec<String>,
    /// A disk with all of them.
    pub disk: Option<Digest>,
}

/// A QEMU, exactly.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QemuWanted {
    /// Digest of its program.
    pub digest: Digest,
    /// Its version.
    pub version: String,
}

/// What starts a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FirmwareWanted {
    /// SeaBIOS.
    Bios,
    /// OVMF.
    Uefi,
    /// A file.
    File(Digest),
}

/// Packages that are installed into a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstallWanted {
    /// Their files, by name.
    pub install: Vec<ContentFile>,
}

/// A part that is judged, because it was named to be tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Subject {
    /// `--kernel`.
    Kernel,
    /// `--qemu`, `--qemu-arg`.
    Qemu,
    /// `--firmware`.
    Firmware,
    /// `--install`.
    Install,
}

/// The machine a job wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineWanted {
    /// Name of its image.
    pub image: String,
    /// A kernel to boot instead of the image's.
    pub kernel: Option<Digest>,
    /// Its configuration, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kconfig: Option<Digest>,
    /// That kernel's modules.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modules: Option<ModulesWanted>,
    /// What comes at the end of the kernel's command line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
    /// Memory in MiB; the image's default when none is given.
    pub memory_mib: Option<u64>,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Disks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskWanted>,
    /// Network cards.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nics: Vec<NicWanted>,
    /// Another QEMU than the host's usual one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qemu: Option<QemuWanted>,
    /// What stands at the end of QEMU's command line.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub qemu_args: Vec<String>,
    /// What starts it, where that is not the image's to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware: Option<FirmwareWanted>,
    /// What it is made of, where that is not the usual.
    #[serde(flatten)]
    pub hardware: Hardware,
    /// Files and folders that are put into it before the test.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub with: Vec<FilesWanted>,
    /// Boot it, instead of restoring it from a template.
    pub fresh_reboot: bool,
    /// What is set up in it before the test, each layer a template of its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<LayerWanted>,
}

/// A layer of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum LayerWanted {
    /// Lines of a template with a name.
    Lines(Vec<String>),
    /// A fixture of the guest.
    Fixture(FixtureWanted),
    /// Packages.
    Install(InstallWanted),
}

impl MachineWanted {
    /// What of it was named to be tried, but for what was taken back.
    pub fn subjects(&self, taken_back: &[Subject]) -> Vec<Subject> {
        let is_install = |layer: &LayerWanted| matches!(layer, LayerWanted::Install(_));
        let named = [
            (self.kernel.is_some(), Subject::Kernel),
            (self.qemu.is_some() || !self.qemu_args.is_empty(), Subject::Qemu),
            (self.firmware.is_some(), Subject::Firmware),
            (self.layers.iter().any(is_install), Subject::Install),
        ];
        let named = named.into_iter().filter_map(|(is_named, part)| is_named.then_some(part));
        named.filter(|part| !taken_back.contains(part)).collect()
    }
}

/// A fixture: a set-up step that tests depend on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FixtureWanted {
    /// Its name.
    pub name: String,
    /// The line that sets it up.
    pub run: String,
    /// The line that is run when the run is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teardown: Option<String>,
    /// What it has with it.
    #[serde(default)]
    pub content: Content,
    /// What it is told, a variant's values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub variables: BTreeMap<String, String>,
    /// How long it may take, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Who answers for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
}

/// A file or folder that is put into a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilesWanted {
    /// Of what its files are.
    pub digest: Digest,
    /// Its place in the guest.
    pub to: String,
}

/// How long things may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// The test, in milliseconds.
    pub check_ms: u64,
    /// From the start of QEMU to the agent's answer, in milliseconds.
    pub boot_ms: u64,
}

impl Limits {
    /// The test.
    pub fn check(&self) -> Duration {
        Duration::from_millis(self.check_ms)
    }

    /// The boot.
    pub fn boot(&self) -> Duration {
        Duration::from_millis(self.boot_ms)
    }
}

/// What a guest's kernel is not to do while a test runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FailOn {
    /// Warn, or worse.
    Warn,
    /// Become tainted in any way.
    Taint,
    /// Oops, or find a bug.
    Oops,
}

/// A file of a test.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ContentFile {
    /// Its path from its suite's folder on.
    pub path: String,
    /// What is in it.
    pub digest: Digest,
    /// It can be executed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub executable: bool,
}

/// Files of a test, and the folder among them that it runs in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Content {
    /// By path.
    pub files: Vec<ContentFile>,
    /// From the suite's folder on; empty for that itself.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub folder: String,
    /// The libs whose files are among them, each below [`LIBS`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub libs: Vec<String>,
}

/// Where files of libs are among those of a test.
pub const LIBS: &str = ".libs";

/// A test of a suite, as its reports name it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InSuite {
    /// The suite's name.
    pub suite: String,
    /// Where the suite was fetched from, if that is a repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// The test's name in it.
    pub name: String,
    /// The variant's id; empty for the plain one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
    /// What kind of test it is.
    pub kind: Kind,
    /// Who answers for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Where it runs.
    #[serde(default)]
    pub on: On,
    /// What it has with it.
    #[serde(default)]
    pub content: Content,
    /// What is run before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub setup: Option<TestCommand>,
    /// What is run after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teardown: Option<TestCommand>,
    /// What tells it its variant.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub variables: BTreeMap<String, String>,
    /// What its output says.
    #[serde(default)]
    pub format: Format,
    /// What of its machine it expects.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expect: Vec<Expected>,
    /// What can only be told in the running guest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requires: Vec<Requirement>,
}

impl InSuite {
    /// "net/mtu[nic=e1000]".
    pub fn full_name(&self) -> String {
        match self.variant.as_str() {
            "" => self.name.clone(),
            variant => format!("{}[{variant}]", self.name),
        }
    }
}

/// A test.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobTest {
    /// What is run.
    pub command: TestCommand,
    /// It has failed, whatever it says, when the kernel did one of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fail_on: Vec<FailOn>,
    /// What its exit status means.
    #[serde(default)]
    pub statuses: Statuses,
    /// Of a suite; a line of the command line is of none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<Box<InSuite>>,
}

impl JobTest {
    /// A command of the command line.
    pub fn of_command(command: TestCommand, fail_on: Vec<FailOn>) -> Self {
        Self { command, fail_on, statuses: Statuses::default(), of: None }
    }

    /// Its name in reports.
    pub fn name(&self) -> String {
        self.of.as_ref().map_or_else(|| self.command.name(), |of| of.full_name())
    }
}

/// Tests that share a machine, one after the other; one that has it for itself, usually.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// What to run.
    pub tests: Vec<JobTest>,
    /// On what.
    pub machine: MachineWanted,
    /// On these instead, by their names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub machines: BTreeMap<MachineName, MachineWanted>,
    /// What is set up on the host before, one after the other.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fixtures: Vec<FixtureWanted>,
    /// What is judged besides the tests.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subjects: Vec<Subject>,
    /// How long.
    pub limits: Limits,
}

impl Job {
    /// This with one of its tests.
    pub fn only(&self, test: &JobTest) -> Self {
        Self {
            tests: vec![test.clone()],
            machine: self.machine.clone(),
            machines: self.machines.clone(),
            fixtures: self.fixtures.clone(),
            subjects: self.subjects.clone(),
            limits: self.limits,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_one_serialisable_value() {
        let command = TestCommand::Argv(vec!["ls".into(), "a b".into()]);
        let job = Job {
            tests: vec![JobTest::of_command(command.clone(), vec![FailOn::Warn])],
            machines: BTreeMap::new(),
            fixtures: Vec::new(),
            machine: MachineWanted {
                image: "tiny".into(),
                kernel: Some(Digest::of(b"kernel")),
                kconfig: None,
                modules: Some(ModulesWanted {
                    early: Digest::of(b"early"),
                    names: vec!["virtio_blk".into()],
                    disk: None,
                }),
                cmdline: Some("nokaslr".into()),
                memory_mib: None,
                cpus: 2,
                fresh_reboot: false,
                disks: Vec::new(),
                nics: Vec::new(),
                qemu: None,
                qemu_args: vec!["-device".into(), "edu".into()],
                firmware: Some(FirmwareWanted::File(Digest::of(b"bios"))),
                hardware: Hardware { cpu: Some("max,-avx2".into()), ..Hardware::default() },
                with: Vec::new(),
                layers: vec![
                    LayerWanted::Lines(vec!["true".into()]),
                    LayerWanted::Install(InstallWanted {
                        install: vec![ContentFile {
                            path: "a.deb".into(),
                            digest: Digest::of(b"a"),
                            executable: false,
                        }],
                    }),
                ],
            },
            subjects: vec![Subject::Kernel],
            limits: Limits { check_ms: 60_000, boot_ms: 120_000 },
        };
        let text = serde_json::to_string(&job).unwrap();
        assert_eq!(serde_json::from_str::<Job>(&text).unwrap(), job);
        let all = [Subject::Kernel, Subject::Qemu, Subject::Firmware, Subject::Install];
        assert_eq!(job.machine.subjects(&[]), all);
        assert_eq!(job.machine.subjects(&all[1..]), [Subject::Kernel]);
        assert_eq!(command.to_arguments(), "-- ls 'a b'");
    }
}
