//! Errors of the Kubernetes client, made fit for one line of a log.

use crate::domain::text::{chain, one_line};

/// Longest message of the API server that is passed on, in bytes: its own fit, a page of HTML
/// does not.
const MESSAGE_BYTES: usize = 512;

/// What the API server answered with, as one line.
pub fn status_line(code: u16, reason: &str, message: &str) -> String {
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
