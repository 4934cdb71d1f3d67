//! Where the sides of a test find each other: meeting points, values, and the verdict. No clock, no I/O.
//!
//! ```text
//! a meeting point   (nobody) ── arrive ──> waiting, some are here ── the last side arrives ──> met, and gone again
//!                       ^─────── withdraw, nobody is left ──┘
//! ```

use super::Side;
use guestline_guest::protocol::{MAX_KEYS, MAX_VALUE};
use std::collections::{BTreeMap, BTreeSet};

/// What a side has said of the whole test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It does not apply here.
    Skip {
        /// Why.
        reason: String,
    },
    /// It has failed.
    Fail {
        /// Why.
        reason: String,
    },
}

impl Verdict {
    fn in_words(&self) -> String {
        match self {
            Self::Skip { reason } => format!("skipped: {reason}"),
            Self::Fail { reason } => format!("failed: {reason}"),
        }
    }
}

/// Something does not go onto the board.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BoardError {
    /// One side alone cannot use up the host's memory.
    #[error("{what} is longer than {MAX_VALUE} bytes")]
    TooLong {
        /// What.
        what: &'static str,
    },
    /// Likewise.
    #[error("there are {MAX_KEYS} {what} already")]
    TooMany {
        /// Of what.
        what: &'static str,
    },
    /// Nobody would wait for it.
    #[error("`{side}` is no side of this test")]
    NoSide {
        /// Who.
        side: Side,
    },
}

/// Somebody's wait at a meeting point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ticket {
    name: String,
    side: Side,
    round: u64,
}

/// How a wait stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// Some are not there yet.
    Waiting,
    /// All were there.
    Met,
    /// Somebody will never come.
    Hopeless(String),
}

#[derive(Debug)]
struct Meeting {
    /// Tells this meeting from an earlier one of the same name.
    round: u64,
    /// So many waits of each side.
    here: BTreeMap<Side, usize>,
}

/// What the sides of one attempt tell each other.
#[derive(Debug)]
pub struct Board {
    sides: BTreeSet<Side>,
    ended: BTreeSet<Side>,
    meetings: BTreeMap<String, Meeting>,
    rounds: u64,
    values: BTreeMap<String, Vec<u8>>,
    verdict: Option<(Side, Verdict)>,
}

impl Board {
    /// For these sides.
    pub fn new(sides: impl IntoIterator<Item = Side>) -> Self {
        Self {
            sides: sides.into_iter().collect(),
            ended: BTreeSet::new(),
            meetings: BTreeMap::new(),
            rounds: 0,
            values: BTreeMap::new(),
            verdict: None,
        }
    }

    /// All sides.
    pub fn sides(&self) -> impl Iterator<Item = &Side> {
        self.sides.iter()
    }

    /// A side is at a meeting point. When it is the last one, all are let through.
    ///
    /// # Errors
    /// [`BoardError`].
    pub fn arrive(&mut self, side: &Side, name: &str) -> Result<Ticket, BoardError> {
        fits("the name of the meeting point", name.len())?;
        if !self.sides.contains(side) {
            return Err(BoardError::NoSide { side: side.clone() });
        }
        if !self.meetings.contains_key(name) && self.meetings.len() >= MAX_KEYS {
            return Err(BoardError::TooMany { what: "meeting points" });
        }
        let rounds = &mut self.rounds;
        let meeting = self.meetings.entry(name.to_owned()).or_insert_with(|| {
            *rounds += 1;
            Meeting { round: *rounds, here: BTreeMap::new() }
        });
        let round = meeting.round;
        *meeting.here.entry(side.clone()).or_default() += 1;
        if self.sides.iter().all(|side| meeting.here.contains_key(side)) {
            self.meetings.remove(name);
        }
        Ok(Ticket { name: name.to_owned(), side: side.clone(), round })
    }

    /// How a wait stands.
    pub fn progress(&self, ticket: &Ticket) -> Progress {
        // A meeting goes when all are there: whoever still holds a ticket for it was let through.
        let Some(meeting) = self.meeting(ticket) else { return Progress::Met };
        if let Some(why) = self.over() {
            return Progress::Hopeless(why);
        }
        let gone = self.ended.iter().find(|side| !meeting.here.contains_key(side));
        match gone {
            Some(side) => Progress::Hopeless(format!("`{side}` has ended, and will not come")),
            None => Progress::Waiting,
        }
    }

    /// Who is not there yet.
    pub fn missing(&self, ticket: &Ticket) -> Vec<Side> {
        let Some(meeting) = self.meeting(ticket) else { return Vec::new() };
        self.sides.iter().filter(|side| !meeting.here.contains_key(side)).cloned().collect()
    }

    /// A wait is over, however it ended.
    pub fn withdraw(&mut self, ticket: &Ticket) {
        let Some(meeting) = self.meetings.get_mut(&ticket.name) else { return };
        if meeting.round != ticket.round {
            return;
        }
        if let Some(waits) = meeting.here.get_mut(&ticket.side) {
            *waits -= 1;
            if *waits == 0 {
                meeting.here.remove(&ticket.side);
            }
        }
        if meeting.here.is_empty() {
            self.meetings.remove(&ticket.name);
        }
    }

    fn meeting(&self, ticket: &Ticket) -> Option<&Meeting> {
        self.meetings.get(&ticket.name).filter(|meeting| meeting.round == ticket.round)
    }

    /// Leaves a value, in place of one that was there.
    ///
    /// # Errors
    /// [`BoardError`].
    pub fn send(&mut self, key: &str, value: &[u8]) -> Result<(), BoardError> {
        fits("the key", key.len())?;
        fits("the value", value.len())?;
        if !self.values.contains_key(key) && self.values.len() >= MAX_KEYS {
            return Err(BoardError::TooMany { what: "keys" });
        }
        self.values.insert(key.to_owned(), value.to_vec());
        Ok(())
    }

    /// A value that is there.
    ///
    /// # Errors
    /// Why none will come.
    pub fn value(&self, key: &str) -> Result<Option<&[u8]>, String> {
        match (self.values.get(key), self.over()) {
            (Some(value), _) => Ok(Some(value)),
            (None, Some(why)) => Err(why),
            (None, None) => Ok(None),
        }
    }

    /// Records what a side says of the test. A failure outranks a skip; else the first word counts.
    ///
    /// # Errors
    /// [`BoardError`].
    pub fn record(&mut self, side: &Side, verdict: Verdict) -> Result<(), BoardError> {
        let (Verdict::Skip { reason } | Verdict::Fail { reason }) = &verdict;
        fits("the reason", reason.len())?;
        match (&self.verdict, &verdict) {
            (None, _) | (Some((_, Verdict::Skip { .. })), Verdict::Fail { .. }) => {
                self.verdict = Some((side.clone(), verdict));
            }
            _ => {}
        }
        Ok(())
    }

    /// What was said of the test, and by whom.
    pub fn verdict(&self) -> Option<&(Side, Verdict)> {
        self.verdict.as_ref()
    }

    /// A side comes to no meeting any more.
    pub fn side_ended(&mut self, side: &Side) {
        self.ended.insert(side.clone());
    }

    /// With a verdict there is nothing more to wait for.
    fn over(&self) -> Option<String> {
        let (side, verdict) = self.verdict.as_ref()?;
        Some(format!("`{side}` has ended the test: {}", verdict.in_words()))
    }
}

fn fits(what: &'static str, len: usize) -> Result<(), BoardError> {
    if len > MAX_VALUE { Err(BoardError::TooLong { what }) } else { Ok(()) }
}

#[cfg(test)]
mod tests;
