//! The supervisor: owns one named machine from before its boot to its end.
//!
//! ```text
//! claim the name ──> lease (or connect) ──> select!: one event ──> Life ──> actions ──> the end: last word, nothing left
//! ```

use super::control::{self, DownOrder, Ended, How, MachineState, MachineStatus};
use super::life::{Action, Life, LifeEvent};
use super::name::MachineName;
use super::registry::{self, RegistryError};
use super::server::{self, Around, Door, Notice};
use crate::capture::{ConsoleLine, PANIC_MARK};
use crate::dirs::Dirs;
use crate::guest::Guest;
use crate::link::{Endpoint, EndpointError, Link, LinkError};
use crate::machine::Ending;
use crate::provision::{FailedLease, Lease, MachineRequest, Provisioner, WorkRoot};
use crate::text;
use guestline_protocol::{PingRequest, Request};
use std::future::{Future, pending};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// How long a guest may take to power off.
const GRACE: Duration = Duration::from_secs(10);

/// An agent that was started anew is found out after so long, though nobody asks it for anything.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// And while a guest is about to go, after so long.
const HASTE: Duration = Duration::from_millis(300);

/// For so long after it said so.
const LEAVING: Duration = Duration::from_secs(60);

/// How long a guest may take to tell its kernel's name, which is for people only.
const FACTS: Duration = Duration::from_secs(5);

/// How long the console of a guest that has reset is still listened to.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// How long those who wait for the end may take to read that it came.
const LAST_ANSWER: Duration = Duration::from_secs(1);

/// Where a machine comes from.
#[derive(Debug)]
pub enum Source {
    /// It is booted.
    Boot {
        /// By this; its machines must outlive reboots.
        provisioner: Box<Provisioner>,
        /// So.
        request: Box<MachineRequest>,
    },
    /// It is not ours: its agent is reached there.
    Connect(Endpoint),
}

/// A machine that is to be supervised.
#[derive(Debug)]
pub struct Supervision {
    /// Its name.
    pub name: MachineName,
    /// Where it comes from.
    pub source: Source,
    /// How long a boot, and so a reboot, may take.
    pub boot_timeout: Duration,
}

/// An order to take the machine down, such as a signal.
#[derive(Debug, Clone)]
pub struct Down(mpsc::UnboundedSender<bool>);

impl Down {
    /// And where the orders arrive.
    pub fn channel() -> (Self, mpsc::UnboundedReceiver<bool>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self(sender), receiver)
    }

    /// Takes it down; `force` without asking the guest.
    pub fn order(&self, force: bool) {
        let _ = self.0.send(force);
    }
}

