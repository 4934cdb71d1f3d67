//! The keeper of a pool: makes machines ready, hands them over, and kills those whose taker is gone.

use super::wire::{
    self, Answer, CLAIM, Lines, PoolStatus, Request, SOCKET, line, refusal, send, understand,
};
use crate::clock::now_us;
use crate::dirs::Dirs;
use crate::local_socket;
use crate::machine::{Ending, Machine};
use crate::provision::lease::{FailedLease, GivenAway, Held, Lease};
use crate::provision::slots::Slot;
use crate::provision::{MachineRequest, Provisioner, TemplateId, WorkRoot};
use crate::refusals::Refusals;
use crate::text;
use guestline_protocol::{Command, ExecRequest, ExitStatus};
use std::collections::VecDeque;
use std::fs;
use std::io;
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

/// So much of what it says is read.
const OUTPUT: usize = 64 * 1024;

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
    /// Its files.
    #[error("cannot make a pool's files in `{folder}`", folder = folder.display())]
    Folder {
        /// The folder.
        folder: std::path::PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The first machine.
    #[error("no machine: {why}")]
    Machine {
        /// Why.
        why: String,
    },
}

/// A machine that waits.
struct Ready {
    lease: Lease,
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
    let no_machine =
        |error: &dyn std::error::Error| KeeperError::Machine { why: text::chain(error) };
    let request = MachineRequest { is_spare: true, ..spec.request };
    let id = provisioner.id_of(&request).await.map_err(|error| no_machine(&error))?;
    let spec = PoolSpec { request, ..spec };
    let folder = root.path();
    let wrong = |source: io::Error| KeeperError::Folder { folder: folder.to_owned(), source };
    if let Some(there) = there(dirs, &id).await {
        return Err(KeeperError::There { pid: there.pid });
    }
    let manifest = &spec.request.image.manifest;
    let status = PoolStatus {
        id: id.to_string(),
        image: manifest.name.clone(),
        memory_mib: spec.request.memory_mib,
        cpus: spec.request.cpus,
        warm_up: manifest.warm_up.clone(),
        size: spec.size,
        ready: 0,
        lent: 0,
        served: 0,
        stopping: false,
        why: None,
        pid: std::process::id(),
        since_us: now_us(),
    };
    let (ready, lent, not_before) = (VecDeque::new(), JoinSet::new(), Instant::now());
    let mut keeper = Keeper { provisioner, spec, status, ready, lent, not_before };
    let first = tokio::select! {
        first = make(provisioner, &keeper.spec.request, cancel) => first,
        () = cancel.cancelled() => Err("cancelled".to_owned()),
    };
    keeper.ready.push_back(first.map_err(|why| KeeperError::Machine { why })?);
    let listener = local_socket::listen(folder, SOCKET).map_err(wrong)?;
    let listener = UnixListener::from_std(listener).map_err(wrong)?;
    // Somebody may have been quicker.
    let taken = there(dirs, &id).await;
    if taken.is_none() {
        fs::write(folder.join(CLAIM), wire::claim(id.as_str())).map_err(wrong)?;
    }
    match taken {
        Some(there) => {
            keeper.end().await;
            return Err(KeeperError::There { pid: there.pid });
        }
        None if !begun(&keeper.status()) => {}
        None => keeper.run(listener, cancel).await,
    }
    let _ = fs::remove_file(folder.join(CLAIM));
    keeper.end().await;
    Ok(())
}

async fn there(dirs: &Dirs, id: &TemplateId) -> Option<PoolStatus> {
    let pools = super::pools(dirs).await.unwrap_or_default();
    pools.into_iter().find(|pool| pool.id == *id.as_str() && !pool.stopping)
}

/// A machine that is being made ready.
struct Making<'a> {
    cancel: CancellationToken,
    future: Pin<Box<dyn Future<Output = Result<Ready, String>> + Send + 'a>>,
}

