//! What can go wrong with a request to Consul, sorted by what it means for a write.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use crate::consul::http::authorities::UntrustedAuthority;
use crate::domain::backoff;
use crate::domain::consul::record::Answer;
use crate::domain::text::{chain, one_line};

/// Longest text of Consul's that is kept in an error, in bytes: its own sentences are
/// below 300, and a message has to fit in a Kubernetes Event's note (1 kB).
const MAX_MESSAGE: usize = 500;

/// Least time between two attempts to get a token: Consul is asked with a refused token once a
/// back-off by each record, and each refusal leads here; a new token every 3 s is more often
/// than anything rotates them.
pub(in crate::consul) const MIN_RENEWAL_INTERVAL: Duration = Duration::from_secs(3);

/// Largest token file: a Kubernetes service-account token is about 1 kB, one with many claims
/// some kB; HTTP servers limit a header to 8 kB and more.
pub(in crate::consul) const MAX_TOKEN_FILE: u64 = 64 << 10;

/// Why a request to Consul did not succeed. The variants follow `Answer`: what matters is
/// whether the request may have been applied and whether sending it again is of use.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// HTTP 400 or 500 for a reason that lies in the content of the request, in Consul's own words.
    #[error("{request}: Consul refuses it (HTTP {status}): {message}")]
    Refused {
        /// Method and path.
        request: String,
        /// The HTTP status.
        status: u16,
        /// Consul's words.
        message: String,
    },
    /// HTTP 403: the token is unknown or lacks a right.
    #[error("{request}: Consul denies it: {message}")]
    Denied {
        /// Method and path.
        request: String,
        /// Consul's words.
        message: String,
    },
    /// HTTP 409: no operation of the transaction was applied.
    #[error("{request}: the transaction was rolled back: {}", first(errors))]
    RolledBack {
        /// Method and path.
        request: String,
        /// Why, by operation.
        errors: Vec<OperationError>,
    },
    /// HTTP 413: the body or the number of operations is over Consul's limit.
    #[error("{request}: too large for Consul: {message}")]
    TooLarge {
        /// Method and path.
        request: String,
        /// Consul's words.
        message: String,
    },
    /// HTTP 429 or 503: a rate limit. Nothing was applied.
    #[error("{request}: Consul is busy (HTTP {status}): {message}")]
    Busy {
        /// Method and path.
        request: String,
        /// The HTTP status.
        status: u16,
        /// Consul's words.
        message: String,
        /// How long `Retry-After` asks to wait: what stands before Consul may say so.
        retry_after: Option<Duration>,
    },
    /// HTTP 500 for want of a leader or of a way to it, or 502/504 from a proxy. What goes
    /// through the servers' log may have been applied.
    #[error("{request}: no Consul server could serve it (HTTP {status}): {message}")]
    NoQuorum {
        /// Method and path.
        request: String,
        /// The HTTP status.
        status: u16,
        /// Consul's words.
        message: String,
    },
    /// HTTP 500 for a reason that is not known here: a disk that is full, a bug. What goes through
    /// the servers' log may have been applied.
    #[error("{request}: Consul fails (HTTP {status}): {message}")]
    Failing {
        /// Method and path.
        request: String,
        /// The HTTP status.
        status: u16,
        /// Consul's words.
        message: String,
    },
    /// A status that Consul does not give here, or a 400 in words that are not Consul's: it is
    /// something else that answers, for example a proxy, or plain HTTP came to a TLS port.
    #[error(
        "{request}: expected an answer of Consul's API, found HTTP {status}: {message}; \
         check the address and its path prefix"
    )]
    Unexpected {
        /// Method and path.
        request: String,
        /// The HTTP status.
        status: u16,
        /// The body's beginning.
        message: String,
    },
    /// No connection came about: surely nothing was sent.
    #[error("{request}: no connection to Consul at {address}")]
    Unreachable {
        /// Method and path.
        request: String,
        /// Where it was tried.
        address: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// One of several addresses leads to another datacenter than the one that answered first: nothing was
    /// sent there.
    #[error("Consul at {address}: expected datacenter {expected:?}, found {found:?}")]
    OtherDatacenter {
        /// The address.
        address: String,
        /// The datacenter of the address that answered first.
        expected: String,
        /// That of this one.
        found: String,
    },
    /// The deadline passed or the connection broke after sending: it may still be applied.
    #[error("{request}: no answer from Consul")]
    Unanswered {
        /// Method and path.
        request: String,
        /// Why.
        source: reqwest::Error,
    },
    /// A success whose body is not what Consul's API describes.
    #[error("{request}: the answer is not what Consul's API describes: {reason}")]
    Garbled {
        /// Method and path.
        request: String,
        /// What was expected and what was found.
        reason: String,
    },
    /// There is no token to send.
    #[error("no token for Consul")]
    Token(#[source] TokenError),
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The token file, or the bearer token's.
    #[error("cannot read the token file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A token file that cannot hold one.
    #[error("token file {}: expected text of at most {MAX_TOKEN_FILE} bytes, found {found}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong, without the content.
        found: &'static str,
    },
    /// An attempt failed a moment ago; the next one waits.
    #[error("the last attempt to get one failed less than {MIN_RENEWAL_INTERVAL:?} ago")]
    TooSoon,
    /// Consul does not let us log in.
    #[error("cannot log in to Consul's auth method {auth_method:?}")]
    Login {
        /// The auth method.
        auth_method: String,
        /// Why.
        source: Box<Error>,
    },
}

