//! A step of a test at its place: an answer, or what came instead.

use super::Emitter;
use super::attempt::{Attempt, Part};
use super::execute::Broken;
use super::judge::Finding;
use super::kernel_watch::KernelWatch;
use super::place::{Place, Places};
use crate::event::{OutputData, RunEvent};
use crate::job::FailOn;
use crate::outcome::Stage;
use crate::text;
use guestline::guest::{ExecEvent, ExecHandle};
use guestline::link::LinkError;
use guestline_protocol::{ExecExitedEvent, ExecRequest, ExitStatus};
use std::time::{Duration, Instant};
use tokio::sync::Mutex;
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

/// Takes what a step says, from all of its sides.
#[derive(Debug)]
pub(super) struct Recorder<'a> {
    pub(super) attempt: &'a mut Attempt,
    pub(super) emitter: &'a mut Emitter,
}

impl Recorder<'_> {
    /// The output of the test is complete.
    pub(super) async fn end_output(&mut self) {
        for subtest in self.attempt.end_output() {
            self.emitter.emit(RunEvent::Subtest(subtest.into())).await;
        }
    }
}

/// One side of a step.
pub(super) struct Side<'a> {
    pub(super) place: &'a Place,
    pub(super) request: ExecRequest,
}

/// What a step is.
#[derive(Debug, Clone, Copy)]
pub(super) struct StepTerms<'a> {
    pub(super) part: Part,
    pub(super) limit: Duration,
    pub(super) cancel: &'a CancellationToken,
}

/// Where the kernels of all machines are, before a test.
pub(super) async fn watch(
    fail_on: &[FailOn],
    places: &Places,
    cancel: &CancellationToken,
) -> Result<Vec<KernelWatch>, Finding> {
    let mut watches = Vec::new();
    for (_, place) in &places.machines {
        let watch = look_at(place, cancel, KernelWatch::begin(fail_on, place.guest())).await?;
        watches.extend(watch);
    }
    Ok(watches)
}

/// What one of the kernels did since that was not to be.
pub(super) async fn complaint(
    watches: Vec<KernelWatch>,
    places: &Places,
    cancel: &CancellationToken,
) -> Option<Finding> {
    for (watch, (_, place)) in watches.into_iter().zip(&places.machines) {
        match look_at(place, cancel, watch.complaint(place.guest())).await {
            Ok(Some(complaint)) => return Some(Finding::Complained(complaint)),
            Ok(None) => {}
            Err(finding) => return Some(finding),
        }
    }
    None
}

/// Looks at the kernel of a machine, which may end or hang over that.
async fn look_at<T>(
    place: &Place,
    cancel: &CancellationToken,
    looking: impl Future<Output = Result<T, LinkError>>,
) -> Result<T, Finding> {
    tokio::select! {
        biased;
        ending = place.ended() => Err(Finding::MachineEnded(ending)),
        looked = timeout(WATCH, looking) => match looked {
            Ok(Ok(looked)) => Ok(looked),
            Ok(Err(error)) => Err(Finding::LinkLost(error)),
            Err(_) => Err(Finding::Broken(Broken {
                stage: Stage::Agent,
                reason: format!("the kernel's log cannot be read within {}", text::limit(WATCH)),
                hints: vec![],
                log: vec![],
            })),
        },
        () = cancel.cancelled() => Err(Finding::Cancelled),
    }
}

