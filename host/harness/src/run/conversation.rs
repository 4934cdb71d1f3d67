//! A test's command on a leased machine: an answer, or what came instead.

use super::Emitter;
use super::attempt::Attempt;
use super::execute::Broken;
use super::judge::Finding;
use super::kernel_watch::KernelWatch;
use crate::event::{OutputData, RunEvent};
use crate::job::Job;
use crate::outcome::Stage;
use crate::text;
use guestline::guest::{ExecEvent, ExecHandle};
use guestline::link::LinkError;
use guestline::provision::Lease;
use guestline_protocol::{ExecExitedEvent, ExecRequest, ExitStatus};
use std::time::{Duration, Instant};
use tokio::time::{timeout, timeout_at};
use tokio_util::sync::CancellationToken;

/// How long a guest that has gone down is still listened to.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// Reading the kernel's log may take so long.
const WATCH: Duration = Duration::from_secs(30);

/// How often the clock is looked at; much later than that, and this process itself was stopped.
const TICK: Duration = Duration::from_millis(500);

/// A slow reader of the output gives a test at most so many times its limit more.
const MAX_CREDIT: u32 = 10;

/// As [`check`], with an eye on the kernel where that is wanted.
pub(super) async fn watched(
    job: &Job,
    lease: &Lease,
    attempt: &mut Attempt,
    emitter: &mut Emitter,
    cancel: &CancellationToken,
) -> Finding {
    let watch = match look_at(lease, cancel, KernelWatch::begin(&job.fail_on, &lease.guest)).await {
        Ok(watch) => watch,
        Err(finding) => return finding,
    };
    let finding = check(job, lease, attempt, emitter, cancel).await;
    let passed =
        matches!(&finding, Finding::Exited(ExecExitedEvent { status: ExitStatus::Exited(0), .. }));
    match watch.filter(|_| passed) {
        Some(before) => match look_at(lease, cancel, before.complaint(&lease.guest)).await {
            Ok(Some(complaint)) => Finding::Complained(complaint),
            Ok(None) => finding,
            Err(finding) => finding,
        },
        None => finding,
    }
}

/// Looks at the kernel of a machine, which may end or hang over that.
async fn look_at<T>(
    lease: &Lease,
    cancel: &CancellationToken,
    looking: impl Future<Output = Result<T, LinkError>>,
) -> Result<T, Finding> {
    tokio::select! {
        biased;
        ending = lease.machine.ended() => Err(Finding::MachineEnded(ending)),
        looked = timeout(WATCH, looking) => match looked {
            Ok(Ok(looked)) => Ok(looked),
            Ok(Err(error)) => Err(Finding::LinkLost(error)),
            Err(_) => Err(Finding::Broken(Broken {
                stage: Stage::Agent,
                reason: format!("the kernel's log cannot be read within {}", text::limit(WATCH)),
                hints: vec![],
            })),
        },
        () = cancel.cancelled() => Err(Finding::Cancelled),
    }
}

/// Runs the command on a leased machine: an answer, an end of machine or link, a timeout or a
/// cancellation, whichever comes first.
async fn check(
    job: &Job,
    lease: &Lease,
    attempt: &mut Attempt,
    emitter: &mut Emitter,
    cancel: &CancellationToken,
) -> Finding {
    let began = Instant::now();
    attempt.began = Some(began);
    let finding = {
        let mut conversation = std::pin::pin!(converse(job, lease, attempt, emitter));
        tokio::select! {
            biased;
            finding = &mut conversation => finding,
            ending = lease.machine.ended() => {
                // What the test said before is perhaps still on its way, also that it was done.
                match timeout(LAST_WORDS, conversation).await {
                    Ok(Finding::Exited(exited)) => Finding::Exited(exited),
                    _ => Finding::MachineEnded(ending),
                }
            }
            () = cancel.cancelled() => Finding::Cancelled,
        }
    };
    attempt.check = Some(began.elapsed());
    match finding {
        // A guest that goes down takes the link, and sometimes the command, with it first.
        Finding::LinkLost(error) => match lease.machine.ended_soon().await {
            Some(ending) => Finding::MachineEnded(ending),
            None => Finding::LinkLost(error),
        },
        finding => finding,
    }
}

async fn converse(
    job: &Job,
    lease: &Lease,
    attempt: &mut Attempt,
    emitter: &mut Emitter,
) -> Finding {
    let before = lease.machine.cpu_share();
    let limit = job.limits.check();
    let timed_out = || {
        let cpu = lease.machine.cpu_share();
        let (waited, stopped) = (cpu.waited_since(&before), cpu.is_stopped());
        Finding::TimedOut { limit, waited, stopped }
    };
    let began = tokio::time::Instant::now();
    let mut deadline = began + limit;
    let last_deadline = began + limit * (1 + MAX_CREDIT);
    let starting = lease.guest.exec(ExecRequest::new(job.command.to_command()));
    let mut process: ExecHandle = match timeout_at(deadline, starting).await {
        Ok(Ok(process)) => process,
        Ok(Err(error)) => return Finding::LinkLost(error),
        Err(_) => return timed_out(),
    };
    loop {
        // Looked at here too: a flood always has a next event at hand.
        if tokio::time::Instant::now() >= deadline {
            return timed_out();
        }
        let asleep = tokio::time::Instant::now();
        let Ok(event) = timeout_at(deadline.min(asleep + TICK), process.next()).await else {
            // Woken late, this process was stopped (Ctrl-Z) and the guest perhaps long done.
            let missed = asleep.elapsed().saturating_sub(TICK);
            if missed > TICK {
                deadline += missed;
            }
            continue;
        };
        match event {
            Ok(ExecEvent::Started { .. }) => {}
            Ok(ExecEvent::Output { stream, data }) => {
                if let Err(error) = attempt.keep(stream, &data) {
                    let folder = attempt.folder.as_ref();
                    let path = folder.map(|folder| folder.path().display().to_string());
                    return Finding::Evidence { path: path.unwrap_or_default(), error };
                }
                let event = RunEvent::Output { stream: stream.into(), data: OutputData(data) };
                // The test does not pay for a reader of its output who takes his time.
                let waiting = Instant::now();
                emitter.emit(event).await;
                deadline = (deadline + waiting.elapsed()).min(last_deadline);
            }
            Ok(ExecEvent::Exited(exited)) => {
                if exited.output_held {
                    let note =
                        "a child still held its output open; what it wrote later is not kept";
                    attempt.notes.push(note.to_owned());
                }
                return Finding::Exited(exited);
            }
            Ok(ExecEvent::Refused(error)) => {
                attempt.tail = error.message.clone().into_bytes();
                return Finding::Refused(error);
            }
            Err(error) => return Finding::LinkLost(error),
        }
    }
}
