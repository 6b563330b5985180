//! The pure core: what ought to be in Consul for what is in Kubernetes.
//!
//! No I/O, no clock, no randomness, no logging, no async: time and configuration come in as
//! arguments, and the same input gives the same output whatever the order it arrives in.
//!
//! What comes from Kubernetes, and from whoever runs it:
//!
//! | module | what it is |
//! |---|---|
//! | [`object`] | the parts of Kubernetes objects that can change a registration |
//! | [`packed`] | EndpointSlices in little room |
//! | [`world`] | what is known of the cluster: all objects, and which Services one concerns |
//! | [`annotations`] | what the annotations of a Service ask for |
//! | [`settings`] | what the operator chose |
//! | [`selector`] | label selectors |
//! | [`template`] | how a Consul name is made |
//! | [`names`] | names that are valid from their parsing on |
//!
//! What goes to Consul:
//!
//! | module | what it is |
//! |---|---|
//! | [`record`] | the records, the writes that change them, and what Consul answers |
//! | [`registration_id`] | service IDs |
//! | [`reverse_dns`] | keys and values of reverse records |
//! | [`difference`] | two states of a record, field by field |
//!
//! From the one to the other:
//!
//! | module | what it is |
//! |---|---|
//! | [`desired`] | what ought to be registered for one Service |
//! | [`claims`] | which of several Services has a Consul name or a reverse key |
//! | [`ledger`] | what Consul is known to have |
//! | [`reconciler`] | the state of a bridge: from events and answers to the next writes |
//! | [`forecast`] | what a bridge would change, for `plan` |
//! | [`problem`] | what is wrong with an object, for those who can mend it |
//! | [`hook`] | what the registration hook registers |
//! | [`text`] | text that others wrote, made fit to be shown |
//!
//! # Glossary
//!
//! - *Service*: the Kubernetes object; what Consul calls a service is a *Consul name*. *Nobody* is
//!   the Service of records that are ours and belong to none.
//! - *Node*: the Kubernetes object. A *namespace node* is the catalog's node on which the
//!   registrations of one namespace stand, the *base node* the one that carries the cluster's mark.
//! - *Record*: one thing in Consul that is written and answered by itself: a registration or a
//!   reverse record.
//! - *Registration*: one instance of a Service, an address with a port, under a Consul name.
//! - *Reverse record*: a KV entry that leads from an address to a Consul name; its *holder* writes
//!   it, and *orphaned* is one of ours that no Service claims.
//! - *Desired*: what ought to stand in Consul; *known*: what does, by the ledger.
//! - *Fingerprint*: a hash of all of a record that we set. Two that are equal cost no write.
//! - *Claim*: that a Service wants a Consul name or a reverse key. The first in rank has it; it
//!   *changes hands* when that becomes another one.
//! - *Unit*: what is under way for one Service. *Track*: what is under way for one record.
//! - *Dirty*: a Service that has to be planned again.
//! - *Reading*, *read-back*: all that is ours in Consul is read and compared with the ledger.
//! - *Marker*: what of ours a true reading must show, or it is no evidence of absence: the sentinel
//!   of an agent, the base node of the catalog.
//! - *Unknown*: what was not read, or not with certainty. It is never taken for absent.
//! - *Uncertain*: a write that got no answer and may still be applied.
//! - *Held*: a removal that waits for a second look or for `--allow-removals`. *Suspect*: an object
//!   that a list lacks and that is taken to exist until that look.
//! - *Foreign*: in Consul, and not by any bridge.

pub mod annotations;
pub mod claims;
pub mod desired;
pub mod difference;
pub mod forecast;
pub mod hook;
pub mod ledger;
pub mod names;
pub mod object;
pub mod packed;
pub mod problem;
pub mod reconciler;
pub mod record;
pub mod registration_id;
pub mod reverse_dns;
pub mod selector;
pub mod settings;
pub mod template;
#[cfg(test)]
mod testing;
pub mod text;
pub mod world;
