//! This program again, in the background: it outlives who starts it, and says when it is ready, or why it never is.
//!
//! ```text
//! up, pool start ── spawn, in a session of its own ──> supervise, keep-pool
//!                <── JSON lines on its standard output ─────┘  (its standard error becomes its log)
//! ```
//! The pipe between them is also how it learns that nobody wants it any more.

use crate::error::CommandError;
use guestline::{supervise, text};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Command, Stdio};
use tokio_util::sync::CancellationToken;

/// What it says to who started it, a line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub(crate) enum Told<T> {
    /// It is ready.
    Ready { what: Box<T> },
    /// It never got there: what to print, and the exit status.
    Failed { text: String, status: u8 },
}

/// A line of it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Line<T> {
    /// What its user should know meanwhile; more will come.
    Note {
        note: String,
    },
    Told(Told<T>),
}

/// What was heard of it.
pub(crate) enum Heard<T> {
    Told(Told<T>),
    /// It ended without a word: how, and what it complained of.
    Nothing {
        how: String,
        complaint: String,
    },
    /// It was not wanted any more, and is gone.
    Interrupted,
}

/// Starts this program with these arguments, and waits for its word. It goes when `cancel` comes first.
pub(crate) async fn start<T: DeserializeOwned + Send + 'static>(
    words: &[OsString],
    cancel: &CancellationToken,
) -> Result<Heard<T>, CommandError> {
    let (mut child, said, stderr) = spawn(words)?;
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap_or(0));
    let mut told = tokio::task::spawn_blocking(move || read(said));
    let told = tokio::select! {
        told = &mut told => told,
        () = cancel.cancelled() => {
            let _ = kill(pid, Signal::SIGTERM);
            told.await
        }
    };
    if cancel.is_cancelled() {
        // It may have been ready in this moment; it goes all the same.
        let _ = kill(pid, Signal::SIGTERM);
        let _ = child.wait();
        return Ok(Heard::Interrupted);
    }
    Ok(match told.ok().flatten() {
        Some(told) => {
            if let Told::Failed { .. } = told {
                let _ = child.wait();
            }
            Heard::Told(told)
        }
        None => {
            let how = child.wait();
            let how = how.map_or_else(|error| error.to_string(), |status| status.to_string());
            Heard::Nothing { how, complaint: complaint(stderr) }
        }
    })
}

/// With what it says, and where it complains until it has a log.
fn spawn(words: &[OsString]) -> Result<(Child, ChildStdout, File), CommandError> {
    let program = std::env::current_exe()?;
    let stderr = tempfile::tempfile()?;
    let mut command = Command::new(program);
    command.arg0("guestline").args(words).current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr.try_clone()?);
    supervise::detach(&mut command);
    let mut child = command.spawn()?;
    let said = child.stdout.take().ok_or_else(|| io::Error::other("no pipe"))?;
    Ok((child, said, stderr))
}

fn read<T: DeserializeOwned>(said: ChildStdout) -> Option<Told<T>> {
    let mut said = BufReader::new(said);
    loop {
        let mut line = String::new();
        said.read_line(&mut line).ok()?;
        match serde_json::from_str(&line).ok()? {
            Line::Note { note } => eprintln!("{}", text::printable(&note)),
            Line::Told(told) => return Some(told),
        }
    }
}

fn complaint(mut stderr: File) -> String {
    let mut text = Vec::new();
    let _ = stderr.rewind().and_then(|()| stderr.read_to_end(&mut text));
    text::escape(&text)
}

/// Says what who started us should know meanwhile.
pub(crate) fn tell_note(note: String) {
    tell(&Line::<()>::Note { note });
}

/// Says why we are never ready, and gives the exit status back.
pub(crate) fn tell_failed(text: String, status: u8) -> u8 {
    tell(&Told::<()>::Failed { text, status });
    status
}

/// Says that we are ready. From then on nothing of ours holds the pipe of who started us.
pub(crate) fn tell_ready<T: Serialize>(what: T) -> bool {
    let told = tell(&Told::Ready { what: Box::new(what) });
    if let Ok(null) = File::options().write(true).open("/dev/null") {
        let _ = nix::unistd::dup2_stdout(null);
    }
    told
}

/// Says a line to who started us. False when nobody is there.
fn tell(told: &impl Serialize) -> bool {
    let mut line = serde_json::to_vec(told).unwrap_or_default();
    line.push(b'\n');
    let mut stdout = io::stdout();
    stdout.write_all(&line).and_then(|()| stdout.flush()).is_ok()
}
