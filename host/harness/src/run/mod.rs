//! Running jobs: each on a pristine machine, some at once, events for everything.

mod attempt;
mod conversation;
mod evidence;
mod execute;
mod hints;
mod judge;
mod kernel_watch;

pub use evidence::{AttemptFolder, RunFolder};
pub use execute::{Broken, Executor};
pub use judge::stage_of;

use crate::event::{Record, RunEvent, SCHEMA, now_us};
use crate::job::Job;
use crate::outcome::{Outcome, Stage, Tally};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use ulid::Ulid;

/// Events that wait for the reports; then what makes them waits.
const EVENTS: usize = 64;

/// How long an event waits for reports that are stuck, once the run is interrupted.
const LAST_WAIT: Duration = Duration::from_millis(500);

/// Makes records of events of one attempt, or of the run itself.
#[derive(Debug)]
pub struct Emitter {
    run: Ulid,
    attempt: Option<Ulid>,
    sequence: u64,
    sender: mpsc::Sender<Record>,
    cancel: CancellationToken,
    /// The reports are stuck and the run is interrupted: nobody waits for them any more.
    given_up: Arc<AtomicBool>,
}

impl Emitter {
    /// For the run itself, and the records' receiver. A run that is cancelled waits for no report.
    pub fn new(run: Ulid, cancel: CancellationToken) -> (Self, mpsc::Receiver<Record>) {
        let (sender, receiver) = mpsc::channel(EVENTS);
        (
            Self { run, attempt: None, sequence: 0, sender, cancel, given_up: Arc::default() },
            receiver,
        )
    }

    /// For a new attempt of the run.
    pub fn attempt(&self) -> Self {
        let attempt = Some(Ulid::generate());
        let (sender, cancel) = (self.sender.clone(), self.cancel.clone());
        let given_up = self.given_up.clone();
        Self { run: self.run, attempt, sequence: 0, sender, cancel, given_up }
    }

    /// Sends an event; waits while the reports are behind.
    pub async fn emit(&mut self, event: RunEvent) {
        let Self { run, attempt, sequence, .. } = *self;
        let record = Record { schema: SCHEMA, run, attempt, sequence, time_us: now_us(), event };
        self.sequence += 1;
        let impatient = async {
            self.cancel.cancelled().await;
            if !self.given_up.load(Ordering::Relaxed) {
                tokio::time::sleep(LAST_WAIT).await;
            }
            self.given_up.store(true, Ordering::Relaxed);
        };
        tokio::select! {
            biased;
            // Without a reader there is nobody to tell.
            _ = self.sender.send(record) => {}
            () = impatient => {}
        }
    }
}

/// While tests run, so many machines are made ready beyond those that they have.
const AHEAD: usize = 1;

/// Runs all jobs, at most `parallel` at once, and counts their outcomes. The next machine is made ready meanwhile.
pub async fn run(
    jobs: Vec<Job>,
    parallel: usize,
    executor: Arc<Executor>,
    mut emitter: Emitter,
) -> Tally {
    let started = Instant::now();
    let machines = Arc::new(Semaphore::new(parallel.max(1) + AHEAD));
    let places = Arc::new(Semaphore::new(parallel.max(1)));
    let mut attempts = JoinSet::new();
    for (number, job) in (1..).zip(jobs) {
        let (machines, places) = (machines.clone(), places.clone());
        let (executor, cancel) = (executor.clone(), emitter.cancel.clone());
        let emitter = emitter.attempt();
        attempts.spawn(async move {
            let _machine = machines.acquire().await;
            executor.execute(number, job, emitter, &places, &cancel).await
        });
    }
    let mut tally = Tally::default();
    while let Some(outcome) = attempts.join_next().await {
        tally.add(&outcome.unwrap_or_else(|error| {
            let reason = format!("an attempt died: {error}");
            Outcome::Errored { stage: Stage::Host, reason }
        }));
    }
    let elapsed_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
    emitter.emit(RunEvent::RunFinished { tally, elapsed_us }).await;
    tally
}
