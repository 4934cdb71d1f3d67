//! Commands that the host asked for: started as it says, read without blocking, told once, killed with all that they
//! started.
//!
//! ```text
//! Processes ─ order (what is asked) ─ account (users and groups)
//!           ├ stdio (descriptors) ─ input, output, terminal
//!           ├ process (one command) ─ tree (what it started) ─ cgroup (leaves)
//!           └ sys::spawn (the kernel)
//! ```
//! The poll loop calls, in this order: [`Processes::poll_fds`] and [`Processes::deadline`] before it sleeps; then
//! [`Processes::on_ready`], [`Processes::reap`] after a SIGCHLD, and [`Processes::finish`], which also tells credit. What
//! the host says may come in between at any time; a channel without a command is ignored.
//!
//! All children of the agent are reaped here: nothing else in this process may wait for one by `wait(-1)`.

mod account;
mod cgroup;
mod input;
mod order;
mod output;
mod process;
mod stdio;
mod terminal;
#[cfg(test)]
mod tests;
mod tree;

pub(crate) use account::AccountFiles;
pub(crate) use cgroup::cgroup_parent;

use crate::linux;
use crate::refusal::{errno, invalid, system};
use crate::sys::spawn::{Plan, SpawnFailure, Spawner, Step, close_on_exec, wait_any};
use cgroup::{Cgroups, Leaf};
use guestline_protocol::{
    CreditEvent, ErrorKind, ExecExitedEvent, ExecRequest, ExecStartedEvent, RemoteError,
    SignalEvent, Stream, TerminalSize,
};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags};
use nix::sys::stat::Mode;
use order::{Order, Words};
use output::Buffers;
use process::Process;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::Instant;
use stdio::Pipes;
use tree::{Mark, Tree};

/// At most so many commands at once.
pub(crate) const MAX_PROCESSES: usize = 64;

/// So many bytes of input may be under way, or wait for a command to read them.
pub(crate) const INPUT_WINDOW: u32 = 256 * 1024;

/// A leaf that refuses a process is replaced so often before a command runs without one.
const LEAVES: usize = 2;

/// SIGPIPE, in a signal set: the runtime has it ignored here.
const SIGPIPE_BIT: u64 = 1 << 12;

/// Names and values of variables.
type Environment = Vec<(Vec<u8>, Vec<u8>)>;

/// What a command begins with, if it says nothing else.
struct Base {
    /// Names and values of its environment.
    environment: Environment,
    /// What runs a line.
    shell: Vec<u8>,
}

/// What the image adds to it, NAME=VALUE a line, as a container's image had it; at most so many bytes are read.
const IMAGE_ENVIRONMENT: &str = "/etc/guestline/environment";
const MAX_IMAGE_ENVIRONMENT: u64 = 64 * 1024;

/// What a command has to say.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Said {
    /// Output: [`guestline_protocol::HEADROOM`] bytes to spare, then what it wrote.
    Data { stream: Stream, buffer: Vec<u8> },
    /// Its exit, which is the last.
    Exited(ExecExitedEvent),
    /// More credit for its input.
    Credit(CreditEvent),
}

/// What a descriptor of [`Processes::poll_fds`] belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PollKey {
    serial: u64,
    end: End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Input,
    Output(usize),
}

/// All commands whose exit was not told yet.
pub(crate) struct Processes {
    list: Vec<Process>,
    base: Base,
    accounts: AccountFiles,
    cgroups: Option<Cgroups>,
    spawner: Spawner,
    words: Words,
    buffers: Buffers,
    null: Option<OwnedFd>,
    /// For the next command, made when there was nothing else to do.
    pipes: Option<Pipes>,
    default_signals: u64,
    slack: u64,
    /// The nice value that a command sets, where it does not begin with it.
    nice: Option<i32>,
    /// The agent's working folder is the root.
    is_at_root: bool,
    /// The agent is spared by the OOM killer, and its commands are not to be.
    reset_oom: bool,
    serial: u64,
    /// Who is read first changes, so that room that is too little for all is shared.
    turn: usize,
}

/// What the image adds to the environment.
fn of_image(path: &Path) -> Environment {
    let mut text = Vec::new();
    let read =
        File::open(path).and_then(|file| file.take(MAX_IMAGE_ENVIRONMENT).read_to_end(&mut text));
    if read.is_err() {
        return Vec::new();
    }
    let lines = text.split(|&byte| byte == b'\n').filter_map(|line| {
        let at = line.iter().position(|&byte| byte == b'=').filter(|&at| at > 0)?;
        let (name, value) = line.split_at(at);
        Some((name.to_vec(), value.get(1..)?.to_vec()))
    });
    lines.filter(|(name, value)| !name.contains(&0) && !value.contains(&0)).collect()
}

