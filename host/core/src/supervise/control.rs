//! The control socket of a supervisor: what a machine is and does, and taking it down. JSON lines, described in
//! `docs/machines.md`.

use super::name::MachineName;
use super::registry;
use crate::json_line;
use crate::local_socket;
use crate::refusals::Refusals;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// Version of the requests and answers. Fields may be added without raising it.
pub const CONTROL_VERSION: u32 = 1;

/// A longer line is nobody's.
const MAX_LINE_LEN: u64 = 64 * 1024;

/// A request, a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum ControlRequest {
    /// What the machine is and does.
    Status,
    /// The same, as soon as this boot, or a later one, is ready or lost.
    Wait {
        /// Counted from 1.
        boot: u64,
    },
    /// Take it down; answered when nothing is left.
    Down {
        /// Without asking the guest.
        force: bool,
    },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
enum Answer {
    Status { version: u32, machine: Box<MachineStatus> },
    Down { version: u32, ended: Ended },
    Error { version: u32, message: String },
}

/// What a machine does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MachineState {
    /// Its agent has not answered yet.
    Booting,
    /// Its agent answers.
    Ready,
    /// Its guest boots again.
    Rebooting,
    /// It runs, and its agent cannot be reached.
    Lost,
    /// It was asked to power off.
    GoingDown,
}

impl std::fmt::Display for MachineState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Booting => "booting",
            Self::Ready => "ready",
            Self::Rebooting => "rebooting",
            Self::Lost => "lost",
            Self::GoingDown => "going down",
        })
    }
}

/// What a machine is and does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineStatus {
    /// Its name.
    pub name: MachineName,
    /// What it does.
    pub state: MachineState,
    /// Why, of one that is lost.
    pub why: Option<String>,
    /// What it booted.
    pub image: Option<String>,
    /// To what it is connected, of one that is not ours.
    pub endpoint: Option<String>,
    /// `uname -r`, as the guest says.
    pub kernel: Option<String>,
    /// Memory in MiB.
    pub memory_mib: Option<u64>,
    /// Virtual CPUs.
    pub cpus: Option<u32>,
    /// Its supervisor's process id.
    pub pid: u32,
    /// QEMU's.
    pub qemu_pid: Option<u32>,
    /// When its supervisor began, microseconds since 1970.
    pub since_us: u64,
    /// From the start of QEMU to the agent's first answer, microseconds.
    pub ready_in_us: Option<u64>,
    /// Counts the guest's boots that an agent answered in, from 1.
    pub boot: u64,
    /// Over what the link goes.
    pub transport: Option<String>,
    /// The agent's build.
    pub agent: Option<String>,
    /// For so long the agent has owed a sign of life, milliseconds.
    pub silence_ms: Option<u64>,
    /// How long a boot may take, milliseconds.
    pub boot_timeout_ms: u64,
    /// Its console's log.
    pub console: Option<PathBuf>,
}

/// How a machine ended, or that it has not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum How {
    /// It has not.
    Up,
    /// It never got there.
    NeverUp,
    /// It was taken down, and powered itself off.
    Down,
    /// It was taken down, and killed.
    Killed,
    /// It is not ours, and was let go.
    LetGo,
    /// It powered itself off.
    PoweredOff,
    /// Its kernel panicked.
    Panicked,
    /// It reset, and was not to boot again.
    Reset,
    /// QEMU died.
    QemuDied,
    /// It is not ours, and its link ended.
    LinkEnded,
}

/// The last word on a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Of this record.
    pub version: u32,
    /// When, microseconds since 1970.
    pub at_us: u64,
    /// For code.
    pub how: How,
    /// For people: "it powered itself off".
    pub why: String,
}

/// A supervisor could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The socket.
    #[error("cannot ask the supervisor in `{folder}`", folder = folder.display())]
    Socket {
        /// Its folder.
        folder: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It refused, or said what we do not understand.
    #[error("the supervisor in `{folder}` answered: {message}", folder = folder.display())]
    Refused {
        /// Its folder.
        folder: PathBuf,
        /// What it said.
        message: String,
    },
}

/// Somebody wants the machine to end; answered when nothing is left.
pub(super) struct DownOrder {
    pub(super) force: bool,
    pub(super) done: Option<oneshot::Sender<Ended>>,
}

/// Tells what a machine is and does now.
pub(super) type StatusReader = std::sync::Arc<dyn Fn() -> MachineStatus + Send + Sync>;

/// Answers requests until it is over.
pub(super) async fn answer(
    listener: UnixListener,
    status: StatusReader,
    changes: watch::Receiver<()>,
    downs: mpsc::UnboundedSender<DownOrder>,
    over: CancellationToken,
) {
    let mut callers = JoinSet::new();
    let mut refusals = Refusals::default();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = over.cancelled() => break,
        };
        match accepted {
            Ok((stream, _)) => {
                while callers.try_join_next().is_some() {}
                let (status, changes, downs) = (status.clone(), changes.clone(), downs.clone());
                let over = over.clone();
                callers.spawn(async move {
                    if let Err(error) = converse(stream, status, changes, downs, &over).await {
                        debug!(%error, "a conversation ended");
                    }
                });
            }
            Err(error) => {
                if refusals.is_news() {
                    warn!(%error, "no caller can be accepted for now");
                }
                refusals.pause().await;
            }
        }
    }
    while callers.join_next().await.is_some() {}
}

