//! The edge between a sidecar and the daemon of its node: gRPC, plaintext, compatible with
//! katalog-sync's in both directions (`katalogsync.proto`).
//!
//! | file | what it is |
//! |---|---|
//! | [`address`] | where a daemon listens: TCP, or a unix socket |
//! | [`server`] | the daemon's side: each request is a value over a bounded channel |
//! | `connections` | its connections, bounded in number, by address and in silence |
//! | [`client`] | the sidecar's side |
//! | `generated` | what is generated of the .proto, checked in: nobody needs a `protoc` |
//!
//! # How a daemon uses it
//!
//! ```ignore
//! let listener = Listener::bind(&options.bind_address).await?;      // an error is exit code 2
//! let (requests, asked) = mpsc::channel(server::QUEUE);
//! let served = tokio::spawn(server::serve(listener, requests, shutdown));
//! loop { tokio::select! { Some(request) = asked.recv() => ..., } }  // the loop that owns the state
//! ```
//!
//! - [`SyncRequest::kind`] and [`SyncRequest::caller`] say what is wanted for which pod; the loop
//!   keeps [`SyncRequest::reply`] beside the pod's state and sends `Ok(())` once the *catalog* shows
//!   it, or a [`SyncError`](crate::domain::sidecar::SyncError) at once.
//! - `reply.is_closed()` (or awaiting `reply.closed()`): nobody waits any more, because the client
//!   went, its deadline or [`server::DEADLINE`] passed. What was asked for stays asked for; only the
//!   reply can be forgotten. Requests under way are bounded by [`server::MAX_REQUESTS`].
//! - The same request may come again and again, also while an older one waits.
//! - While the pods of the node are not listed yet the answer is `Unavailable`, never `UnknownPod`:
//!   a sidecar that deregisters takes that one for the end of its work.
//! - A reply that is dropped is answered with `Unavailable`.

pub mod address;
pub mod client;
mod connections;
#[allow(missing_docs, clippy::all, clippy::pedantic, reason = "generated")]
#[rustfmt::skip]
mod generated;
pub mod server;

#[cfg(test)]
mod tests;

use tonic::{Code, Status};

use crate::domain::sidecar::SyncError;

pub use self::server::SyncRequest;

/// What the error of a pod whose containers are not ready begins with; the code does not tell it.
const NOT_READY: &str = "not ready";

impl From<SyncError> for Status {
    fn from(error: SyncError) -> Self {
        let code = match &error {
            SyncError::UnknownPod(_) => Code::NotFound,
            SyncError::NoSidecar(_) => Code::FailedPrecondition,
            // Katalog-sync's code for it.
            SyncError::NotReady(_) | SyncError::Other(_) => Code::Unknown,
            SyncError::Unavailable(_) => Code::Unavailable,
            SyncError::Exhausted(_) => Code::ResourceExhausted,
            SyncError::DeadlineExceeded(_) => Code::DeadlineExceeded,
        };
        let message = match &error {
            SyncError::NotReady(why) => format!("{NOT_READY}: {why}"),
            other => other.to_string(),
        };
        Status::new(code, message)
    }
}

impl From<Status> for SyncError {
    fn from(status: Status) -> Self {
        let message = status.message().to_owned();
        match status.code() {
            Code::NotFound => Self::UnknownPod(message),
            Code::FailedPrecondition => Self::NoSidecar(message),
            Code::Unavailable => Self::Unavailable(message),
            Code::ResourceExhausted => Self::Exhausted(message),
            // Which one it is depends on which side's clock is faster.
            Code::DeadlineExceeded | Code::Cancelled => Self::DeadlineExceeded(message),
            Code::Unknown => match message.strip_prefix(NOT_READY) {
                Some(why) => Self::NotReady(why.trim_start_matches([':', ' ']).to_owned()),
                None => Self::Other(message),
            },
            code => Self::Other(format!("{code:?}: {message}")),
        }
    }
}
