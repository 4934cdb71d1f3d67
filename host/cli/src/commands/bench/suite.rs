//! `guestline bench suite`: what planning and dispatch cost, and many small tests.
//!
//! The floors: nothing at all for planning and dispatch, the CPU time of bare machines for tests that each have one, bare
//! execs in one bare machine for those that share one.

use super::machine::Restored;
use super::stats::{Row, median, ms, peak_memory};
use crate::args::{BenchArgs, GlobalArgs};
use crate::context::Context;
use crate::error::CommandError;
use crate::limits::cores;
use crate::suites;
use guestline_harness::event::{AttemptFinished, RunEvent};
use guestline_harness::job::{Job, Limits};
use guestline_harness::outcome::Outcome;
use guestline_harness::plan::{
    Files, GuestFacts, Overrides, Plan, PlanQueue, PlanTerms, Surroundings,
};
use guestline_harness::run::{self, Dispatch, Emitter, Execute, Terms, Ticket};
use guestline_harness::suite::find::Means;
use guestline_harness::suite::{Environment, find};
use serde_json::json;
use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;
use tokio_util::sync::CancellationToken;
use ulid::Ulid;

/// What every test of the benchmark runs.
const LINE: &str = "grep -q sse2 /proc/cpuinfo";

/// So many tests do nothing.
const NO_OPS: usize = 10_000;

/// So many one-liners in machines.
const MANY: usize = 100;

/// An executor whose machine does nothing.
struct Nothing;

impl Execute for Nothing {
    async fn execute(&self, job: Job, tickets: Vec<Ticket>, terms: Terms) -> Vec<(u32, Outcome)> {
        let mut outcomes = Vec::new();
        for (ticket, test) in tickets.iter().zip(&job.tests) {
            let _turn = terms.places.acquire().await;
            let mut emitter = ticket.emitter.attempt();
            let started = RunEvent::AttemptStarted {
                number: ticket.number,
                attempt_number: ticket.attempt,
                test: test.name(),
                job: Box::new(job.only(test)),
            };
            emitter.emit(started).await;
            let finished = AttemptFinished {
                number: ticket.number,
                attempt_number: ticket.attempt,
                test: test.name(),
                outcome: Outcome::Passed,
                status: Some(0),
                machine_us: None,
                check_us: None,
                guest_check_us: None,
                elapsed_us: 0,
                notes: Vec::new(),
                folder: None,
            };
            emitter.emit(RunEvent::AttemptFinished(Box::new(finished))).await;
            outcomes.push((ticket.number, Outcome::Passed));
        }
        outcomes
    }
}

pub(super) fn run(global: &GlobalArgs, args: &BenchArgs) -> Result<u8, CommandError> {
    let context = Context::new()?;
    let image = super::tiny(&context, global)?;
    let kernel = image.manifest.kernel_release.clone();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let (rows, setting) = runtime.block_on(async {
        let mut rows = Vec::new();
        listing(args.runs, &mut rows)?;
        no_ops(args.runs, &mut rows).await?;
        let bench = Restored::of(global, image, LINE, args.runs).await?;
        many(&bench, args.runs, &mut rows).await?;
        let setting = bench.setting(kernel, args.runs);
        bench.finish().await;
        Ok::<_, CommandError>((rows, setting))
    })?;
    setting.print(args.message_format, json!({}), &rows)
}

/// A suite of one file of checks.
fn suite(folder: &Path, header: &str, tests: usize, line: &str) -> Result<(), CommandError> {
    let mut text = header.to_owned();
    for number in 0..tests {
        let _ = writeln!(text, "t{number}: {line}");
    }
    Ok(std::fs::write(folder.join("many.checks"), text)?)
}

fn terms() -> PlanTerms {
    let limits = Limits { check_ms: 60_000, boot_ms: 120_000 };
    PlanTerms { limits, ..suites::plain_terms(Overrides::default()) }
}

fn surroundings() -> Surroundings {
    Surroundings::new(
        Environment::new("this host", "the guest"),
        Box::new(|_| GuestFacts::default()),
    )
}

fn plan(folder: &Path) -> Result<Plan, CommandError> {
    let found =
        find::find(folder, None, Means { cache: folder, cancel: &CancellationToken::new() })
            .map_err(|errors| suites::told(&errors))?;
    Plan::new(&found, terms(), &mut surroundings()).map_err(|errors| suites::told(&errors))
}

