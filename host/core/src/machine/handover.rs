//! A machine that goes from one process of ours to another: QEMU stays the child of who started it, who alone reaps
//! it; everything else is the other one's.
//!
//! ```text
//! who started it   hand_over ──> pid, QMP connection, machine's ends of the sockets ──> take_over   who goes on with it
//!                  ended, kill <───────────────── ForeignProcess: kill, exited ──────── Machine
//! ```
//! The host's ends of the sockets are with who reads them, and go their own way.

use super::engine::Engine;
use super::process::foreign;
use super::qmp::Qmp;
use super::{DiskFile, DiskFormat, ForeignProcess, Machine, MachineSpec, Qemu};
use crate::local_socket;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// What goes from one to the other.
#[derive(Debug)]
pub struct Handover {
    /// QEMU's process.
    pub pid: u32,
    /// The file that the guest's memory is mapped from.
    pub ram: Option<PathBuf>,
    /// The files that its disks are written to, there as long as who started it.
    pub disks: Vec<PathBuf>,
    /// The QMP connection, on which nothing is under way.
    pub qmp: OwnedFd,
    /// The machine's ends of its sockets, in the order in which QEMU was given them.
    pub ends: Vec<OwnedFd>,
}

impl Machine {
    /// Gives the machine away. What is left here is to wait for the exit of QEMU, and to kill it.
    ///
    /// # Errors
    /// What duplicating descriptors gives; the machine is of no use then.
    pub async fn hand_over(&self) -> io::Result<Handover> {
        let qmp = self.qmp.give_away().await?;
        let (ram, disks, ends) = self.engine.give_away();
        Ok(Handover { pid: self.pid(), ram, disks, qmp, ends })
    }

    /// Goes on with a machine of this spec, but for the files that its disks are written to, that was given away. Who has
    /// the connection to the other process does there
    /// what the [`ForeignProcess`] asks for.
    ///
    /// # Errors
    /// What using the connection gives.
    pub fn take_over(
        qemu: &Qemu,
        spec: &MachineSpec,
        folder: &Path,
        handover: Handover,
    ) -> io::Result<(Self, ForeignProcess)> {
        let Handover { pid, ram, disks, qmp, ends } = handover;
        let spec = &spec.upon(disks.into_iter().map(|path| DiskFile::at(path, DiskFormat::Qcow2)));
        let qmp = Qmp::resume(local_socket::of(qmp)?);
        let (process, foreign) = foreign(pid);
        let (engine, exit) = Engine::with(process, qemu, spec, ram, folder, ends);
        Ok((Self::of(engine, exit, qmp, qemu, spec, folder), foreign))
    }
}