impl Processes {
    /// Lines are run by this shell, if one is named, instead of `/bin/sh`.
    pub(crate) fn with_shell(mut self, shell: Option<String>) -> Self {
        self.base.shell = shell.map_or(self.base.shell, String::into_bytes);
        self
    }

    /// No commands yet. Their environment begins with `base`, or with the agent's own; their cgroups are made in
    /// `cgroup_parent`, usually [`cgroup_parent`]. Without that, or where it fails, trees are found by walking `/proc`.
    pub(crate) fn new(base: Option<&[(&str, &str)]>, cgroup_parent: Option<PathBuf>) -> Self {
        // Orphans of commands come to the agent: it finds and reaps them. As process 1 it gets them anyway.
        let _ = nix::sys::prctl::set_child_subreaper(true);
        // What the agent was started with is no business of commands; what it opens is marked from the start.
        close_on_exec();
        let environment = match base {
            Some(base) => {
                let owned = |(name, value): &(&str, &str)| ((*name).into(), (*value).into());
                base.iter().map(owned).chain(of_image(Path::new(IMAGE_ENVIRONMENT))).collect()
            }
            None => {
                let own = std::env::vars_os();
                own.map(|(name, value)| (name.into_vec(), value.into_vec())).collect()
            }
        };
        Self {
            list: Vec::new(),
            base: Base { environment, shell: linux::SHELL.into() },
            accounts: AccountFiles::default(),
            cgroups: cgroup_parent.and_then(Cgroups::new),
            spawner: Spawner::new(),
            words: Words::default(),
            buffers: Buffers::default(),
            null: None,
            pipes: None,
            default_signals: ignored_signals() | SIGPIPE_BIT,
            slack: tree::usual_slack(),
            nice: crate::sys::prefer(),
            is_at_root: std::env::current_dir().is_ok_and(|folder| folder == Path::new("/")),
            reset_oom: spare_from_oom(),
            serial: 0,
            turn: 0,
        }
    }

    /// With nothing else to do: makes ready what the next command needs.
    pub(crate) fn prepare(&mut self) {
        if self.list.is_empty() {
            self.cgroups.iter_mut().for_each(Cgroups::prepare);
            if self.pipes.is_none() {
                self.pipes = Pipes::open().ok();
            }
        }
    }

    /// Starts a command on `channel`.
    ///
    /// # Errors
    /// `Busy` at [`MAX_PROCESSES`], `Invalid`, `NotFound` and `NotExecutable` for what is wrong with the request, `System`
    /// with the error number for what the kernel refuses. Nothing runs then.
    pub(crate) fn spawn(
        &mut self,
        channel: u32,
        request: &ExecRequest,
    ) -> Result<ExecStartedEvent, RemoteError> {
        if self.list.len() >= MAX_PROCESSES {
            let message = format!("{MAX_PROCESSES} commands run already");
            return Err(RemoteError::new(ErrorKind::Busy, message));
        }
        if self.has(channel) {
            let message = format!("channel {channel} has a command already");
            return Err(RemoteError::new(ErrorKind::Protocol, message));
        }
        let started = Instant::now();
        let last = std::mem::take(&mut self.words);
        let order = Order::new(request, &self.base, &self.accounts, last)?;
        let (ours, theirs) = stdio::stdio(request, order.account.uid, &mut self.pipes)?;
        let null = match self.null.take() {
            Some(null) => null,
            None => open_null().map_err(|errno| system(errno, "cannot open `/dev/null`"))?,
        };
        let stdio = theirs.stdio(null.as_fd());
        // Whom it belongs to may not be let into it.
        let is_here =
            self.is_at_root && order.cwd.as_c_str() == c"/" && order.account.uid.is_none();
        let mut plan = Plan {
            programs: &order.words.programs,
            argv: &order.words.argv,
            envp: &order.words.envp,
            cwd: (!is_here).then_some(&order.cwd),
            stdio,
            terminal: request.terminal.is_some(),
            default_signals: self.default_signals,
            timer_slack: None,
            nice: self.nice,
            reset_oom: self.reset_oom,
            umask: order.umask,
            limits: &order.limits,
            groups: order.account.groups.as_deref(),
            gid: order.account.gid,
            uid: order.account.uid,
            cgroup: None,
        };
        self.serial = self.serial.wrapping_add(1);
        let tree = self.start(&mut plan);
        self.null = Some(null);
        let tree = tree.map_err(|failure| order.failure(failure))?;
        let pid = tree.main.cast_unsigned();
        let credit = ours.window;
        let name = (self.serial, channel);
        self.list.push(Process::new(name, tree, ours, request.credit, started));
        self.words = order.words;
        Ok(ExecStartedEvent { pid, credit })
    }

