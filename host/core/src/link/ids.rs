//! Numbers of channels: each is free again when nobody holds it, neither the caller nor the session.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Channels of the session's own task have this bit; callers' have not.
pub(super) const OWN: u32 = 0x8000_0000;

/// The numbers of one link.
#[derive(Debug, Default)]
pub(super) struct ChannelIds(Mutex<Ids>);

#[derive(Debug, Default)]
struct Ids {
    last: u32,
    live: HashSet<u32>,
}

/// A number that nobody else has. Dropping it gives it back.
#[derive(Debug)]
pub(super) struct ChannelId {
    number: u32,
    ids: Arc<ChannelIds>,
}

impl ChannelIds {
    /// One that is not in use: the next, as far as that goes.
    pub(super) fn take(self: &Arc<Self>) -> ChannelId {
        let mut ids = self.lock();
        loop {
            // 0 is the guest's own.
            ids.last = match ids.last + 1 {
                OWN.. => 1,
                next => next,
            };
            let number = ids.last;
            if ids.live.insert(number) {
                return ChannelId { number, ids: self.clone() };
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Ids> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ChannelId {
    pub(super) fn number(&self) -> u32 {
        self.number
    }
}

impl Drop for ChannelId {
    fn drop(&mut self) {
        self.ids.lock().live.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_wrap_below_the_tasks_own_and_pass_over_what_is_in_use() {
        let ids = Arc::new(ChannelIds::default());
        let (first, second) = (ids.take(), ids.take());
        assert_eq!((first.number(), second.number()), (1, 2));
        ids.lock().last = OWN - 2;
        let last = ids.take();
        assert_eq!(last.number(), OWN - 1);
        drop(first);
        let numbers: Vec<u32> = [ids.take(), ids.take()].iter().map(ChannelId::number).collect();
        assert_eq!(numbers, [1, 3]);
    }
}
