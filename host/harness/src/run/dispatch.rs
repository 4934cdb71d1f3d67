//! Which test is run when, and how often: jobs go to an executor, outcomes come back, and each test's trial says whether
//! there is another attempt. So many jobs are out at a time that a machine is ready when the next test may run.

use super::{Emitter, Trial, TrialTerms, Verdict};
use crate::event::{RunEvent, TestFinished};
use crate::job::Job;
use crate::outcome::{Outcome, Stage, Tally};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// While tests run, so many machines are made ready beyond those that they have.
const AHEAD: usize = 1;

/// One attempt that is to be made.
#[derive(Debug)]
pub struct Ticket {
    /// The test's place in the run, from 1.
    pub number: u32,
    /// The number of the attempt at it, from 1.
    pub attempt: u32,
    /// Makes the attempt's emitter.
    pub emitter: Emitter,
}

/// What holds for all attempts.
#[derive(Debug, Clone)]
pub struct Terms {
    /// A test holds one while it runs.
    pub places: Arc<Semaphore>,
    /// The run is interrupted: what runs ends.
    pub cancel: CancellationToken,
    /// No further test begins.
    pub stop: CancellationToken,
}

/// Takes jobs and says what came of their tests.
pub trait Execute: Send + Sync + 'static {
    /// Runs a job with a ticket for each of its tests, in their order. Outcomes are told as events before they are
    /// returned, by the number of the test; a test that did not begin has none.
    fn execute(
        &self,
        job: Job,
        tickets: Vec<Ticket>,
        terms: Terms,
    ) -> impl Future<Output = Vec<(u32, Outcome)>> + Send;
}

/// How a run goes about it.
#[derive(Debug, Clone, Copy)]
pub struct Dispatch {
    /// So many tests run at once.
    pub parallel: usize,
    /// Ends with the first test that has failed.
    pub fail_fast: bool,
}

/// The next thing in a queue.
#[derive(Debug)]
pub enum Next {
    /// A job, with the terms of each of its tests.
    Job(Box<Job>, Vec<TrialTerms>),
    /// A test that is not run, and why.
    Without {
        /// Its name.
        test: String,
        /// Its outcome.
        outcome: Outcome,
    },
}

/// What is to be run of a plan, one after the other: made when it is wanted, since many are not held at once.
pub trait Queue: Send {
    /// What is next; each test of it has the next number.
    fn next(&mut self) -> Option<Next>;
    /// The job of one test alone, by its number, for another attempt.
    fn again(&mut self, number: u32) -> Option<Job>;
    /// How many tests there are in all.
    fn tests(&self) -> u32;
}

/// What came of a run.
#[derive(Debug, Clone, Default)]
pub struct RunResult {
    /// How the tests ended.
    pub tally: Tally,
    /// So many were not run, since one had failed.
    pub not_run: u32,
}

