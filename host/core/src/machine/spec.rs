//! What a machine is made of.

use super::{Accel, QemuVersion, args};
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
    /// A guest that resets boots again; else that is the machine's end.
    pub reboots: bool,
    /// More ports.
    pub ports: Vec<ExtraPort>,
    /// A network card whose SSH port (22) is forwarded from this port of the host's loopback, and nothing else.
    pub ssh_port: Option<u16>,
}

/// A port beside those that every machine has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExtraPort {
    /// A virtio-serial port of this name.
    Virtio(String),
    /// The third serial line, ttyS2; there is one.
    Serial,
    /// A virtual console on the virtio-serial bus; the first is hvc0.
    VirtConsole,
}

impl MachineSpec {
    /// What of it the guest can see, but for the kernel, the initial RAM file system and the kernel's command line: the
    /// same text is the same machine.
    pub fn seen_by_guest(&self, version: QemuVersion) -> String {
        args::seen_by_guest(self, version)
    }
}
