//! A command in a machine, for a client: output one way, input the other, one piece at a time.

use super::LabError;
use super::lines::{LineError, Lines};
use super::replies::Replies;
use super::session::{End, parse};
use guestline::guest::{ExecEvent, ExecHandle, Guest};
use guestline::link::LinkError;
use guestline_guest::Data;
use guestline_guest::protocol::{self as guest, MAX_PIECE, Reply, Request};
use guestline_protocol::{
    ByteBuf, Command, EnvChange, ExecRequest, ExitStatus, StdinSource, Stream,
};
use std::future::pending;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

/// How long the end of a command that is being killed is waited for.
const KILLED: Duration = Duration::from_secs(5);

/// What goes to the command next, and whether the client may send more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Input {
    /// The next piece may come.
    Open,
    /// One is on its way; the next must wait.
    Busy,
    /// There is none, or it has ended.
    Closed,
}

/// Runs a command to its end, or to that of the connection, which kills it.
pub(super) async fn run(
    machine: &str,
    guest: &Guest,
    request: guest::ExecRequest,
    lines: &mut Lines,
    replies: &mut Replies,
) -> Result<Result<Reply, LabError>, End> {
    let limit = request.timeout_ms.map(|ms| super::session::limit(Some(ms)));
    let mut deadline = limit.map(|limit| Instant::now() + limit);
    let mut input = if request.stdin { Input::Open } else { Input::Closed };
    let starting = guest.exec(to_link(request));
    let started = tokio::select! {
        started = starting => started,
        () = lines.hung_up() => return Err(End::HungUp),
        () = at(deadline) => return Ok(Err(timed_out(machine, limit))),
    };
    let mut process = match started {
        Ok(process) => process,
        Err(error) => return Ok(Err(LabError::link(machine)(error))),
    };
    let (pieces, mut taken, feeding) = feed(&mut process);
    let mut feeding = std::pin::pin!(feeding);
    let mut is_killed = false;
    loop {
        tokio::select! {
            event = process.next() => match event {
                Ok(ExecEvent::Started { .. }) => {}
                Ok(ExecEvent::Output { stream, data }) => output(replies, stream, &data).await?,
                Err(error) => return Ok(Err(LabError::link(machine)(error))),
                _ if is_killed => return Ok(Err(timed_out(machine, limit))),
                Ok(ExecEvent::Exited(exited)) => return Ok(Ok(exited_as(exited.status))),
                Ok(ExecEvent::Refused(error)) => {
                    return Ok(Err(LabError::link(machine)(LinkError::Refused(error))));
                }
            },
            Some(()) = taken.recv() => {
                input = Input::Open;
                replies.send(&Reply::Taken {}).await?;
            }
            line = heard(lines, input) => {
                let (piece, next) = match parse(&line?.ok_or(End::HungUp)?)? {
                    Request::Input { .. } if input == Input::Busy => {
                        return Err(End::protocol("`input` before the last was `taken`"));
                    }
                    Request::Input { data } if data.0.len() > MAX_PIECE => {
                        return Err(End::protocol(format!("`input` of more than {MAX_PIECE} bytes")));
                    }
                    Request::Input { data } => (Some(data.0), Input::Busy),
                    Request::End {} => (None, Input::Closed),
                    _ => return Err(End::protocol("a command runs: `input` or `end` is wanted")),
                };
                input = next;
                // There is room: at most a piece and the end are on their way.
                let _ = pieces.try_send(piece);
            }
            () = &mut feeding => {}
            () = at(deadline) => {
                if is_killed {
                    return Ok(Err(timed_out(machine, limit)));
                }
                process.cancel();
                (is_killed, deadline) = (true, Some(Instant::now() + KILLED));
            }
        }
    }
}

/// The next line, or none when the client has hung up. Once its input has ended, a line is the next request and can wait.
async fn heard(lines: &mut Lines, input: Input) -> Result<Option<Vec<u8>>, LineError> {
    if input == Input::Closed {
        lines.hung_up().await;
        return Ok(None);
    }
    lines.next().await
}

/// Takes pieces of input, and tells of each that it was taken. The future never ends by itself.
fn feed(
    process: &mut ExecHandle,
) -> (mpsc::Sender<Option<Vec<u8>>>, mpsc::Receiver<()>, impl Future<Output = ()> + use<>) {
    let (pieces, mut queue) = mpsc::channel::<Option<Vec<u8>>>(2);
    let (telling, taken) = mpsc::channel(1);
    let input = process.take_input();
    let feeding = async move {
        if let Some(mut input) = input {
            while let Some(Some(piece)) = queue.recv().await {
                // That the link has ended is told by the process.
                if input.write(&piece).await.is_err() || telling.send(()).await.is_err() {
                    break;
                }
            }
            input.end();
            // Held until the process ends.
            pending::<()>().await;
        }
        pending().await
    };
    (pieces, taken, feeding)
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}

fn timed_out(machine: &str, limit: Option<Duration>) -> LabError {
    LabError::TimedOut { machine: machine.to_owned(), limit: limit.unwrap_or_default() }
}

async fn output(replies: &mut Replies, stream: Stream, data: &[u8]) -> Result<(), End> {
    for piece in data.chunks(MAX_PIECE) {
        let reply = Reply::Output { stream: stream_of(stream), data: Data(piece.to_vec()) };
        replies.send(&reply).await?;
    }
    Ok(())
}

pub(super) fn stream_of(stream: Stream) -> guest::Stream {
    match stream {
        Stream::Stdout => guest::Stream::Stdout,
        Stream::Stderr => guest::Stream::Stderr,
    }
}

fn exited_as(status: ExitStatus) -> Reply {
    match status {
        ExitStatus::Exited(status) => Reply::Exited { status, signal: None },
        ExitStatus::Signaled { signal, .. } => {
            Reply::Exited { status: 128_u8.saturating_add(signal), signal: Some(signal) }
        }
    }
}

fn to_link(request: guest::ExecRequest) -> ExecRequest {
    let bytes = |data: Data| ByteBuf::from(data.0);
    let command = match request.command {
        guest::Command::Line(line) => Command::Shell(bytes(line)),
        guest::Command::Argv(words) => Command::Argv(words.into_iter().map(bytes).collect()),
    };
    let env = request.env.into_iter().map(|(name, value)| EnvChange {
        name: ByteBuf::from(name.into_bytes()),
        value: value.map(bytes),
    });
    ExecRequest {
        env: env.collect(),
        cwd: request.cwd.map(bytes),
        user: request.user,
        stdin: if request.stdin { StdinSource::Channel } else { StdinSource::Closed },
        ..ExecRequest::new(command)
    }
}
