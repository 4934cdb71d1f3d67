//! The keeper of a pool: makes machines ready, hands them over, and kills those whose taker is gone.

use super::wire::{
    self, Answer, CLAIM, Lines, PoolStatus, Request, SOCKET, refusal, send, understand,
};
use crate::clock::now_us;
use crate::dirs::{Dirs, lock_folder, write_whole};
use crate::local_socket;
use crate::machine::{Ending, Machine};
use crate::provision::lease::{FailedLease, GivenAway, Held, Lease};
use crate::provision::set_up::{SetUpTerms, set_up};
use crate::provision::slots::Slot;
use crate::provision::{
    Layer, LinkChoice, MachineRequest, Notice, Provisioner, TemplateId, WorkRoot,
};
use crate::refusals::Refusals;
use crate::seal::FileSeal;
use crate::text;
use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::{Duration, Instant};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// Who connects and says nothing for so long is nobody.
const SILENT: Duration = Duration::from_secs(5);

/// A warm-up line may take so long.
const WARM_UP: Duration = Duration::from_secs(60);

/// So much of the end of QEMU's last words is told, bytes.
const STDERR_TOLD: usize = 4096;

/// Between two looks whether the machines that wait are still there.
const LOOK: Duration = Duration::from_secs(1);

/// After a machine that could not be made ready, and after one that went to make room.
const PAUSE: Duration = Duration::from_secs(5);

/// After a machine that was given away: what is done in it has the host's cores for itself at first.
const LULL: Duration = Duration::from_millis(100);

/// What is to be kept.
#[derive(Debug)]
pub struct PoolSpec {
    /// A machine of it.
    pub request: MachineRequest,
    /// So many are to be ready.
    pub size: u32,
}

/// A pool cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// There is one of the same machines.
    #[error("there is a pool of such machines already, kept by process {pid}")]
    There {
        /// The keeper.
        pid: u32,
    },
    /// Its machines could not be handed over.
    #[error(
        "machines of a pool have no ports of their own, and the link that a machine has by itself"
    )]
    Request,
    /// Its files.
    #[error("cannot make a pool's files in `{folder}`", folder = folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The first machine.
    #[error("no machine is made ready")]
    Machine(#[source] NotReady),
}

/// A machine is not made ready.
#[derive(Debug, thiserror::Error)]
pub enum NotReady {
    /// It could not be leased, or its warm-up line did not do.
    #[error("{}", text::chain(&.0.error))]
    Lease(Box<FailedLease>),
    /// It booted, and a check would take none that was not restored.
    #[error("no template can be kept: {why}")]
    NoTemplate {
        /// Why.
        why: String,
    },
    /// QEMU was changed since the pool was started; its machines are others now.
    #[error("`{path}` was changed since the pool was started: start it anew", path = path.display())]
    QemuChanged {
        /// The program.
        path: PathBuf,
    },
}

/// A machine that waits.
struct Ready {
    lease: Lease,
    /// What it was restored from: it is given only to who finds the same.
    instance: String,
    since: Instant,
}

/// Somebody asks, over this connection.
struct Asked {
    request: Request,
    stream: UnixStream,
}

struct Keeper<'a> {
    provisioner: &'a Provisioner,
    spec: PoolSpec,
    /// What QEMU was when the pool was started: its digest is in the id.
    qemu: FileSeal,
    status: PoolStatus,
    ready: VecDeque<Ready>,
    lent: JoinSet<()>,
    /// Nothing is made before.
    not_before: Instant,
}

