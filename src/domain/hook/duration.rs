//! Durations as Go's `time.ParseDuration` reads them, which the hook's users write.

use std::time::Duration;

/// Nanoseconds of each unit. The micro sign has two code points.
const UNITS: [(&str, u128); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// A duration such as `1h2m3.5s`, `.5s` or `1.s`; a negative one is none at all. `None` where it
/// is not one, or longer than Go's 292 years.
pub fn parse(text: &str) -> Option<Duration> {
    let (negative, mut rest) = match text.strip_prefix(['-', '+']) {
        Some(rest) => (text.starts_with('-'), rest),
        None => (false, text),
    };
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total: u128 = 0;
    while !rest.is_empty() {
        let number = leading(rest, |c| c.is_ascii_digit() || c == '.');
        let unit = leading(&rest[number.len()..], |c| !c.is_ascii_digit() && c != '.');
        rest = &rest[number.len() + unit.len()..];
        let (_, scale) = UNITS.iter().find(|(name, _)| *name == unit)?;
        total = total.checked_add(scaled(number, *scale)?)?;
    }
    let nanos = i64::try_from(total).ok()?.unsigned_abs();
    Some(if negative { Duration::ZERO } else { Duration::from_nanos(nanos) })
}

fn leading(text: &str, belongs: impl Fn(char) -> bool) -> &str {
    &text[..text.find(|c| !belongs(c)).unwrap_or(text.len())]
}

/// A decimal number, of which either side of the point may be missing, times `scale`.
fn scaled(number: &str, scale: u128) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return None;
    }
    let digits = |text: &str| if text.is_empty() { Some(0) } else { text.parse::<u128>().ok() };
    // More digits than a nanosecond of an hour has do not count.
    let fraction = &fraction[..fraction.len().min(15)];
    let of_fraction = digits(fraction)? * scale / 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    digits(whole)?.checked_mul(scale)?.checked_add(of_fraction)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each value run through Go 1.26.
    #[test]
    fn h10_durations_are_gos() {
        for (text, nanos) in [
            ("0", 0),
            ("+0", 0),
            ("-0", 0),
            (".5s", 500_000_000),
            ("1.s", 1_000_000_000),
            ("+5s", 5_000_000_000),
            ("5m0s", 300_000_000_000),
            ("1h2m3.5s", 3_723_500_000_000),
            ("1m1m", 120_000_000_000),
            ("500us", 500_000),
            ("500µs", 500_000),
            ("500μs", 500_000),
            ("7ns", 7),
            ("0.0000000001s", 0),
            ("0.33333333333333333333h", 1_199_999_999_999),
            ("-5s", 0),
        ] {
            assert_eq!(parse(text), Some(Duration::from_nanos(nanos)), "{text}");
        }
        for text in [
            "",
            "-",
            "+",
            "5",
            "s",
            ".s",
            "1..s",
            "1.2.3s",
            "1d",
            "5 s",
            " 5s",
            "5S",
            "1m30",
            "--5s",
            "99999999h",
            "1e3s",
            "0x5s",
            "٣s",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
