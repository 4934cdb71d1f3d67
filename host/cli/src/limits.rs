//! How long things may take on this host as it is now.

use guestline::machine::Accel;
use std::time::Duration;

/// Default limits where KVM runs the guest's code.
const CHECK: Duration = Duration::from_secs(60);
const BOOT: Duration = Duration::from_secs(120);

/// Limits are longer by this under TCG.
const TCG_FACTOR: f64 = 1.5;

/// Limits are longer by at most this on a loaded host.
const MAX_LOAD_FACTOR: f64 = 4.0;

/// How long a boot may take.
pub(crate) fn boot_limit(accel: Accel) -> Duration {
    BOOT.mul_f64(limit_factor(accel))
}

/// How long a test, or a line of a set-up, may take.
pub(crate) fn check_limit(accel: Accel) -> Duration {
    CHECK.mul_f64(limit_factor(accel))
}

fn limit_factor(accel: Accel) -> f64 {
    let accelerator = if accel == Accel::Tcg { TCG_FACTOR } else { 1.0 };
    accelerator * load_factor()
}

/// How many runnable processes wait for each core (proc_loadavg(5)), from 1 to [`MAX_LOAD_FACTOR`].
fn load_factor() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load: f64 = text.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(0.0);
    (load / cores() as f64).clamp(1.0, MAX_LOAD_FACTOR)
}

/// How many cores this process may use.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// As a job has it.
pub(crate) fn ms(limit: Duration) -> u64 {
    u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)
}
