//! Durations as people write them: `90s`, `5m`, `1h30m`, `250ms`, or a bare number of seconds as timeout(1) has it.

use std::time::Duration;

/// The units, with their length in milliseconds.
const UNITS: [(&str, u64); 5] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// Reads a duration.
///
/// # Errors
/// A sentence, if the text is not a duration, is zero, or is too long to count.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let syntax =
        || format!("'{text}' is not a duration: write a number and a unit, for example 90s, 5m or 1h30m");
    if let Ok(seconds) = text.parse() {
        return nonzero(Duration::from_secs(seconds));
    }
    let mut total_ms = 0_u64;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(syntax)?;
        let (number, tail) = rest.split_at(digits);
        let unit_len = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_len);
        let (_, ms) = UNITS.into_iter().find(|(name, _)| *name == unit).ok_or_else(syntax)?;
        let number: u64 = number.parse().map_err(|_| syntax())?;
        total_ms = number.checked_mul(ms).and_then(|part| total_ms.checked_add(part)).ok_or_else(syntax)?;
        rest = tail;
    }
    nonzero(Duration::from_millis(total_ms))
}

fn nonzero(duration: Duration) -> Result<Duration, String> {
    if duration.is_zero() {
        Err("a duration of nothing leaves no time to run".to_owned())
    } else {
        Ok(duration)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_add_up() {
        assert_eq!(parse("90"), Ok(Duration::from_secs(90)));
        assert_eq!(parse("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(parse("2d1s"), Ok(Duration::from_secs(172_801)));
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "0",
            "0s",
            "s",
            "5x",
            "-5s",
            "5 s",
            "5m3",
            "1.5h",
            "99999999999999999999s",
            "9999999999999999d",
        ] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }
}