/// Why one operation made its transaction roll back.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct OperationError {
    /// Position of the operation in the transaction, from 0.
    #[serde(rename = "OpIndex")]
    pub index: usize,
    /// Consul's words.
    #[serde(rename = "What", deserialize_with = "deserialize_text")]
    pub message: String,
}

/// What kind of failure an [`OperationError`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperationFailure {
    /// Check-and-set found another `ModifyIndex`.
    Stale,
    /// `check-session` found the lock in other hands or gone (invariant: fencing).
    Fenced,
    /// The token is unknown or lacks a right.
    Denied,
    /// Somebody else's node has the name that the operation wants.
    Foreign,
    /// It lies in the operation's content.
    Refused,
    /// Anything else: it lies in the state of Consul.
    Failed,
}

/// How a write reaches what it changes: it decides what a missing quorum means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// The agent's own state: a failure for want of a quorum changed nothing.
    Agent,
    /// The servers' log: a failure for want of a quorum may come after the entry was appended.
    Servers,
}

/// What a status and a body mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Refused,
    Failing,
    Denied,
    RolledBack,
    TooLarge,
    Busy,
    NoQuorum,
    Unexpected,
}

/// How Consul's words begin where a request's content is at fault, also behind
/// [`FORWARDED`]. Seen on 1.20.1, and the same on 1.8.7, there with status 500. Nothing else makes a
/// record refused: what is not known here may pass.
const CONTENT: [&str; 14] = [
    "Request decode failed: ",
    "Failed to parse body: ",
    "Missing service name",
    "Invalid service address",
    "Invalid Service Meta",
    "Invalid Node Meta",
    "Invalid Weights: ",
    "Invalid check: ",
    "Status for checks must",
    "Must provide ",
    "Bad node ID: ",
    "unknown KV operation",
    "Invalid check \"",
    "Failed to create boolean expression evaluator",
];

/// What a server's words have before them where another one forwarded the request.
const FORWARDED: &str = "rpc error making call: ";

/// How a body that did not arrive whole is reported: that is not its content's fault.
const BROKEN_OFF: &str = "unexpected EOF";

/// Texts of a 500 that mean a missing right, also behind `rpc error making call: `.
const DENIALS: [&str; 3] = ["Permission denied", "ACL not found", "Forbidden"];

/// Texts of a 500 that mean that no server could serve the request.
const NO_QUORUM: [&str; 11] = [
    "No cluster leader",
    "Raft leader not found",
    "leadership transfer in progress",
    "snapshot restored while committing log",
    "No known Consul servers",
    "No path to datacenter",
    "rpc error",
    "leadership lost",
    "node is not the leader",
    "raft is already shutdown",
    "timed out",
];

// === impl Error ===

impl Error {
    /// The error that an answer other than a success is. `body` is its (bounded) beginning.
    pub(in crate::consul) fn of_answer(request: String, status: u16, body: &[u8]) -> Self {
        let message = clean(&String::from_utf8_lossy(body));
        match classify(status, &message) {
            Class::Refused => Error::Refused { request, status, message },
            Class::Denied => Error::Denied { request, message },
            Class::RolledBack => match serde_json::from_slice::<Rollback>(body) {
                Ok(Rollback { errors }) if !errors.is_empty() => {
                    Error::RolledBack { request, errors }
                }
                _ => Error::Unexpected { request, status, message },
            },
            Class::TooLarge => Error::TooLarge { request, message },
            Class::Busy => Error::Busy { request, status, message, retry_after: None },
            Class::NoQuorum => Error::NoQuorum { request, status, message },
            Class::Failing => Error::Failing { request, status, message },
            Class::Unexpected => {
                let message =
                    if body.trim_ascii().is_empty() { "an empty body".to_owned() } else { message };
                Error::Unexpected { request, status, message }
            }
        }
    }

