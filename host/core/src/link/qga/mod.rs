//! A qemu-guest-agent instead of our own: for guests that carry only that (QEMU `docs/interop/qemu-ga-ref`).
//!
//! ```text
//! callers ── orders ──> conversation ── a line of JSON ──> qemu-ga     QgaHandle: asks
//!         <─ answers ──┘  (owns the stream, keeps it in step)  <── one answer
//! ```
//! It answers one request at a time and knows no request's number, so requests go one by one, and after an answer
//! that did not come in time the two are brought into step again before the next. The types of requests are
//! qapi's, over a reader that passes over what it does not know; none of them leaves this folder.
//!
//! What it cannot do is [`LinkError::Unsupported`].

mod control;
mod conversation;
mod exec;
mod files;

pub(crate) use exec::{QgaEvent, QgaProcess, QgaRefuser};
pub(crate) use files::{QgaPull, QgaPush};

use super::endpoint::Endpoint;
use super::{Lane, LinkError, TransportKind};
use crate::text::printable;
use conversation::{Conversation, Order};
use guestline_protocol::{ErrorKind, RemoteError};
use qapi::qga::QgaCommand;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// An answer is at most so long, bytes; but one that carries data has more.
const MAX_ANSWER: usize = 1024 * 1024;

/// What the agent says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QgaInfo {
    /// Its version.
    pub version: String,
    /// What it can be asked, by name, and whether its administrator allows that.
    pub commands: BTreeMap<String, bool>,
}

/// A conversation with a qemu-guest-agent. Cheap to clone.
#[derive(Debug, Clone)]
pub struct QgaHandle {
    orders: mpsc::UnboundedSender<Order>,
    info: Arc<RwLock<QgaInfo>>,
    patience: Duration,
}

/// This transport cannot do it.
pub(crate) fn unsupported(what: &'static str) -> LinkError {
    LinkError::Unsupported { transport: TransportKind::Qga, what }
}

