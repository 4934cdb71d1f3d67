//! Running a process in the guest.
//!
//! ```text
//! host   ExecRequest ->
//! guest                 <- ExecStarted, ExecOutput…, ExecExited      or Error
//! ```
//! Standard input is empty (`/dev/null`). The two output streams come in order each, not between
//! each other. `ExecExited` follows the process's own exit within [`DRAIN_GRACE_MS`], even when a
//! child still holds its output open; such late output is not sent.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

/// How long output is still read after the exit while a child holds it open, in milliseconds.
pub const DRAIN_GRACE_MS: u32 = 200;

/// Starts a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecRequest {
    /// What to run.
    pub command: Command,
    /// Variables added to the agent's own environment, `NAME` and value.
    pub env: Vec<(ByteBuf, ByteBuf)>,
    /// Working folder, `/` when none is given.
    pub cwd: Option<ByteBuf>,
}

/// What to run; bytes, as the kernel takes them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// A line for `/bin/sh -c`.
    Shell(ByteBuf),
    /// A program, looked up in `PATH` when it has no slash, and its arguments.
    Argv(Vec<ByteBuf>),
}

/// The process runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecStartedEvent {
    /// Its process id in the guest.
    pub pid: u32,
}

/// The process, or a child of it, wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecOutputEvent {
    /// Where to.
    pub stream: Stream,
    /// What, at most [`crate::MAX_DATA_LEN`] bytes.
    pub data: ByteBuf,
}

/// One of the two output streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Stream {
    /// File descriptor 1.
    Stdout,
    /// File descriptor 2.
    Stderr,
}

/// The process is gone; nothing more comes for this request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecExitedEvent {
    /// How it ended.
    pub status: ExitStatus,
    /// A child still held standard output or error open when the drain grace was over.
    pub output_held: bool,
    /// From the start to the exit by the guest's monotonic clock, in microseconds.
    pub elapsed_us: u64,
}

/// How a process ended (`wait(2)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitStatus {
    /// It exited with this status, 0 to 255.
    Exited(u8),
    /// This signal killed it.
    Signaled {
        /// Signal number (`signal(7)`, x86).
        signal: u8,
        /// Whether a core was dumped.
        core_dumped: bool,
    },
}