    /// The same, with what its header `Retry-After` says.
    pub(in crate::consul) fn with_retry_after(mut self, header: Option<&str>) -> Self {
        if let Error::Busy { retry_after, .. } = &mut self {
            *retry_after = header.and_then(backoff::retry_after);
        }
        self
    }

    /// The error that a failed exchange is.
    pub(in crate::consul) fn of_exchange(
        request: String,
        address: String,
        error: reqwest::Error,
    ) -> Self {
        // The URL is dropped: `request` names it.
        let source = error.without_url();
        if source.is_connect() || source.is_builder() {
            let source = match UntrustedAuthority::find(&source) {
                Some(untrusted) => untrusted.into(),
                None => source.into(),
            };
            Error::Unreachable { request, address, source }
        } else {
            Error::Unanswered { request, source }
        }
    }

    /// The error that an answer is whose body broke off.
    pub(in crate::consul) fn of_broken(request: String, error: reqwest::Error) -> Self {
        Error::Unanswered { request, source: error.without_url() }
    }

    /// Whether a new token could help.
    pub(in crate::consul) fn is_denied(&self) -> bool {
        match self {
            Error::Denied { .. } => true,
            Error::RolledBack { errors, .. } => {
                errors.iter().any(|error| error.failure() == OperationFailure::Denied)
            }
            _ => false,
        }
    }

    /// Whether the agent says that it has no such service. Not every 404 does: a proxy in
    /// between gives one too.
    pub(in crate::consul) fn is_unknown_service(&self) -> bool {
        matches!(self, Error::Unexpected { status: 404, message, .. }
            if message.to_ascii_lowercase().starts_with("unknown service"))
    }

    /// Consul's words, where it answered with an error.
    pub(in crate::consul) fn message(&self) -> Option<&str> {
        match self {
            Error::Refused { message, .. }
            | Error::Denied { message, .. }
            | Error::TooLarge { message, .. }
            | Error::Busy { message, .. }
            | Error::NoQuorum { message, .. }
            | Error::Failing { message, .. }
            | Error::Unexpected { message, .. } => Some(message),
            _ => None,
        }
    }

    /// Whether the agent says that it has no such check (before Consul 1.11 with a 500).
    pub(in crate::consul) fn is_unknown_check(&self) -> bool {
        self.message().is_some_and(|it| it.to_ascii_lowercase().contains("unknown check"))
    }

    /// Whether Consul does not know the token at all: it ran out or was deleted.
    pub fn is_unknown_token(&self) -> bool {
        matches!(self, Error::Denied { message, .. } if message.contains("ACL not found"))
    }

    /// What this means for a single write.
    pub fn answer(&self, reach: Reach) -> Answer {
        let text = self.chain();
        match self {
            Error::Refused { .. } | Error::TooLarge { .. } => Answer::Refused(text),
            // Consul was not asked for the write at all, and may not have been there to ask.
            Error::Token(TokenError::TooSoon)
            | Error::Busy { .. }
            | Error::Unexpected { .. }
            | Error::Unreachable { .. }
            | Error::OtherDatacenter { .. } => Answer::Failed(text),
            Error::Token(TokenError::Login { source, .. }) if source.is_transient() => {
                Answer::Failed(text)
            }
            Error::Denied { .. } | Error::Token(_) => Answer::Denied(text),
            Error::RolledBack { errors, .. } => match errors.first() {
                Some(error) => error.answer(),
                None => Answer::Failed(text),
            },
            Error::NoQuorum { .. } | Error::Failing { .. } => match reach {
                Reach::Agent => Answer::Failed(text),
                Reach::Servers => Answer::Unanswered(text),
            },
            Error::Unanswered { .. } | Error::Garbled { .. } => Answer::Unanswered(text),
        }
    }

    /// Whether the same request to the agent may succeed in a while.
    pub fn is_transient(&self) -> bool {
        match self {
            Error::Token(TokenError::Login { source, .. }) => source.is_transient(),
            Error::Token(TokenError::TooSoon) => true,
            other => {
                matches!(other.answer(Reach::Agent), Answer::Failed(_) | Answer::Unanswered(_))
            }
        }
    }

