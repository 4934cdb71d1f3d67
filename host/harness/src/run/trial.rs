//! From the attempts at a test to what is said of it: retries, tests that are known to fail. No I/O, no clock.
//!
//! ```text
//! outcome of an attempt ──> Trial ──> again | the verdict
//! ```

use crate::outcome::Outcome;
use crate::suite::settings::{Flaky, Issue};
use serde::{Deserialize, Serialize};

/// How often a test is run, and what its failures mean.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// So many more attempts, while it does not pass.
    pub retries: u32,
    /// It is run so often, and has failed when it failed more often than it may.
    pub flaky: Option<Flaky>,
    /// It is run so often, and has failed when it failed once: `--repeat`.
    pub repeat: Option<u32>,
    /// It is known to fail.
    pub known_issue: Option<Issue>,
}

/// What is said of a test when all of its attempts are over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Its outcome.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// How many attempts there were.
    pub attempts: u32,
    /// How many of them failed.
    pub failures: u32,
    /// It passed, and not at once.
    pub flaky: bool,
    /// It failed, as the address says that it does; it counts as known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub known_issue: Option<Issue>,
    /// What should be known of it, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl Verdict {
    /// On a test that was not attempted.
    pub fn of(outcome: Outcome) -> Self {
        Self { outcome, attempts: 0, failures: 0, flaky: false, known_issue: None, note: None }
    }

    /// It has failed, and not as is known of it.
    pub fn has_failed(&self) -> bool {
        matches!(self.outcome, Outcome::Failed { .. }) && self.known_issue.is_none()
    }
}

/// A test and what came of it so far.
#[derive(Debug, Default)]
pub struct Trial {
    terms: Terms,
    outcomes: Vec<Outcome>,
}

impl Trial {
    /// Of a test of which nothing has run.
    pub fn new(terms: Terms) -> Self {
        Self { terms, outcomes: Vec::new() }
    }

    /// The number of the next attempt, from 1.
    pub fn next_attempt(&self) -> u32 {
        u32::try_from(self.outcomes.len()).unwrap_or(u32::MAX).saturating_add(1)
    }

    /// Takes the outcome of an attempt. None means that there is another one to be made.
    pub fn on_outcome(&mut self, outcome: Outcome) -> Option<Verdict> {
        let is_final = matches!(
            outcome,
            Outcome::Skipped { .. } | Outcome::Incompatible { .. } | Outcome::Aborted
        );
        self.outcomes.push(outcome);
        let made = u32::try_from(self.outcomes.len()).unwrap_or(u32::MAX);
        let wanted = match (&self.terms.flaky, self.terms.repeat) {
            (_, Some(repeat)) => repeat,
            (Some(flaky), None) => flaky.runs,
            (None, None) if self.outcomes.last() == Some(&Outcome::Passed) => made,
            (None, None) => self.terms.retries.saturating_add(1),
        };
        (is_final || made >= wanted).then(|| self.verdict())
    }

    fn verdict(&self) -> Verdict {
        let is_failed = |outcome: &&Outcome| matches!(outcome, Outcome::Failed { .. });
        let count = |of: usize| u32::try_from(of).unwrap_or(u32::MAX);
        let attempts = count(self.outcomes.len());
        let failures = count(self.outcomes.iter().filter(is_failed).count());
        let last = self.outcomes.last().cloned().unwrap_or(Outcome::Aborted);
        let mut verdict = Verdict {
            outcome: last,
            attempts,
            failures,
            flaky: false,
            known_issue: None,
            note: None,
        };
        let may_fail = match (&self.terms.flaky, self.terms.repeat) {
            (_, Some(_)) => 0,
            (Some(flaky), None) => flaky.fail_above,
            (None, None) => u32::MAX,
        };
        if failures > may_fail {
            // Whatever came after that.
            self.all_have_to_pass(&mut verdict, may_fail);
        } else if let (Outcome::Errored { .. }, None, None, Some(failed)) = (
            &verdict.outcome,
            &self.terms.flaky,
            self.terms.repeat,
            self.outcomes.iter().rfind(is_failed),
        ) {
            // That it failed is known, and that something else broke later changes nothing of it.
            verdict.outcome = failed.clone();
        }
        if !matches!(
            verdict.outcome,
            Outcome::Passed | Outcome::Failed { .. } | Outcome::Errored { .. }
        ) {
            return verdict;
        }
        match (&self.terms.flaky, self.terms.repeat) {
            (_, Some(_)) => self.all_have_to_pass(&mut verdict, 0),
            (Some(flaky), None) => self.all_have_to_pass(&mut verdict, flaky.fail_above),
            (None, None) => {
                let passed = verdict.outcome == Outcome::Passed;
                verdict.flaky = passed && failures > 0;
                if passed && attempts > 1 {
                    let before = attempts - 1;
                    let what = if failures > 0 { "flaky: failed" } else { "errored" };
                    verdict.note = Some(format!("{what} {}", times(before)));
                }
            }
        }
        if let Some(issue) = &self.terms.known_issue {
            match verdict.outcome {
                Outcome::Failed { .. } => verdict.known_issue = Some(issue.clone()),
                Outcome::Passed => {
                    let note = format!("unexpected pass: {} says that it fails", issue.as_str());
                    verdict.note = Some(note);
                }
                _ => {}
            }
        }
        verdict
    }

