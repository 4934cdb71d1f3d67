//! Owns a machine that answers, to its end.
//!
//! ```text
//! select!: one event ──> Life ──> actions
//! ```
//! Nothing that a guest may keep waiting is waited for in the loop: a session that is being opened, its facts and its
//! heartbeat are futures of their own beside orders to go down.

use super::board::Board;
use super::control::{DownOrder, Ended, How, MachineState, MachineStatus};
use super::ending::{End, has_panicked};
use super::life::{Action, Life, LifeEvent};
use super::server::{Door, Notice};
use crate::guest::Guest;
use crate::link::{Link, LinkError};
use crate::machine::Ending;
use crate::provision::Lease;
use crate::text;
use guestline_protocol::{PingRequest, Request};
use std::future::{Future, pending};
use std::pin::Pin;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::debug;

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

/// From where the owner hears.
pub(super) struct Ears<'a> {
    pub(super) orders: mpsc::UnboundedReceiver<bool>,
    pub(super) downs: &'a mut mpsc::UnboundedReceiver<DownOrder>,
    pub(super) noticed: &'a mut mpsc::UnboundedReceiver<Notice>,
}

type Pending<T> = Pin<Box<dyn Future<Output = T> + Send>>;

pub(super) struct Owner {
    life: Life,
    guest: Guest,
    link: Link,
    /// Its boot.
    began: Instant,
    board: Board,
    door: watch::Sender<Door>,
    boot_timeout: Duration,
    /// A session that is being opened.
    reopening: Option<Pending<Result<bool, LinkError>>>,
    /// The kernel's name, which the guest is asked for.
    kernel: Option<Pending<Option<String>>>,
    /// When a guest that reboots will have taken too long.
    overdue: Option<Instant>,
    /// When a guest that was asked to power off will have.
    grace: Option<Instant>,
    /// The guest said that it goes, and is looked at often until then.
    haste_until: Option<Instant>,
}

impl Owner {
    /// Of a machine whose agent has answered, and which began then.
    pub(super) fn new(
        (guest, link): (Guest, Link),
        owns_machine: bool,
        began: Instant,
        board: Board,
        door: watch::Sender<Door>,
        boot_timeout: Duration,
    ) -> Self {
        Self {
            life: Life::new(owns_machine),
            guest,
            link,
            began,
            board,
            door,
            boot_timeout,
            reopening: None,
            kernel: None,
            overdue: None,
            grace: None,
            haste_until: None,
        }
    }

    /// Feeds the machine's life until it is over. `ready` is told once it has said what it is, or does not in time; when
    /// it answers false, nobody wants the machine.
    pub(super) async fn own(
        &mut self,
        lease: Option<&Lease>,
        ears: &mut Ears<'_>,
        waiting: &mut Vec<oneshot::Sender<Ended>>,
        ready: impl FnOnce(&MachineStatus) -> bool,
    ) -> End {
        let mut ready = Some(ready);
        let mut reboots = lease.map(|lease| lease.machine.reboots());
        let (mut ending, mut link_error) = (None, None);
        let mut link_gone = false;
        let mut booted = self.began;
        self.open();
        let mut heart = self.beat();
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
                kernel = or_never(&mut self.kernel) => {
                    self.kernel = None;
                    self.is_ready(kernel);
                    let is_wanted = ready.take().is_none_or(|ready| ready(&self.board.read()));
                    match is_wanted {
                        true => continue,
                        false => return End { how: How::Killed, ending: None, link: None },
                    }
                }
                Some(notice) = ears.noticed.recv() => match notice {
                    Notice::SessionLost { epoch, error } => LifeEvent::SessionLost { epoch, error },
                    Notice::Leaving => {
                        self.haste_until = Some(Instant::now() + LEAVING);
                        heart = self.beat();
                        continue;
                    }
                },
                (epoch, beat) = &mut heart => {
                    heart = self.beat();
                    match beat {
                        Err(error) if error.is_session_lost() => {
                            LifeEvent::SessionLost { epoch, error }
                        }
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
                    Action::Publish => self.publish(),
                    Action::Reopen { again } => self.reopen(again),
                    Action::PowerOff => self.power_off(),
                    Action::End(how) => return End { how, ending, link: link_error },
                }
            }
        }
    }

    /// Asks for a sign of life after a while; gives the session in which that was, too.
    fn beat(&self) -> Pending<(u64, Result<(), LinkError>)> {
        let (link, epoch) = (self.link.clone(), self.life.epoch());
        let pause = match self.haste_until {
            Some(until) if Instant::now() < until => HASTE,
            _ => HEARTBEAT,
        };
        let is_ready = self.life.state() == MachineState::Ready;
        Box::pin(async move {
            tokio::time::sleep(pause).await;
            let ping = Request::Ping(PingRequest { token: 1 });
            let beat = match is_ready {
                true => link.ask_within(&ping, pause.max(Duration::from_secs(1))).await.map(drop),
                false => Ok(()),
            };
            (epoch, beat)
        })
    }

    fn reopen(&mut self, again: bool) {
        self.close();
        self.haste_until = None;
        if !again {
            self.overdue = Some(Instant::now() + self.boot_timeout);
        }
        let guest = self.guest.clone();
        self.reopening = Some(Box::pin(async move { guest.reconnect().await }));
    }

    fn power_off(&mut self) {
        self.grace = Some(Instant::now() + GRACE);
        self.kernel = None;
        self.board.set(|status| status.state = MachineState::GoingDown);
        let guest = self.guest.clone();
        // Its end is told by the machine.
        tokio::spawn(async move { guest.power_off().await });
    }

    fn publish(&mut self) {
        match self.life.state() {
            MachineState::Ready => {
                self.overdue = None;
                self.open();
            }
            state => {
                self.close();
                let why = self.life.why();
                self.board.set(|status| (status.state, status.why) = (state, why));
            }
        }
    }

    /// The guest cannot be reached.
    fn close(&mut self) {
        self.door.send_replace(Door::Closed);
        self.kernel = None;
    }

    /// The guest can be reached, and is asked what it is.
    fn open(&mut self) {
        let (hello, heard, epoch) = (self.guest.agent(), Instant::now(), self.life.epoch());
        let link = self.link.clone();
        self.door.send_replace(Door::Open { epoch, link, hello: Box::new(hello), heard });
        let guest = self.guest.clone();
        self.kernel = Some(Box::pin(async move {
            let facts = tokio::time::timeout(FACTS, guest.facts()).await;
            facts.ok().and_then(Result::ok).map(|facts| text::printable(&facts.kernel))
        }));
    }

    fn is_ready(&self, kernel: Option<String>) {
        let (agent, boot) = (text::printable(&self.guest.agent().build), self.life.boot());
        self.board.set(|status| {
            status.state = MachineState::Ready;
            (status.boot, status.why) = (boot, None);
            status.kernel = kernel;
            status.agent = Some(agent);
            status.transport = Some(self.link.transport().to_string());
        });
    }
}

/// How a machine of ours ended; never for another.
async fn ended(lease: Option<&Lease>) -> Ending {
    match lease {
        Some(lease) => lease.machine.ended().await,
        None => pending().await,
    }
}

async fn or_never<T>(future: &mut Option<Pending<T>>) -> T {
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
