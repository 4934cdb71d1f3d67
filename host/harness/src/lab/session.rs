//! One connection: hello, then requests in sequence, each to its last reply.

use super::lines::{LineError, Lines};
use super::replies::Replies;
use super::{Lab, LabError, Side, Verdict, copy, exec, power, wait};
use guestline_guest::protocol::{DEFAULT_WAIT_MS, ErrorKind, MAX_VALUE, Reply, Request, VERSION};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

/// Who connects has so long to say hello.
const GREETING: Duration = Duration::from_secs(10);

/// How long a machine that has ended is still listened to.
const LAST_WORDS: Duration = Duration::from_millis(200);

pub(super) struct Session {
    lines: Lines,
    replies: Replies,
    lab: Arc<Lab>,
    side: Side,
}

/// Why a connection ends.
pub(super) enum End {
    /// The client hung up.
    HungUp,
    /// It said what cannot be answered.
    Wrong { kind: ErrorKind, message: String },
}

impl End {
    pub(super) fn protocol(message: impl Into<String>) -> Self {
        Self::Wrong { kind: ErrorKind::Protocol, message: message.into() }
    }
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> Self {
        Self::HungUp
    }
}

impl From<LineError> for End {
    fn from(error: LineError) -> Self {
        Self::protocol(error.to_string())
    }
}

impl Session {
    pub(super) fn new(stream: UnixStream, lab: Arc<Lab>, side: Side) -> Self {
        let (reader, writer) = stream.into_split();
        Self { lines: Lines::new(reader), replies: Replies::new(writer), lab, side }
    }

    /// To its end, or that of the attempt.
    pub(super) async fn run(mut self, cancel: &CancellationToken) {
        let end = tokio::select! {
            biased;
            () = cancel.cancelled() => {
                End::Wrong { kind: ErrorKind::Ended, message: "the test has ended".to_owned() }
            }
            end = self.converse() => end,
        };
        if let End::Wrong { kind, message } = end {
            self.replies.try_send(&Reply::Error { kind, message });
        }
    }

    async fn converse(&mut self) -> End {
        match tokio::time::timeout(GREETING, self.greet()).await {
            Ok(Ok(())) => {}
            Ok(Err(end)) => return end,
            Err(_) => return End::protocol("no hello came"),
        }
        loop {
            let done = match self.request().await {
                Ok(request) => self.answer(request).await,
                Err(end) => return end,
            };
            if let Err(end) = done {
                return end;
            }
        }
    }

    async fn greet(&mut self) -> Result<(), End> {
        match self.request().await? {
            Request::Hello { version: VERSION, .. } => {}
            Request::Hello { version, .. } => {
                let message = format!(
                    "guest protocol {version} is not known here, only {VERSION}: `guest` and `guestline` are of \
                     different times"
                );
                return Err(End::Wrong { kind: ErrorKind::Version, message });
            }
            _ => return Err(End::protocol("`hello` comes first")),
        }
        let machines = match self.side {
            Side::Host => self.lab.names(),
            Side::Guest(_) => Vec::new(),
        };
        let sides = self.lab.board().sides().map(Side::to_string).collect();
        let side = self.side.to_string();
        Ok(self.replies.send(&Reply::Hello { version: VERSION, side, machines, sides }).await?)
    }

    async fn request(&mut self) -> Result<Request, End> {
        let line = self.lines.next().await?.ok_or(End::HungUp)?;
        parse(&line)
    }

    async fn answer(&mut self, request: Request) -> Result<(), End> {
        let Some((what, machine)) = about_a_machine(&request) else {
            let answers = tokio::select! {
                biased;
                answers = answers(&self.lab, &self.side, request) => answers?,
                () = self.lines.hung_up() => return Err(End::HungUp),
            };
            return self.send(&answers).await;
        };
        let lab = self.lab.clone();
        let found = match &self.side {
            Side::Guest(_) => Err(LabError::NotAllowed { what }),
            Side::Host => lab.machine(machine),
        };
        let (name, guest) = match found {
            Ok(found) => found,
            Err(error) => return self.send(&[error.to_reply()]).await,
        };
        let goes_off = matches!(request, Request::Poweroff { .. });
        let answers = {
            let mut doing = std::pin::pin!(async {
                if let Request::Exec(request) = request {
                    let (lines, replies) = (&mut self.lines, &mut self.replies);
                    let last = exec::run(name, guest, request, lines, replies).await?;
                    return Ok(vec![last.unwrap_or_else(|error| error.to_reply())]);
                }
                tokio::select! {
                    biased;
                    answers = answers(&lab, &self.side, request) => answers,
                    () = self.lines.hung_up() => Err(End::HungUp),
                }
            });
            tokio::select! {
                biased;
                answers = &mut doing => answers?,
                error = lab.gone(name) => {
                    // What the guest said before is perhaps still on its way.
                    match tokio::time::timeout(LAST_WORDS, doing).await {
                        Ok(answers) => answers?,
                        Err(_) if goes_off => vec![Reply::Done {}],
                        Err(_) => vec![error.to_reply()],
                    }
                }
            }
        };
        self.send(&answers).await
    }

