//! What the commands on named machines share: finding one, attaching to it, and saying why that failed.

use crate::error::CommandError;
use crate::signals;
pub(crate) use guestline::clock::now_us;
use guestline::dirs::Dirs;
use guestline::guest::Guest;
use guestline::link::LinkError;
use guestline::supervise::{
    self, AttachError, How, MachineName, MachineState, MachineStatus, Passed,
};
use guestline::text;
use std::error::Error;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// The status when Guestline itself failed.
pub(crate) const FAILED: u8 = 255;

/// How long a supervisor may take to say what its machine does.
const ANSWER: Duration = Duration::from_secs(10);

/// Longer than the supervisor's own patience with a guest that boots.
const LONGER: Duration = Duration::from_secs(5);

/// How long what is interrupted may take to remove what is not whole.
const CLEAN_UP: Duration = Duration::from_secs(2);

/// How long the reason of an end may take to be written down.
const NEWS: Duration = Duration::from_secs(3);

/// Guestline could not do what was asked.
#[derive(Debug)]
pub(crate) struct Failure {
    message: String,
    hints: Vec<String>,
}

impl Failure {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hints: Vec::new() }
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    pub(crate) fn print(&self) {
        let mut text = format!("guestline: {}\n", self.message);
        for hint in &self.hints {
            text += &format!("  hint: {hint}\n");
        }
        // Nothing is left to tell when standard error is gone.
        let _ = std::io::stderr().write_all(text.as_bytes());
    }
}

impl Failure {
    /// What it is, without what mends it.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }
}

impl<E: Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::new(text::chain(&error))
    }
}

/// Runs a command on a named machine; its failures are told here.
pub(crate) fn run<W>(work: impl FnOnce(Dirs) -> W) -> Result<u8, CommandError>
where
    W: Future<Output = Result<u8, Failure>>,
{
    let (dirs, runtime) = begin()?;
    let result = runtime.block_on(work(dirs));
    // A read of standard input that nobody waits for any more is left behind.
    runtime.shutdown_background();
    Ok(status_of(result))
}

/// As [`run`], of what leaves something on this host that is not whole when it is interrupted: what is under way is given
/// time to remove it.
pub(crate) fn run_to_clean_up<W>(work: impl FnOnce(Dirs) -> W) -> Result<u8, CommandError>
where
    W: Future<Output = Result<u8, Failure>>,
{
    let (dirs, runtime) = begin()?;
    let cancel = CancellationToken::new();
    let result = runtime.block_on(async {
        let interrupted = signals::listen_as_told(cancel.clone())?;
        tokio::select! {
            biased;
            result = work(dirs) => result,
            () = cancel.cancelled() => Ok(interrupted.status()),
        }
    });
    match cancel.is_cancelled() {
        true => runtime.shutdown_timeout(CLEAN_UP),
        false => runtime.shutdown_background(),
    }
    Ok(status_of(result))
}

fn begin() -> Result<(Dirs, tokio::runtime::Runtime), CommandError> {
    let dirs = Dirs::from_env().map_err(|error| {
        CommandError::new(error).hint("set HOME, or GUESTLINE_HOME to a folder")
    })?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    Ok((dirs, runtime))
}

fn status_of(result: Result<u8, Failure>) -> u8 {
    result.unwrap_or_else(|failure| {
        failure.print();
        FAILED
    })
}

/// A machine that is up.
pub(crate) struct Up {
    pub(crate) dirs: Dirs,
    pub(crate) name: MachineName,
    pub(crate) folder: PathBuf,
    pub(crate) status: MachineStatus,
    /// The last boot of its guest that was heard of.
    boot: AtomicU64,
}

/// A machine, and a session with its guest.
pub(crate) struct Attached {
    pub(crate) up: Up,
    pub(crate) guest: Guest,
    /// What has gone over the session so far.
    pub(crate) passed: Passed,
}

/// The machine of this name.
pub(crate) async fn find(dirs: Dirs, name: &MachineName) -> Result<Up, Failure> {
    let Some(folder) = supervise::find(&dirs, name) else { return Err(not_up(&dirs, name)) };
    match tokio::time::timeout(ANSWER, supervise::status(&folder)).await {
        Ok(Ok(status)) => {
            let boot = AtomicU64::new(status.boot);
            Ok(Up { dirs, name: name.clone(), folder, status, boot })
        }
        // It may have ended in this moment.
        Ok(Err(error)) => match supervise::find(&dirs, name) {
            None => Err(not_up(&dirs, name)),
            Some(_) => Err(error.into()),
        },
        Err(_) => Err(Failure::new(format!("the supervisor of `{name}` does not answer"))
            .hint("`guestline ps` tells its process id; when it is killed, its machine ends")),
    }
}

/// A session with the guest of the machine of this name; waits for a guest that boots.
pub(crate) async fn attach(dirs: Dirs, name: &MachineName) -> Result<Attached, Failure> {
    let up = find(dirs, name).await?;
    if up.status.state == MachineState::Lost {
        return Err(lost(&up.status));
    }
    let patience = Duration::from_millis(up.status.boot_timeout_ms).saturating_add(LONGER);
    match supervise::attach(&up.dirs, name, patience).await {
        Ok((guest, passed)) => Ok(Attached { up, guest, passed }),
        Err(AttachError::NotUp { .. }) => Err(not_up(&up.dirs, name)),
        Err(AttachError::Link(error)) => Err(up.explain(error).await),
        Err(error) => Err(error.into()),
    }
}

