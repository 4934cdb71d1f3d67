//! Why a request of the command `guest` is not done.

use super::{BoardError, Side};
use crate::text;
use guestline::guest::FilesError;
use guestline::link::LinkError;
use guestline_guest::protocol::{ErrorKind, Reply};
use guestline_protocol as link;
use std::time::Duration;

/// A request is not done.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// No machine has that name.
    #[error("there is no machine `{name}` in this test, but {}", listed(names))]
    NoMachine {
        /// What was asked for.
        name: String,
        /// Those that there are.
        names: Vec<String>,
    },
    /// It is not clear which machine is meant.
    #[error("this test has several machines: name one of {} with -m", listed(names))]
    WhichMachine {
        /// Those that there are.
        names: Vec<String>,
    },
    /// There is none.
    #[error("this test has no machine")]
    NoMachines,
    /// A guest is not trusted with more.
    #[error("`{what}` is not allowed inside a machine: only the script on the host may do that")]
    NotAllowed {
        /// The request's word.
        what: &'static str,
    },
    /// It is over.
    #[error("{why}")]
    Hopeless {
        /// In words.
        why: String,
    },
    /// Not every side came to a meeting point.
    #[error("`{name}`: not all were there within {}: {} did not come", text::limit(*limit), sides(missing))]
    NotMet {
        /// The meeting point.
        name: String,
        /// What was given.
        limit: Duration,
        /// Who did not come.
        missing: Vec<Side>,
    },
    /// Nobody sent the value.
    #[error("`{key}`: no value within {}", text::limit(*limit))]
    NoValue {
        /// Its name.
        key: String,
        /// What was given.
        limit: Duration,
    },
    /// What was waited for in a machine did not come.
    #[error("{machine}: {what}: not within {}: {why}, after {attempts} attempts", text::limit(*limit))]
    NotYet {
        /// Which.
        machine: String,
        /// What was waited for.
        what: String,
        /// What was given.
        limit: Duration,
        /// How the last attempt ended.
        why: String,
        /// How many there were.
        attempts: u64,
    },
    /// A command took too long.
    #[error("{machine}: timed out after {}, and was killed", text::limit(*limit))]
    TimedOut {
        /// Where.
        machine: String,
        /// What was given.
        limit: Duration,
    },
    /// A machine did not come back.
    #[error("{machine}: rebooted, and its agent does not answer within {}", text::limit(*limit))]
    NotBack {
        /// Which.
        machine: String,
        /// What was given.
        limit: Duration,
    },
    /// A machine is not there any more.
    #[error("{machine}: the machine has ended: {how}")]
    MachineEnded {
        /// Which.
        machine: String,
        /// In words.
        how: String,
    },
    /// It cannot be meant so.
    #[error("{0}")]
    Usage(String),
    /// More than there may be.
    #[error("{0}")]
    TooLong(String),
    /// It does not go onto the board.
    #[error(transparent)]
    Board(#[from] BoardError),
    /// The link to a machine, or its guest.
    #[error("{machine}: {}", text::chain(source))]
    Link {
        /// Which.
        machine: String,
        /// Why.
        source: LinkError,
    },
    /// Files.
    #[error("{machine}: {}", text::chain(source))]
    Files {
        /// Which.
        machine: String,
        /// Why.
        source: FilesError,
    },
}

impl LabError {
    /// For programs.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NoMachine { .. } | Self::WhichMachine { .. } | Self::NoMachines => {
                ErrorKind::NoMachine
            }
            Self::NotAllowed { .. } => ErrorKind::NotAllowed,
            Self::Hopeless { .. } | Self::MachineEnded { .. } => ErrorKind::Ended,
            Self::NotMet { .. }
            | Self::NoValue { .. }
            | Self::NotYet { .. }
            | Self::TimedOut { .. }
            | Self::NotBack { .. } => ErrorKind::Timeout,
            Self::Usage(_) | Self::Board(BoardError::NoSide { .. }) => ErrorKind::Usage,
            Self::TooLong(_) | Self::Board(_) => ErrorKind::Limit,
            Self::Link { source, .. } => kind_of_link(source),
            Self::Files { source: FilesError::Link(source), .. } => kind_of_link(source),
            Self::Files { .. } => ErrorKind::Refused,
        }
    }

    /// As it goes over the wire.
    pub fn to_reply(&self) -> Reply {
        let message = self.to_string();
        // A guest has a say in some of them.
        let message = message.lines().map(|line| text::one_line(line, 2000)).collect::<Vec<_>>();
        Reply::Error { kind: self.kind(), message: message.join("\n") }
    }

    pub(super) fn link(machine: &str) -> impl FnOnce(LinkError) -> Self {
        let machine = machine.to_owned();
        move |source| Self::Link { machine, source }
    }

    pub(super) fn files(machine: &str) -> impl FnOnce(FilesError) -> Self {
        let machine = machine.to_owned();
        move |source| Self::Files { machine, source }
    }
}

fn kind_of_link(error: &LinkError) -> ErrorKind {
    match error {
        LinkError::Refused(refused) => match refused.kind {
            link::ErrorKind::NotFound => ErrorKind::NotFound,
            link::ErrorKind::NotExecutable => ErrorKind::NotExecutable,
            _ => ErrorKind::Refused,
        },
        LinkError::TooLong(_) => ErrorKind::Limit,
        LinkError::Unsupported { .. } => ErrorKind::Refused,
        _ => ErrorKind::Link,
    }
}

fn listed(names: &[String]) -> String {
    match names {
        [] => "none at all".to_owned(),
        names => names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", "),
    }
}

fn sides(sides: &[Side]) -> String {
    let names: Vec<_> = sides.iter().map(Side::to_string).collect();
    listed(&names)
}
