//! What is gathered while a job runs, and what of it explains its outcome.

use super::Target;
use super::evidence::AttemptFolder;
use super::hints::{boot_hint, missing_tool};
use super::judge::{Circumstances, Finding, judge, refused_status};
use crate::event::PooledMachine;
use crate::job::{Job, JobTest, MachineWanted, Subject};
use crate::lab::Verdict;
use crate::suite::settings::{Expected, Format};
use crate::tap::{TapEnd, TapEvent, TapParser};
use crate::text;
use guestline::capture::{ConsoleLine, PANIC_MARK};
use guestline::guest::Guest;
use guestline::machine::{Ending, FirmwareChoice};
use guestline::provision::{LeaseError, MachineRequest};
use guestline::supervise::MachineName;
use guestline_protocol::{ExecExitedEvent, ExitStatus, Stream};
use serde_json::json;
use std::time::{Duration, Instant};

/// So many last lines of the console are shown where it is the evidence.
const CONSOLE_SHOWN: usize = 5;

/// Images boot with this much memory, MiB; with less, that may be why one did not.
const SMALL_MIB: u64 = 128;

/// What the host says of a full disk (`ENOSPC`, errno(3)).
const FULL: &str = "No space left on device";

/// So much of the end of the output is looked at for its last line.
const TAIL_LEN: usize = 4096;

/// The status that the test ended with.
pub(super) fn status(finding: &Finding) -> Option<u8> {
    match finding {
        Finding::Exited(ExecExitedEvent { status: ExitStatus::Exited(status), .. }) => {
            Some(*status)
        }
        Finding::Refused(error) => refused_status(error),
        _ => None,
    }
}

/// The parts of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    SetUp,
    Test,
    TearDown,
}

impl Part {
    /// Of a part that is no test, as a report says it.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::SetUp => "set-up",
            Self::Test => "test",
            Self::TearDown => "tear-down",
        }
    }
}

/// What is gathered while a test runs.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) folder: Option<AttemptFolder>,
    pub(super) machine: Option<Duration>,
    pub(super) began: Option<Instant>,
    pub(super) check: Option<Duration>,
    /// How long the machine was ready and waited for its turn, which is no time of the test.
    pub(super) waited: Duration,
    pub(super) console: Vec<ConsoleLine>,
    /// The end of the output of the test, both streams as they came.
    tail: Vec<u8>,
    /// The same of its set-up and tear-down.
    step_tail: Vec<u8>,
    pub(super) notes: Vec<String>,
    /// What a side of it has said of the whole test (`guest skip`, `guest fail`).
    pub(super) said: Option<Verdict>,
    /// Reads results out of its output, where it writes such.
    tap: Option<TapParser>,
    tap_end: Option<TapEnd>,
    subjects: Vec<Subject>,
    expect: Vec<Expected>,
    statuses: crate::suite::settings::Statuses,
    wanted: MachineWanted,
}

impl Attempt {
    pub(super) fn new(job: &Job, test: &JobTest) -> Self {
        let of = test.of.as_ref();
        let is_tap = of.is_some_and(|of| of.format == Format::Tap);
        Self {
            folder: None,
            machine: None,
            began: None,
            check: None,
            waited: Duration::ZERO,
            console: Vec::new(),
            tail: Vec::new(),
            step_tail: Vec::new(),
            notes: Vec::new(),
            said: None,
            tap: is_tap.then(TapParser::new),
            tap_end: None,
            subjects: job.subjects.clone(),
            expect: of.map(|of| of.expect.clone()).unwrap_or_default(),
            statuses: test.statuses.clone(),
            wanted: job.machines.values().next().unwrap_or(&job.machine).clone(),
        }
    }

    /// Keeps what a part wrote; what is read out of it is found by [`Attempt::subtests`].
    pub(super) fn keep(&mut self, part: Part, stream: Stream, data: &[u8]) -> std::io::Result<()> {
        let tail = if part == Part::Test { &mut self.tail } else { &mut self.step_tail };
        tail.extend_from_slice(&data[data.len().saturating_sub(TAIL_LEN)..]);
        let over = tail.len().saturating_sub(TAIL_LEN);
        tail.drain(..over);
        let Some(folder) = self.folder.as_mut() else { return Ok(()) };
        match part {
            Part::Test => folder.keep(stream, data),
            part => folder.keep_of(part.word(), data),
        }
    }

    /// The results that this output of the test completes.
    pub(super) fn subtests(&mut self, stream: Stream, data: &[u8]) -> Vec<TapEvent> {
        match &mut self.tap {
            Some(tap) if stream == Stream::Stdout => tap.push(data),
            _ => Vec::new(),
        }
    }

