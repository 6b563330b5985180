//! What an answer proves (invariant: evidence): a failed, denied, filtered or partial read is
//! [`Unknown`], never empty.
//!
//! | answer | what is not in it |
//! |---|---|
//! | an error, or one that broke off | unknown |
//! | `X-Consul-Results-Filtered-By-ACLs` | unknown |
//! | empty, without a token, where Consul denies by default | unknown |
//! | streamed (a blocking query) | unknown: it wakes, and a plain read has to confirm it |
//! | a listing that lacks our marker | unknown, until [`resync`] has written the marker and seen it |
//! | whole, with the marker | absent |
//!
//! [`resync`]: crate::consul::coordination::resync

use crate::consul::http::client::Client;
use crate::consul::http::error::Error;
use crate::consul::http::request::{Request, encode_key};
use crate::consul::http::transport::{Evidence, Reply};

/// Why a read does not tell what there is. It removes nothing.
#[derive(Debug, thiserror::Error)]
pub enum Unknown {
    /// The request failed, or its answer was not whole.
    #[error("cannot read {what}")]
    Failed {
        /// What was read.
        what: &'static str,
        /// Why.
        source: Error,
    },
    /// The token's rights hide a part.
    #[error(
        "the token's rights hide a part of {what}: give it the rights of the policy for its sink in manifests/consul"
    )]
    Filtered {
        /// What was read.
        what: &'static str,
    },
    /// Empty, to a request without a token, where Consul denies by default: it would look the
    /// same if there were something.
    #[error(
        "{what}: expected a token, because Consul denies by default, found none; an empty answer \
         proves nothing then: give a token"
    )]
    NotAuthoritative {
        /// What was read.
        what: &'static str,
    },
    /// Our marker is not among what was read: Consul lost its state, or this is another Consul.
    #[error("our marker is not among {what}: it has to be written and read again first")]
    MarkerMissing {
        /// What was read.
        what: &'static str,
    },
}

/// How fresh a read of the servers' state has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consistency {
    /// The leader's own state, by its lease: stale for a moment after it was cut off. Asked for in
    /// so many words, because an agent's `discovery_max_stale` turns reads that ask for nothing
    /// into stale ones (seen on 1.20.1: `X-Consul-Effective-Consistency` is `stale` without
    /// `?leader`, and `leader` with it). Consul before 1.7 ignores the word, and has the default.
    Leader,
    /// The leader asks the others first.
    Consistent,
}

// === impl Consistency ===

impl Consistency {
    /// A read of the servers' state.
    pub(in crate::consul) fn of_path(self, path: impl Into<String>) -> Request {
        Request::get(path).flag(match self {
            Consistency::Leader => "leader",
            Consistency::Consistent => "consistent",
        })
    }

    /// The request of one KV key.
    pub(in crate::consul) fn of_key(self, key: &str) -> Request {
        self.of_path(format!("/v1/kv/{}", encode_key(key)))
    }
}

// === impl Client ===

impl Client {
    /// Sends a read and takes what its headers say. A filtered answer ends here.
    pub(in crate::consul) async fn open(
        &self,
        request: &Request,
        what: &'static str,
    ) -> Result<(Reply, Evidence), Unknown> {
        unfiltered(self.send_read(request).await.map_err(failed(what))?, what)
    }
}

/// Takes what an answer's headers say. A filtered one ends here.
pub(in crate::consul) fn unfiltered(
    reply: Reply,
    what: &'static str,
) -> Result<(Reply, Evidence), Unknown> {
    let evidence = reply.evidence();
    if evidence.filtered { Err(Unknown::Filtered { what }) } else { Ok((reply, evidence)) }
}

/// Invariant 1 for an answer that came whole.
pub(in crate::consul) fn certain(
    evidence: Evidence,
    empty: bool,
    what: &'static str,
) -> Result<(), Unknown> {
    if empty && !evidence.empty_is_true() {
        Err(Unknown::NotAuthoritative { what })
    } else {
        Ok(())
    }
}

pub(in crate::consul) fn failed(what: &'static str) -> impl Fn(Error) -> Unknown {
    move |source| Unknown::Failed { what, source }
}
