//! How fast the host's time stamp counter counts. A guest under TCG has it as its own, and would have to measure it in its
//! first milliseconds; on a host that keeps it waiting it gets that wrong, and its clock with it (one went 26 times too
//! fast). So it is told (`tsc_early_khz`, Linux `Documentation/admin-guide/kernel-parameters.txt`).

use crate::dirs::Dirs;
use crate::recall;
use crate::sys;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How long it is measured for.
const SPAN: Duration = Duration::from_millis(50);

/// So often clock and counter are read together; the closest pair counts.
const READS: usize = 20;

/// What was measured, and on what.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Remembered {
    cpu: String,
    khz: u64,
}

/// In the cache folder.
const REMEMBERED: &str = "tsc.json";

/// How fast it counts, in kHz, to the next MHz: hosts of one kind are to agree, and Linux finds out the rest by itself.
/// Measured once for a CPU, then remembered, so that a machine's kernel is always told the same. None where there is no
/// such counter.
pub fn tsc_khz(dirs: &Dirs, cpu: &str) -> Option<u64> {
    let known = recall::recall(dirs, REMEMBERED);
    if let Some(known) = known.filter(|known: &Remembered| known.cpu == cpu) {
        return Some(known.khz);
    }
    let khz = measure()?;
    recall::keep(dirs, REMEMBERED, &Remembered { cpu: cpu.to_owned(), khz });
    Some(khz)
}

fn measure() -> Option<u64> {
    let (began, first) = read()?;
    std::thread::sleep(SPAN);
    let (ended, last) = read()?;
    let micros = ended.checked_sub(began)?.as_micros();
    let mhz = u128::from(last.checked_sub(first)?).checked_add(micros / 2)?.checked_div(micros)?;
    u64::try_from(mhz).ok()?.checked_mul(1000)
}

/// The raw clock (clock_gettime(2), CLOCK_MONOTONIC_RAW) and the counter, read as close together as they came.
fn read() -> Option<(Duration, u64)> {
    let pairs = (0..READS).filter_map(|_| {
        let before = sys::raw_clock()?;
        let counter = sys::counter()?;
        let after = sys::raw_clock()?;
        Some((after.checked_sub(before)?, before, counter))
    });
    pairs.min().map(|(took, before, counter)| (before + took / 2, counter))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_measured_is_steady_and_remembered() {
        let home = tempfile::tempdir().unwrap();
        let dirs = Dirs::below(home.path());
        let khz = tsc_khz(&dirs, "this").unwrap();
        assert!((100_000..20_000_000).contains(&khz), "{khz}");
        let again = measure().unwrap();
        assert!(khz.abs_diff(again) <= 1000, "{khz} {again}");
        std::fs::write(dirs.cache.join(REMEMBERED), r#"{"cpu": "this", "khz": 7}"#).unwrap();
        assert_eq!(tsc_khz(&dirs, "this"), Some(7));
        assert!(tsc_khz(&dirs, "another").unwrap() > 7);
    }
}
