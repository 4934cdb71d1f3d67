//! The QEMU process: spawned so that it cannot outlive us, its last words kept, reaped.
//!
//! `PR_SET_PDEATHSIG` belongs to the thread that spawns (prctl(2)), and threads of an async runtime
//! come and go, so one thread of our own spawns every QEMU and lives as long as the process. When
//! the process dies, by whatever signal, the kernel kills the QEMUs.

use crate::sys;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{OnceLock, mpsc};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, ChildStderr, Command};
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};

/// How long a killed process may take to die; longer, and it hangs in the host's kernel.
const DEATH: Duration = Duration::from_secs(10);

/// How long a dead QEMU's last words may take to be read.
const LAST_WORDS: Duration = Duration::from_millis(250);

/// So much of QEMU's standard error is kept: its end.
const STDERR_KEPT: usize = 16 * 1024;

/// How a process ended.
#[derive(Debug, Clone)]
pub(super) struct Exit {
    /// In words, as in "exited with status 1".
    pub(super) how: String,
    /// The signal that killed it, when we did not send it.
    pub(super) signal: Option<i32>,
    /// The end of its standard error.
    pub(super) stderr: String,
}

/// Told when the process is reaped.
#[derive(Debug, Clone)]
pub(super) struct ExitWatch(watch::Receiver<Option<Exit>>);

impl ExitWatch {
    pub(super) async fn wait(&mut self) -> Exit {
        let gone = || Exit { how: "is gone".to_owned(), signal: None, stderr: String::new() };
        match self.0.wait_for(Option::is_some).await {
            Ok(exit) => exit.clone().unwrap_or_else(gone),
            Err(_) => gone(),
        }
    }
}

/// A running QEMU; killed when dropped.
#[derive(Debug)]
pub(super) struct Process {
    pid: u32,
    exit: ExitWatch,
    kill: Option<oneshot::Sender<()>>,
}

impl Process {
    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    pub(super) fn exit(&self) -> ExitWatch {
        self.exit.clone()
    }

    /// Kills it and waits until it is reaped, unless the host's kernel does not let it die.
    pub(super) async fn kill(&mut self) {
        self.kill.take();
        if tokio::time::timeout(DEATH, self.exit.wait()).await.is_err() {
            tracing::warn!(pid = self.pid, "a killed QEMU does not die");
        }
    }
}

/// A QEMU that is another process's child, to be served by who has a connection to that process.
#[derive(Debug)]
pub struct ForeignProcess {
    killed: oneshot::Receiver<()>,
    exited: watch::Sender<Option<Exit>>,
}

impl ForeignProcess {
    /// Waits until it is to be killed. Cancel safe.
    pub async fn killed(&mut self) {
        let _ = (&mut self.killed).await;
    }

    /// Tells that it has exited, how in words, by which signal if it was not to be killed, and the end of its standard error.
    pub fn exited(self, how: String, signal: Option<i32>, stderr: String) {
        self.exited.send_replace(Some(Exit { how, signal, stderr }));
    }
}

/// A process that somebody else has spawned, and reaps.
pub(super) fn foreign(pid: u32) -> (Process, ForeignProcess) {
    let (kill, killed) = oneshot::channel();
    let (exited, exit) = watch::channel(None);
    (Process { pid, exit: ExitWatch(exit), kill: Some(kill) }, ForeignProcess { killed, exited })
}

/// Spawns `program` on the thread that outlives all machines; `fds` keep their numbers.
pub(super) async fn spawn(
    program: &Path,
    args: Vec<String>,
    fds: Vec<OwnedFd>,
    folder: PathBuf,
) -> io::Result<Process> {
    let mut command = Command::new(program);
    command.args(args).current_dir(folder).process_group(0).kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    sys::guard_child(&mut command, fds);
    let (reply, spawned) = oneshot::channel();
    let order = Order { command, runtime: Handle::current(), reply };
    spawner().send(order).map_err(|_| io::Error::other("the spawning thread is gone"))?;
    let gone = |_| io::Error::other("the spawning thread is gone");
    let child = spawned.await.map_err(gone)??;
    let pid = child.id().unwrap_or(0);
    let (kill, killed) = oneshot::channel();
    let (exited, exit) = watch::channel(None);
    tokio::spawn(own(child, killed, exited));
    Ok(Process { pid, exit: ExitWatch(exit), kill: Some(kill) })
}

