//! What flags take as values: words of an enumeration, durations.

use std::str::FromStr;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};

/// One of the words of an enumeration, which completions and help list.
pub(super) fn word<T>(words: &'static [&'static str]) -> impl TypedValueParser<Value = T>
where
    T: FromStr<Err: std::error::Error + Send + Sync> + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(words).try_map(|word| word.parse::<T>())
}

/// Longest duration that is taken: clocks can still count with a hundred times that.
pub(super) const LONGEST: Duration = Duration::from_hours(366 * 24);

/// A duration as people write it: `500ms`, `10s`, `1m30s`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let found = || format!("expected a duration such as 500ms, 10s or 1m30s, found {text:?}");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let signed: jiff::SignedDuration = text.parse().map_err(|_| found())?;
    let duration = signed.try_into().map_err(|_| found())?;
    if duration > LONGEST {
        return Err(format!(
            "expected at most {} days, found {text:?}",
            LONGEST.as_secs() / 86_400
        ));
    }
    Ok(duration)
}
