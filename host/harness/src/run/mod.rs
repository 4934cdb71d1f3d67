//! Running tests: each attempt on machines of its own, some at once, events for everything.
//!
//! ```text
//! plan ──> dispatch (what is run when, and how often: trial) ──> Execute: executor ──> judge
//! ```

mod artifacts;
mod ask;
mod attempt;
mod content;
mod conversation;
mod dispatch;
mod evidence;
mod execute;
mod fixtures;
mod hints;
mod host_fixtures;
mod host_side;
mod install;
mod judge;
mod kernel_watch;
mod leftovers;
mod place;
mod scene;
mod scratch;
mod seat;
mod target;
mod trial;

pub use dispatch::{Dispatch, Execute, Next, Once, Queue, RunResult, Terms, Ticket, run};
pub use evidence::{AttemptFolder, RunFolder};
pub use execute::{Broken, Executor};
pub use judge::stage_of;
pub use target::{NoTarget, Target};
pub use trial::{Terms as TrialTerms, Trial, Verdict};

use crate::event::{Record, RunEvent, SCHEMA, now_us};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
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
