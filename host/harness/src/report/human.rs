//! The report for people.
//!
//! One test: its output passes through, and its verdict follows on stderr. Several: a block each on
//! stderr, output and verdict together. On a pass nothing follows the verdict; otherwise its
//! evidence does, indented. Progress shows on a terminal only, and goes away.

use super::Report;
use crate::event::{AttemptFinished, Record, RunEvent, StreamName};
use crate::outcome::Outcome;
use crate::text;
use std::collections::{HashMap, HashSet};
use std::io::{self, Write};
use std::time::Duration;
use ulid::Ulid;

/// So much output of a test is shown in its block; the whole is in its evidence.
const BLOCK_LEN: usize = 64 * 1024;

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
    blocks: HashMap<Ulid, Block>,
    /// Commands that would run tests again, by attempt.
    arguments: HashMap<Ulid, String>,
    count: u32,
    finished: u32,
    /// What is said once.
    said: HashSet<String>,
}

#[derive(Default)]
struct Block {
    output: Vec<u8>,
    dropped: usize,
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
            arguments: HashMap::new(),
            count: 0,
            finished: 0,
            said: HashSet::new(),
        }
    }

    fn output(&mut self, attempt: Ulid, stream: StreamName, data: &[u8]) -> io::Result<()> {
        if !self.single {
            let block = self.blocks.entry(attempt).or_default();
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

    fn finished(&mut self, attempt: Ulid, end: &AttemptFinished) -> io::Result<()> {
        self.finished += 1;
        self.clear_progress()?;
        if let Some(block) = self.blocks.remove(&attempt) {
            let mut text = text::escape(&block.output);
            if !text.ends_with('\n') {
                text.push('\n');
            }
            self.err.write_all(text.as_bytes())?;
            if block.dropped > 0 {
                writeln!(self.err, "… {} bytes more; all of it is in the evidence", block.dropped)?;
            }
        }
        let [partial_out, partial_err] = std::mem::take(&mut self.partial);
        self.out.write_all(text::escape(&partial_out).as_bytes())?;
        self.err.write_all(text::escape(&partial_err).as_bytes())?;
        if std::mem::take(&mut self.open_line) {
            writeln!(self.err)?;
        }
        let line = self.verdict(end);
        writeln!(self.err, "{line}")?;
        if !matches!(end.outcome, Outcome::Passed | Outcome::Skipped { .. }) {
            for note in &end.notes {
                writeln!(self.err, "  {note}")?;
            }
            if let Some(folder) = &end.folder {
                writeln!(self.err, "  evidence: {}/", self.shorten(folder))?;
            }
            if let Some(arguments) = self.arguments.get(&attempt) {
                writeln!(self.err, "  again:    {} {arguments}", self.config.again)?;
            }
        }
        self.show_progress()?;
        self.err.flush()
    }

    /// "passed  grep -q sse2 /proc/cpuinfo        0.24 s  (machine 0.06, check 0.15)".
    fn verdict(&self, end: &AttemptFinished) -> String {
        let word = end.outcome.word();
        let padded = format!("{word:<width$}", width = if self.single { word.len() } else { 7 });
        let word = match self.config.colour {
            true => format!("\x1b[{}m{padded}\x1b[0m", colour(&end.outcome)),
            false => padded,
        };
        let name = text::one_line(&end.test, 100);
        let total = text::seconds(Duration::from_micros(end.elapsed_us));
        let part = |us: u64| format!("{:.2}", Duration::from_micros(us).as_secs_f64());
        let why = match &end.outcome {
            Outcome::Passed => {
                let machine = end.machine_us.map(part).unwrap_or_default();
                let check = end.check_us.map(part).unwrap_or_default();
                format!("(machine {machine}, check {check})")
            }
            outcome => outcome.why(),
        };
        format!("{word}  {name:<32}  {total}  {why}").trim_end().to_owned()
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
            false => self.show(&format!(" {}/{}", self.finished, self.count)),
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
            RunEvent::AttemptStarted { job, .. } => {
                self.arguments.insert(attempt, job.command.to_arguments());
                self.show_progress()
            }
            RunEvent::MachineReady { .. } => Ok(()),
            RunEvent::Output { stream, data } => self.output(attempt, *stream, &data.0),
            RunEvent::AttemptFinished(end) => self.finished(attempt, end),
            RunEvent::RunFinished { tally, elapsed_us } => {
                self.clear_progress()?;
                if !self.single {
                    let elapsed = Duration::from_micros(*elapsed_us).as_secs_f64();
                    let (tests, words) = (tally.total(), tally.in_words());
                    writeln!(self.err, "{tests} tests in {elapsed:.1} s: {words}")?;
                }
                self.err.flush()
            }
        }
    }
}

#[cfg(test)]
mod tests;
