//! The guest's wall clock.

use super::{invalid, refused};
use crate::linux::clock_us;
use guestline_protocol::{RemoteError, SetClockRequest, SetClockResponse};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};
use std::time::Duration;

/// The beginning of 2200, microseconds since 1970.
const END_US: u64 = 7_258_118_400_000_000;

/// Sets `CLOCK_REALTIME`, and says what it was just before.
///
/// # Errors
/// Invalid for a time that is 1970 itself or not before 2200; else what the kernel says (`EPERM`).
pub(crate) fn set(request: &SetClockRequest) -> Result<SetClockResponse, RemoteError> {
    let wanted = request.clock_us;
    if wanted == 0 || wanted >= END_US {
        return Err(invalid(format!(
            "a wall clock of {wanted} µs since 1970 is not between 1970 and 2200"
        )));
    }
    let time = TimeSpec::from_duration(Duration::from_micros(wanted));
    let before_us = clock_us();
    clock_settime(ClockId::CLOCK_REALTIME, time)
        .map_err(|errno| refused(&format!("wall clock to {wanted} µs since 1970"), errno))?;
    Ok(SetClockResponse { before_us })
}

#[cfg(test)]
mod tests {
    use super::*;
    use guestline_protocol::ErrorKind;

    #[test]
    fn nonsense_is_refused_before_the_kernel_sees_it() {
        for clock_us in [0, END_US, u64::MAX] {
            let error = set(&SetClockRequest { clock_us }).unwrap_err();
            assert_eq!((error.kind, error.errno), (ErrorKind::Invalid, None));
            assert!(error.message.contains(&clock_us.to_string()), "{}", error.message);
        }
    }
}
