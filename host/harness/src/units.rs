//! Times and sizes as people write them.

use guestline::machine::MEMORY_MIB;
use std::time::Duration;

/// A time: 90, 90s, 500ms, 1.5m, 2h, 1d.
///
/// # Errors
/// What is wanted, in words.
pub fn time(text: &str) -> Result<Duration, String> {
    let (number, unit_ms) =
        [("ms", 1.0), ("s", 1e3), ("m", 60e3), ("h", 3600e3), ("d", 86_400e3), ("", 1e3)]
            .into_iter()
            .find_map(|(unit, ms)| Some((text.strip_suffix(unit)?, ms)))
            .unwrap_or((text, 1e3));
    let number: f64 = number.parse().map_err(|_| "want a number, perhaps with ms, s, m, h or d")?;
    let ms = number * unit_ms;
    match ms {
        1.0..=1e10 => Ok(Duration::from_secs_f64(ms / 1e3)),
        _ => Err("want a time from 1 ms to a hundred days".to_owned()),
    }
}

/// The memory of a machine, MiB: 512, 512M, 2G.
///
/// # Errors
/// What is wanted, in words.
pub fn memory(text: &str) -> Result<u64, String> {
    match mib(text)? {
        mib if MEMORY_MIB.contains(&mib) => Ok(mib),
        _ => Err("want 32M to 262144G".to_owned()),
    }
}

/// A size, MiB.
///
/// # Errors
/// What is wanted, in words.
pub fn mib(text: &str) -> Result<u64, String> {
    let (number, unit) = [("G", 1024), ("GiB", 1024), ("M", 1), ("MiB", 1), ("", 1)]
        .into_iter()
        .find_map(|(unit, mib)| Some((text.strip_suffix(unit)?, mib)))
        .unwrap_or((text, 1));
    let number: u64 = number.parse().map_err(|_| "want a number, perhaps with M or G")?;
    Ok(number.saturating_mul(unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes() {
        assert_eq!(time("90"), Ok(Duration::from_secs(90)));
        assert_eq!(time("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(time("1.5m"), Ok(Duration::from_secs(90)));
        assert_eq!(time("2d"), Ok(Duration::from_secs(172_800)));
        for wrong in ["", "0", "-1", "x", "5x", "1e99", "NaN"] {
            assert!(time(wrong).is_err(), "{wrong}");
        }
        assert_eq!(memory("64G"), Ok(65536));
        assert_eq!(memory("512"), Ok(512));
        assert_eq!(memory("1GiB"), Ok(1024));
        for wrong in ["", "1", "-5", "x", "18446744073709551615G"] {
            assert!(memory(wrong).is_err(), "{wrong}");
        }
    }
}
