//! Processes that the host asked for: spawned with pipes, in process groups of their own, read
//! without blocking, reported once.
//!
//! ```text
//! Running ── exit ──> Draining ── both pipes at their end, or grace over ──> reported, forgotten
//! ```
//! What was in the pipes at the exit is always sent. A pipe that a child holds open is given
//! [`DRAIN_GRACE_MS`], then left.

use crate::{linux, sys};
use guestline_protocol::exec::DRAIN_GRACE_MS;
use guestline_protocol::{
    ByteBuf, Command as Wanted, ErrorKind, ExecExitedEvent, ExecOutputEvent, ExecRequest,
    ExitStatus, MAX_DATA_LEN, RemoteError, Stream,
};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// At most so many processes of the host at once.
const MAX_PROCESSES: usize = 64;

/// What a process has to say.
pub(crate) enum Said {
    Output(ExecOutputEvent),
    Exited(ExecExitedEvent),
}

/// All processes of the host that are not reported yet.
#[derive(Default)]
pub(crate) struct Processes {
    list: Vec<Process>,
}

struct Process {
    id: u32,
    pid: Pid,
    started: Instant,
    pipes: [Option<Pipe>; 2],
    exit: Option<Exit>,
}

struct Pipe {
    file: File,
    /// Bytes that were in the pipe at the exit and have not been read yet.
    owed: usize,
}

struct Exit {
    status: ExitStatus,
    elapsed: Duration,
    deadline: Instant,
}

const STREAMS: [Stream; 2] = [Stream::Stdout, Stream::Stderr];

impl Processes {
    /// Starts a process for request `id` and returns its process id.
    pub(crate) fn spawn(
        &mut self,
        id: u32,
        request: &ExecRequest,
        init: bool,
    ) -> Result<u32, RemoteError> {
        if self.list.len() >= MAX_PROCESSES {
            let message = format!("{MAX_PROCESSES} processes run already");
            return Err(RemoteError { kind: ErrorKind::Busy, errno: None, message });
        }
        if self.list.iter().any(|process| process.id == id) {
            return Err(invalid(format!("request {id} runs already")));
        }
        let (mut command, name) = command(request, init)?;
        let started = Instant::now();
        let mut child = command.spawn().map_err(|error| spawn_error(&error, &name))?;
        let stdout = child.stdout.take().map(OwnedFd::from);
        let stderr = child.stderr.take().map(OwnedFd::from);
        let pid = Pid::from_raw(child.id().cast_signed());
        let pipes = [stdout, stderr].map(|fd| fd.and_then(Pipe::new));
        self.list.push(Process { id, pid, started, pipes, exit: None });
        Ok(child.id())
    }

    /// The pipes to poll.
    pub(crate) fn pipes(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let all = self.list.iter().flat_map(|process| process.pipes.iter().flatten());
        all.map(|pipe| pipe.file.as_fd())
    }

    /// When the next grace is over. What is still owed wakes the loop by itself.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let settled = self.list.iter().filter(|process| !process.is_owed());
        settled.filter_map(|process| process.exit.as_ref()).map(|exit| exit.deadline).min()
    }

    /// Reads once from every pipe that has something, at most [`MAX_DATA_LEN`] bytes.
    pub(crate) fn read(&mut self, buffer: &mut [u8], mut say: impl FnMut(u32, Said)) {
        for process in &mut self.list {
            for (slot, stream) in process.pipes.iter_mut().zip(STREAMS) {
                let Some(pipe) = slot else { continue };
                match pipe.file.read(buffer) {
                    Ok(0) => *slot = None,
                    Ok(len) => {
                        pipe.owed = pipe.owed.saturating_sub(len);
                        let data = buffer.get(..len).unwrap_or_default().to_vec();
                        let output = ExecOutputEvent { stream, data: ByteBuf::from(data) };
                        say(process.id, Said::Output(output));
                    }
                    Err(error) if is_transient(&error) => {}
                    Err(_) => *slot = None,
                }
            }
        }
    }

    /// Reaps every child that has ended, ours and orphans.
    pub(crate) fn reap(&mut self) {
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            let (pid, status) = match status {
                WaitStatus::Exited(pid, code) => {
                    (pid, ExitStatus::Exited(u8::try_from(code & 0xff).unwrap_or(0)))
                }
                WaitStatus::Signaled(pid, signal, core_dumped) => {
                    let signal = u8::try_from(signal as i32).unwrap_or(0);
                    (pid, ExitStatus::Signaled { signal, core_dumped })
                }
                WaitStatus::StillAlive => return,
                _ => continue,
            };
            let mine = |process: &&mut Process| process.pid == pid && process.exit.is_none();
            if let Some(process) = self.list.iter_mut().find(mine) {
                process.exited(status);
            }
        }
    }

    /// Reports the processes that are gone and read, or whose grace is over, and forgets them.
    pub(crate) fn finish(&mut self, mut say: impl FnMut(u32, Said)) {
        let now = Instant::now();
        self.list.retain_mut(|process| {
            let Some(exit) = &process.exit else {
                return true;
            };
            let open = process.pipes.iter().flatten().count();
            if open > 0 && (process.is_owed() || now < exit.deadline) {
                return true;
            }
            let elapsed_us = u64::try_from(exit.elapsed.as_micros()).unwrap_or(u64::MAX);
            let (status, output_held) = (exit.status, open > 0);
            let event = ExecExitedEvent { status, output_held, elapsed_us };
            say(process.id, Said::Exited(event));
            false
        });
    }

    /// Kills all that still runs: whom it was for is gone.
    pub(crate) fn kill_all(&mut self) {
        for process in self.list.drain(..) {
            let _ = killpg(process.pid, Signal::SIGKILL);
        }
    }
}

