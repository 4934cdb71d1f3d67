//! One channel of a client, and what was granted on it both ways.
//!
//! ```text
//! granted by the client:  owed ── passed on ──> lent ── data comes ──> queued ── written ──> granted again
//! ```

use super::Opening;
use crate::supervise::budget::{Budget, SHARE};
use guestline_protocol::SendCredit;

/// See the module.
#[derive(Debug)]
pub(super) struct Proxied {
    pub(super) opening: Opening,
    /// What the guest granted the client.
    pub(super) send: SendCredit,
    /// The client sends so many bytes in all. It says so as a message, which may come before the data.
    pub(super) total: Option<u64>,
    /// Granted by the client: not passed on yet; passed on, and nothing has come for it; has come and is not written.
    pub(super) owed: u64,
    pub(super) lent: u64,
    pub(super) queued: u64,
    /// The last two may be so much more than [`SHARE`]: taken from the pool and kept to the end, for a guest that was
    /// granted much at first waits for much.
    pub(super) pooled: u64,
    /// Its last reply has come, or its session is over.
    has_ended: bool,
}

impl Proxied {
    pub(super) fn new(opening: Opening) -> Self {
        Self {
            opening,
            send: SendCredit::default(),
            total: None,
            owed: 0,
            lent: 0,
            queued: 0,
            pooled: 0,
            has_ended: false,
        }
    }

    /// What the guest may be granted now.
    pub(super) fn pass_on(&mut self, budget: &Budget) -> u32 {
        let wanted = self.owed.min(u32::MAX.into());
        let own = (SHARE + self.pooled).saturating_sub(self.lent + self.queued);
        let more = budget.take(wanted.saturating_sub(own));
        let granted = wanted.min(own + more);
        // Each grant is a message: what is little waits for more.
        if granted < wanted && granted < SHARE / 4 {
            budget.give_back(more);
            return 0;
        }
        self.pooled += more;
        self.lent += granted;
        self.owed -= granted;
        u32::try_from(granted).unwrap_or(u32::MAX)
    }

    /// Nothing more comes.
    pub(super) fn end(&mut self, budget: &Budget) {
        (self.owed, self.lent, self.has_ended) = (0, 0, true);
        self.settle(budget);
    }

    /// Gives back what is not needed any more, and lets those know who may wait for it.
    pub(super) fn settle(&mut self, budget: &Budget) {
        if self.has_ended {
            let surplus = self.pooled.saturating_sub(self.queued);
            self.pooled -= surplus;
            budget.give_back(surplus);
        }
        budget.announce();
    }
}