    /// Starts what is planned in a cgroup, else with a mark.
    fn start(&mut self, plan: &mut Plan<'_>) -> Result<Tree, SpawnFailure> {
        for _ in 0..LEAVES {
            let Some(leaf) = self.cgroups.as_mut().and_then(Cgroups::take) else { break };
            match self.spawner.spawn(&Plan { cgroup: Some(leaf.folder()), ..*plan }) {
                Ok(pid) => return Ok(Tree::new(pid, Some(leaf), None)),
                Err(SpawnFailure { step, errno }) if is_leaf_bad(step, errno) => {
                    self.cgroups.iter_mut().for_each(|cgroups| cgroups.discard(&leaf));
                }
                Err(failure) => {
                    keep(&mut self.cgroups, Some(leaf));
                    return Err(failure);
                }
            }
        }
        let marks = self.list.iter().filter_map(|process| process.tree.mark);
        let taken: Vec<u64> = marks.map(|mark| mark.slack).collect();
        let mark = Mark::new(self.slack, self.serial, &taken);
        plan.timer_slack = Some(mark.slack);
        let pid = self.spawner.spawn(plan)?;
        Ok(Tree::new(pid, None, Some(mark)))
    }

    /// Has the channel a command whose exit was not told?
    pub(crate) fn has(&self, channel: u32) -> bool {
        self.list.iter().any(|process| process.channel == channel)
    }

    fn find(&mut self, channel: u32) -> Option<&mut Process> {
        self.list.iter_mut().find(|process| process.channel == channel)
    }

    /// Takes bytes for a command's input.
    ///
    /// # Errors
    /// `Protocol` when they were not granted or come after the end: the command is killed with all that it started and
    /// forgotten, and the error is the last of its channel.
    pub(crate) fn input(&mut self, channel: u32, bytes: &[u8]) -> Result<(), RemoteError> {
        let Some(process) = self.find(channel) else { return Ok(()) };
        process.input.receive(bytes).inspect_err(|_| {
            self.kill(|process| process.channel == channel);
            self.forget(|process| process.channel == channel);
        })
    }

    /// Ends a command's input after `total` bytes, of which some may still be under way.
    pub(crate) fn end_input(&mut self, channel: u32, total: u64) {
        if let Some(process) = self.find(channel) {
            process.input.end(total);
        }
    }

    /// Sends a signal to a command that runs.
    pub(crate) fn signal(&mut self, channel: u32, event: &SignalEvent) {
        if let Some(process) = self.find(channel) {
            process.signal(event);
        }
    }

    /// Gives a command's terminal another size, if it has one.
    pub(crate) fn resize(&mut self, channel: u32, size: TerminalSize) {
        if let Some(process) = self.find(channel) {
            process.resize(size);
        }
    }

    /// Kills a command with all that it started. Its exit is told.
    pub(crate) fn cancel(&mut self, channel: u32) {
        self.kill(|process| process.channel == channel);
        if let Some(process) = self.find(channel) {
            process.cancelled();
        }
    }

    /// The host takes so many bytes more of a command's output.
    pub(crate) fn credit(&mut self, channel: u32, bytes: u32) {
        if let Some(process) = self.find(channel) {
            process.credit.grant(bytes);
        }
    }

