//! The machines of a job, from the first of its tests to the last that may have them.

use super::attempt::Attempt;
use super::judge::Finding;
use super::leftovers::Leftovers;
use super::place::{Place, Places};
use guestline::provision::LeaseError;
use guestline::supervise::MachineName;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// The machines of a job, and their place among the tests of the run.
#[derive(Debug, Default)]
pub(super) struct Seat {
    pub(super) places: Places,
    /// Held while a test runs in them.
    turn: Option<OwnedSemaphorePermit>,
    /// Taken once: they are kept between tests.
    has_cores: bool,
    /// Other tests are to have them.
    is_shared: bool,
    /// How they were before the first test.
    before: Option<Leftovers>,
}

impl Seat {
    /// Of a job with so many tests; its machines are not there yet.
    pub(super) fn of(tests: usize) -> Self {
        Self { is_shared: tests > 1, ..Self::default() }
    }

    /// Takes the machines away; others come in their place for the next test.
    pub(super) fn cleared(&mut self) -> Self {
        let fresh = Self { is_shared: self.is_shared, ..Self::default() };
        std::mem::replace(self, fresh)
    }

    /// Waits for a place among the tests of this run, and for cores of the host. Cancel safe.
    pub(super) async fn place(&mut self, places: &Arc<Semaphore>) -> Result<(), LeaseError> {
        if self.turn.is_some() {
            return Ok(());
        }
        // Closed by nobody.
        let turn = places.clone().acquire_owned().await.ok();
        // Of several machines the first one's: who waits for more while it has some may be waited for itself.
        if let Some((_, Place::Machine(lease))) = self.places.machines.first_mut()
            && !self.has_cores
        {
            lease.take_cores().await?;
            self.has_cores = true;
        }
        self.turn = turn;
        Ok(())
    }

    /// A machine that ended while nobody was looking.
    pub(super) async fn ended_meanwhile(&self) -> Option<Finding> {
        for (_, place) in &self.places.machines {
            if place.lease().is_some_and(|lease| lease.machine.has_ended()) {
                return Some(Finding::MachineEnded(place.ended().await));
            }
        }
        None
    }

    /// Takes down how the machine is before its first test, if others are to follow.
    pub(super) async fn look(&mut self) {
        if let Some(place) = self.places.first().filter(|_| self.is_shared) {
            self.before = Leftovers::of(place.guest()).await.ok().flatten();
        }
    }

    /// The test has left nothing behind in the machine.
    pub(super) async fn is_as_it_was(&self, cancel: &CancellationToken) -> bool {
        let (Some(before), [(_, place)]) = (&self.before, &self.places.machines[..]) else {
            return false;
        };
        tokio::select! {
            is_same = before.is_all_there_is(place.guest()) => is_same,
            _ = place.ended() => false,
            () = cancel.cancelled() => false,
        }
    }

    /// Gives the place among the tests to others.
    pub(super) fn rest(&mut self) {
        self.turn = None;
    }

    /// Ends the machines; their consoles are evidence. What could not be kept is told.
    pub(super) async fn end(self, attempt: &mut Attempt) -> Option<Finding> {
        let mut trouble = None;
        for (name, place) in self.places.machines {
            let Place::Machine(lease) = place else { continue };
            let remains = lease.end().await;
            attempt.console.extend(remains.console);
            let Some(folder) = &attempt.folder else { continue };
            let name = name.as_ref().map(MachineName::as_str);
            let adopted = folder.adopt(&remains.folder.path().join("console.log"), name);
            if let Err(error) = remains.console_error.map_or(adopted, Err) {
                trouble.get_or_insert(Finding::Evidence { path: attempt.folder_shown(), error });
            }
        }
        attempt.console.sort_by_key(|line| line.at);
        trouble
    }
}
