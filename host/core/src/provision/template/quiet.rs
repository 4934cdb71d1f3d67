//! When a machine that is up is quiet: what its boot began is done, and it waits. Synchronous, fed with samples.
//!
//! Quiet is a guest whose CPUs, with all of QEMU, took at most a tenth of the time for [`STILL`] in a row. What never comes
//! to rest is taken as it is after [`PATIENCE`]; the template's record says so.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// It is quiet when it was still for so long.
pub(in crate::provision) const STILL: Duration = Duration::from_millis(15);

/// So long is it waited for at most.
pub(in crate::provision) const PATIENCE: Duration = Duration::from_secs(10);

/// Between two samples.
pub(in crate::provision) const SAMPLE: Duration = Duration::from_millis(5);

/// A machine of which samples are taken.
#[derive(Debug, Default)]
pub(in crate::provision) struct Quiet {
    /// When, and how long QEMU had run by then.
    samples: VecDeque<(Instant, Duration)>,
}

impl Quiet {
    /// Takes a sample: QEMU has run for so long in all. True when the machine is quiet.
    pub(in crate::provision) fn on_sample(&mut self, at: Instant, ran: Duration) -> bool {
        self.samples.push_back((at, ran));
        // One that is old enough is kept to compare with.
        while self.samples.get(1).is_some_and(|(second, _)| at.duration_since(*second) >= STILL) {
            self.samples.pop_front();
        }
        let Some((first, before)) = self.samples.front() else { return false };
        let took = at.duration_since(*first);
        took >= STILL && ran.saturating_sub(*before) <= took / 10
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The number of the sample at which it was quiet: one every 5 ms, each telling how much of them QEMU ran, in µs.
    fn quiet_at(busy_us: &[u64]) -> Option<usize> {
        let (began, mut quiet, mut ran) = (Instant::now(), Quiet::default(), Duration::ZERO);
        busy_us.iter().enumerate().position(|(number, busy)| {
            ran += Duration::from_micros(*busy);
            let at = began + SAMPLE * u32::try_from(number).unwrap();
            quiet.on_sample(at, ran)
        })
    }

    #[test]
    fn still_for_long_enough_is_quiet() {
        assert_eq!(quiet_at(&[0; 4]), Some(3));
        assert_eq!(quiet_at(&[0; 3]), None);
        assert_eq!(quiet_at(&[5000; 100]), None);
        // A tenth is allowed, more is not.
        assert_eq!(quiet_at(&[400; 10]), Some(3));
        assert_eq!(quiet_at(&[600; 10]), None);
    }

    #[test]
    fn a_burst_begins_it_anew() {
        let mut busy = [0; 20];
        busy[2] = 4000;
        assert_eq!(quiet_at(&busy), Some(5));
    }
}
