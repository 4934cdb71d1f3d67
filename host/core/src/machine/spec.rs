//! What a machine is made of.

use super::{Accel, Disk, DiskFile, Firmware, QemuVersion, args};
use crate::digest::Digest;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;

/// A machine, as wanted. Devices that every machine has are in `args.rs`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineSpec {
    /// Guest memory in MiB.
    pub memory_mib: u64,
    /// Virtual CPUs.
    pub cpus: u32,
    /// `bzImage` or `vmlinux` with a PVH entry; none where the firmware starts the first disk.
    pub kernel: Option<PathBuf>,
    /// Initial RAM file system.
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    pub cmdline: String,
    /// How the first disk is started, where there is no kernel.
    pub firmware: Option<Firmware>,
    /// A file with firmware instead of what comes with QEMU, and its digest; it takes the place of OVMF, too.
    pub bios: Option<(PathBuf, Digest)>,
    /// What runs the guest's code.
    pub accel: Accel,
    /// Another machine type than the newest q35.
    pub machine: Option<String>,
    /// Another CPU model than the accelerator's, perhaps with flags.
    pub cpu: Option<String>,
    /// A guest that resets boots again; else that is the machine's end.
    pub reboots: bool,
    /// More ports.
    pub ports: Vec<ExtraPort>,
    /// The disk that is the guest's root, which many machines read. Its serial number is `root`.
    pub root: Option<Disk>,
    /// The disk with its kernel's modules, which many machines read. Its serial number is `modules`.
    pub modules: Option<Disk>,
    /// Disks, at most [`MAX_DISKS`] beside the one that the firmware starts.
    pub disks: Vec<Disk>,
    /// Network cards, at most [`MAX_NICS`], each on a cable that leads nowhere.
    pub nics: Vec<Nic>,
    /// Another model of these cards than virtio.
    pub nic_model: Option<String>,
    /// A network card whose SSH port (22) is forwarded from this port of the host's loopback, and nothing else.
    pub ssh_port: Option<u16>,
    /// What stands at the end of QEMU's command line.
    pub more_args: Vec<String>,
    /// A debugger has a socket, [`GDB_SOCKET`] in the machine's folder, and the machine that boots waits for it.
    pub gdb: bool,
}

/// The name of the socket for a debugger.
pub const GDB_SOCKET: &str = "gdb";

/// The least and the most memory of a machine, MiB.
pub const MEMORY_MIB: RangeInclusive<u64> = 32..=0x1000_0000;

/// So many disks have a place.
pub const MAX_DISKS: usize = 8;

/// So many network cards have one.
pub const MAX_NICS: usize = 8;

/// A network card.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Nic {
    /// Its MAC address, when the machine boots; a machine that was restored has the one that it was saved with until its
    /// guest changes it, or boots again.
    pub mac: [u8; 6],
}

impl fmt::Display for Nic {
    /// The MAC address, such as 52:54:00:12:34:56.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.mac.map(|byte| format!("{byte:02x}")).join(":"))
    }
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

    /// With files upon those of its disks that can be written to, in their order.
    pub fn upon(&self, overlays: impl IntoIterator<Item = DiskFile>) -> Self {
        let mut spec = self.clone();
        for (disk, overlay) in spec.writable_disks_mut().zip(overlays) {
            disk.files.push(overlay);
        }
        spec
    }

    /// The disks that can be written to, each with what is written in a file of its own upon its others.
    pub fn writable_disks(&self) -> impl Iterator<Item = &Disk> {
        self.disks.iter().filter(|disk| !disk.read_only && !disk.is_own)
    }

    fn writable_disks_mut(&mut self) -> impl Iterator<Item = &mut Disk> {
        self.disks.iter_mut().filter(|disk| !disk.read_only && !disk.is_own)
    }
}
