//! Whether the guest owes a sign of life, and since when: without a clock or I/O; the task feeds it and does what it
//! answers.
//!
//! The guest is not to blame for the time that bytes of ours wait to be written, if they are taken at last: on a slow
//! line it cannot answer what has not reached it.

use std::time::Duration;
use tokio::time::Instant;

/// Said nothing for so long with something outstanding, the guest is asked for a sign of life.
const QUIET: Duration = Duration::from_secs(2);

/// A sign of life that is overdue for so long is looked into, and again.
const OVERDUE: Duration = Duration::from_secs(30);
const OVERDUE_AGAIN: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Debug)]
pub(super) struct Silence {
    /// When the guest was last heard, or had nothing to say.
    heard: Instant,
    /// Since when it owes a sign of life.
    asked: Option<Instant>,
    /// When its silence was last looked into.
    looked: Option<Instant>,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Ask for a sign of life.
    Ask,
    /// It is overdue for so long: is the guest busy, or dead?
    LookInto(Duration),
    /// Nothing yet.
    Wait,
}

impl Silence {
    pub(super) fn new(now: Instant) -> Self {
        Self { heard: now, asked: None, looked: None }
    }

    /// The guest was heard, or owes nothing from now on.
    pub(super) fn end(&mut self, now: Instant) {
        *self = Self::new(now);
    }

    /// Bytes for the guest could not be written for so long, and now they could.
    pub(super) fn excuse(&mut self, stood: Duration, now: Instant) {
        let moments = [Some(&mut self.heard), self.asked.as_mut(), self.looked.as_mut()];
        for moment in moments.into_iter().flatten() {
            *moment = (*moment + stood).min(now);
        }
    }

    /// Since when the guest owes a sign of life; none when it owes none.
    pub(super) fn since(&self) -> Option<Instant> {
        self.asked
    }

    /// When to look next.
    pub(super) fn next(&self) -> Instant {
        match (self.asked, self.looked) {
            (None, _) => self.heard + QUIET,
            (Some(asked), None) => asked + OVERDUE,
            (Some(_), Some(looked)) => looked + OVERDUE_AGAIN,
        }
    }

    /// Something is outstanding: looks at the clock.
    pub(super) fn look(&mut self, now: Instant) -> Next {
        if now < self.next() {
            return Next::Wait;
        }
        match self.asked {
            None => {
                self.asked = Some(now);
                Next::Ask
            }
            Some(asked) => {
                self.looked = Some(now);
                Next::LookInto(now.duration_since(asked))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_quiet_guest_is_asked_and_then_looked_into() {
        let began = Instant::now();
        let mut silence = Silence::new(began);
        assert_eq!((silence.look(began + SECOND), silence.next()), (Next::Wait, began + QUIET));
        let asked = began + QUIET;
        assert_eq!((silence.look(asked), silence.next()), (Next::Ask, asked + OVERDUE));
        assert_eq!((silence.look(asked), silence.since()), (Next::Wait, Some(asked)));
        let overdue = asked + OVERDUE;
        let again = overdue + OVERDUE_AGAIN;
        assert_eq!((silence.look(overdue), silence.next()), (Next::LookInto(OVERDUE), again));
        assert_eq!(silence.look(again), Next::LookInto(OVERDUE + OVERDUE_AGAIN));
        silence.end(again);
        assert_eq!((silence.since(), silence.next()), (None, again + QUIET));
    }

    #[test]
    fn the_time_our_own_bytes_waited_is_not_the_guests() {
        let began = Instant::now();
        let mut silence = Silence::new(began);
        let asked = began + QUIET;
        assert_eq!(silence.look(asked), Next::Ask);
        // A line that takes a piece every ten seconds, for five minutes.
        for piece in 1..=30 {
            let now = asked + 10 * piece * SECOND;
            silence.excuse(10 * SECOND, now);
            assert_eq!((silence.look(now), silence.next()), (Next::Wait, now + OVERDUE));
        }
        let drained = asked + 300 * SECOND;
        assert_eq!(silence.look(drained + OVERDUE), Next::LookInto(OVERDUE));
    }

    #[test]
    fn no_excuse_reaches_into_the_future() {
        let began = Instant::now();
        let mut silence = Silence::new(began + SECOND);
        let now = began + 2 * SECOND;
        silence.excuse(5 * SECOND, now);
        assert_eq!((silence.look(now), silence.next()), (Next::Wait, now + QUIET));
    }
}
