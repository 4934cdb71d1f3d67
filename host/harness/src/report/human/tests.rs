//! What people see.

use super::*;
use crate::event::OutputData;
use crate::job::{Job, JobTest, Limits, MachineWanted, TestCommand};
use crate::outcome::{Stage, Tally};
use crate::run::{Trial, TrialTerms};

/// The streams that a report of these events writes: stdout, stderr.
fn report(config: HumanConfig, events: Vec<(u64, RunEvent)>) -> (String, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let mut human = Human::new(config, &mut out, &mut err);
    for (attempt, event) in events {
        let attempt = Some(Ulid::from_parts(attempt, 1));
        let record =
            |event| Record { schema: 1, run: Ulid::nil(), attempt, sequence: 0, time_us: 0, event };
        human.record(&record(event.clone())).unwrap();
        if let RunEvent::AttemptFinished(end) = event {
            let mut trial = Trial::new(TrialTerms::default());
            let verdict = trial.on_outcome(end.outcome).unwrap();
            let finished = TestFinished { number: end.number, test: end.test, verdict };
            human.record(&record(RunEvent::TestFinished(Box::new(finished)))).unwrap();
        }
    }
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (text(out), text(err))
}

fn config() -> HumanConfig {
    HumanConfig {
        again: "guestline check".to_owned(),
        home: Some("/home/me".to_owned()),
        ..HumanConfig::default()
    }
}

fn run_started(tests: u32) -> (u64, RunEvent) {
    let event = RunEvent::RunStarted {
        version: "0".into(),
        tests,
        accelerator: "tcg".into(),
        accelerator_why: "as asked".into(),
        accelerator_probed: false,
        qemu: "10.0".into(),
        folder: "/f".into(),
    };
    (0, event)
}

fn started(number: u32, line: &str) -> (u64, RunEvent) {
    let job = Job {
        tests: vec![JobTest::of_command(TestCommand::Line(line.to_owned()), Vec::new())],
        machines: BTreeMap::new(),
        fixtures: Vec::new(),
        subjects: Vec::new(),
        machine: MachineWanted {
            image: "tiny".into(),
            kernel: None,
            kconfig: None,
            modules: None,
            cmdline: None,
            memory_mib: None,
            cpus: 1,
            fresh_reboot: false,
            disks: Vec::new(),
            nics: Vec::new(),
            qemu: None,
            qemu_args: Vec::new(),
            firmware: None,
            hardware: Default::default(),
            with: Vec::new(),
            layers: Vec::new(),
        },
        limits: Limits { check_ms: 1, boot_ms: 1 },
    };
    let event = RunEvent::AttemptStarted {
        number,
        attempt_number: 1,
        test: line.to_owned(),
        job: Box::new(job),
    };
    (number.into(), event)
}

fn output(number: u32, stream: StreamName, data: &[u8]) -> (u64, RunEvent) {
    (number.into(), RunEvent::Output { stream, data: OutputData(data.to_vec()) })
}

fn finished(number: u32, line: &str, outcome: Outcome, notes: &[&str]) -> (u64, RunEvent) {
    let end = AttemptFinished {
        number,
        attempt_number: 1,
        test: line.to_owned(),
        outcome,
        status: None,
        machine_us: Some(2_070_000),
        check_us: Some(50_000),
        guest_check_us: None,
        elapsed_us: 2_130_000,
        notes: notes.iter().map(|note| (*note).to_owned()).collect(),
        folder: Some(format!("/home/me/runs/{number}")),
    };
    (number.into(), RunEvent::AttemptFinished(Box::new(end)))
}

fn failed(reason: &str) -> Outcome {
    Outcome::Failed { reason: reason.to_owned(), stage: None }
}

#[test]
fn one_that_passes_is_one_line_after_its_output() {
    let events = vec![
        run_started(1),
        started(1, "grep x"),
        output(1, StreamName::Stdout, b"out\n"),
        output(1, StreamName::Stderr, b"err"),
        finished(1, "grep x", Outcome::Passed, &["not shown on a pass"]),
    ];
    let (out, err) = report(config(), events);
    assert_eq!(out, "out\n");
    insta::assert_snapshot!(err);
}

#[test]
fn one_that_fails_has_its_evidence_behind_it() {
    let notes = ["the image `tiny` has no `it's`"];
    let events =
        vec![run_started(1), started(1, "it's"), finished(1, "it's", failed("status 127"), &notes)];
    insta::assert_snapshot!(report(config(), events).1);
}

#[test]
fn every_outcome_has_its_line() {
    let errored = Outcome::Errored { stage: Stage::Host, reason: "no memory".into() };
    let boot = Outcome::Failed { reason: "guest panicked".into(), stage: Some(Stage::Boot) };
    let events = vec![
        run_started(6),
        finished(1, "a", Outcome::Passed, &[]),
        finished(2, "b", boot, &[]),
        finished(3, "c", Outcome::Skipped { reason: "no vlan".into() }, &[]),
        finished(4, "d", Outcome::Incompatible { reason: "needs kvm".into() }, &[]),
        finished(5, "e\n\u{1b}[2J", errored, &[]),
        finished(6, "f", Outcome::Aborted, &[]),
        (
            0,
            RunEvent::RunFinished {
                not_run: 0,
                tally: Tally {
                    passed: 1,
                    failed: 1,
                    skipped: 1,
                    incompatible: 1,
                    errored: 1,
                    aborted: 1,
                    known: 0,
                },
                elapsed_us: 12_300_000,
            },
        ),
    ];
    insta::assert_snapshot!(report(config(), events).1);
}

#[test]
fn of_several_each_has_its_block_however_they_mix() {
    let events = vec![
        run_started(2),
        started(1, "a"),
        started(2, "b"),
        output(1, StreamName::Stdout, b"first of a\n"),
        output(2, StreamName::Stdout, b"first of b\x1b[2J\n"),
        output(1, StreamName::Stderr, b"second of a"),
        finished(2, "b", Outcome::Passed, &[]),
        finished(1, "a", failed("status 1"), &[]),
    ];
    let (out, err) = report(config(), events);
    assert_eq!(out, "");
    insta::assert_snapshot!(err);
}

#[test]
fn a_block_is_bounded_and_says_so() {
    let mut events = vec![run_started(2), started(1, "a")];
    events.extend((0..40).map(|_| output(1, StreamName::Stdout, &[b'x'; 4096])));
    events.push(finished(1, "a", Outcome::Passed, &[]));
    let (_, err) = report(config(), events);
    assert!(err.len() < BLOCK_LEN + 500);
    assert!(
        err.contains("… 98304 bytes more; all of it is in the evidence"),
        "{}",
        &err[BLOCK_LEN..]
    );
}

#[test]
fn a_terminal_gets_colour_and_nothing_from_the_guest_that_drives_it() {
    let events = vec![
        run_started(1),
        started(1, "a"),
        output(1, StreamName::Stdout, b"\x1b[2J\xe2\x82"),
        output(1, StreamName::Stdout, b"\xac\xe2"),
        finished(1, "a", Outcome::Passed, &[]),
    ];
    let terminal = HumanConfig {
        stdout_is_terminal: true,
        stderr_is_terminal: true,
        colour: true,
        ..config()
    };
    let (out, err) = report(terminal, events);
    assert_eq!(out, "\\u{1b}[2J€\\xe2");
    assert!(err.starts_with("\n\u{1b}[32mpassed\u{1b}[0m  a"), "{err:?}");
}
