//! Outcomes and exit statuses: one list each, with their tables.
//!
//! | outcome | means |
//! |---|---|
//! | passed | the test said yes |
//! | failed | the test said no; also a timeout, a signal, a guest that panics, reboots or powers off |
//! | skipped | the test said that it does not apply (status 77) |
//! | incompatible | the environment lacks what the test needs |
//! | errored | the set-up broke: nobody's failed test; names the stage |
//! | aborted | interrupted |

use serde::{Deserialize, Serialize};
use std::fmt;

/// Where a set-up can break.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// The image or the kernel, as files.
    Image,
    /// From the start of QEMU to the guest's userspace.
    Boot,
    /// The guest agent.
    Agent,
    /// Between host and agent.
    Link,
    /// A set-up step that tests depend on.
    Fixture,
    /// The host: memory, disk, QEMU.
    Host,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Image => "image",
            Self::Boot => "boot",
            Self::Agent => "agent",
            Self::Link => "link",
            Self::Fixture => "fixture",
            Self::Host => "host",
        })
    }
}

/// What came of an attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "lowercase")]
pub enum Outcome {
    /// The test said yes.
    Passed,
    /// The test said no.
    Failed {
        /// In words: "status 1", "timed out after 60 s".
        reason: String,
        /// `Boot` when the subject did not get as far as the test.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        stage: Option<Stage>,
    },
    /// The test said that it does not apply.
    Skipped {
        /// Its last line of output.
        reason: String,
    },
    /// The environment lacks what the test needs.
    Incompatible {
        /// What is lacking.
        reason: String,
    },
    /// The set-up broke.
    Errored {
        /// Where.
        stage: Stage,
        /// In words.
        reason: String,
    },
    /// Interrupted.
    Aborted,
}

impl Outcome {
    /// The outcome's word.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed { .. } => "failed",
            Self::Skipped { .. } => "skipped",
            Self::Incompatible { .. } => "incompatible",
            Self::Errored { .. } => "errored",
            Self::Aborted => "aborted",
        }
    }

    /// Why, in words, as it follows the outcome's word in a report.
    pub fn why(&self) -> String {
        match self {
            Self::Passed => String::new(),
            Self::Aborted => "interrupted".to_owned(),
            Self::Failed { reason, stage: Some(stage) } => format!("{stage}: {reason}"),
            // "fixture `site` …" says it.
            Self::Errored { stage: Stage::Fixture, reason } if reason.starts_with("fixture") => {
                reason.clone()
            }
            Self::Errored { stage, reason } => format!("{stage}: {reason}"),
            Self::Failed { reason, stage: None }
            | Self::Skipped { reason }
            | Self::Incompatible { reason } => reason.clone(),
        }
    }
}

/// How many of each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the words of `Outcome`")]
pub struct Tally {
    pub passed: u32,
    pub failed: u32,
    pub skipped: u32,
    pub incompatible: u32,
    pub errored: u32,
    pub aborted: u32,
    /// Failed, as is known of them.
    #[serde(default)]
    pub known: u32,
}

impl Tally {
    /// Counts one more; a failure that is known apart from others.
    pub fn add_verdict(&mut self, outcome: &Outcome, is_known: bool) {
        match outcome {
            Outcome::Failed { .. } if is_known => self.known += 1,
            outcome => self.add(outcome),
        }
    }

    /// Counts one more.
    pub fn add(&mut self, outcome: &Outcome) {
        let count = match outcome {
            Outcome::Passed => &mut self.passed,
            Outcome::Failed { .. } => &mut self.failed,
            Outcome::Skipped { .. } => &mut self.skipped,
            Outcome::Incompatible { .. } => &mut self.incompatible,
            Outcome::Errored { .. } => &mut self.errored,
            Outcome::Aborted => &mut self.aborted,
        };
        *count += 1;
    }

    /// All together.
    pub fn total(&self) -> u32 {
        self.words().iter().map(|(_, count)| count).sum()
    }

    /// "3 passed, 1 failed": those that there are.
    pub fn in_words(&self) -> String {
        let words = self.words().into_iter().filter(|(_, count)| *count > 0);
        let words: Vec<_> = words.map(|(word, count)| format!("{count} {word}")).collect();
        if words.is_empty() { "nothing".to_owned() } else { words.join(", ") }
    }

