//! Guest protocol 1: requests and replies, each one JSON object on a line of its own, and what bounds them.
//!
//! ```text
//! client                          controller
//! hello  ───────────────────────>
//!        <─────────────────────── hello, or error and the end
//! request ──────────────────────>
//!        <─────────────────────── output … and then one last reply
//! (the next request)
//! ```
//! While a command runs whose standard input is wanted, `input` goes the other way, one at a time: the next follows
//! when the last was `taken`. A client that hangs up ends what it had asked for. A controller refuses a field that it
//! does not know, for it would ask for something that is not done; a client passes over it.

use crate::Data;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The version of these messages.
pub const VERSION: u32 = 1;

/// A line is at most so long, without its end; both ways.
pub const MAX_LINE: usize = 1 << 20;

/// A key, a value, the name of a meeting point, a reason and a line of the log are at most so long.
pub const MAX_VALUE: usize = 64 * 1024;

/// A test has at most so many keys, and so many meeting points at which somebody waits.
pub const MAX_KEYS: usize = 1024;

/// A side has at most so many connections at once; those beyond are refused.
pub const MAX_CONNECTIONS: usize = 64;

/// Bytes of a command's input or output in one message, at most: with each escaped, they fit into a line.
pub const MAX_PIECE: usize = 64 * 1024;

/// How long `wait`, `sync` and `await` last when nobody says otherwise.
pub const DEFAULT_WAIT_MS: u64 = 60_000;

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// First of all.
    Hello {
        /// The version that the client speaks.
        version: u32,
        /// What it is, for people.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        client: Option<String>,
    },
    /// Run a command in a machine.
    Exec(ExecRequest),
    /// For the command that runs: a piece of its standard input.
    Input {
        /// At most [`MAX_PIECE`].
        data: Data,
    },
    /// For the command that runs: its standard input ends.
    End {},
    /// Copy files of the host into a machine, as cp(1) would.
    Push(CopyRequest),
    /// Copy files of a machine to the host, as cp(1) would.
    Pull(CopyRequest),
    /// Wait until something is so in a machine.
    Wait(WaitRequest),
    /// Say something in the test's log.
    Log {
        /// One line.
        text: String,
    },
    /// Reboot a machine and wait until its agent answers again.
    Reboot {
        /// Which; the only one when none is named.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        machine: Option<String>,
        /// For the whole boot.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        timeout_ms: Option<u64>,
    },
    /// Power a machine off.
    Poweroff {
        /// Which; the only one when none is named.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        machine: Option<String>,
    },
    /// What is this machine?
    Facts {
        /// Which; the only one when none is named.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        machine: Option<String>,
    },
    /// The test does not apply here.
    Skip {
        /// Why.
        reason: String,
    },
    /// The test has failed.
    Fail {
        /// Why.
        reason: String,
    },
    /// Wait until every side of the test is at this meeting point.
    Sync {
        /// The meeting point.
        name: String,
        /// [`DEFAULT_WAIT_MS`] when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        timeout_ms: Option<u64>,
    },
    /// Leave a value for whoever awaits it.
    Send {
        /// Under this name.
        key: String,
        /// In place of what was there.
        value: Data,
    },
    /// Wait until a value is there.
    Await {
        /// Its name.
        key: String,
        /// [`DEFAULT_WAIT_MS`] when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        timeout_ms: Option<u64>,
    },
}

/// A command for a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecRequest {
    /// Which machine; the only one when none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// What to run.
    pub command: Command,
    /// Variables of its environment; null takes one out.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, Option<Data>>,
    /// Its folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<Data>,
    /// As whom, by name or number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Its standard input comes, as `input`; else it has nothing to read.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stdin: bool,
    /// It is killed after that, with all that it started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

/// What to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Command {
    /// A line for the guest's shell.
    Line(Data),
    /// A program and its arguments.
    Argv(Vec<Data>),
}

/// What to copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CopyRequest {
    /// Which machine; the only one when none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// Files and folders. Paths of the host begin with `/`.
    pub from: Vec<Data>,
    /// A folder to copy into when it ends with `/` or is one already, else the copy's own place.
    pub to: Data,
}

