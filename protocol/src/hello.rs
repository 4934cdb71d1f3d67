//! Opening a session: each side names the versions it speaks; both take the highest in common.
//!
//! The session's nonce is the one on the hello's frame. These messages never change their bytes.

use crate::limits::at_most;
use crate::{ErrorKind, OLDEST_VERSION, RemoteError, Session, VERSION};
use serde::{Deserialize, Serialize};

/// The host's opening. May be sent again in the same session until it is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HelloRequest {
    /// Oldest protocol version the host speaks.
    pub min: u16,
    /// Newest protocol version the host speaks.
    pub max: u16,
    /// The host's build, for people.
    pub build: String,
    /// Bits for optional abilities; none is defined in version 1.
    pub features: u64,
    /// There is a bulk port too: the agent opens it before it answers, if it comes within a second.
    pub bulk: bool,
}

impl HelloRequest {
    /// Whether whoever answers as the guest may open this session: the version that both speak.
    ///
    /// # Errors
    /// What its sender is to be told.
    pub fn judge(&self, session: Session) -> Result<u16, RemoteError> {
        if session == Session::NONE {
            return Err(RemoteError::new(ErrorKind::Invalid, "a hello needs a session"));
        }
        common_version((OLDEST_VERSION, VERSION), (self.min, self.max))
            .map_err(|error| RemoteError::new(ErrorKind::Version, error.to_string()))
    }
}

/// The agent's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HelloResponse {
    /// Oldest protocol version the agent speaks.
    pub min: u16,
    /// Newest protocol version the agent speaks.
    pub max: u16,
    /// The agent's build id, made from its sources.
    pub build: String,
    /// Bits for optional abilities; none is defined in version 1.
    pub features: u64,
    /// Is the agent the guest's init (process 1)?
    pub init: bool,
    /// The agent has the bulk port open, and waits there for [`AttachRequest`].
    pub bulk: bool,
    /// Drawn by the agent when it started: another one means another agent, or another boot. A guest that is restored
    /// from a saved state has the one that was saved.
    pub incarnation: u64,
    /// The guest's wall clock (`CLOCK_REALTIME`), microseconds since 1970; as the guest says.
    pub clock_us: u64,
}

/// Joins a second port to the session of the frame. Sent on that port, answered there. From then on data frames of
/// both directions take it, and messages the first one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachRequest {}

/// The port is joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachResponse {}

/// At most so many things that are missing are told.
pub const MAX_LACKS: usize = 16;

/// The agent is up and has no port to speak on. Sent once on the reserve link, session 0, id 0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkTroubleEvent {
    /// The kernel the guest runs (`uname -r`).
    pub kernel: String,
    /// What is missing, for people, most telling first.
    #[serde(deserialize_with = "at_most::<MAX_LACKS, _, _>")]
    pub lacks: Vec<String>,
}

/// The two ends have no version in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoCommonVersion {
    /// Oldest and newest version of this side.
    pub ours: (u16, u16),
    /// Oldest and newest version of the other side.
    pub theirs: (u16, u16),
}

impl core::fmt::Display for NoCommonVersion {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let (ours, theirs) = (self.ours, self.theirs);
        write!(
            f,
            "no common protocol version: this side speaks {} to {}, the other {} to {}",
            ours.0, ours.1, theirs.0, theirs.1
        )
    }
}

impl core::error::Error for NoCommonVersion {}

/// The newest version in both ranges.
///
/// # Errors
/// [`NoCommonVersion`], with both ranges, when they do not meet or one is upside down.
pub fn common_version(ours: (u16, u16), theirs: (u16, u16)) -> Result<u16, NoCommonVersion> {
    let version = ours.1.min(theirs.1);
    if version >= ours.0 && version >= theirs.0 {
        Ok(version)
    } else {
        Err(NoCommonVersion { ours, theirs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_the_newest_common_version() {
        assert_eq!(common_version((1, 3), (2, 9)), Ok(3));
        assert_eq!(common_version((2, 9), (1, 3)), Ok(3));
        assert_eq!(common_version((1, 1), (1, 1)), Ok(1));
    }

    #[test]
    fn names_both_ranges_when_they_do_not_meet() {
        let error = common_version((1, 2), (3, 4)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "no common protocol version: this side speaks 1 to 2, the other 3 to 4"
        );
        assert!(common_version((1, 9), (5, 4)).is_err());
    }

    #[test]
    fn a_hello_is_judged_by_its_session_and_its_versions() {
        let hello = |min, max| {
            let build = String::new();
            HelloRequest { min, max, build, features: 0, bulk: false }
        };
        assert_eq!(hello(1, 9).judge(Session(7)), Ok(VERSION));
        let none = hello(1, 1).judge(Session::NONE).unwrap_err();
        assert_eq!(none.kind, ErrorKind::Invalid);
        let apart = hello(VERSION + 1, VERSION + 2).judge(Session(7)).unwrap_err();
        assert_eq!(apart.kind, ErrorKind::Version);
    }
}
