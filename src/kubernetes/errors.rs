//! Errors of the Kubernetes client, made fit for one line of a log.

use crate::domain::text::{chain, one_line};

/// Longest message of the API server that is passed on, in bytes: its own fit, a page of HTML
/// does not.
const MESSAGE_BYTES: usize = 512;

/// What the client gives as the reason where the body is no Status of the API.
const NOT_A_STATUS: &str = "Failed to parse error data";

/// What the API server answered with, as one line.
pub fn status_line(code: u16, reason: &str, message: &str) -> String {
    if reason == NOT_A_STATUS {
        let message = message.trim();
        let line =
            format!("HTTP {code}, not in the API server's own words (a proxy's?): {message}");
        return one_line(&line, MESSAGE_BYTES);
    }
    let space = if reason.is_empty() { "" } else { " " };
    one_line(&format!("HTTP {code}{space}{reason}: {}", message.trim()), MESSAGE_BYTES)
}

/// What the Kubernetes client failed with, as one line.
pub fn failure(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status_line(status.code, &status.reason, &status.message),
        // The message may quote the body: only where it went wrong is reported.
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
    fn what_a_proxy_says_is_told_as_that() {
        let line = status_line(500, NOT_A_STATUS, "dial tcp 10.0.0.1:443: connection refused\n");
        let expected = "HTTP 500, not in the API server's own words (a proxy's?): dial tcp 10.0.0.1:443: \
                        connection refused";
        assert_eq!(line, expected);
        assert_eq!(status_line(403, "Forbidden", "no "), "HTTP 403 Forbidden: no");
    }
}
