//! One command, from its start until its exit is told.
//!
//! ```text
//! Running ── exit ──> Draining ── outputs at their end, or grace over ──> told, forgotten
//! ```
//! What was in the pipes at the exit is always sent, however long the host takes to grant credit for it. An output that
//! somebody else holds open is given [`DRAIN_GRACE_MS`], then dropped. Once the host has cancelled, it is not waited for
//! any more where it grants no credit.

use super::input::Input;
use super::output::{Buffers, Got, Output, is_end};
use super::stdio::Ours;
use super::tree::Tree;
use crate::sys::spawn::{Ended, send_signal, set_terminal_size};
use guestline_protocol::exec::DRAIN_GRACE_MS;
use guestline_protocol::{
    ExecExitedEvent, ExitStatus, ResourceUsage, SendCredit, SignalEvent, Stream, TerminalSize,
};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// For so long after its start nobody waits for a command's output: most are short, and their output is read at their
/// exit, without a wake-up of its own.
const YOUTH: Duration = Duration::from_millis(8);

#[derive(Debug)]
pub(super) struct Process {
    /// Unlike its channel and its pid, never used again.
    pub(super) serial: u64,
    pub(super) channel: u32,
    pub(super) tree: Tree,
    pub(super) credit: SendCredit,
    pub(super) outputs: [Option<Output>; 2],
    pub(super) input: Input,
    terminal: Option<Rc<OwnedFd>>,
    started: Instant,
    exit: Option<Exit>,
    is_cancelled: bool,
}

#[derive(Debug)]
struct Exit {
    status: ExitStatus,
    usage: ResourceUsage,
    elapsed: Duration,
    /// When an output that is still open is dropped.
    deadline: Instant,
}

impl Process {
    pub(super) fn new(
        (serial, channel): (u64, u32),
        tree: Tree,
        ours: Ours,
        credit: u32,
        started: Instant,
    ) -> Self {
        let Ours { outputs, input, terminal, window: _ } = ours;
        let credit = SendCredit::new(credit);
        Self {
            serial,
            channel,
            tree,
            credit,
            outputs,
            input,
            terminal,
            started,
            exit: None,
            is_cancelled: false,
        }
    }

    pub(super) fn is_running(&self) -> bool {
        self.exit.is_none()
    }

    /// Until when its output waits for its exit.
    pub(super) fn young_until(&self) -> Option<Instant> {
        self.started.checked_add(YOUTH).filter(|_| self.is_running() && self.terminal.is_none())
    }

    /// Reads an output once, at most `room` bytes and what there is credit for.
    pub(super) fn read(
        &mut self,
        slot: usize,
        events: PollFlags,
        room: usize,
        buffers: &mut Buffers,
    ) -> Option<(Stream, Vec<u8>, usize)> {
        let place = self.outputs.get_mut(slot)?;
        let output = place.as_mut()?;
        let stream = output.stream;
        match output.read(events, room.min(self.credit.left()), buffers) {
            Got::Data(buffer) => {
                let len = buffer.len().saturating_sub(guestline_protocol::HEADROOM);
                self.credit.spend(len);
                return Some((stream, buffer, len));
            }
            Got::Nothing => {}
            Got::End => *place = None,
        }
        None
    }

    pub(super) fn signal(&self, event: &SignalEvent) {
        // After the exit the number may be another's.
        if self.is_running() {
            send_signal(self.tree.main, event.group, event.signal);
        }
    }

    pub(super) fn resize(&self, size: TerminalSize) {
        if let Some(master) = &self.terminal {
            // Fails only for a descriptor that is no terminal.
            let _ = set_terminal_size(master.as_fd(), size.columns, size.rows);
        }
    }

    /// Notes that its tree was killed on the host's behalf.
    pub(super) fn cancelled(&mut self) {
        self.is_cancelled = true;
        self.input.close();
        if let Some(exit) = &mut self.exit {
            exit.deadline = grace();
        }
    }

    /// Notes its exit and what is still in its outputs.
    pub(super) fn exited(&mut self, ended: &Ended) {
        let status = match ended.status {
            status if libc::WIFSIGNALED(status) => ExitStatus::Signaled {
                signal: u8::try_from(libc::WTERMSIG(status)).unwrap_or(0),
                core_dumped: libc::WCOREDUMP(status),
            },
            status => {
                ExitStatus::Exited(u8::try_from(libc::WEXITSTATUS(status) & 0xff).unwrap_or(0))
            }
        };
        let Ended { user_us, system_us, max_rss_kib, .. } = *ended;
        let usage = ResourceUsage { user_us, system_us, max_rss_kib };
        let elapsed = self.started.elapsed();
        self.exit = Some(Exit { status, usage, elapsed, deadline: grace() });
        self.tree.is_reaped = true;
        self.input.close();
        self.drop_ended();
        self.outputs.iter_mut().flatten().for_each(Output::owe);
    }

    /// Is there something that is sent before the exit is, however long that takes?
    fn is_owing(&self) -> bool {
        let is_owed = self.outputs.iter().flatten().any(|output| output.owed > 0);
        is_owed && (!self.is_cancelled || self.credit.left() > 0)
    }

    /// When it is to be looked at again although nothing happens.
    pub(super) fn deadline(&self, now: Instant) -> Option<Instant> {
        let Some(exit) = &self.exit else {
            return self.young_until().filter(|until| *until > now);
        };
        let is_stalled = self.is_owing() && self.credit.left() == 0;
        (!is_stalled).then_some(exit.deadline)
    }

    /// What to tell of its exit, if it is time to.
    pub(super) fn finish(&mut self, now: Instant) -> Option<ExecExitedEvent> {
        let deadline = self.exit.as_ref()?.deadline;
        let is_open = |process: &Self| process.outputs.iter().any(Option::is_some);
        if is_open(self) {
            if now < deadline {
                return None;
            }
            if self.is_owing() && self.credit.left() > 0 {
                self.outputs.iter_mut().flatten().for_each(Output::owe_at_most_what_waits);
            }
            if self.is_owing() {
                self.exit.iter_mut().for_each(|exit| exit.deadline = grace());
                return None;
            }
            // Nobody looked while there was no credit.
            self.drop_ended();
        }
        let exit = self.exit.as_ref()?;
        Some(ExecExitedEvent {
            status: exit.status,
            output_held: is_open(self),
            cancelled: self.is_cancelled,
            elapsed_us: u64::try_from(exit.elapsed.as_micros()).unwrap_or(u64::MAX),
            usage: exit.usage,
            total: self.credit.sent(),
        })
    }

    /// Closes the outputs that are at their end now that it is gone; a terminal is hung up by that.
    fn drop_ended(&mut self) {
        let mut fds: Vec<PollFd> = self.outputs.iter().flatten().map(Output::poll_fd).collect();
        if fds.is_empty() || poll(&mut fds, PollTimeout::ZERO).is_err() {
            return;
        }
        let events: Vec<_> =
            fds.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty())).collect();
        let open = self.outputs.iter_mut().filter(|output| output.is_some());
        for (output, events) in open.zip(events) {
            if is_end(events) {
                *output = None;
            }
        }
    }
}

fn grace() -> Instant {
    let now = Instant::now();
    now.checked_add(Duration::from_millis(DRAIN_GRACE_MS.into())).unwrap_or(now)
}