/// Runs all tests of a queue and counts their outcomes.
pub async fn run<E: Execute>(
    mut queue: impl Queue,
    dispatch: Dispatch,
    executor: Arc<E>,
    mut emitter: Emitter,
) -> RunResult {
    let started = Instant::now();
    let parallel = dispatch.parallel.max(1);
    let terms = Terms {
        places: Arc::new(Semaphore::new(parallel)),
        cancel: emitter.cancel.clone(),
        stop: CancellationToken::new(),
    };
    let mut out = Out { trials: BTreeMap::new(), result: RunResult::default(), numbered: 0 };
    let mut again: VecDeque<u32> = VecDeque::new();
    let mut running = JoinSet::new();
    loop {
        while running.len() < parallel + AHEAD && !terms.stop.is_cancelled() {
            let (job, numbers) = match again.pop_front() {
                Some(number) => match queue.again(number) {
                    Some(job) => (job, vec![number]),
                    None => continue,
                },
                None => match queue.next() {
                    Some(Next::Job(job, terms)) => {
                        let numbers = out.begin(&job, terms);
                        (*job, numbers)
                    }
                    Some(Next::Without { test, outcome }) => {
                        let finished = out.without(test, outcome);
                        emitter.emit(RunEvent::TestFinished(Box::new(finished))).await;
                        continue;
                    }
                    None => break,
                },
            };
            let tickets: Vec<_> = numbers
                .iter()
                .map(|number| Ticket {
                    number: *number,
                    attempt: out.trials.get(number).map_or(1, |(_, trial)| trial.next_attempt()),
                    emitter: emitter.attempt(),
                })
                .collect();
            let (executor, terms) = (executor.clone(), terms.clone());
            running.spawn(async move {
                let task = tokio::spawn(async move { executor.execute(job, tickets, terms).await });
                match task.await {
                    Ok(outcomes) => (numbers, outcomes),
                    Err(error) => {
                        let reason = format!("an attempt died: {error}");
                        let outcome = Outcome::Errored { stage: Stage::Host, reason };
                        let all = numbers.iter().map(|number| (*number, outcome.clone())).collect();
                        (numbers, all)
                    }
                }
            });
        }
        let Some(ended) = running.join_next().await else { break };
        let Ok((numbers, outcomes)) = ended else { continue };
        for number in numbers {
            let outcome = outcomes.iter().find(|(of, _)| *of == number).map(|(_, outcome)| outcome);
            let Some(outcome) = outcome else {
                // Perhaps another test of its job was the last one that began.
                match terms.stop.is_cancelled() {
                    true => drop(out.trials.remove(&number)),
                    false => again.push_back(number),
                }
                continue;
            };
            match out.on_outcome(number, outcome.clone()) {
                None => again.push_back(number),
                Some(finished) => {
                    let is_failed = finished.verdict.has_failed();
                    emitter.emit(RunEvent::TestFinished(Box::new(finished))).await;
                    if dispatch.fail_fast && is_failed {
                        terms.stop.cancel();
                    }
                }
            }
        }
    }
    let mut result = out.result;
    result.not_run = queue.tests().saturating_sub(result.tally.total());
    let elapsed_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
    let (tally, not_run) = (result.tally, result.not_run);
    emitter.emit(RunEvent::RunFinished { tally, not_run, elapsed_us }).await;
    result
}

/// What is out, and what came back.
struct Out {
    trials: BTreeMap<u32, (String, Trial)>,
    result: RunResult,
    numbered: u32,
}

impl Out {
    fn begin(&mut self, job: &Job, terms: Vec<TrialTerms>) -> Vec<u32> {
        let mut numbers = Vec::with_capacity(terms.len());
        for (test, terms) in job.tests.iter().zip(terms) {
            self.numbered += 1;
            self.trials.insert(self.numbered, (test.name(), Trial::new(terms)));
            numbers.push(self.numbered);
        }
        numbers
    }

    /// A test of which nothing is run.
    fn without(&mut self, test: String, outcome: Outcome) -> TestFinished {
        self.numbered += 1;
        self.result.tally.add(&outcome);
        TestFinished { number: self.numbered, test, verdict: Verdict::of(outcome) }
    }

    /// The verdict on a test, when it is the last outcome of it.
    fn on_outcome(&mut self, number: u32, outcome: Outcome) -> Option<TestFinished> {
        let (_, trial) = self.trials.get_mut(&number)?;
        let verdict = trial.on_outcome(outcome)?;
        let (test, _) = self.trials.remove(&number)?;
        self.result.tally.add_verdict(&verdict.outcome, verdict.known_issue.is_some());
        Some(TestFinished { number, test, verdict })
    }
}

/// Jobs of one test each, which are attempted once.
#[derive(Debug)]
pub struct Once {
    jobs: std::vec::IntoIter<Job>,
    count: u32,
}

impl Once {
    /// Of these jobs.
    pub fn new(jobs: Vec<Job>) -> Self {
        let count = u32::try_from(jobs.iter().map(|job| job.tests.len()).sum::<usize>());
        Self { jobs: jobs.into_iter(), count: count.unwrap_or(u32::MAX) }
    }
}

impl Queue for Once {
    fn next(&mut self) -> Option<Next> {
        let job = self.jobs.next()?;
        let terms = vec![TrialTerms::default(); job.tests.len()];
        Some(Next::Job(Box::new(job), terms))
    }

    fn again(&mut self, _: u32) -> Option<Job> {
        None
    }

    fn tests(&self) -> u32 {
        self.count
    }
}

#[cfg(test)]
mod tests;
