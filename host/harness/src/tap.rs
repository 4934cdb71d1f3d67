//! Results in the output of a test: TAP 12 to 14 (testanything.org) and KTAP 1 (Linux `Documentation/dev-tools/ktap.rst`).
//!
//! ```text
//! bytes ──> lines ──> line: what one says ──> levels: plans, results, those nested in them ──> events, end
//! ```
//! Nested results stand before the result that they are a part of, deeper: four spaces, two, or behind `# ` as older
//! kselftests have them. They are told when that result comes, which gives them its name. Prefixes of the kernel's log are
//! passed over, so that the results of KUnit can be read there. No I/O, and bounded: a guest writes this.

mod level;
mod line;
#[cfg(test)]
mod tests;

use crate::event::Subtest;
use crate::outcome::Outcome;
use crate::text::{escape, one_line};
use level::Level;
use line::{Said, read};

/// No more of a line is looked at, bytes.
const MAX_LINE_LEN: usize = 64 * 1024;

/// So many results are told; beyond they are only counted.
const MAX_TOLD: usize = 100_000;

/// Results are not nested deeper.
const MAX_DEPTH: usize = 32;

/// So many names and problems stand in a reason.
const SHOWN: usize = 3;

/// Names and reasons are not longer, bytes.
const MAX_NAME_LEN: usize = 512;

/// One result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TapEvent {
    /// Its name, with those of what it is a part of before it.
    pub name: String,
    /// What it says.
    pub outcome: Outcome,
    /// It is known to fail.
    pub todo: bool,
}

impl From<TapEvent> for Subtest {
    fn from(event: TapEvent) -> Self {
        let TapEvent { name, outcome, todo } = event;
        Self { name, outcome, todo }
    }
}

/// What is left to say when the output is over.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TapEnd {
    /// There was a plan or a result.
    pub is_tap: bool,
    /// How many results there were.
    pub results: u64,
    /// How many of them failed, not counting those that are known to.
    pub failed: u64,
    /// How many of them were skipped.
    pub skipped: u64,
    /// Why, of the last one.
    pub skip_reason: String,
    /// The first names of those that failed.
    pub failed_names: Vec<String>,
    /// What does not fit together, in words.
    pub problems: Vec<String>,
    /// All of it was skipped, and why.
    pub plan_skip: Option<String>,
    /// It gave up, and why.
    pub bail_out: Option<String>,
}

/// Reads results as the output comes.
#[derive(Debug, Default)]
pub struct TapParser {
    line: Vec<u8>,
    levels: Vec<Level>,
    /// Within the details of a result, which end with `...` at this depth.
    yaml: Option<usize>,
    told: usize,
    end: TapEnd,
}

