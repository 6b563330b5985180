//! Untrusted text and errors of others, made fit for one line of a log.

use std::error::Error;
use std::fmt::Write as _;

/// Longest text of others that is passed on: an API server's message fits, a page of HTML does
/// not.
const TEXT_BYTES: usize = 512;

/// `text` on one line, without control characters, of at most `bytes` bytes (and an ellipsis).
pub fn one_line(text: &str, bytes: usize) -> String {
    let mut line = String::with_capacity(text.len().min(bytes) + 3);
    for c in text.chars() {
        let c = if c.is_control() { ' ' } else { c };
        if line.len() + c.len_utf8() > bytes {
            line.push('…');
            break;
        }
        line.push(c);
    }
    line
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
    one_line(&text, TEXT_BYTES)
}

/// What the Kubernetes client failed with, as one line.
pub fn failure(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => {
            let text = format!("HTTP {} {}: {}", status.code, status.reason, status.message);
            one_line(&text, TEXT_BYTES)
        }
        // The message may quote the body: only where it went wrong is told.
        kube::Error::SerdeError(error) => {
            format!(
                "the response is not the JSON that was expected (line {}, column {})",
                error.line(),
                error.column()
            )
        }
        kube::Error::Service(error) => chain(&**error),
        kube::Error::ReadEvents(error) => {
            let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<kube::Error>());
            inner.map_or_else(|| chain(error), failure)
        }
        other => chain(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_others_is_one_short_line() {
        assert_eq!(one_line("a\nb\u{1b}[31m", 80), "a b [31m");
        assert_eq!(one_line("äöü", 4), "äö…");
        assert_eq!(one_line("äöü", 6), "äöü");
    }

    #[test]
    fn a_repeated_source_is_told_once() {
        let io = std::io::Error::new(std::io::ErrorKind::ConnectionRefused, "refused");
        let error = kube::Error::ReadEvents(io);
        assert_eq!(chain(&error), "Error reading events stream: refused");
    }
}
