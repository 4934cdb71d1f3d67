//! The report for people.
//!
//! One test: its output passes through, and its verdict follows on stderr. Several lines of `check`: a block each on
//! stderr, output and verdict together. Tests of suites: those that did not pass, with the end of their output, and a
//! summary. On a pass nothing follows the verdict; otherwise its evidence does, indented. Progress shows on a terminal
//! only, and goes away.

use super::Report;
use crate::event::{AttemptFinished, Record, RunEvent, StreamName, Subtest, TestFinished};
use crate::job::JobTest;
use crate::outcome::{Outcome, Tally};
use crate::text;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{self, Write};
use std::time::Duration;
use ulid::Ulid;

/// So much output of a test is shown in its block; the whole is in its evidence.
const BLOCK_LEN: usize = 64 * 1024;

/// So many of its last lines are shown of a test of a suite that failed.
const LINES_SHOWN: usize = 10;

/// So many failed results of a test's output are shown.
const SUBTESTS_SHOWN: usize = 10;

/// How to report.
#[derive(Debug, Clone, Default)]
pub struct HumanConfig {
    /// Standard output is a terminal: what the guest says must not drive it.
    pub stdout_is_terminal: bool,
    /// Standard error is a terminal: it can show progress.
    pub stderr_is_terminal: bool,
    /// Colours may be used.
    pub colour: bool,
    /// More is wanted.
    pub verbose: bool,
    /// The command that runs a test again, up to the test: `guestline check --image tiny`.
    pub again: String,
    /// Where the suites are, by their names, as they are named on the command line; none for lines of `check`.
    pub suites: BTreeMap<String, String>,
    /// Folders below this one are shown with `~`.
    pub home: Option<String>,
}

/// Writes what the guest says and what came of it.
pub struct Human<O, E> {
    config: HumanConfig,
    out: O,
    err: E,
    single: bool,
    progress: bool,
    /// The last byte on the screen, or on stderr, was no end of line.
    open_line: bool,
    /// For a terminal: the beginning of a character whose end has not come yet, of each stream.
    partial: [Vec<u8>; 2],
    /// Standard output's reader has gone.
    deaf: bool,
    /// What is known of attempts that run, and of the last one at a test that is not over.
    blocks: HashMap<Ulid, Block>,
    /// The last attempt at each test that is not over.
    ended: HashMap<u32, (Ulid, AttemptFinished)>,
    count: u32,
    finished: u32,
    running: u32,
    tally: Tally,
    flaky: u32,
    /// What broke more than one test, and how many of them.
    broken: BTreeMap<String, u32>,
    /// What is said once.
    said: HashSet<String>,
}

#[derive(Default)]
struct Block {
    output: Vec<u8>,
    dropped: usize,
    /// What would run it again, behind the command.
    arguments: String,
    /// It is a test of a suite.
    is_of_suite: bool,
    /// Results of its output that failed.
    failed: Vec<String>,
    /// How many results it told, and how many of them failed.
    subtests: (u32, u32),
}

impl<O: Write + Send, E: Write + Send> Human<O, E> {
    /// Output onto `out`, everything else onto `err`.
    pub fn new(config: HumanConfig, out: O, err: E) -> Self {
        Self {
            config,
            out,
            err,
            single: true,
            progress: false,
            open_line: false,
            partial: Default::default(),
            deaf: false,
            blocks: HashMap::new(),
            ended: HashMap::new(),
            count: 0,
            finished: 0,
            running: 0,
            tally: Tally::default(),
            flaky: 0,
            broken: BTreeMap::new(),
            said: HashSet::new(),
        }
    }

