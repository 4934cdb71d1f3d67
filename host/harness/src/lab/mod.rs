//! What the command `guest` reaches while an attempt runs: its machines, the other sides of the test, its log and its
//! verdict. `docs/guest.md` has the protocol.
//!
//! ```text
//! script on the host ── socket ──> serve(Side::Host) ───┐
//!                                                       ├──> Lab ──> Guest (machines), Board (meetings, values, verdict)
//! script in a guest ── link ── socket ──> serve(Side::Guest) ┘    └──> Announce, log lines: to the executor
//! ```
//! Each side has a socket of its own, in a folder that only this user can enter: which side asks is known by the socket,
//! never by what is said. A guest is not trusted: its side can do nothing to machines, all that it says is bounded, and
//! nothing of it keeps others waiting. What is decided is decided in [`Board`], without I/O; every wait ends when its
//! time is over, its client hangs up, it has become hopeless, or the attempt ends.

mod board;
pub mod copy;
mod error;
mod exec;
mod inside;
mod lines;
mod power;
mod replies;
mod server;
mod session;
mod wait;

pub use board::{Board, BoardError, Progress, Ticket, Verdict};
pub use error::LabError;
pub use inside::{GUEST_FOLDER, enter};
pub use server::serve;

use guestline::guest::Guest;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// Log lines that wait for their reader; then who says more waits.
const LINES: usize = 256;

/// One of those that carry out a test.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// The script on the host.
    Host,
    /// A script in the machine of this name.
    Guest(String),
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("host"),
            Self::Guest(machine) => f.write_str(machine),
        }
    }
}

/// What a test has said that it will do to a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// It reboots.
    Reboot,
    /// It has rebooted, and its agent answers: another reboot is none of the test's.
    Back,
    /// It powers off.
    PowerOff,
}

/// Who has to tell what a test did from what happened to it.
pub trait Announce: Send + Sync {
    /// Comes before the machine is asked; does not block.
    fn announce(&self, machine: &str, what: Expected);
}

/// Tells nobody.
impl Announce for () {
    fn announce(&self, _machine: &str, _what: Expected) {}
}

/// A line of the test's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// Who said it.
    pub side: Side,
    /// One line, at most [`guestline_guest::protocol::MAX_VALUE`] bytes; to be escaped before it is shown.
    pub text: String,
}

/// The machines of one attempt, and what its sides have to tell each other.
pub struct Lab {
    machines: BTreeMap<String, Guest>,
    board: Mutex<Board>,
    changed: watch::Sender<()>,
    /// Machines that have ended, and how.
    gone: watch::Sender<BTreeMap<String, String>>,
    announce: Arc<dyn Announce>,
    log: mpsc::Sender<LogLine>,
}

impl fmt::Debug for Lab {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lab").field("board", &self.board()).finish_non_exhaustive()
    }
}

impl Lab {
    /// For these machines by name, and these sides; with it, what is said in the log.
    pub fn new(
        machines: impl IntoIterator<Item = (String, Guest)>,
        sides: impl IntoIterator<Item = Side>,
        announce: Arc<dyn Announce>,
    ) -> (Arc<Self>, mpsc::Receiver<LogLine>) {
        let (log, lines) = mpsc::channel(LINES);
        let board = Mutex::new(Board::new(sides));
        let machines = machines.into_iter().collect();
        let (changed, gone) = (watch::Sender::new(()), watch::Sender::default());
        (Arc::new(Self { machines, board, changed, gone, announce, log }), lines)
    }

    /// The verdict that a side has given, and which side.
    pub fn verdict(&self) -> Option<(Side, Verdict)> {
        self.board().verdict().cloned()
    }

    /// A side has done all that it will: who waits for it at a meeting point waits in vain.
    pub fn side_ended(&self, side: &Side) {
        self.change(|board| board.side_ended(side));
    }

    /// A machine has ended, in these words, as in "the guest panicked": what is asked of it is not waited for any more. The
    /// link to one that was stopped does not end by itself.
    pub fn machine_ended(&self, machine: &str, how: &str) {
        self.gone.send_modify(|gone| {
            gone.entry(machine.to_owned()).or_insert_with(|| how.to_owned());
        });
    }

    /// Waits until a machine has ended.
    async fn gone(&self, machine: &str) -> LabError {
        let mut gone = self.gone.subscribe();
        loop {
            if let Some(how) = gone.borrow_and_update().get(machine) {
                return LabError::MachineEnded { machine: machine.to_owned(), how: how.clone() };
            }
            // The sender lives as long as this.
            let _ = gone.changed().await;
        }
    }

    /// The names of the machines.
    fn names(&self) -> Vec<String> {
        self.machines.keys().cloned().collect()
    }

    /// The machine of this name; without one, the only one.
    fn machine(&self, name: Option<&str>) -> Result<(&str, &Guest), LabError> {
        let found = match name {
            Some(name) => {
                let found = self.machines.get_key_value(name);
                found.ok_or_else(|| LabError::NoMachine {
                    name: name.to_owned(),
                    names: self.names(),
                })?
            }
            None => match (self.machines.first_key_value(), self.machines.len()) {
                (Some(found), 1) => found,
                (None, _) => return Err(LabError::NoMachines),
                _ => return Err(LabError::WhichMachine { names: self.names() }),
            },
        };
        Ok((found.0, found.1))
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut Board) -> T) -> T {
        let changed = change(&mut self.board());
        self.changed.send_replace(());
        changed
    }

    /// Says something in the log; waits while its reader is behind.
    async fn say(&self, side: &Side, text: &str) {
        for line in text.lines() {
            let line = LogLine { side: side.clone(), text: line.to_owned() };
            // Without a reader there is nobody to tell.
            let _ = self.log.send(line).await;
        }
    }

    /// Waits at a meeting point for all sides.
    async fn sync(&self, side: &Side, name: &str, limit: Duration) -> Result<(), LabError> {
        let mut changed = self.changed.subscribe();
        let ticket = self.change(|board| board.arrive(side, name))?;
        // Whatever ends the wait: who is not there any more must not let others through.
        let here = Here { lab: self, ticket };
        let meeting = async {
            loop {
                match self.board().progress(&here.ticket) {
                    Progress::Met => return Ok(()),
                    Progress::Hopeless(why) => return Err(LabError::Hopeless { why }),
                    Progress::Waiting => {}
                }
                // The sender lives as long as this.
                let _ = changed.changed().await;
            }
        };
        match tokio::time::timeout(limit, meeting).await {
            Ok(met) => met,
            Err(_) => {
                let missing = self.board().missing(&here.ticket);
                Err(LabError::NotMet { name: name.to_owned(), limit, missing })
            }
        }
    }

    /// Waits for a value.
    async fn value(&self, key: &str, limit: Duration) -> Result<Vec<u8>, LabError> {
        let mut changed = self.changed.subscribe();
        let waiting = async {
            loop {
                match self.board().value(key) {
                    Ok(Some(value)) => return Ok(value.to_vec()),
                    Ok(None) => {}
                    Err(why) => return Err(LabError::Hopeless { why }),
                }
                let _ = changed.changed().await;
            }
        };
        match tokio::time::timeout(limit, waiting).await {
            Ok(value) => value,
            Err(_) => Err(LabError::NoValue { key: key.to_owned(), limit }),
        }
    }
}

/// Somebody at a meeting point; leaves it when this is dropped.
struct Here<'a> {
    lab: &'a Lab,
    ticket: Ticket,
}

impl Drop for Here<'_> {
    fn drop(&mut self) {
        self.lab.change(|board| board.withdraw(&self.ticket));
    }
}