impl TapParser {
    /// Before any output.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a piece of the output; the results that it completes.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<TapEvent> {
        let mut events = Vec::new();
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            let room = MAX_LINE_LEN.saturating_sub(self.line.len());
            self.line.extend_from_slice(&piece[..piece.len().min(room)]);
            if piece.ends_with(b"\n") {
                let line = std::mem::take(&mut self.line);
                self.on_line(&line, &mut events);
            }
        }
        events
    }

    /// The output is over.
    pub fn finish(mut self) -> (Vec<TapEvent>, TapEnd) {
        let mut events = Vec::new();
        let line = std::mem::take(&mut self.line);
        self.on_line(&line, &mut events);
        // What was a part of something whose result never came.
        while let Some(level) = self.levels.pop() {
            let left = self.close(level);
            match self.levels.last_mut() {
                Some(above) => above.within(left),
                None => self.tell(left, &mut events),
            }
        }
        self.end.problems.truncate(SHOWN);
        (events, self.end)
    }

    fn on_line(&mut self, line: &[u8], events: &mut Vec<TapEvent>) {
        let text = escape(line.trim_ascii_end());
        let (indent, said) = read(&text);
        if let Some(depth) = self.yaml {
            if said == Said::YamlEnd || indent < depth {
                self.yaml = None;
            }
            if said == Said::YamlEnd || self.yaml.is_some() {
                return;
            }
        }
        match said {
            Said::Nothing | Said::YamlEnd => {}
            Said::Yaml => self.yaml = Some(indent),
            Said::BailOut(why) => {
                self.end.is_tap = true;
                self.end.bail_out.get_or_insert(why);
            }
            Said::Version => drop(self.level(indent)),
            Said::Subtest(name) => {
                if let Some(level) = self.level(indent) {
                    level.name = Some(name);
                }
            }
            Said::Plan { count, skip } => {
                self.end.is_tap = true;
                let problem = self.level(indent).and_then(|level| level.plan(count));
                self.end.problems.extend(problem);
                if let Some(why) = skip.filter(|_| count == 0 && self.levels.len() == 1) {
                    self.end.plan_skip = Some(why);
                }
            }
            Said::Result(result) => {
                self.end.is_tap = true;
                let Some(level) = self.level(indent) else { return };
                let problem = level.result(result);
                self.end.problems.extend(problem);
                // Deeper ones wait for the name of what they are a part of.
                if let [top] = &mut self.levels[..] {
                    let told = top.take();
                    self.tell(told, events);
                }
            }
        }
        self.end.problems.truncate(SHOWN);
    }

    /// The level at this depth, as the last one; what is deeper belongs to its next result.
    fn level(&mut self, indent: usize) -> Option<&mut Level> {
        let mut nested = Vec::new();
        while let Some(level) = self.levels.pop_if(|level| level.indent > indent) {
            let left = self.close(level);
            match self.levels.last_mut().filter(|above| above.indent >= indent) {
                Some(above) => above.within(left),
                None => nested = left,
            }
        }
        let is_deeper = self.levels.last().is_none_or(|level| level.indent < indent);
        if is_deeper && self.levels.len() < MAX_DEPTH {
            self.levels.push(Level::at(indent));
        }
        let level = self.levels.last_mut()?;
        level.within(nested);
        Some(level)
    }

    /// What a level leaves when it is over.
    fn close(&mut self, level: Level) -> Vec<TapEvent> {
        let (problem, left) = level.close();
        self.end.problems.extend(problem);
        left
    }

    fn tell(&mut self, told: Vec<TapEvent>, events: &mut Vec<TapEvent>) {
        for event in told {
            self.end.results += 1;
            match &event.outcome {
                Outcome::Failed { .. } if !event.todo => {
                    self.end.failed += 1;
                    if self.end.failed_names.len() < SHOWN {
                        self.end.failed_names.push(event.name.clone());
                    }
                }
                Outcome::Skipped { reason } => {
                    self.end.skipped += 1;
                    self.end.skip_reason.clone_from(reason);
                }
                _ => {}
            }
            self.told += 1;
            if self.told <= MAX_TOLD {
                events.push(event);
            }
        }
    }
}

/// What a test comes to whose output has results, where its exit status says this.
pub fn judge(end: &TapEnd, said: Outcome) -> Outcome {
    let failed = |reason: String| Outcome::Failed { reason, stage: None };
    if let Some(why) = &end.bail_out {
        return failed(with_reason("it bailed out", why));
    }
    if !end.is_tap {
        return match said {
            Outcome::Passed => failed("no TAP in its output".to_owned()),
            Outcome::Failed { reason, .. } => failed(format!("{reason}, and no TAP in its output")),
            other => other,
        };
    }
    if end.failed > 0 {
        let mut names = end.failed_names.join(", ");
        let more = end.failed.saturating_sub(end.failed_names.len() as u64);
        if more > 0 {
            names = format!("{names} and {more} more");
        }
        return failed(format!("{} of {} results failed: {names}", end.failed, end.results));
    }
    if let Some(problem) = end.problems.first() {
        return failed(problem.clone());
    }
    match said {
        Outcome::Failed { reason, stage } => {
            Outcome::Failed { reason: format!("{reason}, though no result failed"), stage }
        }
        Outcome::Passed => match &end.plan_skip {
            Some(why) => Outcome::Skipped { reason: why.clone() },
            None if end.results == 0 => failed("it planned no results, and gave none".to_owned()),
            None if end.skipped == end.results => {
                let reason = with_reason(
                    &format!("all {} results were skipped", end.results),
                    &end.skip_reason,
                );
                Outcome::Skipped { reason }
            }
            None => Outcome::Passed,
        },
        other => other,
    }
}

fn with_reason(what: &str, why: &str) -> String {
    if why.is_empty() { what.to_owned() } else { format!("{what}: {why}") }
}

/// A name or reason that is not longer than it may be.
fn bounded(text: &str) -> String {
    one_line(text.trim(), MAX_NAME_LEN)
}