    /// The output of the test is complete.
    pub(super) fn end_output(&mut self) -> Vec<TapEvent> {
        let Some(tap) = self.tap.take() else { return Vec::new() };
        let (events, end) = tap.finish();
        self.tap_end = Some(end);
        events
    }

    /// A part could not be started, for this reason.
    pub(super) fn said_instead(&mut self, part: Part, said: Vec<u8>) {
        match part {
            Part::Test => self.tail = said,
            _ => self.step_tail = said,
        }
    }

    /// Where its evidence is.
    pub(super) fn folder_shown(&self) -> String {
        self.folder.as_ref().map(|folder| folder.path().display().to_string()).unwrap_or_default()
    }

    pub(super) fn record_facts(
        &self,
        facts: &serde_json::Value,
        machine: Option<&MachineName>,
        request: &MachineRequest,
        pool: Option<&PooledMachine>,
    ) {
        let mut facts = facts.clone();
        let manifest = &request.image.manifest;
        facts["image"] = json!({
            "name": manifest.name,
            "digest": manifest.digest(),
            "kernel": manifest.kernel_release,
            "packages": manifest.packages,
            "agent": manifest.agent,
        });
        facts["machine"] = json!({
            "memory_mib": request.memory_mib,
            "cpus": request.cpus,
            "disks_mib": request.disks,
            "nics": request.nics,
            "hardware": request.hardware,
            "qemu": request.qemu.as_ref().map(|qemu| json!({
                "path": qemu.path, "version": qemu.version.to_string(), "sha256": qemu.digest,
            })),
            "qemu_args": request.qemu_args,
            "firmware": request.firmware.as_ref().map(|firmware| match firmware {
                FirmwareChoice::Kind(kind) => json!(kind),
                FirmwareChoice::File(path, digest) => json!({ "path": path, "sha256": digest }),
            }),
            "cmdline": manifest.cmdline,
            "kconfig": match &request.kernel {
                Some(_) => request.kconfig.as_ref().map(|(_, digest)| digest),
                None => manifest.file("config").map(|file| &file.sha256),
            },
            "cmdline_more": request.cmdline,
            "modules": request.modules.as_ref().map(|modules| json!({
                "early": modules.early.0,
                "disk": modules.disk.as_ref().map(|(digest, _)| digest),
            })),
            "kernel": request.kernel.as_ref().map(|(path, digest)| json!({ "path": path, "sha256": digest })),
        });
        if let Some(qemu) = &request.qemu {
            facts["qemu"] = json!(qemu.version.to_string());
        }
        facts["subjects"] = json!(self.subjects);
        if let Some(pool) = pool {
            facts["machine"]["pool"] = json!(pool);
        }
        if let Some(folder) = &self.folder {
            // A disk that is full is told when the test's own output cannot be kept.
            let name = match machine {
                Some(machine) => format!("{}.facts.json", machine.as_str()),
                None => "facts.json".to_owned(),
            };
            let _ = folder.write(&name, format!("{facts:#}\n").as_bytes());
        }
    }

    /// What is known of a target that is no machine of ours.
    pub(super) fn record_target(&self, facts: &serde_json::Value, target: &Target, guest: &Guest) {
        let mut facts = facts.clone();
        facts["target"] = json!({ "name": target.to_string(), "agent": guest.agent().build });
        if let Some(folder) = &self.folder {
            // As with a machine's.
            let _ = folder.write("facts.json", format!("{facts:#}\n").as_bytes());
        }
    }

    pub(super) fn circumstances(&self) -> Circumstances {
        Circumstances {
            subjects: self.subjects.clone(),
            panic_on_console: self.panic_line().is_some(),
            last_line: last_line(&self.tail),
            step_last_line: last_line(&self.step_tail),
            said: self.said.clone(),
            tap: self.tap_end.clone(),
            statuses: self.statuses.clone(),
            expect: self.expect.clone(),
        }
    }

    fn panic_line(&self) -> Option<&ConsoleLine> {
        // The last one: a guest may have printed the words before. The kernel repeats them at its end.
        let panics = |line: &&ConsoleLine| {
            line.text.contains(PANIC_MARK) && !line.text.contains(&format!("end {PANIC_MARK}"))
        };
        self.console.iter().rfind(panics)
    }

