//! Text for people: what others wrote on one line and bounded, and counts.

use std::borrow::Cow;
use std::error::Error;
use std::fmt::Write as _;

/// Longest chain of errors, in bytes: a reason of Consul or of the API server fits with what was
/// asked, a page of HTML does not.
const CHAIN_BYTES: usize = 1 << 10;

/// Longest excerpt, in characters: a value fits a line beside what is said of it.
const EXCERPT_CHARS: usize = 80;

/// `text` on one line, without control characters and whatever else is not seen, of at most `bytes`
/// bytes (and an ellipsis).
pub fn one_line(text: &str, bytes: usize) -> String {
    let mut line = String::with_capacity(text.len().min(bytes) + 3);
    for c in text.chars() {
        let c = if is_unseen(c) { ' ' } else { c };
        if line.len() + c.len_utf8() > bytes {
            line.push('…');
            break;
        }
        line.push(c);
    }
    line
}

/// Whether it moves a terminal's cursor, ends a line, or turns around or hides what is beside it.
pub fn is_unseen(c: char) -> bool {
    let is_format = matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}');
    c.is_control() || is_format
}

/// Text in which what a terminal acts on beyond ASCII, or does not show, is written as JSON writes it,
/// for example U+009B as `\u009b`. What JSON itself escapes is left to it; in JSON such characters stand
/// in strings alone, so that a parser reads what it read before.
pub fn escape_unseen(text: &str) -> Cow<'_, str> {
    let is_escaped = |c: char| c >= '\u{7f}' && is_unseen(c);
    if !text.contains(is_escaped) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_escaped(c) {
            // All of them are of 16 bits. Writing to a String cannot fail.
            let _ = write!(escaped, "\\u{:04x}", u32::from(c));
        } else {
            escaped.push(c);
        }
    }
    Cow::Owned(escaped)
}

/// What is shown of a value that may be anything: its first 80 characters. Quote it.
pub fn excerpt(text: &str) -> String {
    let mut shown: String = text.chars().take(EXCERPT_CHARS).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
}

/// An error and its sources as one line, each message once: many errors repeat their source.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let message = source.to_string();
        if !text.contains(&message) {
            // Writing to a String cannot fail.
            let _ = write!(text, ": {message}");
        }
        next = source.source();
    }
    one_line(&text, CHAIN_BYTES)
}

/// How many there are of what has a regular plural.
pub fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// A truth value as Go's `strconv.ParseBool` reads it, which Consul's command and consul-k8s use.
pub fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot list: {0}")]
    struct Repeating(#[source] std::io::Error);

    #[test]
    fn text_of_others_is_one_short_line() {
        assert_eq!(one_line("a\nb\u{1b}[31m", 80), "a b [31m");
        assert_eq!(one_line("a\u{9b}31m\u{202e}b\u{2028}c", 80), "a 31m b c");
        assert_eq!(one_line("äöü", 4), "äö…");
        assert_eq!(one_line("äöü", 6), "äöü");
        assert_eq!(excerpt(&"ä".repeat(80)), "ä".repeat(80));
        assert_eq!(excerpt(&"ä".repeat(81)).chars().count(), 81);
    }

    #[test]
    fn json_means_the_same_and_does_nothing_to_a_terminal() {
        let hostile = "a\u{9b}31m\u{85}\u{7f}\u{202e}\u{2066}\u{feff}\u{200b}\n\tä\u{1b}[0m";
        for json in [
            serde_json::to_string(hostile).unwrap(),
            serde_json::to_string_pretty(&[hostile, "b"]).unwrap(),
        ] {
            let escaped = escape_unseen(&json);
            let of_json = |c: char| c == '\n';
            assert!(!escaped.contains(|c| is_unseen(c) && !of_json(c)), "{escaped:?}");
            let read = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
            assert_eq!(read(&escaped), read(&json));
        }
        assert!(matches!(escape_unseen("{\"ä\": \"…\"}\n"), Cow::Borrowed(_)));
    }

    #[test]
    fn a_repeated_source_is_told_once() {
        let io = std::io::Error::new(std::io::ErrorKind::ConnectionRefused, "refused");
        assert_eq!(chain(&Repeating(io)), "cannot list: refused");
    }
}
