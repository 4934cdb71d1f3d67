//! The host's wall clock, as events and the protocol count it.

use std::time::{SystemTime, UNIX_EPOCH};

/// The host's clock, microseconds since 1970.
pub fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
