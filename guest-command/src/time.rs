//! Times as people write them: 90, 90s, 500ms, 1.5m, 2h.

/// Milliseconds.
pub(crate) fn parse_ms(text: &str) -> Option<u64> {
    let (number, unit) =
        [("ms", 1.0), ("s", 1e3), ("m", 60e3), ("h", 3600e3), ("d", 86_400e3), ("", 1e3)]
            .into_iter()
            .find_map(|(unit, ms)| Some((text.strip_suffix(unit)?, ms)))?;
    match number.parse::<f64>().ok()? * unit {
        ms @ 1.0..=1e10 => Some(ms as u64),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (text, ms) in [
            ("90", Some(90_000)),
            ("500ms", Some(500)),
            ("1.5m", Some(90_000)),
            ("2d", Some(172_800_000)),
            ("", None),
            ("0", None),
            ("-1", None),
            ("5x", None),
            ("1e99", None),
            ("NaN", None),
        ] {
            assert_eq!(parse_ms(text), ms, "{text}");
        }
    }
}
