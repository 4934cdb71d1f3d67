//! A step of a test at its place: an answer, or what came instead.

use super::Emitter;
use super::attempt::{Attempt, Part};
use super::execute::Broken;
use super::host_side::HostSide;
use super::judge::Finding;
use super::kernel_watch::KernelWatch;
use super::place::{Place, Places};
use crate::event::{OutputData, RunEvent, StreamName};
use crate::job::FailOn;
use crate::lab::{self, LogLine};
use crate::outcome::Stage;
use crate::text;
use guestline::guest::{ExecEvent, ExecHandle};
use guestline::link::LinkError;
use guestline_protocol::{ExecExitedEvent, ExecRequest, ExitStatus, Stream};
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, mpsc};
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
    /// What the test says in its log, where it can.
    pub(super) lines: Option<mpsc::Receiver<LogLine>>,
}

impl Recorder<'_> {
    /// A line of the test's log, among its output.
    async fn log(&mut self, line: LogLine) {
        let text = match &line.side {
            lab::Side::Host => format!("{}\n", line.text),
            side => format!("{side}: {}\n", line.text),
        };
        // A disk that is full is told when the test's own output cannot be kept.
        let _ = self.attempt.keep(Part::Test, Stream::Stderr, text.as_bytes());
        let data = OutputData(text.into_bytes());
        self.emitter.emit(RunEvent::Output { stream: StreamName::Stderr, data }).await;
    }

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
    /// The machine's name, where the sides of a test have to do with each other; none of the host.
    pub(super) of: Option<lab::Side>,
}

/// What a step is.
#[derive(Clone, Copy)]
pub(super) struct StepTerms<'a> {
    pub(super) part: Part,
    pub(super) limit: Duration,
    pub(super) cancel: &'a CancellationToken,
    /// What statuses are a pass.
    pub(super) pass: &'a [u8],
    /// What the sides share, and the machines, where a script on the host or several machines are a part of it.
    pub(super) shared: Option<(&'a HostSide, &'a Places)>,
}

impl StepTerms<'_> {
    /// It has ended well.
    pub(super) fn is_pass(&self, finding: &Finding) -> bool {
        is_pass(finding, self.pass)
    }
}

/// It has ended with one of these statuses.
pub(super) fn is_pass(finding: &Finding, pass: &[u8]) -> bool {
    match finding {
        Finding::Exited(ExecExitedEvent { status: ExitStatus::Exited(status), .. }) => {
            pass.contains(status)
        }
        _ => false,
    }
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
    let mut lines = recorder.lines.take();
    let recorder = Mutex::new(recorder);
    let Some((host, places)) = terms.shared else {
        return all_sides(terms, sides, &recorder).await;
    };
    let (finding, is_trouble) = {
        // Polled beside the sides, which may hold the recorder while they wait for its reader.
        let logging = async {
            while let Some(line) = next_of(&mut lines).await {
                recorder.lock().await.log(line).await;
            }
            std::future::pending::<()>().await
        };
        tokio::select! {
            biased;
            finding = host.trouble(places) => (finding, true),
            () = logging => (Finding::Cancelled, false),
            finding = all_sides(terms, sides, &recorder) => (finding, false),
        }
    };
    // No side holds it any more.
    while let Some(line) = lines.as_mut().and_then(|lines| lines.try_recv().ok()) {
        recorder.lock().await.log(line).await;
    }
    recorder.lock().await.lines = lines;
    if is_trouble {
        return finding;
    }
    // What it came to may be the doing of a machine that is not there any more, whatever the script made of it.
    match (&finding, terms.is_pass(&finding)) {
        (Finding::Cancelled, _) => finding,
        (_, true) => host.gone_already(places).unwrap_or(finding),
        (_, false) => host.lost(places).await.unwrap_or(finding),
    }
}

/// The next line of a log that may be said; none ever, where there is no log.
async fn next_of(lines: &mut Option<mpsc::Receiver<LogLine>>) -> Option<LogLine> {
    match lines {
        Some(lines) => lines.recv().await,
        None => None,
    }
}

/// Runs all sides at once; the first that does not pass ends the others.
async fn all_sides(
    terms: StepTerms<'_>,
    sides: Vec<Side<'_>>,
    recorder: &Mutex<&mut Recorder<'_>>,
) -> Finding {
    let mut running: Vec<_> =
        sides.into_iter().map(|side| Box::pin(one(terms, side, recorder))).collect();
    let mut first = None;
    std::future::poll_fn(|context| {
        let mut index = 0;
        while index < running.len() {
            match running[index].as_mut().poll(context) {
                std::task::Poll::Ready(finding) => {
                    drop(running.swap_remove(index));
                    if !terms.is_pass(&finding) {
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

async fn one(terms: StepTerms<'_>, side: Side<'_>, recorder: &Mutex<&mut Recorder<'_>>) -> Finding {
    let (place, of) = (side.place, side.of.clone());
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
    if let (Some((host, _)), Some(of)) = (terms.shared, &of) {
        host.side_ended(of);
        // It went down with its machine, as the test wanted it.
        if matches!(finding, Finding::LinkLost(_) | Finding::MachineEnded(_)) && host.was_told(of) {
            return Finding::Exited(taken_down(terms.pass));
        }
    }
    match finding {
        // A guest that goes down takes the link, and sometimes the command, with it first.
        Finding::LinkLost(error) => match place.ended_soon().await {
            Some(ending) => Finding::MachineEnded(ending),
            None => Finding::LinkLost(error),
        },
        finding => finding,
    }
}

/// The end of a side whose machine the test took down.
fn taken_down(pass: &[u8]) -> ExecExitedEvent {
    ExecExitedEvent {
        status: ExitStatus::Exited(pass.first().copied().unwrap_or(0)),
        output_held: false,
        cancelled: false,
        elapsed_us: 0,
        usage: Default::default(),
        total: 0,
    }
}

async fn converse(
    terms: StepTerms<'_>,
    side: Side<'_>,
    recorder: &Mutex<&mut Recorder<'_>>,
) -> Finding {
    let Side { place, request, .. } = side;
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
                let Recorder { attempt, emitter, .. } = &mut **recorder;
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