fn lost(status: &MachineStatus) -> Failure {
    let name = &status.name;
    let why = status.why.as_deref().unwrap_or("the link is gone");
    Failure::new(format!("`{name}` runs, and its agent cannot be reached: {why}"))
        .hint(format!("`guestline logs {name}` shows its console"))
        .hint(format!("`guestline down {name}` takes it down"))
}

/// Why there is no machine of this name, as far as is known.
pub(crate) fn not_up(dirs: &Dirs, name: &MachineName) -> Failure {
    let mut message = format!("`{name}` is not up");
    let word = supervise::last_word(dirs, name);
    if let Some(word) = &word {
        let when = ago(word.at_us);
        match word.how {
            // It came up then; when its supervisor was killed is not known.
            How::Up => message += &format!("; {}, some time after it came up {when}", word.why),
            _ => message += &format!("; {}", dated(&text::printable(&word.why), &when)),
        }
    }
    let up: Vec<MachineName> = supervise::list(dirs).into_iter().map(|(name, _)| name).collect();
    let failure = Failure::new(message);
    let failure = match name.nearest(&up) {
        Some(near) => failure.hint(format!("`{near}` is up; did you mean that?")),
        None if up.is_empty() => failure,
        None => failure.hint("`guestline ps` lists the machines that are up"),
    };
    failure.hint(format!("`guestline up {name}` starts it"))
}

/// "it powered itself off 12 s ago", "it panicked 12 s ago: not syncing".
fn dated(why: &str, when: &str) -> String {
    match why.split_once(": ") {
        Some((what, more)) => format!("{what} {when}: {more}"),
        None => format!("{why} {when}"),
    }
}

/// "12 s ago", "3 min ago".
pub(crate) fn ago(at_us: u64) -> String {
    format!("{} ago", span(Duration::from_micros(now_us().saturating_sub(at_us))))
}

/// "12 s", "3 min", "5 h", "2 days".
pub(crate) fn span(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7_200 => format!("{} min", seconds / 60),
        seconds @ 7_200..172_800 => format!("{} h", seconds / 3_600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

impl Up {
    /// Why a session ended, or what the guest refused.
    pub(crate) async fn explain(&self, error: LinkError) -> Failure {
        let name = &self.name;
        match error {
            LinkError::Restarted => Failure::new(self.session_lost().await),
            LinkError::Closed => self.why_closed().await,
            LinkError::Refused(error) => Failure::new(format!("{name}: {error}")),
            error => Failure::new(format!("{name}: {}", text::chain(&error))),
        }
    }

    /// The guest rebooted, or its agent was not heard for too long: which of them the supervisor learns in this moment.
    pub(crate) async fn session_lost(&self) -> String {
        let name = &self.name;
        let deadline = tokio::time::Instant::now() + NEWS;
        while let Ok(Ok(status)) =
            tokio::time::timeout(ANSWER, supervise::status(&self.folder)).await
        {
            let has_booted = self.boot.fetch_max(status.boot, Ordering::Relaxed) < status.boot;
            match (status.state, status.why) {
                (MachineState::Lost, Some(why)) => {
                    return format!("the session with `{name}` is lost, and what ran in it: {why}");
                }
                (MachineState::Ready, _) if !has_booted => {
                    if tokio::time::Instant::now() > deadline {
                        return format!("the session with `{name}` was lost, and what ran in it");
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                _ => break,
            }
        }
        format!("`{name}` rebooted, and what ran was lost")
    }

    /// The supervisor has cut us off: the machine has ended, or lost its agent.
    async fn why_closed(&self) -> Failure {
        let deadline = tokio::time::Instant::now() + NEWS;
        loop {
            match supervise::find(&self.dirs, &self.name) {
                None => return self.gone(),
                Some(folder) if folder != self.folder => return self.gone(),
                Some(folder) => match supervise::status(&folder).await {
                    Ok(status) if status.state == MachineState::Lost => return lost(&status),
                    _ if tokio::time::Instant::now() > deadline => {
                        let name = &self.name;
                        return Failure::new(format!(
                            "the supervisor of `{name}` ended the session"
                        ));
                    }
                    _ => tokio::time::sleep(Duration::from_millis(50)).await,
                },
            }
        }
    }

    fn gone(&self) -> Failure {
        let name = &self.name;
        match supervise::last_word(&self.dirs, name) {
            Some(word) => {
                let why = text::printable(&word.why);
                Failure::new(format!("`{name}` is gone: {why}"))
            }
            None => Failure::new(format!("`{name}` is gone")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_dated_before_its_details() {
        assert_eq!(dated("it went", "1 s ago"), "it went 1 s ago");
        assert_eq!(dated("it panicked: a: b", "1 s ago"), "it panicked 1 s ago: a: b");
    }

    #[test]
    fn spans_are_short() {
        let of = |seconds| span(Duration::from_secs(seconds));
        assert_eq!([of(12), of(119), of(120)], ["12 s", "119 s", "2 min"]);
        assert_eq!([of(7_200), of(200_000)], ["2 h", "2 days"]);
    }
}