/// A machine never got there.
#[derive(Debug, thiserror::Error)]
pub enum SuperviseError {
    /// The name.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The machine.
    #[error("{}", .0.error)]
    Lease(Box<FailedLease>),
    /// The endpoint.
    #[error(transparent)]
    Connect(#[from] EndpointError),
    /// There is no agent of ours at the endpoint.
    #[error("`{0}` has no link that clients could share: a qemu-guest-agent answers there")]
    NoLink(Endpoint),
    /// Nobody answered at the endpoint.
    #[error("no agent answered at `{endpoint}` within {waited:.0?}")]
    Silent {
        /// Where.
        endpoint: Endpoint,
        /// How long was waited.
        waited: Duration,
    },
    /// It was taken down before.
    #[error("taken down while it booted")]
    Down,
}

/// A machine has ended; what waits for that can be told when nothing is left.
#[derive(Debug)]
pub struct Finished {
    /// How it ended, or why it never got there.
    pub result: Result<Ended, SuperviseError>,
    waiting: Vec<oneshot::Sender<Ended>>,
    over: CancellationToken,
    control: Option<JoinHandle<()>>,
}

impl Finished {
    /// Tells those who wait for the end. To be called when the run's folder is gone.
    pub async fn tell(self) {
        let ended = match &self.result {
            Ok(ended) => ended.clone(),
            Err(error) => registry::word(How::NeverUp, format!("it never came up: {error}")),
        };
        for waiting in self.waiting {
            let _ = waiting.send(ended.clone());
        }
        self.over.cancel();
        if let Some(control) = self.control {
            let _ = tokio::time::timeout(LAST_ANSWER, control).await;
        }
    }
}

/// Supervises a machine to its end. `ready` is told when its agent has answered; when it answers false, nobody is there
/// who wanted the machine, and it is taken down.
pub async fn supervise(
    dirs: &Dirs,
    root: WorkRoot,
    supervision: Supervision,
    mut orders: mpsc::UnboundedReceiver<bool>,
    ready: impl FnOnce(&MachineStatus) -> bool,
) -> Finished {
    let over = CancellationToken::new();
    let refused = |error| Finished {
        result: Err(error),
        waiting: Vec::new(),
        over: over.clone(),
        control: None,
    };
    let Supervision { name, source, boot_timeout } = supervision;
    let sockets = match registry::claim(dirs, root.path(), &name) {
        Ok(sockets) => sockets,
        Err(error) => return refused(error.into()),
    };
    let wrong = |source| {
        SuperviseError::from(RegistryError::Folder { folder: root.path().to_owned(), source })
    };
    let listeners = tokio::net::UnixListener::from_std(sockets.control)
        .and_then(|control| Ok((control, tokio::net::UnixListener::from_std(sockets.link)?)));
    let (control_listener, link_listener) = match listeners {
        Ok(listeners) => listeners,
        Err(error) => return refused(wrong(error)),
    };

    let (changed, changes) = watch::channel(());
    let (door, doors) = watch::channel(Door::Closed);
    let board = Board::new(&name, &source, boot_timeout, doors.clone(), changed);
    let (downs, mut down_orders) = mpsc::unbounded_channel();
    let status = {
        let board = board.clone();
        Arc::new(move || board.read())
    };
    let control =
        tokio::spawn(control::answer(control_listener, status, changes, downs, over.clone()));
    let (notices, mut noticed) = mpsc::unbounded_channel();
    let cut = CancellationToken::new();
    let around = Around { door: doors, notices, over: cut.clone() };
    let serving = tokio::spawn(server::accept(link_listener, around));

    let mut waiting = Vec::new();
    let began = Instant::now();
    let had = {
        let cancel = CancellationToken::new();
        let mut having = std::pin::pin!(have(source, boot_timeout, &cancel));
        loop {
            tokio::select! {
                had = &mut having => break had,
                Some(_) = orders.recv() => cancel.cancel(),
                Some(order) = down_orders.recv() => {
                    waiting.extend(order.done);
                    cancel.cancel();
                }
            }
        }
    };
    let result = match had {
        Err(error) => Err(error),
        Ok(had) => {
            let mut owner = Owner {
                life: Life::new(had.lease.is_some()),
                guest: had.guest.clone(),
                link: had.link.clone(),
                began,
                board,
                door,
                boot_timeout,
                reopening: None,
                overdue: None,
                grace: None,
                haste_until: None,
            };
            owner.open().await;
            let up = registry::word(How::Up, "its supervisor was killed".to_owned());
            if let Err(error) = registry::keep_word(dirs, &name, &up) {
                warn!(%error, "cannot keep a word on the machine");
            }
            owner.board.set(|status| {
                status.ready_in_us = u64::try_from(had.ready_in.as_micros()).ok();
                if let Some(lease) = &had.lease {
                    status.qemu_pid = Some(lease.machine.pid());
                    status.console = Some(lease.folder().join("console.log"));
                }
            });
            let wanted = ready(&owner.board.read());
            let end = match wanted {
                true => {
                    let mut ears = Ears { orders, downs: &mut down_orders, noticed: &mut noticed };
                    owner.own(had.lease.as_ref(), &mut ears, &mut waiting).await
                }
                false => End { how: How::Killed, ending: None, link: None },
            };
            registry::release(root.path());
            let console = match had.lease {
                Some(lease) => lease.end().await.console,
                None => Vec::new(),
            };
            let why = in_words(&end, &console);
            let ended = registry::word(end.how, why);
            info!(%name, why = ended.why, "ended");
            if let Err(error) = registry::keep_word(dirs, &name, &ended) {
                warn!(%error, "cannot keep the last word on the machine");
            }
            Ok(ended)
        }
    };
    registry::release(root.path());
    // Only now, when the reason can be read, may clients notice.
    cut.cancel();
    let _ = tokio::time::timeout(LAST_ANSWER, serving).await;
    drop(root);
    while let Ok(order) = down_orders.try_recv() {
        waiting.extend(order.done);
    }
    Finished { result, waiting, over, control: Some(control) }
}

/// A machine that answers.
struct Had {
    lease: Option<Lease>,
    guest: Guest,
    link: Link,
    ready_in: Duration,
}

/// Boots the machine, or connects to it.
async fn have(
    source: Source,
    patience: Duration,
    cancel: &CancellationToken,
) -> Result<Had, SuperviseError> {
    match source {
        Source::Boot { provisioner, request } => match provisioner.lease(&request, cancel).await {
            Ok(lease) => {
                let guest = lease.guest.clone();
                let link = guest.link().cloned().ok_or(SuperviseError::Down)?;
                Ok(Had { ready_in: lease.ready_in, lease: Some(lease), guest, link })
            }
            Err(_) if cancel.is_cancelled() => Err(SuperviseError::Down),
            Err(failed) => Err(SuperviseError::Lease(Box::new(failed))),
        },
        Source::Connect(endpoint) => {
            let began = Instant::now();
            let guest = tokio::select! {
                guest = Guest::open(&endpoint) => guest?,
                () = tokio::time::sleep(patience) => {
                    return Err(SuperviseError::Silent { endpoint, waited: patience });
                }
                () = cancel.cancelled() => return Err(SuperviseError::Down),
            };
            let link = guest.link().cloned().ok_or(SuperviseError::NoLink(endpoint))?;
            Ok(Had { lease: None, guest, link, ready_in: began.elapsed() })
        }
    }
}

/// How a machine of ours ended; never for another.
async fn ended(lease: Option<&Lease>) -> Ending {
    match lease {
        Some(lease) => lease.machine.ended().await,
        None => pending().await,
    }
}

/// Why a machine ended.
struct End {
    how: How,
    ending: Option<Ending>,
    link: Option<String>,
}

/// The kernel's own words, since then.
fn has_panicked(console: &[ConsoleLine], since: Instant) -> bool {
    console.iter().any(|line| line.at >= since && line.text.contains(PANIC_MARK))
}

fn in_words(end: &End, console: &[ConsoleLine]) -> String {
    match end.how {
        How::Up => "its supervisor was killed".to_owned(),
        How::NeverUp => "it never came up".to_owned(),
        How::Down => "it was taken down".to_owned(),
        How::Killed => "it was taken down, and killed".to_owned(),
        How::LetGo => "it was let go".to_owned(),
        How::PoweredOff => "it powered itself off".to_owned(),
        How::Reset => "it reset".to_owned(),
        How::Panicked => {
            let panic = console.iter().rev().find_map(|line| {
                let at = line.text.find(PANIC_MARK)?;
                Some(text::printable(line.text.get(at..)?.trim_end()))
            });
            match panic {
                Some(line) => format!("it panicked: {line}"),
                None => "it panicked".to_owned(),
            }
        }
        How::QemuDied => match &end.ending {
            Some(Ending::QemuDied { how, stderr, .. }) => match stderr.lines().last() {
                Some(line) => format!("QEMU {how}: {}", text::printable(line)),
                None => format!("QEMU {how}"),
            },
            _ => "QEMU died".to_owned(),
        },
        How::LinkEnded => {
            format!("its link ended: {}", end.link.as_deref().unwrap_or("the link is gone"))
        }
    }
}

/// From where the owner hears.
struct Ears<'a> {
    orders: mpsc::UnboundedReceiver<bool>,
    downs: &'a mut mpsc::UnboundedReceiver<DownOrder>,
    noticed: &'a mut mpsc::UnboundedReceiver<Notice>,
}