impl QgaHandle {
    /// Over a stream to one; waits until it answers, however long that takes. An endpoint is dialled again when
    /// the stream ends and a new session is wanted. Cancel safe: dropping the future drops the stream.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn open(lane: Lane, endpoint: Option<Endpoint>) -> Result<Self, LinkError> {
        let (orders, queue) = mpsc::unbounded_channel();
        tokio::spawn(Conversation::new(lane, endpoint).run(queue));
        let handle = Self { orders, info: Arc::default(), patience: PATIENCE };
        handle.reopen().await?;
        Ok(handle)
    }

    /// With another limit to how long an answer may take, a minute otherwise.
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// What the agent says of itself.
    pub fn info(&self) -> QgaInfo {
        self.info.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until an agent answers, after a reboot of the guest or another start of its agent.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn reopen(&self) -> Result<(), LinkError> {
        let (reply, done) = oneshot::channel();
        if self.orders.send(Order::Reopen { reply }).is_err() {
            return Err(LinkError::Closed);
        }
        done.await.unwrap_or(Err(LinkError::Closed))?;
        let info = self.ask(&qapi::qga::guest_info {}).await?;
        let commands = info.supported_commands.into_iter();
        let commands = commands.map(|command| (printable(&command.name), command.enabled));
        let info = QgaInfo { version: printable(&info.version), commands: commands.collect() };
        *self.info.write().unwrap_or_else(PoisonError::into_inner) = info;
        Ok(())
    }

    /// Asks for a sign of life and returns how long it took.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn ping(&self) -> Result<Duration, LinkError> {
        let began = Instant::now();
        self.ask(&qapi::qga::guest_ping {}).await?;
        Ok(began.elapsed())
    }

    /// A request with its answer.
    async fn ask<C: QgaCommand>(&self, command: &C) -> Result<C::Ok, LinkError> {
        self.ask_for(command, MAX_ANSWER).await
    }

    /// A request whose answer may be of this length.
    async fn ask_for<C: QgaCommand>(&self, command: &C, max: usize) -> Result<C::Ok, LinkError> {
        let value = self.ask_value(command, max).await?;
        serde_json::from_value(value).map_err(|error| broken(C::NAME, &error))
    }

    /// A request whose answer has values that the schema may not know.
    async fn ask_value<C: QgaCommand>(&self, command: &C, max: usize) -> Result<Value, LinkError> {
        let (reply, answer) = oneshot::channel();
        self.order(command, max, self.patience, Some(reply))?;
        answer.await.unwrap_or(Err(LinkError::Closed))
    }

    /// A request that has no answer when it is carried out; one that comes within `wait` is its refusal.
    async fn tell<C: QgaCommand>(&self, command: &C, wait: Duration) -> Result<(), LinkError> {
        let (reply, answer) = oneshot::channel();
        self.order(command, MAX_ANSWER, wait, Some(reply))?;
        match answer.await.unwrap_or(Err(LinkError::Closed)) {
            Ok(_) | Err(LinkError::NoAnswer { .. } | LinkError::Closed) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// A request whose answer nobody waits for.
    fn forget<C: QgaCommand>(&self, command: &C) {
        // That the agent is gone is told to whoever asks next.
        let _ = self.order(command, MAX_ANSWER, self.patience, None);
    }

    fn order<C: QgaCommand>(
        &self,
        command: &C,
        max: usize,
        patience: Duration,
        reply: Option<oneshot::Sender<Result<Value, LinkError>>>,
    ) -> Result<(), LinkError> {
        let arguments = serde_json::to_value(command).map_err(|error| broken(C::NAME, &error))?;
        let line = json!({ "execute": C::NAME, "arguments": arguments }).to_string();
        let order = Order::Ask { name: C::NAME, line, max, patience, reply };
        self.orders.send(order).map_err(|_| LinkError::Closed)
    }
}

fn broken(name: &str, error: &serde_json::Error) -> LinkError {
    LinkError::Broken { what: format!("{name}: {}", printable(&error.to_string())) }
}

/// The agent's refusal (QEMU `docs/interop/qmp-spec`, error).
fn refusal(name: &str, error: &Value) -> LinkError {
    let class = error["class"].as_str().unwrap_or_default();
    let said = printable(error["desc"].as_str().unwrap_or("no reason given"));
    let kind = match class {
        "CommandNotFound" => ErrorKind::Unsupported,
        _ if said.contains("disabled") || said.contains("not supported") => ErrorKind::Unsupported,
        _ if said.contains("No such file") => ErrorKind::NotFound,
        _ if said.contains("Permission denied") => ErrorKind::NotExecutable,
        _ => ErrorKind::System,
    };
    // A file that may not be read is no program that may not be run.
    let kind = match kind {
        ErrorKind::NotExecutable if name != "guest-exec" => ErrorKind::System,
        kind => kind,
    };
    let message = format!("qemu-guest-agent refused {name}: {said}");
    LinkError::Refused(RemoteError::new(kind, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_sorted() {
        let kind = |name: &str, class: &str, desc: &str| match refusal(
            name,
            &json!({ "class": class, "desc": desc }),
        ) {
            LinkError::Refused(error) => error.kind,
            other => panic!("{other}"),
        };
        let generic = "GenericError";
        assert_eq!(kind("guest-x", "CommandNotFound", "what"), ErrorKind::Unsupported);
        assert_eq!(
            kind("guest-exec", generic, "The command has been disabled"),
            ErrorKind::Unsupported
        );
        assert_eq!(kind("guest-exec", generic, "No such file or directory"), ErrorKind::NotFound);
        assert_eq!(kind("guest-exec", generic, "Permission denied"), ErrorKind::NotExecutable);
        assert_eq!(kind("guest-file-open", generic, "Permission denied"), ErrorKind::System);
        let error = refusal("guest-ping", &json!({ "desc": "no\x1b[31m" })).to_string();
        assert!(!error.contains('\x1b'), "{error}");
    }
}
