//! A leased machine, and why there is none.

use super::memory::MemoryError;
use super::slots::Slot;
use super::start::LineCopies;
use super::template::{Draft, Notice, Template, TemplateId};
use super::workfolder::WorkFolder;
use crate::capture::{Console, ConsoleLine};
use crate::guest::{Guest, Skew};
use crate::image::{Image, KernelError, Lack};
use crate::link::LinkError;
use crate::machine::{Ending, Machine, StartError, StateError, UefiError};
use crate::text;
use guestline_protocol::{ExitStatus, RemoteError};
use nix::libc;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::time::timeout;

/// A link of which nobody wants anything is closed sooner.
const CLOSED: Duration = Duration::from_secs(1);

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
    /// A file of the image.
    #[error("cannot use the image's `{path}`", path = path.display())]
    Image {
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
    /// The file of the kernel's options changed after it was chosen.
    #[error("`{path}`, the kernel's configuration, changed while it was waited for", path = path.display())]
    KconfigChanged {
        /// The file.
        path: PathBuf,
    },
    /// A kernel was asked for, and the image's disk brings its own.
    #[error("image `{image}` is a disk that boots its own kernel, so it takes no other")]
    OwnKernel {
        /// The image.
        image: String,
    },
    /// A command line was asked for, and the image's disk brings its own.
    #[error("image `{image}` is a disk that boots its own kernel, so it takes no --cmdline")]
    OwnCmdline {
        /// The image.
        image: String,
    },
    /// UEFI was asked for, and the image's kernel is started by QEMU.
    #[error("image `{image}` is started by QEMU itself, and not by UEFI")]
    NoUefi {
        /// The image.
        image: String,
    },
    /// The file with firmware that was named.
    #[error("cannot use the firmware `{path}`", path = path.display())]
    Firmware {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What starts UEFI disks.
    #[error(transparent)]
    Uefi(#[from] UefiError),
    /// The kernel's configuration lacks what machine or image need.
    #[error("kernel `{kernel}` cannot run this image: it lacks {}", lacks_in_words(lacks), kernel = kernel.display())]
    KernelLacks {
        /// The kernel.
        kernel: PathBuf,
        /// What it lacks.
        lacks: Vec<Lack>,
    },
    /// What a machine was to have, and the image's kernel cannot drive.
    #[error("image `{image}` has no driver for {of}: {lacks}")]
    NoDriver {
        /// The image.
        image: String,
        /// What it is for: "nic = e1000".
        of: String,
        /// What it lacks, in words.
        lacks: String,
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
    /// It cannot go on from its template.
    #[error("the machine does not go on from its template")]
    Restore(#[source] StateError),
    /// The agent does not make the machine what it is to be.
    #[error("the agent cannot give the machine its time, randomness and name")]
    Settle(#[source] LinkError),
    /// The image's system has not come up as its manifest says.
    #[error("the guest's system is not ready ({what}): {why}")]
    NotReady {
        /// What was waited for.
        what: String,
        /// What is there instead.
        why: String,
    },
    /// A template was wanted, and none can be kept.
    #[error("no template can be kept: {why}")]
    NoTemplate {
        /// Why.
        why: String,
    },
    /// A line of its set-up did not do.
    #[error("{step} {failure}")]
    SetUp {
        /// Which.
        step: Box<SetUpStep>,
        /// What became of it.
        failure: SetUpFailure,
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

/// A step of a set-up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetUpStep {
    /// The line, or the place of files that were to be put there.
    pub line: String,
    /// What it was to set up, where that has a name.
    pub name: Option<String>,
}

impl fmt::Display for SetUpStep {
    /// The name, or "set-up `LINE`".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => f.write_str(name),
            None => write!(f, "set-up `{}`", text::one_line(&self.line, 60)),
        }
    }
}

/// What became of a line of a set-up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SetUpFailure {
    /// It ended with another status than 0.
    Ended {
        /// With this.
        status: ExitStatus,
        /// The end of what it said.
        output: String,
    },
    /// It could not be started.
    Refused {
        /// As the agent says.
        error: RemoteError,
    },
    /// It did not end.
    TimedOut {
        /// Its time.
        limit: Duration,
        /// The host kept QEMU from running for so much of it.
        starved: Duration,
    },
    /// The guest ended.
    GuestEnded(Ending),
}

impl SetUpFailure {
    /// The last lines of what it said, but for the very last, which stands in the reason; as they may be shown.
    pub fn output_before_last(&self, most: usize) -> Vec<String> {
        let Self::Ended { output, .. } = self else { return Vec::new() };
        let before = output.lines().count().saturating_sub(1);
        let lines = output.lines().take(before).skip(before.saturating_sub(most));
        lines.map(|line| text::one_line(line, 200)).collect()
    }
}

impl fmt::Display for SetUpFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ended { status: ExitStatus::Exited(status), output } => {
                write!(f, "ended with status {status}")?;
                match output.lines().last() {
                    Some(line) => write!(f, ": {}", text::one_line(line, 200)),
                    None => Ok(()),
                }
            }
            Self::Ended { status: ExitStatus::Signaled { signal, .. }, .. } => {
                write!(f, "was killed by signal {signal}")
            }
            Self::Refused { error } => {
                write!(f, "cannot be started: {}", text::one_line(&error.message, 200))
            }
            Self::TimedOut { limit, .. } => {
                write!(f, "did not end within {}", text::limit(*limit))
            }
            Self::GuestEnded(ending) => {
                write!(f, "took the guest down: it {}", ending_in_words(ending))
            }
        }
    }
}

