//! The part of a test that runs on the host, and what the sides of a test share: an agent as a process here, the sockets
//! that `guest` reaches, the ways to them out of machines.

use super::execute::{Broken, Executor};
use super::judge::Finding;
use super::place::{Place, Places};
use super::scratch::{PYTHON_MODULE, Scratch};
use crate::job::InSuite;
use crate::lab::{self, Announce, Lab, LogLine, Side};
use crate::outcome::Stage;
use crate::suite::settings::On;
use crate::text;
use guestline::guest::{Guest, Listening};
use guestline::link::Endpoint;
use guestline::machine::Ending;
use guestline::supervise::MachineName;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// The name of the machine that has none, for `guest -m`.
pub(super) const MACHINE: &str = "machine";

/// An agent here answers sooner.
const ANSWER: Duration = Duration::from_secs(30);

/// A guest that does not answer for so long after a test is lost.
const ALIVE: Duration = Duration::from_secs(10);

/// What is looked up in a guest where nothing else is said.
const GUEST_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What `guest` says that it will do to machines.
#[derive(Debug)]
struct Expectations {
    said: Mutex<BTreeMap<String, lab::Expected>>,
    /// How often each machine has rebooted, and how many of these times are the test's own.
    reboots: BTreeMap<String, watch::Receiver<u64>>,
    own: Mutex<BTreeMap<String, u64>>,
}

impl Announce for Expectations {
    fn announce(&self, machine: &str, what: lab::Expected) {
        if what == lab::Expected::Back
            && let Some(reboots) = self.reboots.get(machine)
        {
            locked(&self.own).insert(machine.to_owned(), *reboots.borrow());
        }
        locked(&self.said).insert(machine.to_owned(), what);
    }
}

impl Expectations {
    /// Nothing is said yet.
    fn of_machines(places: &Places) -> Self {
        let reboots = places.machines.iter().filter_map(|(name, place)| {
            Some((name_of(name.as_ref()), place.lease()?.machine.reboots()))
        });
        let reboots: BTreeMap<_, _> = reboots.collect();
        let own = reboots.iter().map(|(name, count)| (name.clone(), *count.borrow())).collect();
        Self { said: Mutex::default(), reboots, own: Mutex::new(own) }
    }

    /// What was said last.
    fn of(&self, machine: &str) -> Option<lab::Expected> {
        locked(&self.said).get(machine).copied()
    }

