//! A program on the host that is waited for: with a limit of time and of output, and killed with all that it started.

use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use thiserror::Error;
use tokio_util::sync::CancellationToken;

/// Of its errors so much is kept from the end, bytes.
const MAX_STDERR: usize = 16 * 1024;

/// So often it is looked whether the caller is interrupted.
const LOOK: Duration = Duration::from_millis(20);

/// What is still written when it has ended comes at once.
const LAST: Duration = Duration::from_secs(1);

/// What it may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) time: Duration,
    /// Bytes.
    pub(super) stdout: usize,
}

/// How it ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) status: ExitStatus,
    pub(super) stdout: Vec<u8>,
    /// The end of it.
    pub(super) stderr: Vec<u8>,
}

/// It did not end by itself.
#[derive(Debug, Error)]
pub(super) enum ChildError {
    #[error("it cannot be started")]
    Start(#[source] io::Error),
    #[error("it was not done in time")]
    TimedOut { stderr: Vec<u8> },
    #[error("it wrote too much")]
    TooMuch,
    #[error("interrupted")]
    Cancelled,
    #[error("it cannot be waited for")]
    Wait(#[source] io::Error),
}

enum News {
    Ended(nix::Result<()>),
    /// One of its streams is at its end.
    Closed,
    TooMuch,
}

type Shared = Arc<Mutex<Vec<u8>>>;

/// Kills the group of a child that nobody has waited for: until then no other group has its number.
struct Group<'a>(&'a mut Child);

impl Drop for Group<'_> {
    fn drop(&mut self) {
        let _ = killpg(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGKILL);
        let _ = self.0.wait();
    }
}

/// Runs a program in a process group of its own, without input.
pub(super) fn run(
    command: &mut Command,
    limits: Limits,
    cancel: &CancellationToken,
) -> Result<Ended, ChildError> {
    let deadline = Instant::now() + limits.time;
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(ChildError::Start)?;
    let (sender, news) = channel();
    let (stdout, stderr) = (Shared::default(), Shared::default());
    if let Some(stream) = child.stdout.take() {
        keep_first(stream, limits.stdout, &stdout, &sender);
    }
    if let Some(stream) = child.stderr.take() {
        keep_last(stream, &stderr, &sender);
    }
    let pid = Pid::from_raw(child.id().cast_signed());
    let ended = sender.clone();
    // It stays there for its group to be killed.
    let wait = move || loop {
        let found = waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT).map(drop);
        if found != Err(Errno::EINTR) {
            let _ = ended.send(News::Ended(found));
            return;
        }
    };
    thread::spawn(wait);
    let group = Group(&mut child);
    let waited = wait_for(&news, deadline, cancel);
    drop(group);
    match waited {
        Err(ChildError::TimedOut { .. }) => {
            return Err(ChildError::TimedOut { stderr: taken(&stderr) });
        }
        waited => waited?,
    }
    let status = child.wait().map_err(ChildError::Wait)?;
    // What it left behind with its streams open has been killed, or hides in a session of its own.
    let last = Instant::now() + LAST;
    let mut open = Arc::strong_count(&stdout) + Arc::strong_count(&stderr) - 2;
    while open > 0
        && let Ok(news) = news.recv_timeout(last.saturating_duration_since(Instant::now()))
    {
        match news {
            News::TooMuch => return Err(ChildError::TooMuch),
            News::Closed | News::Ended(_) => {}
        }
        open = Arc::strong_count(&stdout) + Arc::strong_count(&stderr) - 2;
    }
    Ok(Ended { status, stdout: taken(&stdout), stderr: taken(&stderr) })
}

