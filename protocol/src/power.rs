//! Ending the guest, and beginning it again.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

/// Ends the guest: file systems are synced, then the kernel is told (reboot(2)). Answered by [`LeavingResponse`] before
/// that, as soon as it is clear that it can be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PowerRequest {
    /// How.
    pub action: PowerAction,
    /// At once: no sync, and where the agent is no init, past the init.
    pub force: bool,
}

/// What becomes of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PowerAction {
    /// Off.
    Off,
    /// Off and on.
    Reboot,
    /// Into another kernel (kexec_file_load(2)).
    Kexec {
        /// Path of the kernel in the guest.
        kernel: ByteBuf,
        /// Path of its initial RAM file system.
        initrd: Option<ByteBuf>,
        /// Its command line; that of the running kernel when none is given.
        cmdline: Option<ByteBuf>,
    },
}

/// The guest ends as soon as this has left it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeavingResponse {}

/// Stops writing to a file system until it is thawed, or the session ends (ioctl_fs(2), `FIFREEZE`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FreezeRequest {
    /// Where it is mounted.
    pub path: ByteBuf,
}

/// Goes on writing (`FITHAW`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThawRequest {
    /// Where it is mounted.
    pub path: ByteBuf,
}
