//! Running a process in the guest.
//!
//! ```text
//! host   ExecRequest ->      data (stdin), End, Signal, Resize, Cancel, Credit ->
//! guest                 <- ExecStarted, data (stdout, stderr), Credit…, ExecExited      or Error
//! ```
//! The two output streams come in order each, not between each other. `ExecExited` follows the
//! process's own exit within [`DRAIN_GRACE_MS`], even when a child still holds its output open;
//! such late output is not sent. A cancelled process is killed with all that it started, and its exit told.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

/// How long output is still read after the exit while a child holds it open, in milliseconds.
pub const DRAIN_GRACE_MS: u32 = 200;

/// Starts a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecRequest {
    /// What to run.
    pub command: Command,
    /// Variables set in the agent's own environment, or taken out of it.
    pub env: Vec<EnvChange>,
    /// Begin with an empty environment.
    pub clear_env: bool,
    /// Working folder, `/` when none is given.
    pub cwd: Option<ByteBuf>,
    /// As whom, when not as the agent: a name out of the guest's `/etc/passwd`, or a number.
    pub user: Option<String>,
    /// Its group instead of the user's own: a name out of `/etc/group`, or a number.
    pub group: Option<String>,
    /// Its supplementary groups instead of those that `/etc/group` gives the user.
    pub groups: Option<Vec<String>>,
    /// File mode creation mask (umask(2)), when not the agent's.
    pub umask: Option<u32>,
    /// Resource limits (setrlimit(2)).
    pub limits: Vec<ResourceLimit>,
    /// Where its input comes from.
    pub stdin: StdinSource,
    /// Run it on a terminal of its own of this size; its output is one stream then, standard output.
    pub terminal: Option<TerminalSize>,
    /// Credit for its output, bytes.
    pub credit: u32,
}

impl ExecRequest {
    /// A command with the defaults of everything else: nothing to read, the agent's user and environment. Who sends it
    /// fills in the credit.
    pub fn new(command: Command) -> Self {
        Self {
            command,
            env: Vec::new(),
            clear_env: false,
            cwd: None,
            user: None,
            group: None,
            groups: None,
            umask: None,
            limits: Vec::new(),
            stdin: StdinSource::Closed,
            terminal: None,
            credit: 0,
        }
    }
}

/// What to run; bytes, as the kernel takes them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// A line for the shell, with `-c`: `/bin/sh`, unless the image says another.
    Shell(ByteBuf),
    /// A program, looked up in `PATH` when it has no slash, and its arguments.
    Argv(Vec<ByteBuf>),
}

/// A variable of the environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvChange {
    /// Its name.
    pub name: ByteBuf,
    /// Its value; none takes it out.
    pub value: Option<ByteBuf>,
}

/// A resource limit (setrlimit(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceLimit {
    /// Which.
    pub resource: Resource,
    /// Soft limit; `u64::MAX` is none.
    pub soft: u64,
    /// Hard limit; `u64::MAX` is none.
    pub hard: u64,
}

/// What is limited (getrlimit(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Resource {
    /// `RLIMIT_AS`, bytes.
    AddressSpace,
    /// `RLIMIT_CORE`, bytes.
    Core,
    /// `RLIMIT_CPU`, seconds.
    Cpu,
    /// `RLIMIT_DATA`, bytes.
    Data,
    /// `RLIMIT_FSIZE`, bytes.
    FileSize,
    /// `RLIMIT_MEMLOCK`, bytes.
    LockedMemory,
    /// `RLIMIT_NOFILE`, descriptors.
    OpenFiles,
    /// `RLIMIT_NPROC`, processes of the user.
    Processes,
    /// `RLIMIT_STACK`, bytes.
    Stack,
}

/// Where a process's standard input comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum StdinSource {
    /// `/dev/null`.
    Closed,
    /// The channel's data, up to its end.
    Channel,
}

/// Size of a terminal (tty_ioctl(4), `TIOCSWINSZ`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Characters in a line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

/// Sends a signal to the process of the channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalEvent {
    /// Its number (signal(7)), as the guest counts.
    pub signal: u8,
    /// To its whole process group.
    pub group: bool,
}

/// The process runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecStartedEvent {
    /// Its process id in the guest.
    pub pid: u32,
    /// Credit for its input, bytes; 0 when that is closed.
    pub credit: u32,
}

/// One of the two streams that a direction of a channel has; all but a process's output have only the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Stream {
    /// File descriptor 1; also input, files, and whatever has one stream.
    Stdout,
    /// File descriptor 2.
    Stderr,
}

/// The process is gone; nothing more comes on this channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecExitedEvent {
    /// How it ended.
    pub status: ExitStatus,
    /// A child still held standard output or error open when the drain grace was over.
    pub output_held: bool,
    /// It was ended because the host cancelled it.
    pub cancelled: bool,
    /// From the start to the exit by the guest's monotonic clock, in microseconds.
    pub elapsed_us: u64,
    /// What it used, with the children that it waited for (getrusage(2)).
    pub usage: ResourceUsage,
    /// Bytes of output sent, both streams.
    pub total: u64,
}

/// What a process used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceUsage {
    /// Time in user mode, microseconds.
    pub user_us: u64,
    /// Time in the kernel, microseconds.
    pub system_us: u64,
    /// The most memory that one of them had resident, KiB.
    pub max_rss_kib: u64,
}

/// How a process ended (`wait(2)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitStatus {
    /// It exited with this status, 0 to 255.
    Exited(u8),
    /// This signal killed it.
    Signaled {
        /// Signal number (`signal(7)`), as the guest counts.
        signal: u8,
        /// Whether a core was dumped.
        core_dumped: bool,
    },
}
