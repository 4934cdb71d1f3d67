//! A job: all that an executor needs to know, as one serialisable value; no path of this host.

use guestline::digest::Digest;
use guestline::provision::{DiskWanted, NicWanted};
use guestline_protocol::{ByteBuf, Command};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What to run in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TestCommand {
    /// A line for the shell, with `-c`: `/bin/sh`, unless the image says another.
    Line(String),
    /// A program and its arguments.
    Argv(Vec<String>),
}

impl TestCommand {
    /// As the link takes it.
    pub fn to_command(&self) -> Command {
        let bytes = |text: &String| ByteBuf::from(text.as_bytes().to_vec());
        match self {
            Self::Line(line) => Command::Shell(bytes(line)),
            Self::Argv(words) => Command::Argv(words.iter().map(bytes).collect()),
        }
    }

    /// As a user would type it behind `guestline check`.
    pub fn to_arguments(&self) -> String {
        match self {
            Self::Line(line) => crate::text::quote(line),
            Self::Argv(_) => format!("-- {}", self.name()),
        }
    }

    /// The test's name in reports.
    pub fn name(&self) -> String {
        match self {
            Self::Line(line) => line.clone(),
            Self::Argv(words) => {
                words.iter().map(|word| crate::text::quote(word)).collect::<Vec<_>>().join(" ")
            }
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

/// The machine a job wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineWanted {
    /// Name of its image.
    pub image: String,
    /// A kernel to boot instead of the image's; it is a subject then, and judged.
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
    /// Files and folders that are put into it before the test.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub with: Vec<FilesWanted>,
    /// Boot it, instead of restoring it from a template.
    pub fresh_reboot: bool,
    /// Lines that are run in it before the test, each layer a template of its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<Vec<String>>,
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

/// One test on one pristine machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// What to run.
    pub command: TestCommand,
    /// On what.
    pub machine: MachineWanted,
    /// How long.
    pub limits: Limits,
    /// It has failed, whatever it says, when the kernel did one of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fail_on: Vec<FailOn>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_one_serialisable_value() {
        let job = Job {
            command: TestCommand::Argv(vec!["ls".into(), "a b".into()]),
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
                with: Vec::new(),
                layers: Vec::new(),
            },
            limits: Limits { check_ms: 60_000, boot_ms: 120_000 },
            fail_on: vec![FailOn::Warn],
        };
        let text = serde_json::to_string(&job).unwrap();
        assert_eq!(serde_json::from_str::<Job>(&text).unwrap(), job);
        assert_eq!(job.command.to_arguments(), "-- ls 'a b'");
    }
}