impl Process {
    fn is_owed(&self) -> bool {
        self.pipes.iter().flatten().any(|pipe| pipe.owed > 0)
    }

    fn exited(&mut self, status: ExitStatus) {
        let elapsed = self.started.elapsed();
        let grace = Duration::from_millis(DRAIN_GRACE_MS.into());
        let now = Instant::now();
        let deadline = now.checked_add(grace).unwrap_or(now);
        self.exit = Some(Exit { status, elapsed, deadline });
        for pipe in self.pipes.iter_mut().flatten() {
            pipe.owed = sys::waiting(&pipe.file);
        }
    }
}

impl Pipe {
    fn new(fd: OwnedFd) -> Option<Self> {
        fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).ok()?;
        Some(Self { file: File::from(fd), owed: 0 })
    }
}

/// Why `read` or `write` moved nothing: try again later.
pub(crate) fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

fn command(request: &ExecRequest, init: bool) -> Result<(Command, String), RemoteError> {
    let words: Vec<&OsStr> = match &request.command {
        Wanted::Shell(line) => vec!["/bin/sh".as_ref(), "-c".as_ref(), OsStr::from_bytes(line)],
        Wanted::Argv(words) => words.iter().map(|word| OsStr::from_bytes(word)).collect(),
    };
    let Some((program, args)) = words.split_first().filter(|(program, _)| !program.is_empty())
    else {
        return Err(invalid("the command is empty".to_owned()));
    };
    let cwd = request.cwd.as_ref().map_or(OsStr::new("/"), |cwd| OsStr::from_bytes(cwd));
    if !Path::new(cwd).is_dir() {
        return Err(invalid(format!("working folder `{}` is no folder", cwd.display())));
    }
    let mut command = Command::new(program);
    command.args(args).current_dir(cwd).process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    if init {
        command.env_clear().envs(linux::ENVIRONMENT.iter().copied());
    }
    for (name, value) in &request.env {
        if name.is_empty() || name.contains(&b'=') {
            let name = String::from_utf8_lossy(name).into_owned();
            return Err(invalid(format!("`{name}` is no name of an environment variable")));
        }
        command.env(OsStr::from_bytes(name), OsStr::from_bytes(value));
    }
    Ok((command, program.display().to_string()))
}

fn invalid(message: String) -> RemoteError {
    RemoteError { kind: ErrorKind::Invalid, errno: None, message }
}

fn spawn_error(error: &io::Error, program: &str) -> RemoteError {
    let errno = error.raw_os_error();
    let (kind, message) = match errno.map(Errno::from_raw) {
        Some(Errno::ENOENT) => (ErrorKind::NotFound, format!("{program}: not found")),
        Some(Errno::EACCES) => {
            (ErrorKind::NotExecutable, format!("{program}: may not be executed"))
        }
        Some(Errno::ENOEXEC) => {
            (ErrorKind::NotExecutable, format!("{program}: no executable file"))
        }
        None => (ErrorKind::Invalid, format!("{program}: {error}")),
        Some(other) => (ErrorKind::System, format!("{program}: {}", other.desc())),
    };
    RemoteError { kind, errno, message }
}

/// Room for one read.
pub(crate) fn read_buffer() -> Vec<u8> {
    vec![0; MAX_DATA_LEN]
}