type Reopening = Pin<Box<dyn Future<Output = Result<(), LinkError>> + Send>>;

struct Owner {
    life: Life,
    guest: Guest,
    link: Link,
    /// Its boot.
    began: Instant,
    board: Board,
    door: watch::Sender<Door>,
    boot_timeout: Duration,
    /// A session that is being opened.
    reopening: Option<Reopening>,
    /// When a guest that reboots will have taken too long.
    overdue: Option<Instant>,
    /// When a guest that was asked to power off will have.
    grace: Option<Instant>,
    /// The guest said that it goes, and is looked at often until then.
    haste_until: Option<Instant>,
}

impl Owner {
    /// Feeds the machine's life until it is over.
    async fn own(
        &mut self,
        lease: Option<&Lease>,
        ears: &mut Ears<'_>,
        waiting: &mut Vec<oneshot::Sender<Ended>>,
    ) -> End {
        let mut reboots = lease.map(|lease| lease.machine.reboots());
        let (mut ending, mut link_error) = (None, None);
        let mut link_gone = false;
        let mut booted = self.began;
        let mut heart: Reopening = self.beat();
        loop {
            let event = tokio::select! {
                biased;
                ended = ended(lease) => {
                    ending = Some(ended.clone());
                    LifeEvent::Ended(ended)
                }
                () = rebooted(&mut reboots) => {
                    // What it said before is perhaps still on its way.
                    tokio::time::sleep(LAST_WORDS).await;
                    // Kernels try several ways to reset, one after the other.
                    reboots.as_mut().map(watch::Receiver::mark_unchanged);
                    let before = std::mem::replace(&mut booted, Instant::now());
                    match lease.is_some_and(|lease| has_panicked(&lease.console(), before)) {
                        // A kernel that is told to boot again after a panic, and has no pvpanic.
                        true => LifeEvent::Ended(Ending::Panicked),
                        false => LifeEvent::Rebooted,
                    }
                }
                Some(force) = ears.orders.recv() => LifeEvent::Down { force },
                Some(order) = ears.downs.recv() => {
                    waiting.extend(order.done);
                    LifeEvent::Down { force: order.force }
                }
                error = self.link.end(), if !link_gone => {
                    link_gone = true;
                    // A machine's end is told before its consequence.
                    let soon = match lease {
                        Some(lease) => lease.machine.ended_soon().await,
                        None => None,
                    };
                    match soon {
                        Some(ended) => {
                            ending = Some(ended.clone());
                            LifeEvent::Ended(ended)
                        }
                        None => {
                            link_error = Some(error.to_string());
                            LifeEvent::LinkEnded(error)
                        }
                    }
                }
                reopened = or_never(&mut self.reopening) => {
                    self.reopening = None;
                    LifeEvent::Reopened(reopened)
                }
                Some(notice) = ears.noticed.recv() => match notice {
                    Notice::Restarted { boot } => LifeEvent::Restarted { boot },
                    Notice::Leaving => {
                        self.haste_until = Some(Instant::now() + LEAVING);
                        heart = self.beat();
                        continue;
                    }
                },
                beat = &mut heart => {
                    let boot = self.life.boot();
                    heart = self.beat();
                    match beat {
                        Err(LinkError::Restarted) => LifeEvent::Restarted { boot },
                        _ => continue,
                    }
                }
                () = until(self.overdue) => {
                    self.overdue = None;
                    LifeEvent::Overdue
                }
                () = until(self.grace) => {
                    self.grace = None;
                    LifeEvent::GraceOver
                }
            };
            debug!(?event, "event");
            for action in self.life.on_event(event) {
                match action {
                    Action::Publish => self.publish().await,
                    Action::Reopen => self.reopen(),
                    Action::PowerOff => self.power_off(),
                    Action::End(how) => return End { how, ending, link: link_error },
                }
            }
        }
    }