/// Keeps a pool until it is told to stop, by its socket or by `cancel`; then machines that are lent come to their end
/// first. `begun` is told when the first machine is ready; when it says no, nothing is kept.
///
/// # Errors
/// [`KeeperError`], before the first machine is ready; nothing is left then.
pub async fn keep(
    provisioner: &Provisioner,
    dirs: &Dirs,
    root: &WorkRoot,
    spec: PoolSpec,
    cancel: &CancellationToken,
    begun: impl FnOnce(&PoolStatus) -> bool,
) -> Result<(), KeeperError> {
    let PoolSpec { request, size } = spec;
    if !request.ports.is_empty()
        || request.link != LinkChoice::Auto
        || request.ssh_port.is_some()
        || request.fresh_reboot
    {
        return Err(KeeperError::Request);
    }
    let request = MachineRequest { for_pool: true, ..request };
    let not_ready = |not| KeeperError::Machine(not);
    let id = provisioner.id_of(&request).await;
    let id = id.map_err(|error| not_ready(NotReady::Lease(Box::new(error.into()))))?;
    let folder = root.path();
    let wrong = |source: io::Error| KeeperError::Folder { folder: folder.to_owned(), source };
    if let Some(pid) = wire::keeper_of(&dirs.runtime, id.as_str()) {
        return Err(KeeperError::There { pid });
    }
    let manifest = &request.image.manifest;
    let status = PoolStatus {
        version: wire::VERSION,
        id: id.to_string(),
        image: manifest.name.clone(),
        memory_mib: request.memory_mib,
        cpus: request.cpus,
        warm_up: manifest.warm_up.clone(),
        size,
        ready: 0,
        lent: 0,
        served: 0,
        stopping: false,
        why: None,
        pid: std::process::id(),
        since_us: now_us(),
    };
    let path = &provisioner.qemu.path;
    let qemu = fs::metadata(path).map(|found| FileSeal::of("qemu", &found));
    let qemu = qemu.map_err(|_| not_ready(NotReady::QemuChanged { path: path.clone() }))?;
    let first = make(provisioner, &request, &qemu, cancel).await.map_err(not_ready)?;
    let (ready, lent, not_before) = (VecDeque::from([first]), JoinSet::new(), Instant::now());
    let spec = PoolSpec { request, size };
    let mut keeper = Keeper { provisioner, spec, qemu, status, ready, lent, not_before };
    let claimed = match claim(dirs, folder, &id) {
        Ok(Ok(listener)) => Ok(listener),
        Ok(Err(pid)) => Err(KeeperError::There { pid }),
        Err(error) => Err(wrong(error)),
    };
    let kept = match claimed {
        Ok(listener) if begun(&keeper.status()) => {
            keeper.run(listener, cancel).await;
            Ok(())
        }
        claimed => claimed.map(drop),
    };
    keeper.end().await;
    kept
}

/// Takes the machines of a template for the keeper whose folder this is, and listens; else tells who has them.
fn claim(dirs: &Dirs, folder: &Path, id: &TemplateId) -> io::Result<Result<UnixListener, u32>> {
    let listener = local_socket::listen(folder, SOCKET)?;
    let _turn = lock_folder(&dirs.runtime)?;
    if let Some(pid) = wire::keeper_of(&dirs.runtime, id.as_str()) {
        return Ok(Err(pid));
    }
    write_whole(folder, CLAIM, &wire::claim(id.as_str(), std::process::id()))?;
    UnixListener::from_std(listener).map(Ok)
}

/// A machine that is being made ready.
struct BeingMade<'a> {
    cancel: CancellationToken,
    future: Pin<Box<dyn Future<Output = Result<Ready, NotReady>> + Send + 'a>>,
}

impl BeingMade<'_> {
    /// Gives it up; nothing of it is left then.
    async fn end(self) {
        self.cancel.cancel();
        if let Ok(ready) = self.future.await {
            ready.lease.end().await;
        }
    }
}

impl<'a> Keeper<'a> {
    async fn run(&mut self, listener: UnixListener, cancel: &CancellationToken) {
        let (asking, mut asked) = mpsc::channel(16);
        let accepting = tokio::spawn(accept(listener, asking));
        let mut looks = tokio::time::interval(LOOK);
        let mut making: Option<BeingMade<'_>> = None;
        while !self.status.stopping || !self.lent.is_empty() {
            let is_wanted = !self.status.stopping && self.ready.len() < self.spec.size as usize;
            if is_wanted && making.is_none() {
                making = Some(self.begin());
            }
            tokio::select! {
                made = made(&mut making) => {
                    making = None;
                    self.on_made(made);
                }
                Some(Asked { request, stream }) = asked.recv() => {
                    self.answer(&request, stream).await;
                    match request {
                        Request::MakeRoom => self.make_room(making.take()).await,
                        Request::Stop => self.give_up(making.take()).await,
                        _ => {}
                    }
                }
                Some(_) = self.lent.join_next() => {}
                _ = looks.tick() => self.look(),
                () = cancel.cancelled(), if !self.status.stopping => {
                    self.status.stopping = true;
                    self.give_up(making.take()).await;
                }
            }
        }
        accepting.abort();
    }