/// Ten thousand variants, from the command to its end.
fn listing(runs: u32, rows: &mut Vec<Row>) -> Result<(), CommandError> {
    let folder = tempfile::tempdir()?;
    let values = |axis: &str| {
        let values: Vec<_> = (0..10).map(|value| format!("'{axis}{value}'")).collect();
        format!("#: matrix.{axis} = [{}]\n", values.join(", "))
    };
    let header: String = ["a", "b", "c", "d"].map(values).concat();
    suite(folder.path(), &format!("#: requires = ['cpus >= 1']\n{header}"), 1, "true")?;
    let mut samples = Vec::new();
    for _ in 0..runs {
        let began = Instant::now();
        let output = Command::new(std::env::current_exe()?)
            .args(["list", "--json"])
            .arg(folder.path())
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()?;
        samples.push(ms(began.elapsed()));
        let lines = output.stdout.iter().filter(|&&byte| byte == b'\n').count();
        if lines != NO_OPS {
            return Err(CommandError::new(format!("`guestline list` told {lines} variants")));
        }
    }
    rows.push(Row::new("listing 10,000 variants", "ms", median(&samples), None, "under 1000"));
    Ok(())
}

/// Ten thousand tests through an executor that does nothing.
async fn no_ops(runs: u32, rows: &mut Vec<Row>) -> Result<(), CommandError> {
    let folder = tempfile::tempdir()?;
    suite(folder.path(), "", NO_OPS, "true")?;
    let (mut samples, mut grown) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        let began = Instant::now();
        let plan = plan(folder.path())?;
        let queue = PlanQueue::new(plan, &mut Files::default(), cores());
        let queue = queue.map_err(|errors| suites::told(&errors))?;
        let before = peak_memory(Path::new("/proc/self/status"))?;
        let (emitter, mut events) = Emitter::new(Ulid::generate(), CancellationToken::new());
        let reading = tokio::spawn(async move {
            let mut bytes = 0;
            while let Some(record) = events.recv().await {
                bytes += serde_json::to_vec(&record).map_or(0, |line| line.len());
            }
            bytes
        });
        let dispatch = Dispatch { parallel: cores(), fail_fast: false };
        let result = run::run(queue, dispatch, Arc::new(Nothing), emitter).await;
        reading.await.map_err(CommandError::new)?;
        samples.push(ms(began.elapsed()) / NO_OPS as f64);
        grown.push(peak_memory(Path::new("/proc/self/status"))? - before);
        if result.tally.passed as usize != NO_OPS {
            return Err(CommandError::new("not all of them passed"));
        }
    }
    let name = "planning, dispatch and events, each of 10,000";
    rows.push(Row::new(name, "ms", median(&samples), None, "under 1"));
    rows.push(Row::new(
        "  memory grown while they run",
        "MiB",
        median(&grown) / 1024.0,
        None,
        "flat",
    ));
    Ok(())
}

/// A hundred one-liners as a user runs them.
async fn many(bench: &Restored, runs: u32, rows: &mut Vec<Row>) -> Result<(), CommandError> {
    let folder = tempfile::tempdir()?;
    suite(folder.path(), "", MANY, LINE)?;
    let path = folder.path().display().to_string();
    let (mut alone, mut floors, mut shared, mut bare) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..runs {
        floors.push(bench.bare_cpu_ms().await?);
        bare.push(bench.bare_execs(MANY).await? / 1e3);
        shared.push(bench.program_ms(&["run", "--isolation", "suite", &path])? / 1e3);
    }
    for _ in 0..runs.min(3) {
        alone.push(bench.program_ms(&["run", &path])? / 1e3);
    }
    let floor = median(&floors) * MANY as f64 / cores() as f64 / 1e3;
    let name = format!("{MANY} one-liners, each in a machine of its own");
    rows.push(Row::new(&name, "s", median(&alone), Some(floor), "at most 1.3 x their CPU time"));
    let name = format!("{MANY} one-liners that share machines");
    let wanted = "at most 1.3 x bare execs in one bare machine";
    rows.push(Row::new(&name, "s", median(&shared), Some(median(&bare)), wanted));
    Ok(())
}
