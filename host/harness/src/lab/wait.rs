//! Waiting until something is so in a machine: tried again and again, less and less often.

use super::session::limit;
use super::{Lab, LabError};
use guestline::guest::{ExecOutput, Guest};
use guestline::link::LinkError;
use guestline_guest::Data;
use guestline_guest::protocol::{Reply, Stream, Until, WaitRequest};
use guestline_protocol::{ByteBuf, Command, ErrorKind, ExecRequest, ExitStatus, SocketAddress};
use std::time::Duration;
use tokio::time::{Instant, sleep_until, timeout_at};

/// Between attempts, at first and at last.
const SOON: Duration = Duration::from_millis(50);
const LATER: Duration = Duration::from_secs(1);

/// So much of each output of an attempt is kept.
const KEPT: usize = 64 * 1024;

/// What was waited for did not come, and what the last attempt said.
pub(super) struct Failed {
    error: LabError,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl From<LabError> for Failed {
    fn from(error: LabError) -> Self {
        Self { error, stdout: Vec::new(), stderr: Vec::new() }
    }
}

impl Failed {
    pub(super) fn to_replies(&self) -> Vec<Reply> {
        let said = [(Stream::Stdout, &self.stdout), (Stream::Stderr, &self.stderr)];
        let said = said.into_iter().filter(|(_, bytes)| !bytes.is_empty());
        let output =
            said.map(|(stream, bytes)| Reply::Output { stream, data: Data(bytes.clone()) });
        output.chain([self.error.to_reply()]).collect()
    }
}

/// An attempt in vain.
struct NotYet {
    why: String,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl NotYet {
    fn because(why: impl Into<String>) -> Self {
        Self { why: why.into(), stdout: Vec::new(), stderr: Vec::new() }
    }
}

pub(super) async fn run(lab: &Lab, request: WaitRequest) -> Result<Reply, Failed> {
    let (machine, guest) = lab.machine(request.machine.as_deref())?;
    let (began, limit) = (Instant::now(), limit(request.timeout_ms));
    let deadline = began + limit;
    let (mut attempts, mut pause) = (0_u64, SOON);
    let mut last = NotYet::because("the first attempt had not ended");
    while attempts == 0 || Instant::now() < deadline {
        attempts += 1;
        match timeout_at(deadline, attempt(guest, &request.until)).await {
            Ok(Ok(None)) => {
                let elapsed_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
                return Ok(Reply::Waited { attempts, elapsed_ms });
            }
            Ok(Ok(Some(in_vain))) => last = in_vain,
            Ok(Err(error)) => return Err(LabError::link(machine)(error).into()),
            Err(_) => break,
        }
        sleep_until(deadline.min(Instant::now() + pause)).await;
        pause = (pause * 3 / 2).min(LATER);
    }
    let error = LabError::NotYet {
        machine: machine.to_owned(),
        what: in_words(&request.until),
        limit,
        why: last.why,
        attempts,
    };
    Err(Failed { error, stdout: last.stdout, stderr: last.stderr })
}

/// Tries once: nothing when it is so.
async fn attempt(guest: &Guest, until: &Until) -> Result<Option<NotYet>, LinkError> {
    match until {
        Until::Line(line) => {
            let request = ExecRequest::new(Command::Shell(ByteBuf::from(line.0.clone())));
            Ok(judged(guest.run(request, &[], KEPT).await?))
        }
        Until::Unit(unit) => {
            let words = ["systemctl", "is-active", "--", unit];
            let words = words.map(|word| ByteBuf::from(word.as_bytes())).to_vec();
            Ok(judged(guest.run(ExecRequest::new(Command::Argv(words)), &[], KEPT).await?))
        }
        Until::Port(port) => {
            let address = SocketAddress::Tcp { host: "127.0.0.1".to_owned(), port: *port };
            match guest.connect(address).await {
                Ok(_) => Ok(None),
                Err(LinkError::Refused(error)) => Ok(Some(NotYet::because(error.to_string()))),
                Err(error) => Err(error),
            }
        }
        Until::File(path) => match guest.stat(&path.0, false).await {
            Ok(_) => Ok(None),
            Err(LinkError::Refused(error)) if error.kind == ErrorKind::NotFound => {
                Ok(Some(NotYet::because("it is not there")))
            }
            Err(error) => Err(error),
        },
    }
}

fn judged(output: ExecOutput) -> Option<NotYet> {
    let why = match output.exited.status {
        ExitStatus::Exited(0) => return None,
        ExitStatus::Exited(status) => format!("status {status}"),
        ExitStatus::Signaled { signal, .. } => format!("signal {signal}"),
    };
    Some(NotYet { why, stdout: output.stdout, stderr: output.stderr })
}

fn in_words(until: &Until) -> String {
    match until {
        Until::Line(line) => format!("`{}`", String::from_utf8_lossy(&line.0)),
        Until::Port(port) => format!("port {port}"),
        Until::File(path) => format!("file `{}`", String::from_utf8_lossy(&path.0)),
        Until::Unit(unit) => format!("unit {unit}"),
    }
}