    fn begin(&self) -> BeingMade<'a> {
        let (provisioner, request) = (self.provisioner, self.spec.request.clone());
        let (not_before, qemu) = (self.not_before, self.qemu.clone());
        let cancel = CancellationToken::new();
        let token = cancel.clone();
        let future = Box::pin(async move {
            tokio::select! {
                () = sleep_until(not_before.into()) => {}
                () = token.cancelled() => {}
            }
            make(provisioner, &request, &qemu, &token).await
        });
        BeingMade { cancel, future }
    }

    /// Lets go of what is being made, and of one that waits: who has waited least is the least loss.
    async fn make_room(&mut self, making: Option<BeingMade<'_>>) {
        if let Some(making) = making {
            making.end().await;
        }
        if let Some(ready) = self.ready.pop_back() {
            info!("a machine goes to make room");
            ready.lease.end().await;
        }
    }

    /// Lets go of what is being made, and of all that wait.
    async fn give_up(&mut self, making: Option<BeingMade<'_>>) {
        if let Some(making) = making {
            making.end().await;
        }
        self.drop_ready().await;
    }

    fn on_made(&mut self, made: Result<Ready, NotReady>) {
        match made {
            Ok(ready) => {
                self.status.why = None;
                self.ready.push_back(ready);
            }
            Err(why) => {
                let why = text::chain(&why);
                if self.status.why.as_ref() != Some(&why) {
                    warn!(%why, "no machine is made ready");
                }
                self.status.why = Some(why);
                self.not_before = Instant::now() + PAUSE;
            }
        }
    }

    fn status(&self) -> PoolStatus {
        let count = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
        let (ready, lent) = (count(self.ready.len()), count(self.lent.len()));
        PoolStatus { ready, lent, ..self.status.clone() }
    }

    async fn answer(&mut self, request: &Request, stream: UnixStream) {
        match request {
            Request::Take => return self.hand_over(stream).await,
            Request::Status => {}
            Request::Taken => {
                let answer = refusal("no machine was given over this connection");
                return say(&stream, answer).await;
            }
            Request::MakeRoom => {
                self.status.why = Some("others need the memory".to_owned());
                self.not_before = Instant::now() + PAUSE;
            }
            Request::Stop => self.status.stopping = true,
        }
        let answer = Answer::Status { pool: Box::new(self.status()) };
        say(&stream, answer).await;
    }

    /// Gives the machine that has waited longest to who asks.
    async fn hand_over(&mut self, stream: UnixStream) {
        self.look();
        let Some(ready) = self.ready.pop_front() else {
            return say(&stream, Answer::None).await;
        };
        match timeout(SILENT, give(ready, &stream, self.status.warm_up.clone())).await {
            Ok(Ok(lent)) => {
                self.status.served += 1;
                self.not_before = self.not_before.max(Instant::now() + LULL);
                self.lent.spawn(lent.until_its_end(stream));
            }
            Ok(Err(error)) => debug!(%error, "a machine was not handed over"),
            Err(_) => debug!("a taker does not take"),
        }
    }

    /// Lets go of machines that did not last.
    fn look(&mut self) {
        let before = self.ready.len();
        self.ready.retain(|ready| !ready.lease.machine.has_ended());
        if self.ready.len() < before {
            warn!("a machine ended while it waited");
        }
    }

    async fn drop_ready(&mut self) {
        let mut ending = JoinSet::new();
        for ready in std::mem::take(&mut self.ready) {
            ending.spawn(async { drop(ready.lease.end().await) });
        }
        while ending.join_next().await.is_some() {}
    }

    async fn end(mut self) {
        self.drop_ready().await;
        while self.lent.join_next().await.is_some() {}
    }
}

async fn made(making: &mut Option<BeingMade<'_>>) -> Result<Ready, NotReady> {
    match making {
        Some(making) => making.future.as_mut().await,
        None => std::future::pending().await,
    }
}

/// Tells whoever asked, if he listens.
async fn say(stream: &UnixStream, answer: Answer) {
    let _ = timeout(SILENT, send(stream, answer, &[])).await;
}