fn wait_for(
    news: &Receiver<News>,
    deadline: Instant,
    cancel: &CancellationToken,
) -> Result<(), ChildError> {
    loop {
        if cancel.is_cancelled() {
            return Err(ChildError::Cancelled);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        match news.recv_timeout(left.min(LOOK)) {
            Ok(News::Ended(found)) => return found.map_err(|errno| ChildError::Wait(errno.into())),
            Ok(News::TooMuch) => return Err(ChildError::TooMuch),
            Err(RecvTimeoutError::Timeout) if left.is_zero() => {
                return Err(ChildError::TimedOut { stderr: Vec::new() });
            }
            // The one that waits for the child speaks before it goes.
            Ok(News::Closed) | Err(_) => {}
        }
    }
}

fn taken(shared: &Shared) -> Vec<u8> {
    std::mem::take(&mut shared.lock().unwrap_or_else(PoisonError::into_inner))
}

fn keep_first(stream: impl Read + Send + 'static, limit: usize, to: &Shared, news: &Sender<News>) {
    let add = move |kept: &mut Vec<u8>, part: &[u8]| {
        let fits = kept.len() + part.len() <= limit;
        if fits {
            kept.extend_from_slice(part);
        }
        fits
    };
    keep(stream, to, news, add);
}

fn keep_last(stream: impl Read + Send + 'static, to: &Shared, news: &Sender<News>) {
    let add = |kept: &mut Vec<u8>, part: &[u8]| {
        kept.extend_from_slice(part);
        let beyond = kept.len().saturating_sub(MAX_STDERR);
        kept.drain(..beyond);
        true
    };
    keep(stream, to, news, add);
}

fn keep(
    mut stream: impl Read + Send + 'static,
    to: &Shared,
    news: &Sender<News>,
    add: impl Fn(&mut Vec<u8>, &[u8]) -> bool + Send + 'static,
) {
    let (to, news) = (Arc::clone(to), news.clone());
    let read = move || {
        let mut buffer = vec![0; 16 * 1024];
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => break,
                Ok(len) => {
                    let mut kept = to.lock().unwrap_or_else(PoisonError::into_inner);
                    if !add(&mut kept, &buffer[..len]) {
                        let _ = news.send(News::TooMuch);
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        // Whoever waits looks who else holds it.
        drop(to);
        let _ = news.send(News::Closed);
    };
    thread::spawn(read);
}

/// The last lines that a program wrote, in one, as they may be shown.
pub(super) fn last_lines(bytes: &[u8]) -> String {
    const LINES: usize = 4;
    let text = String::from_utf8_lossy(bytes);
    let mut lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines.drain(..lines.len().saturating_sub(LINES));
    crate::text::one_line(&lines.join("; "), 600)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn shell(line: &str, limits: Limits, cancel: &CancellationToken) -> Result<Ended, ChildError> {
        run(Command::new("sh").args(["-c", line]), limits, cancel)
    }

    const LIMITS: Limits = Limits { time: Duration::from_secs(60), stdout: 1000 };

    #[test]
    fn what_it_writes_is_kept() {
        let ended = shell("echo out; echo err >&2; exit 3", LIMITS, &CancellationToken::new());
        let ended = ended.unwrap();
        assert_eq!(ended.status.code(), Some(3));
        assert_eq!((&ended.stdout[..], &ended.stderr[..]), (&b"out\n"[..], &b"err\n"[..]));
        let much = shell("seq 100000 >&2", LIMITS, &CancellationToken::new()).unwrap();
        assert_eq!(much.stderr.len(), MAX_STDERR);
        assert_eq!(last_lines(&much.stderr), "99997; 99998; 99999; 100000");
        let endless = shell("yes", LIMITS, &CancellationToken::new());
        assert!(matches!(endless, Err(ChildError::TooMuch)));
        let none = run(&mut Command::new("/nonexistent"), LIMITS, &CancellationToken::new());
        assert!(matches!(none, Err(ChildError::Start(_))));
    }

    #[test]
    fn all_that_it_started_is_killed() {
        let begun = Instant::now();
        let limits = Limits { time: Duration::from_millis(200), ..LIMITS };
        let folder = tempfile::tempdir().unwrap();
        let pid = folder.path().join("pid");
        let line = format!("sleep 1000 & echo $! > {}; echo why >&2; wait", pid.display());
        let late = shell(&line, limits, &CancellationToken::new());
        assert!(matches!(late, Err(ChildError::TimedOut { stderr }) if stderr == b"why\n"));
        assert!(goes(&pid));
        let cancel = CancellationToken::new();
        cancel.cancel();
        assert!(matches!(shell("sleep 1000", LIMITS, &cancel), Err(ChildError::Cancelled)));
        // One that stays behind with the streams open keeps nobody waiting.
        let line = format!("sleep 1000 & echo $! > {}", pid.display());
        assert!(shell(&line, LIMITS, &CancellationToken::new()).unwrap().status.success());
        assert!(goes(&pid));
        assert!(begun.elapsed() < Duration::from_secs(20));
    }

    /// A signal takes a moment on a busy host.
    fn goes(pid: &Path) -> bool {
        let until = Instant::now() + Duration::from_secs(10);
        while !is_gone(pid) {
            if Instant::now() > until {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        true
    }

    /// A process that was killed and waits to be reaped by init is gone.
    fn is_gone(pid: &Path) -> bool {
        let pid = std::fs::read_to_string(pid).unwrap();
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
        stat.map_or(true, |stat| stat.contains(") Z "))
    }
}
