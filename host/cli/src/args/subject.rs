//! The options that name what is tried: QEMU, firmware, packages. A kernel is named by [`super::KernelArgs`].

use clap::{Args, ValueEnum};
use guestline_harness::job::Subject;
use std::path::PathBuf;

#[derive(Debug, Default, Args)]
pub(crate) struct SubjectArgs {
    /// Run machines on this QEMU: a file, or a name on PATH; it is judged then: if it dies by itself, the test failed
    #[arg(long, value_name = "FILE|NAME")]
    pub(crate) qemu: Option<String>,
    /// Put this at the end of QEMU's command line, which is judged then; may be given several times
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    pub(crate) qemu_arg: Vec<String>,
    /// Start machines with this firmware: a file, or for an image that is a disk `bios` or `uefi`; it is judged then
    #[arg(long, value_name = "FILE|bios|uefi")]
    pub(crate) firmware: Option<String>,
    /// Install this Debian package into the machine before the test; it is judged then; may be given several times
    #[arg(long, value_name = "FILE.deb")]
    pub(crate) install: Vec<PathBuf>,
    /// Do not judge this part although an option names it
    #[arg(long, value_enum, value_name = "PART", value_delimiter = ',')]
    pub(crate) not_subject: Vec<PartArg>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PartArg {
    Kernel,
    Qemu,
    Firmware,
    Install,
}

impl PartArg {
    fn subject(self) -> Subject {
        match self {
            Self::Kernel => Subject::Kernel,
            Self::Qemu => Subject::Qemu,
            Self::Firmware => Subject::Firmware,
            Self::Install => Subject::Install,
        }
    }

    fn word(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

impl SubjectArgs {
    /// What is not judged.
    pub(crate) fn taken_back(&self) -> Vec<Subject> {
        self.not_subject.iter().map(|part| part.subject()).collect()
    }

    /// The options as they were given.
    pub(crate) fn words(&self) -> Vec<String> {
        let quote = guestline::text::quote;
        let option = |name: &str, value: &str| format!("--{name} {}", quote(value));
        let qemu = self.qemu.iter().map(|qemu| option("qemu", qemu));
        let more = self.qemu_arg.iter().map(|arg| quote(&format!("--qemu-arg={arg}")));
        let firmware = self.firmware.iter().map(|firmware| option("firmware", firmware));
        let install = self.install.iter();
        let install = install.map(|file| option("install", &file.display().to_string()));
        let parts: Vec<String> = self.not_subject.iter().map(|part| part.word()).collect();
        let back = (!parts.is_empty()).then(|| option("not-subject", &parts.join(",")));
        qemu.chain(more).chain(firmware).chain(install).chain(back).collect()
    }
}
