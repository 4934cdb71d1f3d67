//! What the clients of one machine may hold of the supervisor's memory, all together.
//!
//! ```text
//! channels   MAX_CHANNELS at once, each with a share of its own     16 MiB
//! pool       for channels that move much: half of what is left      24 MiB
//! messages   that clients have not taken                            16 MiB, and a little for each client
//! ```
//! Whoever does not take what was granted keeps it from the pool, and nobody from their shares.

use guestline_protocol::MAX_CHANNELS;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// Data that every channel may have under way, bytes: more than the longest record of a log, which is sent whole.
pub(super) const SHARE: u64 = 64 * 1024;

const POOL: u64 = 24 * 1024 * 1024;

/// Messages that wait for all clients, and for one, bytes; and what one may have when all is taken.
const ALL_MESSAGES: usize = 16 * 1024 * 1024;
const MESSAGES: usize = 4 * 1024 * 1024;
const LEAST_MESSAGES: usize = 64 * 1024;

/// See the module.
#[derive(Debug)]
pub(super) struct Budget {
    taken: Mutex<Taken>,
    freed: watch::Sender<()>,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Taken {
    channels: usize,
    pool: u64,
    messages: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self { taken: Mutex::default(), freed: watch::channel(()).0 }
    }
}

impl Budget {
    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A channel more, if there may be one.
    pub(super) fn open_channel(&self) -> bool {
        let mut taken = self.taken();
        let fits = taken.channels < MAX_CHANNELS;
        taken.channels += usize::from(fits);
        fits
    }

    pub(super) fn close_channel(&self) {
        let mut taken = self.taken();
        taken.channels = taken.channels.saturating_sub(1);
    }

    /// Of the pool, bytes; at most half of what is left, so that who comes next gets some.
    pub(super) fn take(&self, wanted: u64) -> u64 {
        let mut taken = self.taken();
        let got = wanted.min(POOL.saturating_sub(taken.pool) / 2);
        taken.pool += got;
        got
    }

    pub(super) fn give_back(&self, bytes: u64) {
        let mut taken = self.taken();
        taken.pool = taken.pool.saturating_sub(bytes);
    }

    /// A message of so many bytes waits for a client, `own` bytes of them then. False when these are too many.
    pub(super) fn add_message(&self, len: usize, own: usize) -> bool {
        let mut taken = self.taken();
        taken.messages = taken.messages.saturating_add(len);
        own <= MESSAGES && (taken.messages <= ALL_MESSAGES || own <= LEAST_MESSAGES)
    }

    pub(super) fn drop_messages(&self, len: usize) {
        let mut taken = self.taken();
        taken.messages = taken.messages.saturating_sub(len);
    }

    /// Somebody who waits for credit may try again.
    pub(super) fn announce(&self) {
        self.freed.send_replace(());
    }

    /// Changes with every [`Budget::announce`].
    pub(super) fn freed(&self) -> watch::Receiver<()> {
        self.freed.subscribe()
    }

    #[cfg(test)]
    pub(super) fn is_untouched(&self) -> bool {
        *self.taken() == Taken::default()
    }

    #[cfg(test)]
    pub(super) fn pooled(&self) -> u64 {
        self.taken().pool
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_leaves_messages_lying_is_told_apart_from_who_has_few() {
        let budget = Budget::default();
        assert!(budget.add_message(MESSAGES, MESSAGES));
        assert!(!budget.add_message(1, MESSAGES + 1));
        budget.drop_messages(1);
        for _ in 0..3 {
            assert!(budget.add_message(MESSAGES, MESSAGES));
        }
        // All is taken by others.
        assert!(budget.add_message(1000, LEAST_MESSAGES));
        assert!(!budget.add_message(1000, LEAST_MESSAGES + 1));
        budget.drop_messages(2000 + 4 * MESSAGES);
        assert!(budget.is_untouched());
    }

    #[test]
    fn nobody_takes_all_of_the_pool() {
        let budget = Budget::default();
        let all = [(); 5].map(|()| budget.take(u64::MAX));
        assert_eq!(all, [2, 4, 8, 16, 32].map(|part| POOL / part));
        assert_eq!(budget.take(1000), 1000);
        budget.give_back(1000 + all.iter().sum::<u64>());
        assert!(budget.is_untouched());
    }

    #[test]
    fn a_machine_has_so_many_channels() {
        let budget = Budget::default();
        let opened = (0..1000).filter(|_| budget.open_channel()).count();
        assert_eq!(opened, MAX_CHANNELS);
        budget.close_channel();
        assert!(budget.open_channel() && !budget.open_channel());
    }
}
