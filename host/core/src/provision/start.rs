//! From a spec to a machine whose agent answers: booted, or restored.

use super::devices::{NicWanted, identities};
use super::identity::settle;
use super::lease::LeaseError;
use super::opening::{Lines, LinkChoice, open_link};
use super::ready;
use crate::capture::{Console, ConsoleLine};
use crate::guest::{Guest, Skew};
use crate::image::Ready;
use crate::machine::{Channels, CpuShare, Machine, MachineSpec, Origin, Qemu, StartError};
use crate::pulse::{Pulse, PulseWatch};
use crate::text;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

/// A machine whose agent answers.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) machine: Machine,
    pub(super) guest: Guest,
    pub(super) console: Console,
    /// The host's ends of the ports that were asked for.
    pub(super) ports: Vec<UnixStream>,
    /// When QEMU was started.
    pub(super) started: Instant,
    /// From then to its agent's first answer.
    pub(super) answered_in: Duration,
    /// How far its clock was off when it was set.
    pub(super) skew: Skew,
    /// See [`Terms::keeps_lines`].
    pub(super) lines: Option<LineCopies>,
}

/// The host's ends of the lines that a link goes over, for who opens the next one.
#[derive(Debug)]
pub(super) struct LineCopies {
    pub(super) control: OwnedFd,
    pub(super) bulk: OwnedFd,
    pub(super) reserve: OwnedFd,
}

/// A machine whose QEMU is on its way.
#[derive(Debug)]
pub(super) struct Launched {
    pub(super) machine: Machine,
    pub(super) channels: Channels,
    pub(super) started: Instant,
}

impl LineCopies {
    fn of(channels: &Channels) -> io::Result<Self> {
        let again = |line: &UnixStream| line.as_fd().try_clone_to_owned();
        let (control, bulk) = (again(&channels.control)?, again(&channels.bulk)?);
        Ok(Self { control, bulk, reserve: again(&channels.reserve)? })
    }
}

/// How it is begun, and until when.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms<'a> {
    pub(super) link: LinkChoice,
    /// The name that it is to have.
    pub(super) hostname: &'a str,
    /// What its network cards are to have.
    pub(super) nics: &'a [NicWanted],
    /// What it is.
    pub(super) spec: &'a MachineSpec,
    /// When it is ready, should it boot.
    pub(super) ready: &'a Ready,
    pub(super) timeout: Duration,
    /// The lines of its link stay open when the link is closed.
    pub(super) keeps_lines: bool,
    pub(super) cancel: &'a CancellationToken,
}

impl Terms<'_> {
    /// For a machine that goes on from one that was reached so.
    pub(super) fn going_on(self, is_over_tty: bool) -> Self {
        Self { link: self.link.going_on(is_over_tty), ..self }
    }
}

/// Why there is no machine, and what its console showed.
#[derive(Debug)]
pub(super) struct NotStarted {
    pub(super) error: LeaseError,
    pub(super) console: Vec<ConsoleLine>,
}

impl<E: Into<LeaseError>> From<E> for NotStarted {
    fn from(error: E) -> Self {
        Self { error: error.into(), console: Vec::new() }
    }
}

/// Starts QEMU in `folder`.
///
/// # Errors
/// As [`Machine::start`].
pub(super) async fn launch(
    qemu: &Qemu,
    spec: &MachineSpec,
    origin: Origin<'_>,
    folder: &Path,
) -> Result<Launched, LeaseError> {
    let started = Instant::now();
    let (machine, channels) = Machine::start(qemu, spec, &origin, folder).await?;
    Ok(Launched { machine, channels, started })
}

impl Launched {
    /// Waits for the machine's agent; one that is restored goes on from `state`. Its console goes to `folder`.
    ///
    /// # Errors
    /// [`NotStarted`]; nothing runs then.
    pub(super) async fn open(
        self,
        state: Option<&Path>,
        folder: &Path,
        terms: Terms<'_>,
    ) -> Result<Running, NotStarted> {
        let Self { machine, mut channels, started } = self;
        let kept = terms.keeps_lines.then(|| LineCopies::of(&channels)).transpose();
        let path = folder.join("console.log");
        let mut console = match Console::capture(channels.console, &path, started) {
            Ok(console) => console,
            Err(source) => {
                machine.kill().await;
                return Err(LeaseError::Write { path, source }.into());
            }
        };
        let kept = match kept {
            Ok(kept) => kept,
            Err(error) => {
                machine.kill().await;
                return Err(LeaseError::from(StartError::Channels(error)).into());
            }
        };
        let pulse: PulseWatch = match terms.spec.gdb {
            // It does not answer while its debugger has it.
            true => Box::new(|| Pulse::Busy),
            false => machine.pulse(),
        };
        let virt_console = match terms.link {
            LinkChoice::VirtConsole => channels.ports.pop(),
            LinkChoice::Auto | LinkChoice::Serial => None,
        };
        let lines = Lines {
            control: channels.control,
            bulk: channels.bulk,
            reserve: channels.reserve,
            virt_console,
        };
        let has_answered = AtomicBool::new(false);
        let opening = async {
            if let Some(state) = state {
                machine.restore(state).await.map_err(LeaseError::Restore)?;
            }
            let (link, hello) = open_link(lines, terms.link, pulse).await?;
            let answered_in = started.elapsed();
            let guest = Guest::new(link, hello);
            has_answered.store(true, Ordering::Relaxed);
            let skew = settle(&guest, terms.hostname, identities(terms.spec, terms.nics)).await?;
            if state.is_none() {
                ready::disks(&guest, terms.spec).await?;
                ready::wait(&guest, terms.ready).await?;
            }
            Ok((guest, answered_in, skew))
        };
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
            () = tokio::time::sleep(terms.timeout) => {
                let starved = machine.cpu_share().waited_since(&CpuShare::default());
                let waited = terms.timeout;
                Err(match has_answered.load(Ordering::Relaxed) && starved <= waited / 2 {
                    true => LeaseError::NotReady {
                        what: terms.ready.to_string(),
                        why: format!("not within {}", text::limit(waited)),
                    },
                    false => LeaseError::Silent { waited, starved },
                })
            }
            () = terms.cancel.cancelled() => Err(LeaseError::Cancelled),
        };
        match opened {
            Ok((guest, answered_in, skew)) => {
                let ports = channels.ports;
                Ok(Running {
                    machine,
                    guest,
                    console,
                    ports,
                    started,
                    answered_in,
                    skew,
                    lines: kept,
                })
            }
            Err(error) => {
                machine.kill().await;
                let _ = console.finish().await;
                Err(NotStarted { error, console: console.last_lines() })
            }
        }
    }
}