    fn output(&mut self, attempt: Ulid, stream: StreamName, data: &[u8]) -> io::Result<()> {
        if !self.single {
            let block = self.blocks.entry(attempt).or_default();
            if block.is_of_suite {
                // Its end is what is shown.
                block.output.extend_from_slice(&data[data.len().saturating_sub(BLOCK_LEN)..]);
                let over = block.output.len().saturating_sub(BLOCK_LEN);
                block.output.drain(..over);
                return Ok(());
            }
            let room = BLOCK_LEN.saturating_sub(block.output.len());
            block.output.extend_from_slice(&data[..data.len().min(room)]);
            block.dropped += data.len().saturating_sub(room);
            return Ok(());
        }
        self.clear_progress()?;
        let shares_screen = self.config.stdout_is_terminal && self.config.stderr_is_terminal;
        if stream == StreamName::Stderr || shares_screen {
            self.open_line = data.last().is_some_and(|&byte| byte != b'\n');
        }
        let [partial_out, partial_err] = &mut self.partial;
        match stream {
            StreamName::Stdout if self.deaf => Ok(()),
            StreamName::Stdout => {
                let terminal = self.config.stdout_is_terminal.then_some(partial_out);
                let written = pass(&mut self.out, data, terminal);
                match written {
                    // As with `| head`: the reader has what it wants.
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                        self.deaf = true;
                        Ok(())
                    }
                    result => result,
                }
            }
            StreamName::Stderr => {
                let terminal = self.config.stderr_is_terminal.then_some(partial_err);
                pass(&mut self.err, data, terminal)
            }
        }
    }

    fn started(&mut self, attempt: Ulid, number: u32, test: &JobTest) -> io::Result<()> {
        self.running += 1;
        let of = test.of.as_ref();
        let arguments = match of {
            None => test.command.to_arguments(),
            Some(of) => {
                let suite =
                    self.config.suites.get(&of.suite).map_or(of.suite.as_str(), String::as_str);
                // The path in a repository begins behind a `#`.
                let apart = if suite.ends_with('#') { "" } else { "/" };
                let name = of.full_name();
                text::quote(&format!("{}{apart}{name}", suite.trim_end_matches('/')))
            }
        };
        self.blocks
            .insert(attempt, Block { arguments, is_of_suite: of.is_some(), ..Block::default() });
        // What is made another attempt at is not told as an outcome.
        if let Some((before, end)) = self.ended.remove(&number) {
            self.blocks.remove(&before);
            let why = end.outcome.why();
            let word = end.outcome.word();
            let name = text::one_line(&end.test, 100);
            self.say(&format!(
                "again    {name:<32}  {word} in attempt {}: {why}",
                end.attempt_number
            ))?;
        }
        self.show_progress()
    }

    fn subtest(&mut self, attempt: Ulid, subtest: &Subtest) {
        let block = self.blocks.entry(attempt).or_default();
        block.subtests.0 += 1;
        if matches!(subtest.outcome, Outcome::Failed { .. }) {
            block.subtests.1 += 1;
            if block.failed.len() < SUBTESTS_SHOWN {
                let name = text::one_line(&text::escape(subtest.name.as_bytes()), 100);
                let why = text::one_line(&subtest.outcome.why(), 100);
                block.failed.push(if why.is_empty() { name } else { format!("{name}: {why}") });
            }
        }
    }

    fn test_finished(&mut self, test: &TestFinished) -> io::Result<()> {
        let verdict = &test.verdict;
        self.finished += 1;
        self.flaky += u32::from(verdict.flaky);
        self.tally.add_verdict(&verdict.outcome, verdict.known_issue.is_some());
        self.clear_progress()?;
        let (attempt, end) = match self.ended.remove(&test.number) {
            Some((attempt, end)) => (attempt, Some(end)),
            None => (Ulid::nil(), None),
        };
        let block = self.blocks.remove(&attempt).unwrap_or_default();
        let is_summed_up = !self.single && (block.is_of_suite || end.is_none());
        let is_plain_pass = verdict.outcome == Outcome::Passed && verdict.note.is_none();
        // Of what had not begun when the run was interrupted there is nothing to say.
        let has_begun = end.as_ref().is_some_and(|end| end.folder.is_some());
        let is_unbegun = verdict.outcome == Outcome::Aborted && !has_begun;
        let is_quiet = is_summed_up && (is_unbegun || (is_plain_pass && !self.config.verbose));
        if is_quiet || (is_summed_up && self.is_told(&verdict.outcome)) {
            return self.show_progress();
        }
        if !self.single && !is_summed_up {
            self.block(&block)?;
        }
        let [partial_out, partial_err] = std::mem::take(&mut self.partial);
        self.out.write_all(text::escape(&partial_out).as_bytes())?;
        self.err.write_all(text::escape(&partial_err).as_bytes())?;
        if std::mem::take(&mut self.open_line) {
            writeln!(self.err)?;
        }
        let line = self.verdict(test, end.as_ref());
        writeln!(self.err, "{line}")?;
        self.evidence(test, end.as_ref(), &block, is_summed_up)?;
        self.show_progress()?;
        self.err.flush()
    }

    /// What broke this test broke another before, and was told then.
    fn is_told(&mut self, outcome: &Outcome) -> bool {
        let Outcome::Errored { .. } = outcome else { return false };
        let count = self.broken.entry(outcome.why()).or_default();
        *count += 1;
        *count > 1
    }

    /// The output of one of several.
    fn block(&mut self, block: &Block) -> io::Result<()> {
        if block.output.is_empty() {
            return Ok(());
        }
        let mut text = text::escape(&block.output);
        if !text.ends_with('\n') {
            text.push('\n');
        }
        self.err.write_all(text.as_bytes())?;
        match block.dropped {
            0 => Ok(()),
            more => writeln!(self.err, "… {more} bytes more; all of it is in the evidence"),
        }
    }

    /// What follows a verdict that is not a pass.
    fn evidence(
        &mut self,
        test: &TestFinished,
        end: Option<&AttemptFinished>,
        block: &Block,
        is_summed_up: bool,
    ) -> io::Result<()> {
        let outcome = &test.verdict.outcome;
        if matches!(
            outcome,
            Outcome::Passed | Outcome::Skipped { .. } | Outcome::Incompatible { .. }
        ) {
            return Ok(());
        }
        let (all, failed) = block.subtests;
        if failed > 0 {
            writeln!(self.err, "  {failed} of {all} results failed:")?;
            for name in &block.failed {
                writeln!(self.err, "    {name}")?;
            }
        }
        if is_summed_up && matches!(outcome, Outcome::Failed { .. }) {
            let text = text::escape(&block.output);
            let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
            let shown = &lines[lines.len().saturating_sub(LINES_SHOWN)..];
            for line in shown {
                writeln!(self.err, "  | {}", text::one_line(line, 200))?;
            }
        }
        let Some(end) = end else { return Ok(()) };
        for note in &end.notes {
            writeln!(self.err, "  {note}")?;
        }
        if let Some(folder) = &end.folder {
            writeln!(self.err, "  evidence: {}/", self.shorten(folder))?;
        }
        match block.arguments.as_str() {
            "" => Ok(()),
            arguments => writeln!(self.err, "  again:    {} {arguments}", self.config.again),
        }
    }

    /// "passed  grep -q sse2 /proc/cpuinfo        0.24 s  (machine 0.06, check 0.15)".
    fn verdict(&self, test: &TestFinished, end: Option<&AttemptFinished>) -> String {
        let verdict = &test.verdict;
        let word = verdict.outcome.word();
        let padded = format!("{word:<width$}", width = if self.single { word.len() } else { 7 });
        let word = match self.config.colour {
            true => format!("\x1b[{}m{padded}\x1b[0m", colour(&verdict.outcome)),
            false => padded,
        };
        let name = text::one_line(&test.test, 100);
        let total = end.map(|end| text::seconds(Duration::from_micros(end.elapsed_us)));
        let part = |us: u64| format!("{:.2}", Duration::from_micros(us).as_secs_f64());
        let known =
            verdict.known_issue.as_ref().map(|issue| format!("  (known: {})", issue.as_str()));
        let note = verdict.note.as_ref().map(|note| format!("({note})"));
        let why = match (&verdict.outcome, end) {
            (Outcome::Passed, _) if note.is_some() => note.clone().unwrap_or_default(),
            (Outcome::Passed, Some(end)) => {
                let check = end.check_us.map(part).unwrap_or_default();
                match end.machine_us.map(part) {
                    Some(machine) => format!("(machine {machine}, check {check})"),
                    // It had another test's.
                    None => format!("(check {check})"),
                }
            }
            (outcome, _) => outcome.why() + &known.unwrap_or_default(),
        };
        format!("{word}  {name:<32}  {}  {why}", total.unwrap_or_default()).trim_end().to_owned()
    }

    /// What stands at the end of a run of suites.
    fn summary(&mut self, tally: &Tally, not_run: u32, elapsed_us: u64) -> io::Result<()> {
        self.clear_progress()?;
        if self.single && not_run == 0 {
            return self.err.flush();
        }
        for (why, count) in std::mem::take(&mut self.broken) {
            if count > 1 {
                writeln!(self.err, "errored  {count} tests in all: {}", text::one_line(&why, 200))?;
            }
        }
        let elapsed = Duration::from_micros(elapsed_us).as_secs_f64();
        let (tests, words) = (tally.total(), tally.in_words());
        write!(self.err, "{tests} tests in {elapsed:.1} s: {words}")?;
        if self.flaky > 0 {
            write!(self.err, "; {} of them flaky", self.flaky)?;
        }
        if not_run > 0 {
            write!(self.err, "; {not_run} not run, since one had failed")?;
        }
        writeln!(self.err)?;
        self.err.flush()
    }

    fn shorten(&self, folder: &str) -> String {
        let below = self.config.home.as_deref().and_then(|home| folder.strip_prefix(home));
        match below.filter(|rest| rest.starts_with('/')) {
            Some(rest) => format!("~{rest}"),
            None => folder.to_owned(),
        }
    }

    fn say(&mut self, line: &str) -> io::Result<()> {
        self.clear_progress()?;
        writeln!(self.err, "{line}")?;
        self.err.flush()
    }

    /// What many attempts would say alike.
    fn say_once(&mut self, line: String) -> io::Result<()> {
        match self.said.insert(line.clone()) {
            true => self.say(&line),
            false => Ok(()),
        }
    }

    fn show(&mut self, line: &str) -> io::Result<()> {
        if self.config.stderr_is_terminal {
            self.clear_progress()?;
            self.progress = true;
            write!(self.err, "{line}")?;
            self.err.flush()?;
        }
        Ok(())
    }

    fn show_progress(&mut self) -> io::Result<()> {
        match self.single || self.finished == self.count {
            true => Ok(()),
            false => {
                let so_far = match self.tally.total() {
                    0 => String::new(),
                    _ => format!("  ·  {}", self.tally.in_words()),
                };
                let (finished, count, running) = (self.finished, self.count, self.running);
                self.show(&format!(" {finished}/{count}  running {running}{so_far}"))
            }
        }
    }

    fn clear_progress(&mut self) -> io::Result<()> {
        match std::mem::take(&mut self.progress) {
            true => write!(self.err, "\r\x1b[K"),
            false => Ok(()),
        }
    }
}

