//! From what was found to an outcome: no I/O, one table.

use super::attempt::Part;
use super::execute::Broken;
use super::install::NotInstalled;
use super::kernel_watch::Complaint;
use crate::job::Subject;
use crate::lab::Verdict;
use crate::outcome::{Outcome, Stage};
use crate::suite::settings::{Expected, Statuses};
use crate::tap::{self, TapEnd};
use crate::text;
use guestline::link::LinkError;
use guestline::machine::Ending;
use guestline::provision::LeaseError;
use guestline_protocol::{ErrorKind, ExecExitedEvent, ExitStatus, RemoteError};
use nix::sys::signal::Signal;
use std::io;
use std::time::Duration;

/// What came of running a test, before it is judged.
#[derive(Debug)]
pub(super) enum Finding {
    /// It ended.
    Exited(ExecExitedEvent),
    /// It could not be started in the guest.
    Refused(RemoteError),
    /// Its time was over; for so much of it the host kept QEMU waiting for a CPU, or had it stopped.
    TimedOut { limit: Duration, waited: Duration, stopped: bool },
    /// It passed, and the kernel did what was not to be.
    Complained(Complaint),
    /// Its machine ended.
    MachineEnded(Ending),
    /// The link ended while the machine lived.
    LinkLost(LinkError),
    /// There was no machine.
    NoMachine(LeaseError),
    /// The set-up is broken for every test.
    Broken(Broken),
    /// The host could not keep what it gave.
    Evidence { path: String, error: io::Error },
    /// What it needs of a running guest is not there, in words.
    Unmet(String),
    /// Its set-up or tear-down did not do.
    Step { part: Part, inner: Box<Finding> },
    /// Interrupted.
    Cancelled,
}

/// What else the judgement turns on.
#[derive(Debug, Default)]
pub(super) struct Circumstances {
    /// What is judged as well.
    pub(super) subjects: Vec<Subject>,
    /// The console shows a kernel panic.
    pub(super) panic_on_console: bool,
    /// The last line of the test's output.
    pub(super) last_line: String,
    /// The last line of the output of its set-up or tear-down.
    pub(super) step_last_line: String,
    /// What a side has said of the whole test.
    pub(super) said: Option<Verdict>,
    /// What its output says, where that is results.
    pub(super) tap: Option<TapEnd>,
    /// What its exit status says.
    pub(super) statuses: Statuses,
    /// What its machine was to do.
    pub(super) expect: Vec<Expected>,
}

impl Circumstances {
    fn is_judged(&self, part: Subject) -> bool {
        self.subjects.contains(&part)
    }
}

pub(super) fn judge(finding: &Finding, around: &Circumstances) -> Outcome {
    let failed = |reason: String| Outcome::Failed { reason, stage: None };
    let errored = |stage, reason: String| Outcome::Errored { stage, reason };
    match (finding, &around.said) {
        (Finding::Exited(_) | Finding::TimedOut { .. }, Some(Verdict::Fail { reason })) => {
            return failed(text::one_line(reason, 300));
        }
        (Finding::Exited(_), Some(Verdict::Skip { reason })) => {
            return Outcome::Skipped { reason: text::one_line(reason, 300) };
        }
        _ => {}
    }
    match finding {
        Finding::Exited(exited) => match exited.status {
            ExitStatus::Exited(status) => {
                let said = around.statuses.outcome(status, &around.last_line);
                match (&around.tap, &around.expect[..]) {
                    (_, [_, ..]) if said == Outcome::Passed => {
                        failed(not_as_expected(status, &around.expect))
                    }
                    (Some(end), []) => tap::judge(end, said),
                    _ => said,
                }
            }
            ExitStatus::Signaled { signal, .. } => {
                failed(format!("killed by {}", signal_name(signal)))
            }
        },
        Finding::Refused(error) => match refused_status(error) {
            Some(status) => failed(format!("status {status}")),
            None => errored(Stage::Agent, error.message.clone()),
        },
        Finding::TimedOut { limit, waited, stopped } => {
            let after = format!("timed out after {}", text::limit(*limit));
            if *stopped {
                return errored(Stage::Host, format!("{after}; somebody stopped QEMU (SIGSTOP)"));
            }
            match starved(*limit, *waited) {
                Some(starved) => errored(Stage::Host, format!("{after}; {starved}")),
                None => failed(after),
            }
        }
        Finding::Complained(Complaint { reason, .. }) => failed(reason.clone()),
        Finding::MachineEnded(ending) if is_expected(ending, around) => {
            match (&around.said, &around.tap) {
                // What it said before stands.
                (Some(Verdict::Fail { reason }), _) => failed(text::one_line(reason, 300)),
                (_, Some(end)) if end.failed > 0 => tap::judge(end, Outcome::Passed),
                _ => Outcome::Passed,
            }
        }
        Finding::Unmet(reason) => Outcome::Incompatible { reason: reason.clone() },
        Finding::Step { part, inner } => step(*part, inner, around),
        Finding::MachineEnded(ending) => match guest_ending(ending, around) {
            Some(words) => failed(words.to_owned()),
            None if around.is_judged(Subject::Qemu) && died_by_itself(ending) => {
                failed(qemu_died(ending))
            }
            None => errored(Stage::Host, qemu_died(ending)),
        },
        Finding::LinkLost(error) => errored(Stage::Link, text::chain(error)),
        Finding::NoMachine(error) => no_machine(error, around),
        Finding::Broken(broken) => errored(broken.stage, broken.reason.clone()),
        Finding::Evidence { path, error } => {
            errored(Stage::Host, format!("cannot keep the evidence in {path}: {error}"))
        }
        Finding::Cancelled => Outcome::Aborted,
    }
}

