//! Entries of the KV store.

use std::borrow::Cow;

use tokio::time::{Instant, sleep_until};

use crate::consul::http::client::Client;
use crate::consul::http::request::{Request, encode_key};
use crate::consul::http::stream::Layout;
use crate::consul::http::transport::{Evidence, Reply};
use crate::consul::read::blocking::BlockingQuery;
use crate::consul::read::evidence::{Consistency, Unknown, certain, failed, unfiltered};
use crate::consul::read::wire::{KeyEntry, decode};
use crate::domain::consul::record::ObservedPtr;

/// Reading the keys that are followed takes at most one part in so many of the time.
const FOLLOW_SHARE: u32 = 10;

/// Keys that are followed. What an answer shows wakes whoever waits, and proves nothing.
#[derive(Debug)]
pub struct FollowedKeys {
    client: Client,
    query: BlockingQuery,
    /// When the next query may be sent.
    rest: Instant,
}

// === impl FollowedKeys ===

impl FollowedKeys {
    /// All of the keys as they are after the next change; the first time at once.
    pub async fn next(&mut self, mut each: impl FnMut(&str) + Send) -> Result<(), Unknown> {
        sleep_until(self.rest).await;
        let reply = self.query.next(&self.client).await.map_err(failed(REVERSE_RECORDS))?;
        let (reply, _) = unfiltered(reply, REVERSE_RECORDS)?;
        let began = Instant::now();
        // 404 is how the KV store says that there is none.
        if reply.is_found() {
            let keys = reply.items(Layout::Elements, |item| {
                let key: Cow<str> = decode("a KV key", item.value)?;
                each(&key);
                Ok(())
            });
            keys.await.map_err(failed(REVERSE_RECORDS))?;
        }
        self.rest = Instant::now() + began.elapsed() * FOLLOW_SHARE;
        Ok(())
    }
}

/// Every PTR key begins with this: the host part of an IPv4 key and of an IPv6 key.
const REVERSE_PREFIX: &str = "0.";

const REVERSE_RECORDS: &str = "the PTR records";

// === impl Client ===

impl Client {
    /// All KV entries that may be PTR records, foreign ones too.
    pub async fn ptr_records(
        &self,
        consistency: Consistency,
        mut each: impl FnMut(ObservedPtr) + Send,
    ) -> Result<usize, Unknown> {
        let path = format!("/v1/kv/{REVERSE_PREFIX}");
        let request = consistency.of_path(path).flag("recurse").listing();
        let (reply, evidence) = self.open(&request, REVERSE_RECORDS).await?;
        let mut count = 0;
        // 404 is how the KV store says that there is none.
        if reply.is_found() {
            let entries = reply.items(Layout::Elements, |item| {
                each(decode::<KeyEntry>("a KV entry", item.value)?.observed());
                count += 1;
                Ok(())
            });
            entries.await.map_err(failed(REVERSE_RECORDS))?;
        }
        certain(evidence, count == 0, REVERSE_RECORDS).map(|()| count)
    }

    /// Follows the KV keys that begin with `prefix`.
    pub fn follow_keys(&self, prefix: &str) -> FollowedKeys {
        let path = format!("/v1/kv/{}", encode_key(prefix));
        let query = BlockingQuery::by_index(Request::get(path).flag("keys").listing());
        FollowedKeys { client: self.clone(), query, rest: Instant::now() }
    }

    /// One PTR record as the leader has it now, after a failed check-and-set.
    pub async fn ptr_record(&self, key: &str) -> Result<Option<ObservedPtr>, Unknown> {
        let entry = self.kv(&Consistency::Consistent.of_key(key), REVERSE_RECORDS).await?;
        Ok(entry.map(KeyEntry::observed))
    }

    /// The KV entry that this request reads, if there is one.
    pub(in crate::consul) async fn kv(
        &self,
        request: &Request,
        what: &'static str,
    ) -> Result<Option<KeyEntry>, Unknown> {
        let (reply, evidence) = self.open(request, what).await?;
        entry(reply, evidence, what).await
    }

    /// The KV entry that this query waits for, as soon as it is another one.
    pub(in crate::consul) async fn next_kv(
        &self,
        query: &mut BlockingQuery,
        what: &'static str,
    ) -> Result<Option<KeyEntry>, Unknown> {
        let reply = query.next(self).await.map_err(failed(what))?;
        let (reply, evidence) = unfiltered(reply, what)?;
        entry(reply, evidence, what).await
    }
}

async fn entry(
    reply: Reply,
    evidence: Evidence,
    what: &'static str,
) -> Result<Option<KeyEntry>, Unknown> {
    let mut entry = None;
    // 404 is how the KV store says that there is none.
    if reply.is_found() {
        let entries = reply.items(Layout::Elements, |item| {
            entry = Some(decode("a KV entry", item.value)?);
            Ok(())
        });
        entries.await.map_err(failed(what))?;
    }
    certain(evidence, entry.is_none(), what).map(|()| entry)
}