/// What to wait for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WaitRequest {
    /// Which machine; the only one when none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// What is to be so.
    pub until: Until,
    /// [`DEFAULT_WAIT_MS`] when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

/// What is to be so in a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Until {
    /// A line for its shell succeeds.
    Line(Data),
    /// Somebody accepts TCP connections on this port of 127.0.0.1.
    Port(u16),
    /// Something is at this path.
    File(Data),
    /// A unit of systemd is active.
    Unit(String),
}

/// What comes back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum Reply {
    /// To `hello`.
    Hello {
        /// The version that both speak from here on.
        version: u32,
        /// The side of the test that this socket belongs to: `host`, or a machine's name.
        side: String,
        /// The machines that this side may ask for.
        machines: Vec<String>,
        /// All sides of the test, which meet at `sync`.
        sides: Vec<String>,
    },
    /// A command wrote, or the last attempt of `wait` did. Not the last reply.
    Output {
        /// Where to.
        stream: Stream,
        /// What.
        data: Data,
    },
    /// The last `input` was taken. Not the last reply.
    Taken {},
    /// A command ended.
    Exited {
        /// Its status; 128 and the number for a signal.
        status: u8,
        /// The signal that killed it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        signal: Option<u8>,
    },
    /// Files were copied; what is in `troubles` was not.
    Copied {
        /// Files, folders and whatever else.
        items: u64,
        /// Of their content.
        bytes: u64,
        /// What could not be copied, some of it by name.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        troubles: Vec<Trouble>,
        /// How much could not be copied.
        #[serde(default)]
        trouble_count: u64,
    },
    /// What was waited for is so.
    Waited {
        /// It took so many attempts.
        attempts: u64,
        /// And so long.
        elapsed_ms: u64,
    },
    /// What the machine is.
    Facts {
        /// See `guestline facts --json`.
        facts: serde_json::Value,
    },
    /// The value that was awaited.
    Value {
        /// It.
        value: Data,
    },
    /// It is done, and there is nothing to say of it.
    Done {},
    /// It is not done.
    Error {
        /// For programs.
        kind: ErrorKind,
        /// For people.
        message: String,
    },
}

/// Where a command wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Something could not be copied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// Its path below what was asked for.
    pub path: Data,
    /// Why.
    pub error: String,
}

/// What kind of error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorKind {
    /// The version is not known here. The connection ends.
    Version,
    /// What came is no message, or not in its turn. The connection ends.
    Protocol,
    /// The request cannot be meant so.
    Usage,
    /// There is no such machine, or it is not clear which one is meant.
    NoMachine,
    /// This side may not ask for that.
    NotAllowed,
    /// More than there may be.
    Limit,
    /// The time for it is over.
    Timeout,
    /// The test is over, or what was waited for cannot come any more.
    Ended,
    /// The link to the machine.
    Link,
    /// The guest refused, or the host's files did.
    Refused,
    /// There is no such program in the guest.
    NotFound,
    /// It cannot be executed.
    NotExecutable,
    /// A kind that this program does not know.
    #[serde(other)]
    Other,
}

impl ErrorKind {
    /// Its word in messages.
    pub fn word(self) -> &'static str {
        match self {
            Self::Version => "version",
            Self::Protocol => "protocol",
            Self::Usage => "usage",
            Self::NoMachine => "no-machine",
            Self::NotAllowed => "not-allowed",
            Self::Limit => "limit",
            Self::Timeout => "timeout",
            Self::Ended => "ended",
            Self::Link => "link",
            Self::Refused => "refused",
            Self::NotFound => "not-found",
            Self::NotExecutable => "not-executable",
            Self::Other => "other",
        }
    }
}

impl Reply {
    /// Whether nothing more follows to the same request.
    pub fn is_last(&self) -> bool {
        !matches!(self, Self::Output { .. } | Self::Taken {})
    }

    /// An error.
    pub fn error(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self::Error { kind, message: message.into() }
    }
}

#[cfg(test)]
mod tests;