/// Takes connections, and what each asks for.
async fn accept(listener: UnixListener, asking: mpsc::Sender<Asked>) {
    let mut refusals = Refusals::default();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let asking = asking.clone();
                tokio::spawn(async move {
                    let mut lines = Lines::default();
                    let Ok(Ok((said, _))) = timeout(SILENT, lines.next(&stream)).await else {
                        return;
                    };
                    match understand(&said) {
                        Ok(request) => drop(asking.send(Asked { request, stream }).await),
                        Err(why) => say(&stream, refusal(&why)).await,
                    }
                });
            }
            Err(error) => {
                if refusals.is_news() {
                    warn!(%error, "nobody can be accepted for now");
                }
                refusals.pause().await;
            }
        }
    }
}

/// A machine that has run its warm-up line.
async fn make(
    provisioner: &Provisioner,
    request: &MachineRequest,
    qemu: &FileSeal,
    cancel: &CancellationToken,
) -> Result<Ready, NotReady> {
    let path = &provisioner.qemu.path;
    if fs::metadata(path).map_or(true, |found| qemu.difference(&found).is_some()) {
        return Err(NotReady::QemuChanged { path: path.clone() });
    }
    let lease = provisioner.lease(request, cancel).await;
    let lease = lease.map_err(|failed| NotReady::Lease(Box::new(failed)))?;
    if lease.template.is_none() {
        let why = lease.notices.iter().find_map(|notice| match notice {
            Notice::Without { why } => Some(why.clone()),
            _ => None,
        });
        lease.end().await;
        return Err(NotReady::NoTemplate { why: why.unwrap_or_default() });
    }
    let warm_up: Vec<_> = request.image.manifest.warm_up.clone().into_iter().collect();
    let terms = SetUpTerms { limit: WARM_UP, cancel };
    let warm_up = Layer::from(warm_up);
    match set_up(terms, &lease.machine, &lease.guest, &warm_up).await {
        Ok(()) => Ok(Ready { instance: lease.instance(), lease, since: Instant::now() }),
        Err(error) => {
            let console = lease.console();
            lease.end().await;
            let failed = FailedLease { error, folder: None, console, notices: Vec::new() };
            Err(NotReady::Lease(Box::new(failed)))
        }
    }
}

/// A machine that is somebody's, of which only the process is ours.
struct Lent {
    machine: Machine,
    slot: Slot,
    held: Held,
}

/// Stops to listen to a machine, and sends it.
async fn give(ready: Ready, stream: &UnixStream, warm_up: Option<String>) -> io::Result<Lent> {
    let Ready { lease, instance, since } = ready;
    let GivenAway { machine, console, lines, slot, held } = lease.give_away().await?;
    let handover = machine.hand_over().await?;
    let mut fds = vec![handover.qmp, console, lines.control, lines.bulk, lines.reserve];
    fds.extend(handover.ends);
    let answer = Answer::Machine {
        pid: handover.pid,
        instance,
        is_restored: handover.ram.is_some(),
        disks: handover.disks,
        folder: held.folder.path().to_owned(),
        memory_mib: slot.memory_mib(),
        ready_us: u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX),
        warm_up,
    };
    send(stream, answer, &fds).await?;
    Ok(Lent { machine, slot, held })
}

impl Lent {
    /// Waits for the exit of QEMU, or kills it when its taker wants that or is gone, and tells him.
    async fn until_its_end(self, stream: UnixStream) {
        let Self { machine, slot, held } = self;
        let mut slot = Some(slot);
        let mut lines = Lines::default();
        let (how, signal, stderr) = loop {
            tokio::select! {
                ending = machine.ended() => match ending {
                    Ending::QemuDied { how, signal, stderr } => break (how, signal, stderr),
                    _ => break ("has ended".to_owned(), None, String::new()),
                },
                said = lines.next(&stream) => match said {
                    // Its memory is in the taker's account now.
                    Ok((said, _)) if understand(&said) == Ok(Request::Taken) => drop(slot.take()),
                    _ => break ("was killed".to_owned(), None, String::new()),
                },
            }
        };
        machine.kill().await;
        // Escaped here, so that it fits a line.
        let from = stderr.len().saturating_sub(STDERR_TOLD);
        let stderr = text::escape(stderr.as_bytes().get(from..).unwrap_or_default());
        let exited = Answer::Exited { how, signal, stderr };
        say(&stream, exited).await;
        drop(held);
    }
}
