//! Entries of the KV store.

use crate::consul::http::client::Client;
use crate::consul::http::request::Request;
use crate::consul::http::stream::Layout;
use crate::consul::http::transport::{Evidence, Reply};
use crate::consul::read::blocking::BlockingQuery;
use crate::consul::read::evidence::{Consistency, Unknown, certain, failed, unfiltered};
use crate::consul::read::wire::{KeyEntry, decode};
use crate::domain::consul::record::ObservedPtr;

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