    fn words(&self) -> [(&'static str, u32); 7] {
        [
            ("passed", self.passed),
            ("failed", self.failed),
            ("failed as known", self.known),
            ("skipped", self.skipped),
            ("incompatible", self.incompatible),
            ("errored", self.errored),
            ("aborted", self.aborted),
        ]
    }
}

/// A signal that interrupts a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interrupt {
    /// The terminal went away.
    Hangup,
    /// Ctrl-C.
    Interrupt,
    /// Asked to end.
    Terminate,
}

impl Interrupt {
    fn number(self) -> u8 {
        match self {
            Self::Hangup => 1,
            Self::Interrupt => 2,
            Self::Terminate => 15,
        }
    }
}

/// How a run ended, as far as its exit status asks.
#[derive(Debug, Clone, Copy, Default)]
pub struct RunEnd {
    /// The outcomes.
    pub tally: Tally,
    /// The signal that interrupted it.
    pub interrupt: Option<Interrupt>,
    /// A report could not be written.
    pub lost: bool,
    /// `--allow-none`.
    pub allow_none: bool,
    /// `--bisect`.
    pub bisect: bool,
}

/// Exit status for a wrong command line or configuration.
pub fn usage_status(bisect: bool) -> u8 {
    if bisect { 128 } else { 2 }
}

impl RunEnd {
    /// The exit status. The first row that matches counts.
    ///
    /// | | normally | `--bisect` |
    /// |---|---|---|
    /// | interrupted (SIGHUP, SIGINT, SIGTERM) | 129, 130, 143 | 128 |
    /// | usage or configuration ([`usage_status`]) | 2 | 128 |
    /// | something failed | 1 | 1 |
    /// | something errored | 125 | 125 |
    /// | nothing was judged | 4 (`--allow-none`: 0) | 125 |
    /// | a report was lost | 5 | 0, said |
    /// | otherwise | 0 | 0 |
    pub fn status(&self) -> u8 {
        let Self { tally, interrupt, lost, allow_none, bisect } = *self;
        match interrupt {
            Some(_) if bisect => 128,
            Some(interrupt) => 128 + interrupt.number(),
            None if tally.failed > 0 => 1,
            None if tally.errored > 0 || tally.aborted > 0 => 125,
            None if tally.passed + tally.known == 0 && bisect => 125,
            None if tally.passed + tally.known == 0 && !allow_none => 4,
            None if lost && !bisect => 5,
            None => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(passed: u32, failed: u32, skipped: u32, errored: u32) -> RunEnd {
        let tally = Tally { passed, failed, skipped, errored, ..Tally::default() };
        RunEnd { tally, ..RunEnd::default() }
    }

    #[test]
    fn the_first_row_that_matches_counts() {
        let interrupted = |interrupt| RunEnd { interrupt: Some(interrupt), ..end(1, 1, 0, 1) };
        assert_eq!(interrupted(Interrupt::Hangup).status(), 129);
        assert_eq!(interrupted(Interrupt::Interrupt).status(), 130);
        assert_eq!(interrupted(Interrupt::Terminate).status(), 143);
        assert_eq!(end(1, 1, 0, 1).status(), 1);
        assert_eq!(end(1, 0, 0, 1).status(), 125);
        assert_eq!(end(0, 0, 1, 0).status(), 4);
        assert_eq!(RunEnd { allow_none: true, ..end(0, 0, 1, 0) }.status(), 0);
        assert_eq!(RunEnd { lost: true, ..end(1, 0, 0, 0) }.status(), 5);
        assert_eq!(end(1, 0, 1, 0).status(), 0);
        assert_eq!(usage_status(false), 2);
        assert_eq!(end(300, 256, 0, 0).status(), 1);
    }

    #[test]
    fn bisecting_has_its_own_column() {
        let bisect = |end: RunEnd| RunEnd { bisect: true, ..end }.status();
        assert_eq!(bisect(RunEnd { interrupt: Some(Interrupt::Hangup), ..end(1, 0, 0, 0) }), 128);
        assert_eq!(bisect(end(0, 1, 0, 1)), 1);
        assert_eq!(bisect(end(1, 0, 0, 1)), 125);
        assert_eq!(bisect(RunEnd { allow_none: true, ..end(0, 0, 1, 0) }), 125);
        assert_eq!(bisect(RunEnd { lost: true, ..end(1, 0, 0, 0) }), 0);
        assert_eq!(usage_status(true), 128);
    }
}