    /// Asks for a sign of life after a while.
    fn beat(&self) -> Reopening {
        let link = self.link.clone();
        let pause = match self.haste_until {
            Some(until) if Instant::now() < until => HASTE,
            _ => HEARTBEAT,
        };
        let is_ready = self.life.state() == MachineState::Ready;
        Box::pin(async move {
            tokio::time::sleep(pause).await;
            match is_ready {
                true => {
                    let ping = Request::Ping(PingRequest { token: 1 });
                    link.ask_within(&ping, pause.max(Duration::from_secs(1))).await.map(drop)
                }
                false => Ok(()),
            }
        })
    }

    fn reopen(&mut self) {
        self.door.send_replace(Door::Closed);
        self.haste_until = None;
        self.overdue = Some(Instant::now() + self.boot_timeout);
        let guest = self.guest.clone();
        self.reopening = Some(Box::pin(async move { guest.reconnect().await }));
    }

    fn power_off(&mut self) {
        self.grace = Some(Instant::now() + GRACE);
        self.board.set(|status| status.state = MachineState::GoingDown);
        let guest = self.guest.clone();
        // Its end is told by the machine.
        tokio::spawn(async move { guest.power_off().await });
    }

    async fn publish(&mut self) {
        match self.life.state() {
            MachineState::Ready => {
                self.overdue = None;
                self.open().await;
            }
            state => {
                self.door.send_replace(Door::Closed);
                let (boot, why) = (self.life.boot(), self.life.why());
                self.board
                    .set(|status| (status.state, status.boot, status.why) = (state, boot, why));
            }
        }
    }