    /// The evidence of what did not pass, a line each.
    pub(super) fn explain(&self, finding: &Finding) -> Vec<String> {
        let mut notes = self.notes.clone();
        let finding = match finding {
            Finding::Step { inner, .. } => {
                let said = text::escape(&self.step_tail);
                let lines: Vec<_> = said.lines().filter(|line| !line.trim().is_empty()).collect();
                // The last one stands in the reason.
                let before = &lines[..lines.len().saturating_sub(1)];
                let from = before.len().saturating_sub(CONSOLE_SHOWN);
                notes.extend(before[from..].iter().map(|line| text::one_line(line, 200)));
                inner
            }
            finding => finding,
        };
        let went_down = match finding {
            Finding::MachineEnded(Ending::Panicked | Ending::Reset | Ending::PoweredOff) => true,
            Finding::NoMachine(error) => matches!(
                error,
                LeaseError::Ended { .. } | LeaseError::Silent { .. } | LeaseError::NoPort { .. }
            ),
            _ => false,
        };
        if went_down {
            let powered_off = matches!(finding, Finding::MachineEnded(Ending::PoweredOff));
            match self.panic_line().filter(|_| !powered_off) {
                Some(line) => notes.push(self.with_time(line)),
                None => {
                    let from = self.console.len().saturating_sub(CONSOLE_SHOWN);
                    notes.extend(self.console[from..].iter().map(|line| self.with_time(line)));
                    if self.console.is_empty() {
                        notes.push("nothing came on the console".to_owned());
                    }
                }
            }
        }
        if let Finding::NoMachine(LeaseError::QemuDied { stderr, .. })
        | Finding::MachineEnded(Ending::QemuDied { stderr, .. }) = finding
        {
            // The last line stands in the verdict.
            let lines = stderr.lines().count().saturating_sub(1);
            notes.extend(stderr.lines().take(lines).map(|line| text::one_line(line, 300)));
        }
        if let Finding::NoMachine(LeaseError::SetUp { failure, .. }) = finding {
            notes.extend(failure.output_before_last(CONSOLE_SHOWN));
        }
        if let Finding::Complained(complaint) = finding {
            notes.extend(complaint.line.as_ref().map(|line| format!("{line}   (kernel's log)")));
        }
        if let Finding::Broken(broken) = finding {
            notes.extend(broken.log.iter().map(|line| format!("| {line}")));
            notes.extend(broken.hints.iter().map(|hint| format!("hint: {hint}")));
        }
        if let Finding::NoMachine(error) = finding {
            notes.extend(error.hint().map(|hint| format!("hint: {hint}")));
            let is_judged = self.subjects.contains(&Subject::Kernel) && went_down;
            notes.extend(is_judged.then(|| boot_hint(&self.console)).flatten());
        }
        if let Finding::NoMachine(LeaseError::Memory(_)) = finding {
            let default = "--memory 256M is the default; `guestline doctor` shows what is free";
            notes.push(format!("hint: {default}"));
        }
        if let (Finding::NoMachine(LeaseError::Ended { .. } | LeaseError::Silent { .. }), Some(mib)) =
            (finding, self.wanted.memory_mib)
            && mib < SMALL_MIB
        {
            notes.push(format!(
                "hint: {mib} MiB of memory may be too little to boot; 256 is the default"
            ));
        }
        if judge(finding, &self.circumstances()).why().contains(FULL) {
            let home = guestline::dirs::HOME_VARIABLE;
            notes
                .push(format!("hint: make room on that disk, or set {home} to a folder elsewhere"));
        }
        if let Finding::Refused(error) = finding {
            notes.push(error.message.clone());
        }
        if let Some(status @ (126 | 127)) = status(finding) {
            notes.extend(missing_tool(&text::escape(&self.tail), status).map(|tool| {
                let image = &self.wanted.image;
                match status {
                    127 => format!("the image `{image}` has no `{tool}`"),
                    _ => format!("the image `{image}` cannot execute `{tool}`"),
                }
            }));
        }
        let dropped = self.folder.as_ref().map_or(0, AttemptFolder::dropped);
        if dropped > 0 {
            notes.push(format!("{dropped} bytes of output over the limit were not kept"));
        }
        notes
    }

    /// "TEXT   (console, 0.41 s after the check began)".
    fn with_time(&self, line: &ConsoleLine) -> String {
        let text = text::one_line(line.text.trim_end(), 200);
        match self.began.and_then(|began| line.at.checked_duration_since(began)) {
            Some(after) => {
                format!("{text}   (console, {} after the check began)", text::seconds(after))
            }
            None => format!("{text}   (console)"),
        }
    }
}

fn last_line(tail: &[u8]) -> String {
    let tail = text::escape(tail);
    let line = tail.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
    text::one_line(line.trim(), 200)
}