    async fn send(&mut self, answers: &[Reply]) -> Result<(), End> {
        for answer in answers {
            self.replies.send(answer).await?;
        }
        Ok(())
    }
}

pub(super) fn parse(line: &[u8]) -> Result<Request, End> {
    serde_json::from_slice(line)
        .map_err(|error| End::protocol(format!("this is no request: {error}")))
}

/// The word of a request that is about a machine, which a guest may not make, and the machine that it names.
fn about_a_machine(request: &Request) -> Option<(&'static str, Option<&str>)> {
    let (word, machine) = match request {
        Request::Exec(exec) => ("exec", &exec.machine),
        Request::Push(push) => ("push", &push.machine),
        Request::Pull(pull) => ("pull", &pull.machine),
        Request::Wait(wait) => ("wait", &wait.machine),
        Request::Reboot { machine, .. } => ("reboot", machine),
        Request::Poweroff { machine } => ("poweroff", machine),
        Request::Facts { machine } => ("facts", machine),
        Request::Hello { .. }
        | Request::Input { .. }
        | Request::End {}
        | Request::Log { .. }
        | Request::Skip { .. }
        | Request::Fail { .. }
        | Request::Sync { .. }
        | Request::Send { .. }
        | Request::Await { .. } => return None,
    };
    Some((word, machine.as_deref()))
}

/// What is answered, the last reply last.
async fn answers(lab: &Lab, side: &Side, request: Request) -> Result<Vec<Reply>, End> {
    let done = match request {
        Request::Hello { .. } => return Err(End::protocol("`hello` comes once")),
        Request::Exec(_) | Request::Input { .. } | Request::End {} => {
            return Err(End::protocol("no command runs that would read"));
        }
        Request::Push(request) => copy::push(lab, request).await,
        Request::Pull(request) => copy::pull(lab, request).await,
        Request::Wait(request) => {
            return Ok(match wait::run(lab, request).await {
                Ok(waited) => vec![waited],
                Err(failed) => failed.to_replies(),
            });
        }
        Request::Reboot { machine, timeout_ms } => {
            power::reboot(lab, machine.as_deref(), timeout_ms).await
        }
        Request::Poweroff { machine } => power::power_off(lab, machine.as_deref()).await,
        Request::Facts { machine } => facts(lab, machine.as_deref()).await,
        Request::Log { text } => log(lab, side, &text).await,
        Request::Skip { reason } => record(lab, side, Verdict::Skip { reason }),
        Request::Fail { reason } => record(lab, side, Verdict::Fail { reason }),
        Request::Sync { name, timeout_ms } => {
            lab.sync(side, &name, limit(timeout_ms)).await.map(|()| Reply::Done {})
        }
        Request::Send { key, value } => {
            let sent = lab.change(|board| board.send(&key, &value.0));
            sent.map(|()| Reply::Done {}).map_err(LabError::from)
        }
        Request::Await { key, timeout_ms } => {
            let value = lab.value(&key, limit(timeout_ms)).await;
            value.map(|value| Reply::Value { value: guestline_guest::Data(value) })
        }
    };
    Ok(vec![done.unwrap_or_else(|error| error.to_reply())])
}

/// A time that a client gave, or the common one. What is longer than any test is as good as its end.
pub(super) fn limit(timeout_ms: Option<u64>) -> Duration {
    const MONTHS: u64 = 10_000_000_000;
    Duration::from_millis(timeout_ms.unwrap_or(DEFAULT_WAIT_MS).min(MONTHS))
}

async fn facts(lab: &Lab, machine: Option<&str>) -> Result<Reply, LabError> {
    let (name, guest) = lab.machine(machine)?;
    let facts = guest.facts().await.map_err(LabError::link(name))?;
    let facts = serde_json::to_value(facts);
    Ok(Reply::Facts { facts: facts.map_err(|error| LabError::Usage(error.to_string()))? })
}

async fn log(lab: &Lab, side: &Side, text: &str) -> Result<Reply, LabError> {
    if text.len() > MAX_VALUE {
        return Err(LabError::TooLong(format!("the text is longer than {MAX_VALUE} bytes")));
    }
    lab.say(side, text).await;
    Ok(Reply::Done {})
}

fn record(lab: &Lab, side: &Side, verdict: Verdict) -> Result<Reply, LabError> {
    lab.change(|board| board.record(side, verdict))?;
    Ok(Reply::Done {})
}