    /// Whether the content of the request is at fault: the same again fails again.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Error::Refused { .. })
    }

    /// Whether Consul says that it takes no more at the moment.
    pub fn is_busy(&self) -> bool {
        matches!(self, Error::Busy { .. })
    }

    /// How long Consul asks to be left alone.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Error::Busy { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Whether the connection broke, or nothing came in time.
    pub fn is_unanswered(&self) -> bool {
        matches!(self, Error::Unanswered { .. })
    }

    /// Whether no server could serve the request.
    pub(in crate::consul) fn lacks_quorum(&self) -> bool {
        matches!(self, Error::NoQuorum { .. })
    }

    /// Whether nobody answered.
    pub(in crate::consul) fn is_silence(&self) -> bool {
        matches!(self, Error::Unreachable { .. } | Error::Unanswered { .. })
    }

    /// The message with those of its sources, for where only text can go.
    pub fn chain(&self) -> String {
        let mut text = chain(self);
        // In rustls' words: what came was no TLS.
        if text.contains("InvalidContentType") {
            text.push_str(" (the port does not speak TLS: is it that of plain HTTP?)");
        }
        text
    }
}

// === impl OperationError ===

impl OperationError {
    /// What kind of failure it is, by Consul's words (the API has nothing else to go by). They
    /// may quote a name that an annotation gave: what stands there says nothing.
    pub fn failure(&self) -> OperationFailure {
        let message = &self.message;
        if message.ends_with("index is stale") {
            OperationFailure::Stale
        } else if message.starts_with("failed session check")
            || message.starts_with("failed to check session")
        {
            OperationFailure::Fenced
        } else if DENIALS.iter().any(|denial| message.contains(denial)) {
            OperationFailure::Denied
        } else if message.contains("is reserved by node") {
            OperationFailure::Foreign
        } else if is_content(message) {
            OperationFailure::Refused
        } else {
            OperationFailure::Failed
        }
    }

    /// What it means for the record whose operation it is.
    pub fn answer(&self) -> Answer {
        match self.failure() {
            OperationFailure::Stale => Answer::Conflict,
            OperationFailure::Fenced => Answer::Fenced,
            OperationFailure::Denied => Answer::Denied(self.message.clone()),
            OperationFailure::Foreign => Answer::Foreign(self.message.clone()),
            OperationFailure::Refused => Answer::Refused(self.message.clone()),
            OperationFailure::Failed => Answer::Failed(self.message.clone()),
        }
    }
}

#[derive(Deserialize)]
struct Rollback {
    #[serde(rename = "Errors")]
    errors: Vec<OperationError>,
}

/// What a status other than success means, by the answers that the tests list: the status alone
/// does not tell, a 500 may be a missing leader, a missing right or an invalid field.
fn classify(status: u16, message: &str) -> Class {
    let says = |texts: &[&str]| texts.iter().any(|text| message.contains(text));
    match status {
        403 => Class::Denied,
        409 => Class::RolledBack,
        413 => Class::TooLarge,
        429 | 503 => Class::Busy,
        400 | 500 if is_content(message) => Class::Refused,
        500 if says(&DENIALS) => Class::Denied,
        500 if says(&NO_QUORUM) => Class::NoQuorum,
        500 => Class::Failing,
        502 | 504 => Class::NoQuorum,
        _ => Class::Unexpected,
    }
}

/// Whether Consul says of a request's content that it is at fault.
fn is_content(message: &str) -> bool {
    let mut words = message;
    while let Some(rest) = words.strip_prefix(FORWARDED) {
        words = rest;
    }
    CONTENT.iter().any(|text| words.starts_with(text)) && !words.contains(BROKEN_OFF)
}

/// Text from the network on one line, at most [`MAX_MESSAGE`] long.
fn clean(text: &str) -> String {
    match text.trim() {
        "" => "no reason given".to_owned(),
        text => one_line(text, MAX_MESSAGE),
    }
}

fn deserialize_text<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    String::deserialize(deserializer).map(|text| clean(&text))
}

fn first(errors: &[OperationError]) -> String {
    errors.first().map_or_else(
        || "no reason given".to_owned(),
        |error| format!("operation {}: {}", error.index, error.message),
    )
}

#[cfg(test)]
mod tests;