/// Owns the child until it is reaped. A `killed` that is dropped is the order to kill.
async fn own(mut child: Child, killed: oneshot::Receiver<()>, exited: watch::Sender<Option<Exit>>) {
    let (said, words) = oneshot::channel();
    if let Some(stderr) = child.stderr.take() {
        tokio::spawn(keep_tail(stderr, said));
    }
    let mut ours = false;
    let status = tokio::select! {
        status = child.wait() => status,
        _ = killed => {
            ours = true;
            let _ = child.start_kill();
            child.wait().await
        }
    };
    let stderr = match tokio::time::timeout(LAST_WORDS, words).await {
        Ok(Ok(text)) if !ours => text,
        _ => String::new(),
    };
    let (how, signal) = match status {
        Ok(status) => (in_words(status), status.signal().filter(|_| !ours)),
        Err(error) => (format!("could not be reaped: {error}"), None),
    };
    exited.send_replace(Some(Exit { how, signal, stderr }));
}

async fn keep_tail(mut stderr: ChildStderr, said: oneshot::Sender<String>) {
    let mut kept = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(len @ 1..) = stderr.read(&mut buffer).await {
        kept.extend_from_slice(&buffer[..len]);
        let over = kept.len().saturating_sub(STDERR_KEPT);
        kept.drain(..over);
    }
    let _ = said.send(String::from_utf8_lossy(&kept).trim_end().to_owned());
}

fn in_words(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with status {code}"),
        (None, Some(signal)) => {
            let name = nix::sys::signal::Signal::try_from(signal);
            let name = name.map_or_else(|_| signal.to_string(), |signal| signal.to_string());
            format!("was killed by {name}")
        }
        (None, None) => "ended".to_owned(),
    }
}

struct Order {
    command: Command,
    runtime: Handle,
    reply: oneshot::Sender<io::Result<Child>>,
}

fn spawner() -> &'static mpsc::Sender<Order> {
    static SPAWNER: OnceLock<mpsc::Sender<Order>> = OnceLock::new();
    SPAWNER.get_or_init(|| {
        let (sender, orders) = mpsc::channel::<Order>();
        let spawn = move || {
            for Order { mut command, runtime, reply } in orders {
                let _context = runtime.enter();
                // A child that nobody waits for any more is dropped here, and so killed.
                let _ = reply.send(command.spawn());
            }
        };
        // Should the thread not come up, the receiver is dropped and every order fails by name.
        let _ = std::thread::Builder::new().name("spawner".to_owned()).spawn(spawn);
        sender
    })
}

/// How the host treated a process's threads: what each was ready for and did not get.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CpuShare {
    /// By thread id, time waiting on a run queue.
    waited: BTreeMap<u32, Duration>,
    /// Time on a CPU, all threads.
    ran: Duration,
    stopped: bool,
}

impl CpuShare {
    /// The longest that one thread was kept waiting since `earlier`. Threads wait side by side, so
    /// their times do not add up.
    pub fn waited_since(&self, earlier: &Self) -> Duration {
        let since = |(thread, waited): (&u32, &Duration)| {
            waited.saturating_sub(earlier.waited.get(thread).copied().unwrap_or_default())
        };
        self.waited.iter().map(since).max().unwrap_or_default()
    }

    /// The time on a CPU, all threads together, since `earlier`.
    pub fn ran_since(&self, earlier: &Self) -> Duration {
        self.ran.saturating_sub(earlier.ran)
    }

    /// Somebody has stopped the process (SIGSTOP).
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }
}

/// From `/proc/PID/task/*/schedstat` (Linux `Documentation/scheduler/sched-stats.rst`): nanoseconds
/// on a CPU, nanoseconds on a run queue; nothing where the kernel keeps no such account.
pub(super) fn cpu_share(pid: u32) -> CpuShare {
    let mut share = CpuShare::default();
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let text = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        let mut numbers = text.split_whitespace().map(|number| number.parse().ok());
        share.ran += Duration::from_nanos(numbers.next().flatten().unwrap_or(0));
        let waited = numbers.next().flatten();
        let thread = task.file_name().to_str().and_then(|name| name.parse().ok());
        if let Some((thread, waited)) = thread.zip(waited) {
            share.waited.insert(thread, Duration::from_nanos(waited));
        }
    }
    share.stopped = matches!(state(pid), Some('T' | 't'));
    share
}

/// Runs it, or might it? One that nobody has reaped yet does not.
pub(crate) fn is_there_still(pid: u32) -> bool {
    !matches!(state(pid), None | Some('Z' | 'X'))
}

/// The state of a process (proc_pid_stat(5)); none when it is gone.
fn state(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next())
}