/// Runs a step: an answer, an end of machine or link, a timeout or a cancellation, whichever comes first. Of several sides
/// the first that does not pass ends the others.
pub(super) async fn step(
    terms: StepTerms<'_>,
    sides: Vec<Side<'_>>,
    recorder: &mut Recorder<'_>,
) -> Finding {
    let recorder = Mutex::new(recorder);
    let mut running: Vec<_> =
        sides.into_iter().map(|side| Box::pin(one(terms, side, &recorder))).collect();
    let mut first = None;
    std::future::poll_fn(|context| {
        let mut index = 0;
        while index < running.len() {
            match running[index].as_mut().poll(context) {
                std::task::Poll::Ready(finding) => {
                    drop(running.swap_remove(index));
                    if !is_pass(&finding) {
                        return std::task::Poll::Ready(finding);
                    }
                    first.get_or_insert(finding);
                }
                std::task::Poll::Pending => index += 1,
            }
        }
        match running.is_empty() {
            true => std::task::Poll::Ready(first.take().unwrap_or(Finding::Cancelled)),
            false => std::task::Poll::Pending,
        }
    })
    .await
}

fn is_pass(finding: &Finding) -> bool {
    matches!(finding, Finding::Exited(ExecExitedEvent { status: ExitStatus::Exited(0), .. }))
}

async fn one(terms: StepTerms<'_>, side: Side<'_>, recorder: &Mutex<&mut Recorder<'_>>) -> Finding {
    let place = side.place;
    let finding = {
        let mut conversation = std::pin::pin!(converse(terms, side, recorder));
        tokio::select! {
            biased;
            finding = &mut conversation => finding,
            ending = place.ended() => {
                // What the test said before is perhaps still on its way, also that it was done.
                match timeout(LAST_WORDS, conversation).await {
                    Ok(Finding::Exited(exited)) => Finding::Exited(exited),
                    _ => Finding::MachineEnded(ending),
                }
            }
            () = terms.cancel.cancelled() => Finding::Cancelled,
        }
    };
    match finding {
        // A guest that goes down takes the link, and sometimes the command, with it first.
        Finding::LinkLost(error) => match place.ended_soon().await {
            Some(ending) => Finding::MachineEnded(ending),
            None => Finding::LinkLost(error),
        },
        finding => finding,
    }
}

async fn converse(
    terms: StepTerms<'_>,
    side: Side<'_>,
    recorder: &Mutex<&mut Recorder<'_>>,
) -> Finding {
    let Side { place, request } = side;
    let before = place.cpu_share();
    let limit = terms.limit;
    let timed_out = || match (place.cpu_share(), &before) {
        (Some(cpu), Some(before)) => {
            let (waited, stopped) = (cpu.waited_since(before), cpu.is_stopped());
            Finding::TimedOut { limit, waited, stopped }
        }
        _ => Finding::TimedOut { limit, waited: Duration::ZERO, stopped: false },
    };
    let began = tokio::time::Instant::now();
    let mut deadline = began + limit;
    let last_deadline = began + limit * (1 + MAX_CREDIT);
    let starting = place.guest().exec(request);
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
                // The test does not pay for a reader of its output who takes his time.
                let waiting = Instant::now();
                let mut recorder = recorder.lock().await;
                let Recorder { attempt, emitter } = &mut **recorder;
                if let Err(error) = attempt.keep(terms.part, stream, &data) {
                    return Finding::Evidence { path: attempt.folder_shown(), error };
                }
                if terms.part == Part::Test {
                    for subtest in attempt.subtests(stream, &data) {
                        emitter.emit(RunEvent::Subtest(subtest.into())).await;
                    }
                    let event = RunEvent::Output { stream: stream.into(), data: OutputData(data) };
                    emitter.emit(event).await;
                }
                deadline = (deadline + waiting.elapsed()).min(last_deadline);
            }
            Ok(ExecEvent::Exited(exited)) => {
                if exited.output_held {
                    let note =
                        "a child still held its output open; what it wrote later is not kept";
                    recorder.lock().await.attempt.notes.push(note.to_owned());
                }
                return Finding::Exited(exited);
            }
            Ok(ExecEvent::Refused(error)) => {
                let said = error.message.clone().into_bytes();
                recorder.lock().await.attempt.said_instead(terms.part, said);
                return Finding::Refused(error);
            }
            Err(error) => return Finding::LinkLost(error),
        }
    }
}