/// Passes bytes through. A terminal, which has a place for a character that is cut in two, gets none that
/// would drive it.
fn pass(to: &mut impl Write, data: &[u8], terminal: Option<&mut Vec<u8>>) -> io::Result<()> {
    match terminal {
        Some(partial) => {
            let mut bytes = std::mem::take(partial);
            bytes.extend_from_slice(data);
            *partial = bytes.split_off(bytes.len() - text::partial_len(&bytes));
            to.write_all(text::escape(&bytes).as_bytes())?;
        }
        None => to.write_all(data)?,
    }
    to.flush()
}

fn colour(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Passed => "32",
        Outcome::Failed { .. } => "31",
        Outcome::Errored { .. } | Outcome::Aborted => "35",
        Outcome::Skipped { .. } | Outcome::Incompatible { .. } => "33",
    }
}

impl<O: Write + Send, E: Write + Send> Report for Human<O, E> {
    fn record(&mut self, record: &Record) -> io::Result<()> {
        let attempt = record.attempt.unwrap_or_default();
        match &record.event {
            RunEvent::RunStarted {
                tests,
                accelerator,
                accelerator_why,
                accelerator_probed,
                qemu,
                ..
            } => {
                self.single = *tests == 1;
                self.count = *tests;
                if *accelerator_probed || self.config.verbose {
                    self.say(&format!("accelerator: {accelerator} ({accelerator_why})"))?;
                }
                if self.config.verbose {
                    self.say(&format!("QEMU {qemu}"))?;
                }
                Ok(())
            }
            RunEvent::ImageMaking { image, step } => self.show(&format!("image {image}: {step} …")),
            RunEvent::ImageNote { image, text } => {
                self.say(&format!("image {image}: {}", text::printable(text)))
            }
            RunEvent::ImageMade { image, packages, elapsed_us, .. } => {
                let elapsed = Duration::from_micros(*elapsed_us).as_secs_f64();
                self.say(&format!("image {image}: made from {packages} packages in {elapsed:.1} s"))
            }
            RunEvent::TemplateMade { elapsed_us, .. } => {
                let elapsed = Duration::from_micros(*elapsed_us).as_secs_f64();
                self.say(&format!("template: booted and saved in {elapsed:.1} s"))
            }
            RunEvent::TemplateDropped { why, .. } => {
                self.say_once(format!("template: dropped ({why})"))
            }
            RunEvent::TemplateMissing { why } => {
                self.say_once(format!("template: none ({why}); machines boot instead"))
            }
            RunEvent::AttemptStarted { number, job, .. } => match job.tests.first() {
                Some(test) => self.started(attempt, *number, test),
                None => Ok(()),
            },
            RunEvent::MachineReady { .. } => Ok(()),
            RunEvent::Output { stream, data } => self.output(attempt, *stream, &data.0),
            RunEvent::Subtest(subtest) => {
                self.subtest(attempt, subtest);
                Ok(())
            }
            RunEvent::AttemptFinished(end) => {
                self.running = self.running.saturating_sub(1);
                self.ended.insert(end.number, (attempt, end.as_ref().clone()));
                Ok(())
            }
            RunEvent::TestFinished(test) => self.test_finished(test),
            RunEvent::RunFinished { tally, not_run, elapsed_us } => {
                self.summary(tally, *not_run, *elapsed_us)
            }
        }
    }
}

#[cfg(test)]
mod tests;