    /// It reboots now, or has, as the test said.
    fn is_own_reboot(&self, machine: &str, count: u64) -> bool {
        let own = locked(&self.own).get(machine).copied().unwrap_or_default();
        self.of(machine) == Some(lab::Expected::Reboot) || count <= own
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the sides of a test share while it runs.
pub(super) struct HostSide {
    /// The host, where a part of the test runs there.
    pub(super) host: Option<(Place, Scratch)>,
    lab: Arc<Lab>,
    expected: Arc<Expectations>,
    lines: Option<mpsc::Receiver<LogLine>>,
    folder: PathBuf,
    cancel: CancellationToken,
    serving: JoinSet<()>,
    /// The ways to it out of machines.
    _inside: Vec<Listening>,
}

/// A test wants one: a part of it runs on the host, or it has several machines.
pub(super) fn is_wanted(of: &InSuite, places: &Places) -> bool {
    of.on != On::Guest || places.machines.iter().any(|(name, _)| name.is_some())
}

impl HostSide {
    /// Sets it up.
    pub(super) async fn new(
        executor: &Executor,
        of: &InSuite,
        places: &Places,
        inside: &Scratch,
    ) -> Result<Self, Finding> {
        let failed = |error: io::Error| {
            broken(Stage::Host, format!("cannot set up the host's side: {error}"))
        };
        let folder = executor.work.join(format!("host-{}", ulid::Ulid::generate()));
        private(&folder).map_err(failed)?;
        let machines = places
            .machines
            .iter()
            .map(|(name, place)| (name_of(name.as_ref()), place.guest().clone()));
        let guests = places.machines.iter().map(|(name, _)| Side::Guest(name_of(name.as_ref())));
        let sides: Vec<Side> = match of.on {
            On::Host => vec![Side::Host],
            On::Guest => guests.collect(),
            On::Both => std::iter::once(Side::Host).chain(guests).collect(),
        };
        let expected = Arc::new(Expectations::of_machines(places));
        let (lab, lines) = Lab::new(machines, sides.clone(), expected.clone());
        let cancel = CancellationToken::new();
        let mut serving = JoinSet::new();
        for side in &sides {
            let listener = UnixListener::bind(socket(&folder, side)).map_err(failed)?;
            serving.spawn(lab::serve(listener, lab.clone(), side.clone(), cancel.clone()));
        }
        let mut ways = Vec::new();
        for (name, place) in places.machines.iter().filter(|_| of.on != On::Host) {
            if executor.guest_program.is_empty() {
                let reason =
                    "this build has no program `guest` for machines: `make build` puts it in";
                return Err(broken(Stage::Host, reason.to_owned()));
            }
            let side = Side::Guest(name_of(name.as_ref()));
            let (into, to) = (bin(inside), socket(&folder, &side));
            let way = lab::enter(place.guest(), &into, executor.guest_program, &to).await;
            ways.push(way.map_err(|error| {
                broken(
                    Stage::Link,
                    format!("cannot put `guest` into the machine: {}", text::chain(&error)),
                )
            })?);
        }
        let host = match of.on {
            On::Guest => None,
            On::Host | On::Both => Some(here(executor, &folder).await?),
        };
        Ok(Self { host, lab, expected, lines: Some(lines), folder, cancel, serving, _inside: ways })
    }

    /// What the host's side of the test finds beside what every side has.
    pub(super) fn host_variables(&self) -> Vec<(String, String)> {
        let before = |first: &Path, variable: &str| match std::env::var(variable) {
            Ok(rest) if !rest.is_empty() => format!("{}:{rest}", first.display()),
            _ => first.display().to_string(),
        };
        vec![
            (
                "GUESTLINE_SOCKET".to_owned(),
                socket(&self.folder, &Side::Host).display().to_string(),
            ),
            ("PATH".to_owned(), before(&self.folder.join("bin"), "PATH")),
            ("PYTHONPATH".to_owned(), before(&self.folder.join("root"), "PYTHONPATH")),
        ]
    }

    /// The same of a machine's side.
    pub(super) fn guest_variables(&self, inside: &Scratch) -> Vec<(String, String)> {
        let bin = bin(inside);
        vec![
            ("GUESTLINE_SOCKET".to_owned(), format!("{bin}/socket")),
            ("PATH".to_owned(), format!("{bin}:{GUEST_PATH}")),
        ]
    }

    /// What is said in the log of the test; taken once.
    pub(super) fn take_lines(&mut self) -> Option<mpsc::Receiver<LogLine>> {
        self.lines.take()
    }

    /// What a side has said of the whole test.
    pub(super) fn verdict(&self) -> Option<lab::Verdict> {
        self.lab.verdict().map(|(_, verdict)| verdict)
    }

    /// A side has ended.
    pub(super) fn side_ended(&self, side: &Side) {
        self.lab.side_ended(side);
    }

    /// The test has said that it takes this machine down.
    pub(super) fn was_told(&self, side: &Side) -> bool {
        matches!(side, Side::Guest(name) if self.expected.of(name).is_some())
    }

    /// Waits until a machine does what the test did not announce. Cancel safe.
    pub(super) async fn trouble(&self, places: &Places) -> Finding {
        let waits = places
            .machines
            .iter()
            .map(|(name, place)| Box::pin(self.trouble_of(name.as_ref(), place)));
        super::place::first_of(waits.collect()).await
    }

    async fn trouble_of(&self, name: Option<&MachineName>, place: &Place) -> Finding {
        let name = name_of(name);
        let Some(lease) = place.lease() else { return std::future::pending().await };
        let mut reboots = lease.machine.reboots();
        let rebooted = async {
            let not_own = |count: &u64| !self.expected.is_own_reboot(&name, *count);
            let has_rebooted = reboots.wait_for(not_own).await.is_ok();
            // Else it has ended, which tells.
            if !has_rebooted {
                std::future::pending::<()>().await;
            }
        };
        let ending = tokio::select! {
            biased;
            ending = lease.machine.ended() => ending,
            () = rebooted => return Finding::MachineEnded(Ending::Reset),
        };
        self.lab.machine_ended(&name, in_words(&ending));
        let was_told = self.expected.of(&name) == Some(lab::Expected::PowerOff);
        match was_told && matches!(ending, Ending::PoweredOff) {
            true => std::future::pending().await,
            false => Finding::MachineEnded(ending),
        }
    }

    /// A machine that has ended already, and was not to.
    pub(super) fn gone_already(&self, places: &Places) -> Option<Finding> {
        let mut trouble = std::pin::pin!(self.trouble(places));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        match trouble.as_mut().poll(&mut context) {
            std::task::Poll::Ready(finding) => Some(finding),
            std::task::Poll::Pending => None,
        }
    }

    /// After a test: a machine that is not there any more, and was to be.
    pub(super) async fn lost(&self, places: &Places) -> Option<Finding> {
        for (name, place) in &places.machines {
            let expected = self.expected.of(&name_of(name.as_ref()));
            if expected == Some(lab::Expected::PowerOff) {
                continue;
            }
            let pinging = tokio::time::timeout(ALIVE, place.guest().ping());
            let trouble = self.trouble_of(name.as_ref(), place);
            let finding = tokio::select! {
                biased;
                finding = trouble => Some(finding),
                pong = pinging => match pong {
                    Ok(Ok(_)) => None,
                    Ok(Err(error)) => Some(match place.ended_soon().await {
                        Some(ending) => Finding::MachineEnded(ending),
                        None => Finding::LinkLost(error),
                    }),
                    Err(_) => Some(broken(Stage::Link, format!("the guest did not answer within {}", text::limit(ALIVE)))),
                },
            };
            if finding.is_some() {
                return finding;
            }
        }
        None
    }

    /// Ends all that the test has left on the host.
    pub(super) async fn end(mut self) {
        self.cancel.cancel();
        while self.serving.join_next().await.is_some() {}
        if let Some((place, scratch)) = self.host.take() {
            // What was ordered ended before this is answered.
            let _ = tokio::time::timeout(ALIVE, place.guest().ping()).await;
            drop(place);
            let mark = scratch.mark();
            let _ = tokio::task::spawn_blocking(move || kill_marked(&mark)).await;
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// The agent, as a process of this host, and the folders of the test.
async fn here(executor: &Executor, folder: &Path) -> Result<(Place, Scratch), Finding> {
    let failed =
        |error: io::Error| broken(Stage::Host, format!("cannot set up the host's side: {error}"));
    let (bin, root) = (folder.join("bin"), folder.join("root"));
    private(&bin).map_err(failed)?;
    private(&root).map_err(failed)?;
    let program = std::env::current_exe().map_err(failed)?;
    symlink(program, bin.join("guest")).map_err(failed)?;
    fs::write(root.join(PYTHON_MODULE), executor.python_module).map_err(failed)?;
    Ok((Place::Agent(open_here(executor).await?), Scratch::on_host(&root)))
}

/// The agent, as a process of this host.
pub(super) async fn open_here(executor: &Executor) -> Result<Guest, Finding> {
    let failed =
        |error: io::Error| broken(Stage::Host, format!("cannot run the agent here: {error}"));
    let agent = executor.agent_file().await.map_err(failed)?;
    let line = format!("exec {} --link stdio", text::quote(&agent.display().to_string()));
    let endpoint = Endpoint::Exec(line);
    match tokio::time::timeout(ANSWER, Guest::open(&endpoint)).await {
        Ok(Ok(guest)) => Ok(guest),
        Ok(Err(error)) => Err(broken(
            Stage::Host,
            format!("the agent does not run on this host: {}", text::chain(&error)),
        )),
        Err(_) => {
            let waited = text::limit(ANSWER);
            Err(broken(
                Stage::Host,
                format!("the agent on this host did not answer within {waited}"),
            ))
        }
    }
}

impl Executor {
    /// The agent as a file that can be executed, made once.
    async fn agent_file(&self) -> io::Result<PathBuf> {
        let mut made = self.agent_file.lock().await;
        if let Some(path) = &*made {
            return Ok(path.clone());
        }
        let path = self.work.join("agent");
        fs::write(&path, self.agent_bytes())?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        *made = Some(path.clone());
        Ok(path)
    }
}

/// The name of a machine, for `guest -m`.
pub(super) fn name_of(name: Option<&MachineName>) -> String {
    name.map_or(MACHINE, MachineName::as_str).to_owned()
}

fn bin(inside: &Scratch) -> String {
    format!("{}/bin", inside.root())
}

/// Where a side's socket is; its folder is for this user alone.
fn socket(folder: &Path, side: &Side) -> PathBuf {
    match side {
        Side::Host => folder.join("host.sock"),
        Side::Guest(name) => folder.join(format!("{name}.guest")),
    }
}

fn private(folder: &Path) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o700).create(folder)
}

/// "the guest panicked".
fn in_words(ending: &Ending) -> &'static str {
    match ending {
        Ending::Panicked => "the guest panicked",
        Ending::PoweredOff => "the guest powered off",
        Ending::Reset => "the guest reset",
        Ending::QemuDied { .. } => "its QEMU is gone",
    }
}

fn broken(stage: Stage, reason: String) -> Finding {
    Finding::Broken(Broken { stage, reason, hints: vec![], log: vec![] })
}

/// Kills what still has this in its environment (proc_pid_environ(5)): what a test has left running, however it was
/// detached.
pub(super) fn kill_marked(mark: &[u8]) {
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;
    // What is born while it looks is found the next time.
    for _ in 0..20 {
        let mut found = false;
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let pid = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok());
            let Some(pid) = pid.filter(|pid| *pid > 1) else { continue };
            let environ = fs::read(entry.path().join("environ")).unwrap_or_default();
            if environ.split(|&byte| byte == 0).any(|variable| variable == mark) {
                found |= kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok();
            }
        }
        if !found {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
