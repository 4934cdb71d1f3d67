//! Errors as data: what the guest could not do, for code (`kind`, `errno`) and for people.

use serde::{Deserialize, Serialize};

/// A request that the guest could not carry out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteError {
    /// For code.
    pub kind: ErrorKind,
    /// The guest kernel's error number (`errno(3)`), where one is behind it.
    pub errno: Option<i32>,
    /// For people: lower case, names the object.
    pub message: String,
}

/// Sorts remote errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ErrorKind {
    /// The request makes no sense: an empty command, a NUL byte in a path.
    Invalid,
    /// A message came before the session was opened by a hello.
    NoSession,
    /// The two version ranges have no version in common.
    Version,
    /// The file to execute is not there.
    NotFound,
    /// The file is there and may not be executed, or is nothing the kernel can execute.
    NotExecutable,
    /// Any other refusal of the guest's kernel.
    System,
    /// The agent is at one of its own limits.
    Busy,
    /// This guest, or the way to it, cannot do that.
    Unsupported,
    /// The host cancelled it.
    Cancelled,
    /// The two ends disagree about what the other may do.
    Protocol,
    /// What arrived is not what was sent.
    Integrity,
}

impl RemoteError {
    /// Without an error number behind it.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, errno: None, message: message.into() }
    }
}

impl core::fmt::Display for RemoteError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(&self.message)
    }
}

impl core::error::Error for RemoteError {}