    /// The guest can be reached.
    async fn open(&mut self) {
        let (hello, heard, boot) = (self.guest.agent(), Instant::now(), self.life.boot());
        let agent = text::printable(&hello.build);
        let link = self.link.clone();
        let transport = link.transport().to_string();
        self.door.send_replace(Door::Open { boot, link, hello: Box::new(hello), heard });
        let facts = tokio::time::timeout(FACTS, self.guest.facts()).await;
        let kernel = facts.ok().and_then(Result::ok).map(|facts| text::printable(&facts.kernel));
        self.board.set(|status| {
            status.state = MachineState::Ready;
            (status.boot, status.why) = (boot, None);
            status.kernel = kernel;
            status.agent = Some(agent);
            status.transport = Some(transport);
        });
    }
}

async fn or_never(future: &mut Option<Reopening>) -> Result<(), LinkError> {
    match future {
        Some(future) => future.await,
        None => pending().await,
    }
}

async fn rebooted(reboots: &mut Option<watch::Receiver<u64>>) {
    match reboots {
        Some(reboots) => {
            if reboots.changed().await.is_err() {
                // The machine has ended, which is told elsewhere.
                pending::<()>().await;
            }
        }
        None => pending().await,
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => pending().await,
    }
}

/// Where the state of the machine is written for those who ask.
#[derive(Clone)]
struct Board {
    status: Arc<Mutex<MachineStatus>>,
    door: watch::Receiver<Door>,
    changed: watch::Sender<()>,
}

impl Board {
    fn new(
        name: &MachineName,
        source: &Source,
        boot_timeout: Duration,
        door: watch::Receiver<Door>,
        changed: watch::Sender<()>,
    ) -> Self {
        let (request, endpoint) = match source {
            Source::Boot { request, .. } => (Some(request), None),
            Source::Connect(endpoint) => (None, Some(endpoint.to_string())),
        };
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let status = MachineStatus {
            name: name.clone(),
            state: MachineState::Booting,
            why: None,
            image: request.map(|request| request.image.manifest.name.clone()),
            endpoint,
            kernel: None,
            memory_mib: request.map(|request| request.memory_mib),
            cpus: request.map(|request| request.cpus),
            pid: std::process::id(),
            qemu_pid: None,
            since_us: u64::try_from(since.as_micros()).unwrap_or(0),
            ready_in_us: None,
            boot: 1,
            transport: None,
            agent: None,
            silence_ms: None,
            boot_timeout_ms: u64::try_from(boot_timeout.as_millis()).unwrap_or(u64::MAX),
            console: None,
        };
        Self { status: Arc::new(Mutex::new(status)), door, changed }
    }

    fn set(&self, change: impl FnOnce(&mut MachineStatus)) {
        change(&mut self.status.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.send_replace(());
    }

    fn read(&self) -> MachineStatus {
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Door::Open { link, .. } = &*self.door.borrow() {
            let silence = link.silence();
            status.silence_ms = silence.and_then(|silence| u64::try_from(silence.as_millis()).ok());
        }
        status
    }
}