    /// No more than so many may have failed; where one errored nothing is known of it.
    fn all_have_to_pass(&self, verdict: &mut Verdict, fail_above: u32) {
        let Verdict { attempts, failures, .. } = *verdict;
        let ratio = format!("{failures} of {attempts} failed");
        let errored =
            self.outcomes.iter().find(|outcome| matches!(outcome, Outcome::Errored { .. }));
        let failed = self.outcomes.iter().find(|outcome| matches!(outcome, Outcome::Failed { .. }));
        verdict.outcome = match (failures > fail_above, failed, errored) {
            (true, Some(Outcome::Failed { reason, stage }), _) => {
                Outcome::Failed { reason: format!("{ratio}: {reason}"), stage: *stage }
            }
            (_, _, Some(errored)) => errored.clone(),
            _ => Outcome::Passed,
        };
        verdict.flaky = verdict.outcome == Outcome::Passed && failures > 0;
        verdict.note = (verdict.outcome == Outcome::Passed).then_some(ratio);
    }
}

/// "once", "3 times".
fn times(count: u32) -> String {
    match count {
        1 => "once".to_owned(),
        count => format!("{count} times"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::Stage;

    fn failed() -> Outcome {
        Outcome::Failed { reason: "status 1".into(), stage: None }
    }

    fn errored() -> Outcome {
        Outcome::Errored { stage: Stage::Host, reason: "x".into() }
    }

    fn run(terms: Terms, outcomes: &[Outcome]) -> Verdict {
        let mut trial = Trial::new(terms);
        let (last, before) = outcomes.split_last().unwrap();
        for outcome in before {
            assert_eq!(trial.on_outcome(outcome.clone()), None, "{outcome:?}");
        }
        trial.on_outcome(last.clone()).unwrap()
    }

    #[test]
    fn one_attempt_is_the_verdict() {
        for outcome in [Outcome::Passed, failed(), errored(), Outcome::Aborted] {
            let verdict = run(Terms::default(), std::slice::from_ref(&outcome));
            assert_eq!((verdict.outcome, verdict.attempts, verdict.flaky), (outcome, 1, false));
        }
    }

    #[test]
    fn a_pass_on_a_retry_is_flaky_and_said() {
        let terms = || Terms { retries: 2, ..Terms::default() };
        let verdict = run(terms(), &[failed(), failed(), Outcome::Passed]);
        assert_eq!((verdict.outcome, verdict.flaky), (Outcome::Passed, true));
        assert_eq!(verdict.note.as_deref(), Some("flaky: failed 2 times"));
        let verdict = run(terms(), &[errored(), Outcome::Passed]);
        assert_eq!((verdict.flaky, verdict.note.as_deref()), (false, Some("errored once")));
        let verdict = run(terms(), &[failed(), errored(), failed()]);
        assert_eq!((verdict.outcome, verdict.failures), (failed(), 2));
        let skipped = Outcome::Skipped { reason: "x".into() };
        assert_eq!(run(terms(), &[failed(), skipped.clone()]).outcome, skipped);
        assert_eq!(run(terms(), &[Outcome::Aborted]).outcome, Outcome::Aborted);
    }

    #[test]
    fn a_flaky_test_may_fail_as_often_as_it_says() {
        let terms = || Terms { flaky: Some(Flaky { runs: 3, fail_above: 1 }), ..Terms::default() };
        let verdict = run(terms(), &[failed(), Outcome::Passed, Outcome::Passed]);
        assert_eq!((verdict.outcome, verdict.flaky), (Outcome::Passed, true));
        assert_eq!(verdict.note.as_deref(), Some("1 of 3 failed"));
        let verdict = run(terms(), &[failed(), Outcome::Passed, failed()]);
        assert_eq!(verdict.outcome.why(), "2 of 3 failed: status 1");
        let verdict = run(terms(), &[errored(), Outcome::Passed, failed()]);
        assert_eq!(verdict.outcome, errored());
    }

    #[test]
    fn a_repeated_test_fails_when_it_fails_once() {
        let terms = || Terms { repeat: Some(3), retries: 5, ..Terms::default() };
        let verdict = run(terms(), &[Outcome::Passed, failed(), Outcome::Passed]);
        assert_eq!(verdict.outcome.why(), "1 of 3 failed: status 1");
        assert_eq!(
            run(terms(), &[Outcome::Passed, Outcome::Passed, Outcome::Passed]).note.as_deref(),
            Some("0 of 3 failed")
        );
    }

    #[test]
    fn a_known_issue_is_told_from_a_failure() {
        let issue = Issue::try_from("https://example.org/7".to_owned()).unwrap();
        let terms = || Terms { known_issue: Some(issue.clone()), ..Terms::default() };
        assert_eq!(run(terms(), &[failed()]).known_issue, Some(issue.clone()));
        let passed = run(terms(), &[Outcome::Passed]);
        assert_eq!(passed.known_issue, None);
        assert_eq!(
            passed.note.as_deref(),
            Some("unexpected pass: https://example.org/7 says that it fails")
        );
        assert_eq!(run(terms(), &[errored()]).known_issue, None);
    }
}
