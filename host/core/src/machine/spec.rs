//! What a machine is made of.

use super::Accel;
use std::path::PathBuf;

/// A machine, as wanted. Devices that every machine has are in `args.rs`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineSpec {
    /// Guest memory in MiB.
    pub memory_mib: u64,
    /// Virtual CPUs.
    pub cpus: u32,
    /// `bzImage` or `vmlinux` with a PVH entry.
    pub kernel: PathBuf,
    /// Initial RAM file system.
    pub initrd: PathBuf,
    /// Kernel command line.
    pub cmdline: String,
    /// What runs the guest's code.
    pub accel: Accel,
}