impl LeaseError {
    /// What mends it, where that is known.
    pub fn hint(&self) -> Option<String> {
        let lacks = match self {
            Self::KernelLacks { lacks, .. } => lacks,
            Self::Uefi(error) => return error.hint().map(str::to_owned),
            Self::OwnKernel { .. } => return Some("leave out --kernel".to_owned()),
            Self::NoDriver { .. } => {
                let generic =
                    "an image with Debian's `linux-image-amd64` has drivers for most hardware";
                return Some(generic.to_owned());
            }
            _ => return None,
        };
        let options: String = lacks.iter().map(|lack| format!(" -e {}", lack.option)).collect();
        let modules = match lacks.iter().any(|lack| lack.is_module) {
            true => "; or name its modules: --modules DIR",
            false => "",
        };
        Some(format!("scripts/config{options} && make olddefconfig{modules}"))
    }

    /// The machine ended before it was ready.
    pub(super) fn ended(ending: Ending) -> Self {
        match ending {
            Ending::QemuDied { how, signal, stderr } => Self::QemuDied { how, signal, stderr },
            ending => Self::Ended { ending },
        }
    }
}

impl LeaseError {
    /// May the template be to blame for a machine that did not come up from it? Not when somebody ended it, or the host
    /// could not run it.
    pub(super) fn is_templates_fault(&self) -> bool {
        match self {
            Self::QemuDied { signal: Some(signal), .. } => !matches!(
                *signal,
                libc::SIGKILL | libc::SIGTERM | libc::SIGINT | libc::SIGHUP | libc::SIGQUIT
            ),
            Self::Silent { waited, starved } => *starved <= *waited / 2,
            Self::Cancelled | Self::Start(_) | Self::Write { .. } => false,
            _ => true,
        }
    }
}

fn after_colon(text: &str) -> String {
    match text.lines().last() {
        Some(line) => format!(": {line}"),
        None => String::new(),
    }
}

/// "CONFIG_A, CONFIG_B (a module, which is not at hand)".
fn lacks_in_words(lacks: &[Lack]) -> String {
    let words = lacks.iter().map(|Lack { option, is_module }| match is_module {
        true => format!("CONFIG_{option} (a module, which is not at hand)"),
        false => format!("CONFIG_{option}"),
    });
    words.collect::<Vec<_>>().join(", ")
}

/// "panicked", "powered off", "reset".
pub(super) fn ending_in_words(ending: &Ending) -> &'static str {
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
    /// What became of templates meanwhile.
    pub notices: Vec<Notice>,
}