async fn converse(
    stream: UnixStream,
    status: StatusReader,
    mut changes: watch::Receiver<()>,
    downs: mpsc::UnboundedSender<DownOrder>,
    over: &CancellationToken,
) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader).take(0);
    let mut line = Vec::new();
    let version = CONTROL_VERSION;
    loop {
        line.clear();
        reader.set_limit(MAX_LINE_LEN);
        let len = tokio::select! {
            // An answer that is due is given before this is looked at.
            len = reader.read_until(b'\n', &mut line) => len?,
            () = over.cancelled() => 0,
        };
        if len == 0 {
            return Ok(());
        }
        let answer = match understand(&line) {
            Err(message) => Answer::Error { version, message },
            Ok(ControlRequest::Status) => Answer::Status { version, machine: Box::new(status()) },
            Ok(ControlRequest::Wait { boot }) => loop {
                changes.borrow_and_update();
                let machine = status();
                let is_there = machine.state == MachineState::Ready && machine.boot >= boot;
                if is_there || machine.state == MachineState::Lost {
                    break Answer::Status { version, machine: Box::new(machine) };
                }
                tokio::select! {
                    changed = changes.changed() => changed.map_err(io::Error::other)?,
                    () = over.cancelled() => return Ok(()),
                }
            },
            Ok(ControlRequest::Down { force }) => {
                let (done, ended) = oneshot::channel();
                let _ = downs.send(DownOrder { force, done: Some(done) });
                let ended = ended.await.map_err(io::Error::other)?;
                Answer::Down { version, ended }
            }
        };
        let mut text = serde_json::to_vec(&answer)?;
        text.push(b'\n');
        writer.write_all(&text).await?;
    }
}

fn understand(line: &[u8]) -> Result<ControlRequest, String> {
    json_line::understand(CONTROL_VERSION, "request", line)
}

/// What a machine is and does.
///
/// # Errors
/// [`ControlError`].
pub async fn status(folder: &Path) -> Result<MachineStatus, ControlError> {
    ask_status(folder, ControlRequest::Status).await
}

/// As [`status`], when this boot of the guest, or a later one, is ready, or the machine is lost.
///
/// # Errors
/// [`ControlError`].
pub async fn wait_for_boot(folder: &Path, boot: u64) -> Result<MachineStatus, ControlError> {
    ask_status(folder, ControlRequest::Wait { boot }).await
}

/// Takes a machine down, and returns when nothing of it is left.
///
/// # Errors
/// [`ControlError`].
pub async fn down(folder: &Path, force: bool) -> Result<Ended, ControlError> {
    match ask(folder, ControlRequest::Down { force }).await? {
        Answer::Down { ended, .. } => Ok(ended),
        other => Err(refused(folder, other)),
    }
}

async fn ask_status(folder: &Path, request: ControlRequest) -> Result<MachineStatus, ControlError> {
    match ask(folder, request).await? {
        Answer::Status { machine, .. } => Ok(*machine),
        other => Err(refused(folder, other)),
    }
}

fn refused(folder: &Path, answer: Answer) -> ControlError {
    let message = match answer {
        Answer::Error { message, .. } => crate::text::printable(&message),
        _ => "something else than what was asked".to_owned(),
    };
    ControlError::Refused { folder: folder.to_owned(), message }
}

async fn ask(folder: &Path, request: ControlRequest) -> Result<Answer, ControlError> {
    let asking = async {
        let stream = local_socket::connect(folder, registry::CONTROL_SOCKET)?;
        let (reader, mut writer) = UnixStream::from_std(stream)?.into_split();
        writer.write_all(&json_line::line(CONTROL_VERSION, request)).await?;
        let mut line = Vec::new();
        BufReader::new(reader).take(MAX_LINE_LEN).read_until(b'\n', &mut line).await?;
        match line.is_empty() {
            true => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
            false => Ok(serde_json::from_slice(&line)?),
        }
    };
    asking.await.map_err(|source| ControlError::Socket { folder: folder.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_versioned_lines() {
        let of = |text: &str| understand(text.as_bytes());
        assert_eq!(of(r#"{"version":1,"request":"status"}"#), Ok(ControlRequest::Status));
        let down = of(r#"{"version":1,"request":"down","force":true,"later":7}"#);
        assert_eq!(down, Ok(ControlRequest::Down { force: true }));
        assert_eq!(
            of(r#"{"version":1,"request":"wait","boot":2}"#),
            Ok(ControlRequest::Wait { boot: 2 })
        );
        let later = of(r#"{"version":2,"request":"of-the-future"}"#).unwrap_err();
        assert_eq!(later, "version 2 is not spoken here, 1 is");
        for wrong in ["", "{}", "7", r#"{"version":1,"request":"explode"}"#, r#"{"version":1}"#] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_status_has_its_form() {
        let status = MachineStatus {
            name: "web".parse().unwrap(),
            state: MachineState::GoingDown,
            why: None,
            image: Some("tiny".to_owned()),
            endpoint: None,
            kernel: Some("6.1.0".to_owned()),
            memory_mib: Some(256),
            cpus: Some(1),
            pid: 7,
            qemu_pid: Some(8),
            since_us: 1_700_000_000_000_000,
            ready_in_us: Some(2_400_000),
            boot: 1,
            transport: Some("virtio-serial".to_owned()),
            agent: Some("1a2b".to_owned()),
            silence_ms: None,
            boot_timeout_ms: 120_000,
            console: Some("/run/1/console.log".into()),
        };
        let answer = Answer::Status { version: 1, machine: Box::new(status) };
        insta::assert_snapshot!(serde_json::to_string_pretty(&answer).unwrap());
    }
}
