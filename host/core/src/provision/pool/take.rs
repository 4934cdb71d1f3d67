//! Taking a machine out of a pool.

use super::wire::{self, Answer, Lines, Request, line, send, understand};
use crate::local_socket;
use crate::machine::{
    Channels, ForeignProcess, Handover, Machine, MachineSpec, Qemu, is_there_still,
};
use crate::provision::TemplateId;
use crate::provision::slots::{Slot, Slots};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{Shutdown, shutdown};
use nix::unistd::Pid;
use std::fs;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::net::UnixStream;
use tokio::time::timeout;
use tracing::debug;

/// A keeper that does not hand over within this has nothing ready.
const PATIENCE: Duration = Duration::from_millis(500);

/// A keeper that is not stopped kills, and tells of an exit, sooner.
const KEEPER: Duration = Duration::from_secs(2);

/// Between two looks whether a QEMU has exited whose keeper does not tell.
const LOOK: Duration = Duration::from_millis(250);

/// Descriptors before the machine's ends of its sockets.
const OURS: usize = 5;

/// A machine of a pool, with nobody at its lines.
pub(in crate::provision) struct Taken {
    pub(in crate::provision) machine: Machine,
    pub(in crate::provision) channels: Channels,
    pub(in crate::provision) slot: Slot,
    /// What its image said it was to run before.
    pub(in crate::provision) warm_up: Option<String>,
    /// For so long it has been ready.
    pub(in crate::provision) ready_for: Duration,
}

/// Might there be a pool?
pub(in crate::provision) fn is_there(runtime: &Path) -> bool {
    !wire::claims(runtime).is_empty()
}

/// Might there be one of this template?
pub(in crate::provision) fn is_there_of(runtime: &Path, id: &TemplateId) -> bool {
    wire::claims(runtime).iter().any(|(_, claim)| claim.id == *id.as_str())
}

/// What is wanted, and by whom.
#[derive(Debug, Clone, Copy)]
pub(in crate::provision) struct Wanted<'a> {
    pub(in crate::provision) qemu: &'a Qemu,
    pub(in crate::provision) spec: &'a MachineSpec,
    pub(in crate::provision) slots: &'a Slots,
    /// Of the template, as it is now.
    pub(in crate::provision) instance: &'a str,
    /// The template's memory file: the keeper's may be there for as long as the process only.
    pub(in crate::provision) ram: &'a Path,
    /// Where its files go.
    pub(in crate::provision) folder: &'a Path,
}

/// A machine of this template out of the user's pools. None when no pool has one that is ready.
pub(in crate::provision) async fn take(
    runtime: &Path,
    id: &TemplateId,
    wanted: Wanted<'_>,
) -> Option<Taken> {
    for (keeper, claim) in wire::claims(runtime) {
        if claim.id != *id.as_str() {
            continue;
        }
        let taking = timeout(PATIENCE, take_from(&keeper, wanted));
        match taking.await {
            Ok(Ok(Some(taken))) => return Some(taken),
            Ok(Ok(None)) => {}
            Ok(Err(error)) => debug!(%error, keeper = %keeper.display(), "nothing out of a pool"),
            Err(_) => debug!(keeper = %keeper.display(), "a pool does not answer"),
        }
    }
    None
}

async fn take_from(
    keeper: &Path,
    Wanted { qemu, spec, slots, instance, ram, folder }: Wanted<'_>,
) -> io::Result<Option<Taken>> {
    let began = Instant::now();
    let stream = wire::connect(keeper)?;
    send(&stream, Request::Take, &[]).await?;
    let mut lines = Lines::default();
    let (answer, mut fds) = lines.next(&stream).await?;
    let Answer::Machine {
        pid,
        instance: its_instance,
        is_restored,
        disks,
        folder: its_folder,
        memory_mib,
        ready_us,
        warm_up,
    } = understand(&answer).map_err(io::Error::other)?
    else {
        return Ok(None);
    };
    // Its memory may be mapped from what was damaged, and has been made anew.
    if its_instance != instance {
        return Err(io::Error::other("its template is not the one that is there now"));
    }
    if fds.len() < OURS {
        return Err(io::Error::other("a machine without its lines"));
    }
    let ends = fds.split_off(OURS);
    let mut fds = fds.into_iter();
    let mut next = || fds.next().ok_or(io::Error::from(io::ErrorKind::NotFound));
    let (qmp, console) = (next()?, local_socket::of(next()?)?);
    let (control, bulk, reserve) =
        (local_socket::of(next()?)?, local_socket::of(next()?)?, local_socket::of(next()?)?);
    let ram = is_restored.then(|| ram.to_owned());
    let handover = Handover { pid, ram, disks, qmp, ends };
    let slot = slots.take_over(folder, memory_mib, pid).map_err(io::Error::other)?;
    send(&stream, Request::Taken, &[]).await?;
    let (machine, foreign) = Machine::take_over(qemu, spec, folder, handover)?;
    tokio::spawn(serve(stream, lines, foreign, pid));
    // For the reader of a work folder that was kept; its absence harms nothing.
    let _ = fs::copy(its_folder.join("qemu.cmdline"), folder.join("qemu.cmdline"));
    if !machine.is_running().await.unwrap_or(false) {
        machine.kill().await;
        return Ok(None);
    }
    debug!(pid, took = ?began.elapsed(), "a machine out of a pool");
    let channels = Channels { control, console, reserve, bulk, ports: Vec::new() };
    Ok(Some(Taken { machine, channels, slot, warm_up, ready_for: Duration::from_micros(ready_us) }))
}

/// Has the keeper kill QEMU when that is wanted, and tells of its exit; without the keeper, should that be stopped.
async fn serve(stream: UnixStream, mut lines: Lines, mut process: ForeignProcess, pid: u32) {
    let mut is_ours = false;
    let mut told = tokio::select! {
        told = lines.next(&stream) => told.ok(),
        () = exit_of(pid) => None,
        () = process.killed() => {
            is_ours = true;
            // The end of what we say is the order to kill (shutdown(2)).
            let _ = shutdown(stream.as_raw_fd(), Shutdown::Write);
            None
        }
    };
    if told.is_none() {
        told = timeout(KEEPER, lines.next(&stream)).await.ok().and_then(Result::ok);
    }
    if told.is_none() && is_there_still(pid) {
        // Nobody has reaped it, so it has its number still.
        let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
        let _ = timeout(KEEPER, exit_of(pid)).await;
    }
    let (how, signal, stderr) = match told.and_then(|(told, _)| understand(&told).ok()) {
        Some(Answer::Exited { how, signal, stderr }) => (how, signal, stderr),
        _ => ("was lost with the keeper of its pool".to_owned(), None, String::new()),
    };
    match is_ours {
        true => process.exited(how, None, String::new()),
        false => process.exited(how, signal, stderr),
    }
}

/// Waits until a process that is no child of ours runs no more.
async fn exit_of(pid: u32) {
    while is_there_still(pid) {
        tokio::time::sleep(LOOK).await;
    }
}

/// Asks all pools of the user to let a machine go that waits: somebody has no memory for his.
pub(in crate::provision) fn ask_for_room(runtime: &Path) {
    for (folder, _) in wire::claims(runtime) {
        // A line that nobody waits for an answer to.
        let asked = local_socket::connect(&folder, wire::SOCKET)
            .and_then(|mut stream| stream.write_all(&line(Request::MakeRoom)));
        if let Err(error) = asked {
            debug!(%error, folder = %folder.display(), "a pool cannot be asked for room");
        }
    }
}