/// A set-up or tear-down that did not do is nobody's failed test.
fn step(part: Part, inner: &Finding, around: &Circumstances) -> Outcome {
    // Whatever part of a test QEMU dies in, it is QEMU's end.
    if let Finding::MachineEnded(Ending::QemuDied { .. }) = inner {
        return judge(inner, around);
    }
    let around = Circumstances {
        last_line: around.step_last_line.clone(),
        panic_on_console: around.panic_on_console,
        // It cannot say that a test does not apply.
        statuses: Statuses { pass: vec![0], skip: vec![] },
        ..Circumstances::default()
    };
    match judge(inner, &around) {
        Outcome::Failed { reason, .. } => {
            let reason = match around.last_line.as_str() {
                "" => format!("{}: {reason}", part.word()),
                said => format!("{}: {reason}: {said}", part.word()),
            };
            Outcome::Errored { stage: Stage::Fixture, reason }
        }
        Outcome::Passed => Outcome::Passed,
        other => other,
    }
}

fn is_expected(ending: &Ending, around: &Circumstances) -> bool {
    let came = match ending {
        Ending::Panicked => Expected::Panic,
        Ending::Reset if around.panic_on_console => Expected::Panic,
        Ending::Reset => Expected::Reboot,
        Ending::PoweredOff => Expected::Poweroff,
        Ending::QemuDied { .. } => return false,
    };
    around.expect.contains(&came)
}

/// "status 0, and the guest was to panic".
fn not_as_expected(status: u8, expect: &[Expected]) -> String {
    let words = expect.iter().map(|expected| match expected {
        Expected::Panic => "panic",
        Expected::Reboot => "reboot",
        Expected::Poweroff => "power off",
    });
    format!("status {status}, and the guest was to {}", words.collect::<Vec<_>>().join(" or "))
}

/// The status a shell gives for a program that is not there, or is none.
pub(super) fn refused_status(error: &RemoteError) -> Option<u8> {
    match error.kind {
        ErrorKind::NotFound => Some(127),
        ErrorKind::NotExecutable => Some(126),
        _ => None,
    }
}

/// Where a set-up broke that gave no machine.
pub fn stage_of(error: &LeaseError) -> Stage {
    match error {
        LeaseError::Cancelled
        | LeaseError::Memory(_)
        | LeaseError::NoTemplate { .. }
        | LeaseError::WorkFolder { .. }
        | LeaseError::Write { .. }
        | LeaseError::Start(_)
        | LeaseError::Uefi(_)
        | LeaseError::Firmware { .. }
        | LeaseError::QemuDied { .. }
        | LeaseError::Restore(_) => Stage::Host,
        LeaseError::Kernel(_)
        | LeaseError::KernelChanged { .. }
        | LeaseError::KconfigChanged { .. }
        | LeaseError::OwnKernel { .. }
        | LeaseError::OwnCmdline { .. }
        | LeaseError::NoDriver { .. }
        | LeaseError::NoUefi { .. }
        | LeaseError::Image { .. } => Stage::Image,
        LeaseError::KernelLacks { .. }
        | LeaseError::Ended { .. }
        | LeaseError::Silent { .. }
        | LeaseError::NotReady { .. } => Stage::Boot,
        LeaseError::NoPort { .. } => Stage::Link,
        LeaseError::Link(LinkError::Version { .. } | LinkError::Refused(_))
        | LeaseError::Settle(_) => Stage::Agent,
        LeaseError::Link(_) => Stage::Link,
        LeaseError::SetUp { .. } => Stage::Fixture,
    }
}

