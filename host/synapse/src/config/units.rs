//! Sizes and lengths of time as people write them: a whole number and a unit.
//!
//! A number without a unit is refused, for nobody remembers which unit was meant. This module must not know which key
//! it reads for.

use std::time::Duration;

const SIZES: [(&str, u64); 9] = [
    ("B", 1),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

/// In microseconds.
const TIMES: [(&str, u64); 6] =
    [("us", 1), ("ms", 1_000), ("s", 1_000_000), ("m", 60_000_000), ("h", 3_600_000_000), ("d", 86_400_000_000)];

/// Reads `64 MiB` or `500KB` into bytes.
///
/// # Errors
/// What is wrong, to be said after the value: `has no unit; …`.
pub(super) fn size(text: &str) -> Result<u64, String> {
    number_with_unit(text, &SIZES, "a size", "64 MiB")
}

/// Reads `100ms` or `7 d`.
///
/// # Errors
/// What is wrong, to be said after the value: `has no unit; …`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    number_with_unit(text, &TIMES, "a time", "100ms").map(Duration::from_micros)
}

/// The size in the largest unit that divides it, as this module reads it.
pub(super) fn size_text(bytes: u64) -> String {
    text_in_largest(bytes, &SIZES, " ", "B")
}

/// The time in the largest unit that divides it, as this module reads it.
pub(super) fn duration_text(time: Duration) -> String {
    text_in_largest(u64::try_from(time.as_micros()).unwrap_or(u64::MAX), &TIMES, "", "s")
}

fn number_with_unit(text: &str, units: &[(&str, u64)], what: &str, example: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = (&text[..digits], text[digits..].trim_start());
    let names = || units.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    if digits == 0 || unit.starts_with(['.', ',', '_']) {
        return Err(format!("is not {what}; write a whole number and a unit, for example \"{example}\""));
    }
    if unit.is_empty() {
        return Err(format!("has no unit; write a unit, for example \"{example}\""));
    }
    let Some((_, factor)) = units.iter().find(|(name, _)| *name == unit) else {
        return Err(match units.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)) {
            Some((name, _)) => format!("has an unknown unit; did you mean \"{name}\"?"),
            None => format!("has an unknown unit; the units of {what} are {}", names()),
        });
    };
    let number: Option<u64> = number.parse().ok();
    number.and_then(|number| number.checked_mul(*factor)).ok_or_else(|| "is too large".to_owned())
}

fn text_in_largest(number: u64, units: &[(&str, u64)], space: &str, unit_of_zero: &str) -> String {
    let largest = units.iter().filter(|(_, factor)| number.is_multiple_of(*factor)).max_by_key(|(_, factor)| *factor);
    match largest {
        Some((name, factor)) if number > 0 => format!("{}{space}{name}", number / factor),
        _ => format!("{number}{space}{unit_of_zero}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn people_write_numbers_with_units() {
        assert_eq!(size("64 MiB"), Ok(67_108_864));
        assert_eq!(size("10 GiB"), Ok(10 << 30));
        assert_eq!(size("500KB"), Ok(500_000));
        assert_eq!(size("0 B"), Ok(0));
        assert_eq!(duration("100ms"), Ok(Duration::from_millis(100)));
        assert_eq!(duration("2s"), Ok(Duration::from_secs(2)));
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(duration(" 7 d "), Ok(Duration::from_secs(7 * 86_400)));
    }

    #[test]
    fn other_writings_are_refused_with_a_hint() {
        let refused = |text: &str| duration(text).unwrap_err();
        assert_eq!(refused("100"), "has no unit; write a unit, for example \"100ms\"");
        assert_eq!(refused("soon"), "is not a time; write a whole number and a unit, for example \"100ms\"");
        assert_eq!(refused("0.5s"), "is not a time; write a whole number and a unit, for example \"100ms\"");
        assert_eq!(refused("-1s"), "is not a time; write a whole number and a unit, for example \"100ms\"");
        assert_eq!(refused("3 weeks"), "has an unknown unit; the units of a time are us, ms, s, m, h, d");
        assert_eq!(refused("99999999999999999999d"), "is too large");
        assert_eq!(size("18446744073709551615 KiB").unwrap_err(), "is too large");
        assert_eq!(size("64 mib").unwrap_err(), "has an unknown unit; did you mean \"MiB\"?");
    }

    proptest! {
        #[test]
        fn written_numbers_read_back(number: u64) {
            prop_assert_eq!(size(&size_text(number)), Ok(number));
            let time = Duration::from_micros(number);
            prop_assert_eq!(duration(&duration_text(time)), Ok(time));
        }

        #[test]
        fn no_text_panics(text in ".{0,40}") {
            let _ = (size(&text), duration(&text));
        }
    }
}
