//! A child whose standard input and output carry a link: a local agent, or `ssh` to one.
//!
//! It runs in a process group of its own, which is killed when the link is dropped. Should this process die itself,
//! the agent at the other end sees its input end, and ends too.

use super::LinkError;
use super::transport::{Lane, LastWords};
use crate::text::escape;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, ChildStderr, Command};
use tokio::sync::oneshot;

/// So much of its standard error is kept: its end.
const STDERR_KEPT: usize = 4 * 1024;

/// How long a dead program's last words may take to be read.
const LAST_WORDS: Duration = Duration::from_millis(250);

/// Keeps the child. Dropped, it orders it killed.
pub(super) struct Guard(
    #[expect(dead_code, reason = "dropping it is the order")] oneshot::Sender<()>,
);

/// Starts a program; `name` is what errors call it.
pub(super) fn start(mut command: Command, name: String) -> io::Result<(Lane, Guard, LastWords)> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.process_group(0).kill_on_drop(true);
    let mut child = command.spawn()?;
    let (Some(stdin), Some(stdout), Some(stderr)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err(io::ErrorKind::BrokenPipe.into());
    };
    let (guard, dropped) = oneshot::channel();
    let (said, ended) = oneshot::channel();
    tokio::spawn(own(child, stderr, name, dropped, said));
    let last_words = Box::pin(async { ended.await.unwrap_or(LinkError::Closed) });
    Ok((Lane::of(stdout, stdin), Guard(guard), last_words))
}

/// Owns the child until it is reaped.
async fn own(
    mut child: Child,
    mut stderr: ChildStderr,
    name: String,
    dropped: oneshot::Receiver<()>,
    said: oneshot::Sender<LinkError>,
) {
    let group = child.id().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw);
    let kept = Arc::new(Mutex::new(Vec::new()));
    let keep = kept.clone();
    let mut reading = tokio::spawn(async move {
        let mut buffer = [0; 1024];
        while let Ok(len @ 1..) = stderr.read(&mut buffer).await {
            let mut kept = keep.lock().unwrap_or_else(PoisonError::into_inner);
            kept.extend_from_slice(&buffer[..len]);
            let over = kept.len().saturating_sub(STDERR_KEPT);
            kept.drain(..over);
        }
    });
    let status = tokio::select! {
        status = child.wait() => status,
        _ = dropped => {
            // Not reaped yet, so the number is still its own.
            if let Some(group) = group {
                let _ = killpg(group, Signal::SIGKILL);
            }
            let _ = child.wait().await;
            reading.abort();
            return;
        }
    };
    // Somebody whom it started may hold it open.
    if tokio::time::timeout(LAST_WORDS, &mut reading).await.is_err() {
        reading.abort();
    }
    let how = match status {
        Ok(status) => in_words(status),
        Err(error) => format!("could not be reaped: {error}"),
    };
    let stderr = escape(&kept.lock().unwrap_or_else(PoisonError::into_inner)).trim().to_owned();
    let _ = said.send(LinkError::ProgramEnded { name, how, stderr });
}

fn in_words(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with status {code}"),
        (None, Some(signal)) => match Signal::try_from(signal) {
            Ok(signal) => format!("was killed by {signal}"),
            Err(_) => format!("was killed by signal {signal}"),
        },
        (None, None) => "ended".to_owned(),
    }
}