impl Making<'_> {
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
        let mut making: Option<Making<'_>> = None;
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
                    let is_end = matches!(request, Request::MakeRoom | Request::Stop);
                    if let Some(making) = making.take_if(|_| is_end) {
                        making.end().await;
                    }
                    self.answer(request, stream).await;
                }
                Some(_) = self.lent.join_next() => {}
                _ = looks.tick() => self.look(),
                () = cancel.cancelled(), if !self.status.stopping => {
                    if let Some(making) = making.take() {
                        making.end().await;
                    }
                    self.stop().await;
                }
            }
        }
        accepting.abort();
    }

    fn begin(&self) -> Making<'a> {
        let (provisioner, request) = (self.provisioner, self.spec.request.clone());
        let (not_before, cancel) = (self.not_before, CancellationToken::new());
        let token = cancel.clone();
        let future = Box::pin(async move {
            tokio::select! {
                () = sleep_until(not_before.into()) => make(provisioner, &request, &token).await,
                () = token.cancelled() => Err("cancelled".to_owned()),
            }
        });
        Making { cancel, future }
    }

    fn on_made(&mut self, made: Result<Ready, String>) {
        match made {
            Ok(ready) => {
                self.status.why = None;
                self.ready.push_back(ready);
            }
            Err(why) => {
                warn!(%why, "no machine is made ready");
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

    async fn answer(&mut self, request: Request, stream: UnixStream) {
        match request {
            Request::Take => return self.hand_over(stream).await,
            Request::Status | Request::Taken => {}
            Request::MakeRoom => {
                // The one that has waited least is the least loss.
                if let Some(ready) = self.ready.pop_back() {
                    info!("a machine goes to make room");
                    ready.lease.end().await;
                }
                self.status.why = Some("others need the memory".to_owned());
                self.not_before = Instant::now() + PAUSE;
            }
            Request::Stop => self.stop().await,
        }
        let answer = Answer::Status { pool: Box::new(self.status()) };
        let _ = timeout(SILENT, send(&stream, &line(answer), &[])).await;
    }

    /// Gives the machine that has waited longest to who asks.
    async fn hand_over(&mut self, stream: UnixStream) {
        self.look();
        let Some(ready) = self.ready.pop_front() else {
            let _ = timeout(SILENT, send(&stream, &line(Answer::None), &[])).await;
            return;
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

    async fn stop(&mut self) {
        self.status.stopping = true;
        self.drop_ready().await;
    }

    async fn drop_ready(&mut self) {
        for ready in std::mem::take(&mut self.ready) {
            ready.lease.end().await;
        }
    }

    async fn end(mut self) {
        self.drop_ready().await;
        while self.lent.join_next().await.is_some() {}
    }
}

async fn made(making: &mut Option<Making<'_>>) -> Result<Ready, String> {
    match making {
        Some(making) => making.future.as_mut().await,
        None => std::future::pending().await,
    }
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
                        Err(why) => {
                            let _ = timeout(SILENT, send(&stream, &line(refusal(&why)), &[])).await;
                        }
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

/// A machine that has run its warm-up line; in words, why there is none.
async fn make(
    provisioner: &Provisioner,
    request: &MachineRequest,
    cancel: &CancellationToken,
) -> Result<Ready, String> {
    let lease = provisioner.lease(request, cancel).await;
    let lease = lease.map_err(|FailedLease { error, .. }| text::chain(&error))?;
    let Some(warm_up) = &request.image.manifest.warm_up else {
        return Ok(Ready { lease, since: Instant::now() });
    };
    let wrong = |what: String| format!("its warm-up `{}` {what}", text::one_line(warm_up, 60));
    let exec = ExecRequest::new(Command::Shell(warm_up.as_bytes().to_vec().into()));
    let ran = tokio::select! {
        ran = timeout(WARM_UP, lease.guest.run(exec, &[], OUTPUT)) => ran,
        () = cancel.cancelled() => return Err("cancelled".to_owned()),
    };
    let ran = ran.map_err(|_| wrong("does not end".to_owned()))?;
    let ran = ran.map_err(|error| wrong(format!("cannot be run: {}", text::chain(&error))))?;
    match ran.exited.status {
        ExitStatus::Exited(0) => Ok(Ready { lease, since: Instant::now() }),
        status => Err(wrong(format!("ended with {status:?}"))),
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
    let Ready { lease, since } = ready;
    let GivenAway { machine, console, lines, slot, held } = lease.give_away().await?;
    let handover = machine.hand_over().await?;
    let mut fds = vec![handover.qmp, console, lines.control, lines.bulk, lines.reserve];
    fds.extend(handover.ends);
    let answer = Answer::Machine {
        pid: handover.pid,
        is_restored: handover.ram.is_some(),
        folder: held.folder.path().to_owned(),
        ready_us: u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX),
        warm_up,
    };
    send(stream, &line(answer), &fds).await?;
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
                    Ok(_) => drop(slot.take()),
                    Err(_) => break ("was killed".to_owned(), None, String::new()),
                },
            }
        };
        machine.kill().await;
        let exited = Answer::Exited { how, signal, stderr };
        let _ = timeout(SILENT, send(&stream, &line(exited), &[])).await;
        drop(held);
    }
}