fn no_machine(error: &LeaseError, around: &Circumstances) -> Outcome {
    match error {
        LeaseError::Cancelled => Outcome::Aborted,
        LeaseError::QemuDied { signal, stderr, .. } => {
            let reason = text::one_line(&error.to_string(), 300);
            match around.is_judged(Subject::Qemu) && !is_from_outside(*signal, stderr) {
                true => Outcome::Failed { reason, stage: Some(Stage::Boot) },
                false => Outcome::Errored { stage: Stage::Host, reason },
            }
        }
        LeaseError::SetUp { .. } => match NotInstalled::of(error) {
            Some(NotInstalled::Package(reason)) if around.is_judged(Subject::Install) => {
                Outcome::Failed { reason, stage: Some(Stage::Boot) }
            }
            Some(NotInstalled::Package(reason) | NotInstalled::Image(reason)) => {
                Outcome::Errored { stage: Stage::Fixture, reason }
            }
            None => Outcome::Errored { stage: Stage::Fixture, reason: text::chain(error) },
        },
        LeaseError::Ended { ending } => {
            let words = guest_ending(ending, around).unwrap_or("guest ended");
            boot(around, words.to_owned())
        }
        LeaseError::Silent { waited, starved: kept_waiting } => {
            let after = format!("no answer from the guest within {}", text::limit(*waited));
            match starved(*waited, *kept_waiting) {
                Some(starved) => {
                    Outcome::Errored { stage: Stage::Host, reason: format!("{after}; {starved}") }
                }
                None => boot(around, after),
            }
        }
        _ => Outcome::Errored { stage: stage_of(error), reason: text::chain(error) },
    }
}

/// What a guest boots from and on is judged where it is the subject; else it belongs to the set-up.
fn boot(around: &Circumstances, reason: String) -> Outcome {
    let parts = [Subject::Kernel, Subject::Qemu, Subject::Firmware];
    match parts.into_iter().any(|part| around.is_judged(part)) {
        true => Outcome::Failed { reason, stage: Some(Stage::Boot) },
        false => Outcome::Errored { stage: Stage::Boot, reason },
    }
}

/// In words, when the guest did it. A kernel without pvpanic panics into a reset (`panic=-1`).
fn guest_ending(ending: &Ending, around: &Circumstances) -> Option<&'static str> {
    match ending {
        Ending::Panicked => Some("guest panicked"),
        Ending::Reset if around.panic_on_console => Some("guest panicked"),
        Ending::Reset => Some("guest rebooted"),
        Ending::PoweredOff => Some("guest powered off"),
        Ending::QemuDied { .. } => None,
    }
}

fn died_by_itself(ending: &Ending) -> bool {
    match ending {
        Ending::QemuDied { signal, stderr, .. } => !is_from_outside(*signal, stderr),
        _ => false,
    }
}

/// Somebody ended QEMU. Of a signal that it handles, it says so (QEMU `qemu_kill_report`) and exits.
fn is_from_outside(signal: Option<i32>, stderr: &str) -> bool {
    let signal = signal.and_then(|signal| Signal::try_from(signal).ok());
    let of_people =
        [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT];
    signal.is_some_and(|signal| of_people.contains(&signal))
        || stderr.lines().last().is_some_and(|line| line.contains(": terminating on signal "))
}

fn qemu_died(ending: &Ending) -> String {
    let Ending::QemuDied { how, stderr, .. } = ending else {
        return String::new();
    };
    match stderr.lines().last() {
        Some(line) => format!("QEMU {how}: {}", text::one_line(line, 200)),
        None => format!("QEMU {how}"),
    }
}

