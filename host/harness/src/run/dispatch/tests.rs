use super::*;
use crate::event::Record;
use crate::job::{JobTest, Limits, MachineWanted, TestCommand};
use std::sync::Mutex;

/// Says of each test, by name, what its attempts come to; the last word holds for all that follow.
struct Scripted {
    words: Vec<(&'static str, Vec<&'static str>)>,
    begun: Mutex<Vec<String>>,
}

impl Execute for Scripted {
    async fn execute(&self, job: Job, tickets: Vec<Ticket>, terms: Terms) -> Vec<(u32, Outcome)> {
        let mut outcomes = Vec::new();
        for (ticket, test) in tickets.iter().zip(&job.tests) {
            if terms.stop.is_cancelled() {
                break;
            }
            let name = test.name();
            self.begun.lock().unwrap().push(format!("{name} {}", ticket.attempt));
            let words =
                self.words.iter().find(|(known, _)| *known == name).map(|(_, words)| &words[..]);
            let words = words.unwrap_or(&["passed"]);
            let at = usize::try_from(ticket.attempt).unwrap() - 1;
            let word = words.get(at).or(words.last()).unwrap();
            let outcome = match *word {
                "passed" => Outcome::Passed,
                "failed" => Outcome::Failed { reason: "status 1".into(), stage: None },
                "dies" => panic!("as scripted"),
                _ => Outcome::Errored { stage: Stage::Host, reason: "x".into() },
            };
            outcomes.push((ticket.number, outcome));
        }
        outcomes
    }
}

fn job(names: &[&str]) -> Job {
    let test = |name: &&str| JobTest::of_command(TestCommand::Line((*name).to_owned()), Vec::new());
    Job {
        tests: names.iter().map(test).collect(),
        machine: MachineWanted {
            image: "tiny".into(),
            kernel: None,
            kconfig: None,
            modules: None,
            cmdline: None,
            memory_mib: None,
            cpus: 1,
            disks: Vec::new(),
            nics: Vec::new(),
            qemu: None,
            qemu_args: Vec::new(),
            firmware: None,
            hardware: Default::default(),
            with: Vec::new(),
            fresh_reboot: false,
            layers: Vec::new(),
        },
        machines: BTreeMap::new(),
        fixtures: Vec::new(),
        subjects: Vec::new(),
        limits: Limits { check_ms: 1, boot_ms: 1 },
    }
}

/// Jobs, each with the terms of its tests, that can be had again.
struct Jobs {
    jobs: VecDeque<Job>,
    terms: TrialTerms,
    names: Vec<String>,
}

impl Queue for Jobs {
    fn next(&mut self) -> Option<Next> {
        let job = self.jobs.pop_front()?;
        self.names.extend(job.tests.iter().map(JobTest::name));
        if job.tests[0].name() == "lacks" {
            let outcome = Outcome::Incompatible { reason: "kvm".into() };
            return Some(Next::Without { test: "lacks".into(), outcome });
        }
        let terms = vec![self.terms.clone(); job.tests.len()];
        Some(Next::Job(Box::new(job), terms))
    }

    fn again(&mut self, number: u32) -> Option<Job> {
        Some(job(&[&self.names[usize::try_from(number).unwrap() - 1]]))
    }

    fn tests(&self) -> u32 {
        u32::try_from(self.names.len() + self.jobs.iter().map(|job| job.tests.len()).sum::<usize>())
            .unwrap()
    }
}

struct Ran {
    result: RunResult,
    begun: Vec<String>,
    records: Vec<Record>,
}

fn run_jobs(
    jobs: &[&[&str]],
    words: &[(&'static str, &[&'static str])],
    terms: TrialTerms,
    dispatch: Dispatch,
) -> Ran {
    let words = words.iter().map(|(name, words)| (*name, words.to_vec())).collect();
    let executor = Arc::new(Scripted { words, begun: Mutex::default() });
    let queue =
        Jobs { jobs: jobs.iter().map(|names| job(names)).collect(), terms, names: Vec::new() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (result, records) = runtime.block_on(async {
        let (emitter, mut events) = Emitter::new(ulid::Ulid::nil(), CancellationToken::new());
        let reading = tokio::spawn(async move {
            let mut records = Vec::new();
            while let Some(record) = events.recv().await {
                records.push(record);
            }
            records
        });
        let result = run(queue, dispatch, executor.clone(), emitter).await;
        (result, reading.await.unwrap())
    });
    let begun = executor.begun.lock().unwrap().clone();
    Ran { result, begun, records }
}

const ONE: Dispatch = Dispatch { parallel: 1, fail_fast: false };

#[test]
fn what_does_not_pass_is_tried_again() {
    let terms = TrialTerms { retries: 2, ..TrialTerms::default() };
    let words: [(&str, &[&str]); 3] =
        [("a", &["failed", "passed"]), ("b", &["failed"]), ("c", &["errored", "failed", "passed"])];
    let ran = run_jobs(&[&["a"], &["b"], &["c"], &["lacks"]], &words, terms, ONE);
    let mut begun = ran.begun.clone();
    begun.sort();
    assert_eq!(begun, ["a 1", "a 2", "b 1", "b 2", "b 3", "c 1", "c 2", "c 3"]);
    let tally = ran.result.tally;
    assert_eq!((tally.passed, tally.failed, tally.incompatible, tally.total()), (2, 1, 1, 4));
    let mut verdicts: Vec<_> = ran
        .records
        .iter()
        .filter_map(|record| match &record.event {
            RunEvent::TestFinished(test) => {
                Some((test.number, test.test.as_str(), test.verdict.attempts, test.verdict.flaky))
            }
            _ => None,
        })
        .collect();
    verdicts.sort_unstable();
    assert_eq!(
        verdicts,
        [(1, "a", 2, true), (2, "b", 3, false), (3, "c", 3, true), (4, "lacks", 0, false)]
    );
}

#[test]
fn the_first_failure_ends_a_run_that_is_to_fail_fast() {
    let dispatch = Dispatch { parallel: 1, fail_fast: true };
    let names: Vec<String> = (0..100).map(|number| format!("t{number}")).collect();
    let jobs: Vec<[&str; 1]> = names.iter().map(|name| [name.as_str()]).collect();
    let jobs: Vec<&[&str]> = jobs.iter().map(|job| &job[..]).collect();
    let ran = run_jobs(&jobs, &[("t1", &["failed"])], TrialTerms::default(), dispatch);
    let tally = ran.result.tally;
    assert_eq!((tally.failed, tally.total() + ran.result.not_run), (1, 100));
    assert!(ran.result.not_run >= 96, "{ran:?}", ran = ran.result);
}

#[test]
fn tests_that_share_a_job_are_retried_alone() {
    let terms = TrialTerms { retries: 1, ..TrialTerms::default() };
    let ran = run_jobs(&[&["a", "b", "c"]], &[("b", &["failed", "passed"])], terms, ONE);
    assert_eq!(ran.begun, ["a 1", "b 1", "c 1", "b 2"]);
    assert_eq!(ran.result.tally.passed, 3);
}

#[test]
fn an_executor_that_dies_errs_its_tests_and_no_others() {
    let ran = run_jobs(&[&["a"], &["b"]], &[("a", &["dies"])], TrialTerms::default(), ONE);
    assert_eq!((ran.result.tally.errored, ran.result.tally.passed), (1, 1));
    assert!(matches!(ran.records.last().unwrap().event, RunEvent::RunFinished { not_run: 0, .. }));
}