impl<E: Into<LeaseError>> From<E> for FailedLease {
    fn from(error: E) -> Self {
        Self { error: error.into(), folder: None, console: Vec::new(), notices: Vec::new() }
    }
}

/// A ready machine.
#[derive(Debug)]
pub struct Lease {
    /// What may be done to it.
    pub guest: Guest,
    /// The machine itself.
    pub machine: Machine,
    /// From the start of QEMU until it could be used; with the making of its template, if it was made for this lease.
    pub ready_in: Duration,
    /// From the start of its QEMU to the agent's first answer.
    pub answered_in: Duration,
    /// The template that it was restored from; none when it booted.
    pub template: Option<TemplateId>,
    /// What became of templates meanwhile.
    pub notices: Vec<Notice>,
    /// How far its clock was off before it was set.
    pub skew: Skew,
    /// The host's ends of the ports that were asked for.
    pub ports: Vec<UnixStream>,
    /// Out of a pool, where it was ready before it was wanted.
    pub pooled: Option<Pooled>,
    pub(super) console: Console,
    pub(super) folder: WorkFolder,
    pub(super) slot: Slot,
    pub(super) cpus: u32,
    /// The lines of its link once more, for a machine that is to be given away.
    pub(super) lines: Option<LineCopies>,
    /// Held so that nobody removes the template while its memory file is in use.
    pub(super) _template: Option<Template>,
    /// Held because the machine's memory is mapped from it.
    pub(super) _draft: Option<Draft>,
    /// Held so that nobody removes its files, from which a reboot would boot.
    pub(super) _image: Image,
}

/// What a machine did in its pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pooled {
    /// For so long it was ready.
    pub ready_for: Duration,
    /// The line that it has run there, as its image says.
    pub warm_up: Option<String>,
}

/// A machine to which nobody listens but to QEMU.
pub(super) struct GivenAway {
    pub(super) machine: Machine,
    pub(super) console: OwnedFd,
    pub(super) lines: LineCopies,
    pub(super) slot: Slot,
    pub(super) held: Held,
}

/// What has to be there as long as a machine runs.
pub(super) struct Held {
    pub(super) folder: WorkFolder,
    _template: Option<Template>,
    _draft: Option<Draft>,
    _image: Image,
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

impl Lease {
    /// Of its template, [`Template::instance`].
    pub(super) fn instance(&self) -> String {
        self._template.as_ref().map(Template::instance).unwrap_or_default()
    }

    /// The folder of the machine: its console and QEMU's command line.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Waits until the host has cores for a test in this machine; until then it is ready, and idle. Cancel safe.
    ///
    /// # Errors
    /// [`LeaseError::WorkFolder`] when the account of the host cannot be kept.
    pub async fn take_cores(&mut self) -> Result<(), LeaseError> {
        Ok(self.slot.take_cores(self.cpus).await?)
    }

    /// The console's last lines so far.
    pub fn console(&self) -> Vec<ConsoleLine> {
        self.console.last_lines()
    }

    /// Ends the session with the agent, and stops to listen to all but QEMU.
    pub(super) async fn give_away(self) -> io::Result<GivenAway> {
        let Self { guest, machine, console, folder, slot, lines, .. } = self;
        let (_template, _draft, _image) = (self._template, self._draft, self._image);
        let link = guest.link().cloned();
        drop(guest);
        if let Some(link) = link {
            timeout(CLOSED, link.closed()).await?;
        }
        let lines = lines.ok_or(io::ErrorKind::NotFound)?;
        let console = console.give_away().await?;
        let held = Held { folder, _template, _draft, _image };
        Ok(GivenAway { machine, console, lines, slot, held })
    }

    /// Kills the machine and hands over what is left of it.
    pub async fn end(mut self) -> Remains {
        self.machine.kill().await;
        let console_error = self.console.finish().await.err();
        Remains { folder: self.folder, console: self.console.last_lines(), console_error }
    }
}