    /// Adds what to wait for: outputs that may be read (only if `may_read`: the link takes more), inputs that have
    /// something to write. `keys` gets one key for each.
    pub(crate) fn poll_fds<'a>(
        &'a self,
        may_read: bool,
        fds: &mut Vec<PollFd<'a>>,
        keys: &mut Vec<PollKey>,
    ) {
        let now = Instant::now();
        for process in &self.list {
            let mut add = |fd, end| {
                fds.push(fd);
                keys.push(PollKey { serial: process.serial, end });
            };
            if let Some(fd) = process.input.waiting_fd() {
                add(PollFd::new(fd, PollFlags::POLLOUT), End::Input);
            }
            let is_young = process.young_until().is_some_and(|until| until > now);
            if may_read && process.credit.left() > 0 && !is_young {
                for (slot, output) in process.outputs.iter().enumerate() {
                    if let Some(output) = output {
                        add(output.poll_fd(), End::Output(slot));
                    }
                }
            }
        }
    }

    /// When [`Processes::finish`] has something to do although nothing happens.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let now = Instant::now();
        self.list.iter().filter_map(|process| process.deadline(now)).min()
    }

    /// Moves data after a poll: once for each descriptor that has events in `ready`, at most `room` bytes of output
    /// in all. Whom that leaves out is polled again.
    pub(crate) fn on_ready(
        &mut self,
        ready: &[(PollKey, PollFlags)],
        mut room: usize,
        say: &mut dyn FnMut(u32, Said),
    ) {
        self.turn = self.turn.wrapping_add(1);
        let start = self.turn.checked_rem(ready.len()).unwrap_or(0);
        for (key, events) in ready.iter().cycle().skip(start).take(ready.len()) {
            let found = self.list.iter_mut().find(|process| process.serial == key.serial);
            let Some(process) = found.filter(|_| !events.is_empty()) else { continue };
            match key.end {
                End::Input => {
                    process.input.write();
                    if events.intersects(PollFlags::POLLHUP | PollFlags::POLLERR) {
                        // Nobody reads any more: poll(2) would say so for ever.
                        process.input.close();
                    }
                }
                End::Output(slot) => {
                    let read = process.read(slot, *events, room, &mut self.buffers);
                    if let Some((stream, buffer, len)) = read {
                        room = room.saturating_sub(len);
                        say(process.channel, Said::Data { stream, buffer });
                    }
                }
            }
        }
    }

    /// Takes a buffer of [`Said::Data`] back that was sent, to read into it again.
    pub(crate) fn recycle(&mut self, buffer: Vec<u8>) {
        self.buffers.give_back(buffer);
    }

    /// Reaps every child that is gone, ours and orphans.
    pub(crate) fn reap(&mut self) {
        while let Some(ended) = wait_any() {
            let is_it = |process: &&mut Process| process.tree.main == ended.pid;
            let mut running = self.list.iter_mut().filter(|process| process.is_running());
            if let Some(process) = running.find(is_it) {
                process.exited(&ended);
            }
        }
    }

    /// Tells credit, and the exits of commands that are gone and read, or whose grace is over; forgets those.
    pub(crate) fn finish(&mut self, say: &mut dyn FnMut(u32, Said)) {
        let now = Instant::now();
        let mut told = Vec::new();
        for process in &mut self.list {
            if let Some(credit) = process.input.take_grant() {
                say(process.channel, Said::Credit(credit));
            }
            if let Some(exited) = process.finish(now) {
                say(process.channel, Said::Exited(exited));
                told.push(process.serial);
            }
        }
        if !told.is_empty() {
            self.forget(|process| told.contains(&process.serial));
        }
    }

    /// Whom the commands were for is gone: kills those that run with all that they started, and forgets all.
    pub(crate) fn end_session(&mut self) {
        self.kill(Process::is_running);
        self.forget(|_| true);
    }

    fn kill(&mut self, is_meant: impl Fn(&Process) -> bool) {
        let (meant, others): (Vec<_>, Vec<_>) =
            self.list.iter_mut().partition(|process| is_meant(process));
        let others = others.iter().filter(|process| process.is_running());
        let others: Vec<i32> = others.map(|process| process.tree.main).collect();
        let mut trees: Vec<&mut Tree> =
            meant.into_iter().map(|process| &mut process.tree).collect();
        if !trees.is_empty() {
            tree::kill(&mut trees, &others);
        }
    }

    fn forget(&mut self, is_meant: impl Fn(&Process) -> bool) {
        // In place: a list that is made anew costs two system calls for each command.
        for process in self.list.extract_if(.., |process| is_meant(process)) {
            keep(&mut self.cgroups, process.tree.leaf);
        }
    }
}

/// Takes a leaf back whose command is gone.
fn keep(cgroups: &mut Option<Cgroups>, leaf: Option<Leaf>) {
    if let (Some(cgroups), Some(leaf)) = (cgroups, leaf) {
        cgroups.give_back(leaf);
    }
}

/// Is the leaf to blame, not the command?
fn is_leaf_bad(step: Step, errno: Errno) -> bool {
    // EAGAIN and ENOMEM are of the kernel, which has no more of something.
    step == Step::Cgroup || step == Step::Clone && !matches!(errno, Errno::EAGAIN | Errno::ENOMEM)
}

/// Asks the kernel to spare the agent when memory runs out (proc_pid_oom_score_adj(5)); an init is spared anyway. True when
/// that was granted.
fn spare_from_oom() -> bool {
    std::process::id() != 1 && fs::write("/proc/self/oom_score_adj", "-1000").is_ok()
}

fn open_null() -> nix::Result<OwnedFd> {
    let null = open(Path::new("/dev/null"), OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?;
    stdio::above(null)
}

/// Signals that this process ignores, as a set (proc_pid_status(5)).
fn ignored_signals() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    line.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or(0)
}

fn not_found(what: &str, name: &str, file: &Path) -> RemoteError {
    let message = format!("no {what} `{}` in {}", shown(name.as_bytes()), file.display());
    RemoteError::new(ErrorKind::NotFound, message)
}

/// For people, and not longer than they read.
fn shown(bytes: &[u8]) -> String {
    const MOST: usize = 200;
    match bytes.get(..MOST) {
        Some(start) => format!("{}…", String::from_utf8_lossy(start)),
        None => String::from_utf8_lossy(bytes).into_owned(),
    }
}