/// Did the host keep QEMU waiting for a CPU for more than half of the time?
fn starved(limit: Duration, waited: Duration) -> Option<String> {
    let too_little = waited > limit / 2;
    too_little
        .then(|| format!("the host gave QEMU no CPU for {} of it", text::limit(round(waited))))
}

fn round(duration: Duration) -> Duration {
    Duration::from_millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

/// "SIGSEGV (11)"; numbers of x86 Linux (signal(7)).
fn signal_name(signal: u8) -> String {
    match Signal::try_from(i32::from(signal)) {
        Ok(name) => format!("{} ({signal})", name.as_str()),
        Err(_) => format!("signal {signal}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use guestline::provision::{SetUpFailure, SetUpStep};

    fn exited(status: ExitStatus) -> Finding {
        Finding::Exited(ExecExitedEvent {
            status,
            output_held: false,
            cancelled: false,
            elapsed_us: 0,
            usage: Default::default(),
            total: 0,
        })
    }

    fn died() -> Ending {
        let (how, stderr) = ("was killed by SIGKILL".to_owned(), String::new());
        Ending::QemuDied { how, signal: Some(9), stderr }
    }

    fn says(finding: &Finding, around: &Circumstances) -> String {
        let outcome = judge(finding, around);
        format!("{} | {}", outcome.word(), outcome.why())
    }

    fn subject() -> Circumstances {
        Circumstances { subjects: vec![Subject::Kernel], ..Circumstances::default() }
    }

    #[test]
    fn a_test_is_judged_by_what_it_did() {
        let around = Circumstances { last_line: "no vlan here".into(), ..Circumstances::default() };
        let say = |finding: &Finding| says(finding, &around);
        assert_eq!(say(&exited(ExitStatus::Exited(0))), "passed | ");
        assert_eq!(say(&exited(ExitStatus::Exited(1))), "failed | status 1");
        assert_eq!(say(&exited(ExitStatus::Exited(77))), "skipped | no vlan here");
        let killed = ExitStatus::Signaled { signal: 11, core_dumped: false };
        assert_eq!(say(&exited(killed)), "failed | killed by SIGSEGV (11)");
        let ended = |ending| say(&Finding::MachineEnded(ending));
        assert_eq!(ended(Ending::Panicked), "failed | guest panicked");
        assert_eq!(ended(Ending::PoweredOff), "failed | guest powered off");
        assert_eq!(ended(Ending::Reset), "failed | guest rebooted");
        let refused =
            |kind| say(&Finding::Refused(RemoteError { kind, errno: None, message: "why".into() }));
        assert_eq!(refused(ErrorKind::NotFound), "failed | status 127");
        assert_eq!(refused(ErrorKind::NotExecutable), "failed | status 126");
        assert_eq!(refused(ErrorKind::Busy), "errored | agent: why");
    }

    #[test]
    fn a_broken_set_up_is_no_failed_test() {
        let around = Circumstances::default();
        let say = |finding: &Finding| says(finding, &around);
        assert_eq!(
            say(&Finding::MachineEnded(died())),
            "errored | host: QEMU was killed by SIGKILL"
        );
        assert_eq!(say(&Finding::LinkLost(LinkError::Closed)), "errored | link: the link is gone");
        let panicked = Finding::NoMachine(LeaseError::Ended { ending: Ending::Panicked });
        assert_eq!(say(&panicked), "errored | boot: guest panicked");
        let no_port = LeaseError::NoPort { kernel: "6.9".into(), lacks: vec!["x".into()] };
        assert_eq!(
            say(&Finding::NoMachine(no_port)),
            "errored | link: kernel 6.9 has no link to the host: it lacks x"
        );
        assert_eq!(say(&Finding::NoMachine(LeaseError::Cancelled)), "aborted | interrupted");
    }

    #[test]
    fn a_kernel_that_is_the_subject_is_judged_but_a_kill_from_outside_is_not_its_doing() {
        let around = subject();
        let panicked = Finding::NoMachine(LeaseError::Ended { ending: Ending::Panicked });
        assert_eq!(says(&panicked, &around), "failed | boot: guest panicked");
        let around = Circumstances { panic_on_console: true, ..subject() };
        let reset = Finding::NoMachine(LeaseError::Ended { ending: Ending::Reset });
        assert_eq!(says(&reset, &around), "failed | boot: guest panicked");
        let Ending::QemuDied { how, signal, stderr } = died() else { unreachable!() };
        let killed = Finding::NoMachine(LeaseError::QemuDied { how, signal, stderr });
        assert_eq!(says(&killed, &around), "errored | host: QEMU was killed by SIGKILL");
    }

    #[test]
    fn a_qemu_that_is_the_subject_has_failed_when_it_dies_by_itself() {
        let around = Circumstances { subjects: vec![Subject::Qemu], ..Circumstances::default() };
        let ending = |how: &str, signal, stderr: &str| {
            let (how, stderr) = (how.to_owned(), stderr.to_owned());
            Ending::QemuDied { how, signal, stderr }
        };
        let crash = || ending("was killed by SIGSEGV", Some(11), "");
        let say = |ending: Ending| says(&Finding::MachineEnded(ending), &around);
        assert_eq!(say(crash()), "failed | QEMU was killed by SIGSEGV");
        assert_eq!(
            say(ending("exited with status 1", None, "assertion failed")),
            "failed | QEMU exited with status 1: assertion failed"
        );
        assert!(say(died()).starts_with("errored | host: "));
        let asked = "qemu-system-x86_64: terminating on signal 15 from pid 7 (kill)";
        assert!(say(ending("exited with status 0", None, asked)).starts_with("errored | host: "));
        // Before the test, and when it is nobody's subject.
        let no_machine = |ending| {
            let Ending::QemuDied { how, signal, stderr } = ending else { unreachable!() };
            Finding::NoMachine(LeaseError::QemuDied { how, signal, stderr })
        };
        assert_eq!(
            says(&no_machine(crash()), &around),
            "failed | boot: QEMU was killed by SIGSEGV"
        );
        assert!(says(&no_machine(died()), &around).starts_with("errored | host: "));
        assert!(says(&no_machine(crash()), &subject()).starts_with("errored | host: "));
        let none = Circumstances::default();
        assert!(says(&Finding::MachineEnded(crash()), &none).starts_with("errored | host: "));
    }

    #[test]
    fn packages_that_are_the_subject_are_judged_but_not_what_the_image_lacks() {
        let not_installed = |status, output: &str| {
            let step = SetUpStep { line: String::new(), name: Some("install of a.deb".into()) };
            let status = ExitStatus::Exited(status);
            let failure = SetUpFailure::Ended { status, output: output.to_owned() };
            Finding::NoMachine(LeaseError::SetUp { step: Box::new(step), failure })
        };
        let around = Circumstances { subjects: vec![Subject::Install], ..Circumstances::default() };
        let script = not_installed(1, "x\nits script failed");
        assert_eq!(says(&script, &around), "failed | boot: install of a.deb: its script failed");
        assert_eq!(
            says(&script, &Circumstances::default()),
            "errored | fixture: install of a.deb: its script failed"
        );
        let lacks = not_installed(102, "the image lacks b");
        assert_eq!(says(&lacks, &around), "errored | fixture: install of a.deb: the image lacks b");
    }

    #[test]
    fn a_timeout_is_the_hosts_when_it_gave_no_cpu() {
        let limit = Duration::from_secs(60);
        let timed_out = |waited| {
            let waited = Duration::from_secs(waited);
            Finding::TimedOut { limit, waited, stopped: false }
        };
        let stopped = Finding::TimedOut { limit, waited: Duration::ZERO, stopped: true };
        assert!(says(&stopped, &Circumstances::default()).starts_with("errored | host: timed out"));
        let around = Circumstances::default();
        assert_eq!(says(&timed_out(10), &around), "failed | timed out after 60 s");
        assert_eq!(
            says(&timed_out(40), &around),
            "errored | host: timed out after 60 s; the host gave QEMU no CPU for 40 s of it"
        );
        let silent = |starved| {
            let starved = Duration::from_secs(starved);
            Finding::NoMachine(LeaseError::Silent { waited: limit, starved })
        };
        assert_eq!(
            says(&silent(1), &subject()),
            "failed | boot: no answer from the guest within 60 s"
        );
        assert!(says(&silent(50), &subject()).starts_with("errored | host: no answer"));
    }
}
