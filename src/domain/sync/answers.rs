//! What Consul's answers mean for the records that were written.
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::domain::Moment;
use crate::domain::consul::names::lookup_form;
use crate::domain::consul::record::{
    Answer, NamespaceNodeAnswer, ObservedPtr, PtrOwner, RecordKey,
};
use crate::domain::flights::{Completed, FlightId, InFlight};
use crate::domain::kube::names::{ClusterName, ObjectKey};
use crate::domain::kube::object::Subject;
use crate::domain::map::HashMap;
use crate::domain::problem::{Problem, Reason};
use crate::domain::sync::config::Target;
use crate::domain::sync::ledger::PtrState;
use crate::domain::sync::namespace_nodes::foreign_on_node;
use crate::domain::sync::report::Report;
use crate::domain::sync::term::{Content, Sent, Term};

/// A write that got no answer may still be applied this much later: measured on Consul 1.8.7, the
/// longest that a server holds on to a request.
const MAY_STILL_APPLY: Duration = Duration::from_secs(30);

type Write = InFlight<RecordKey, ObjectKey, Sent>;

// === impl Term ===

impl Term {
    /// Takes the answers to the writes of a flight. One that is missing counts as none.
    pub(super) fn answers(
        &mut self,
        target: Target,
        flight: FlightId,
        answers: Vec<(RecordKey, Answer)>,
        now: Moment,
        reports: &mut Vec<Report>,
    ) {
        let mut answers: HashMap<RecordKey, Answer> = answers.into_iter().collect();
        let no_answer = || Answer::Unanswered("the request ended without an answer".to_owned());
        self.complete(flight, reports, |term, write| {
            let answer = answers.remove(&write.record).unwrap_or_else(no_answer);
            term.write_answered(target, write, answer, now);
        });
    }

    /// Takes what a PTR key holds, or why it could not be read.
    pub(super) fn ptr_read(
        &mut self,
        cluster: &ClusterName,
        flight: FlightId,
        found: &Result<Option<ObservedPtr>, String>,
        now: Moment,
        reports: &mut Vec<Report>,
    ) {
        self.complete(flight, reports, |term, write| match (found, &write.record) {
            (Ok(found), RecordKey::Ptr(key)) => {
                term.note_ptr(cluster, key, found.as_ref());
                term.retries.lift(&write.record);
            }
            _ => term.retries.not_read(&write.record, &write.owner, now),
        });
    }

    /// The flight is over: `each` of its writes is answered, then their Services are done with or
    /// planned again.
    pub(super) fn complete(
        &mut self,
        flight: FlightId,
        reports: &mut Vec<Report>,
        mut each: impl FnMut(&mut Self, &Write),
    ) {
        let mut services = BTreeSet::new();
        for Completed { write, waiting } in self.flights.complete(flight).into_iter().flatten() {
            each(self, &write);
            self.mark_each(waiting);
            if let RecordKey::Ptr(key) = &write.record
                && let Some(holder) = self.ptr.claims.holder(key)
                && *holder != write.owner
            {
                self.mark(holder.clone());
            }
            services.insert(write.owner);
        }
        for service in services {
            self.answered(&service, reports);
        }
    }

    /// Takes what became of the removal of a namespace's node.
    pub(super) fn namespace_node_answered(
        &mut self,
        flight: FlightId,
        answer: NamespaceNodeAnswer,
        now: Moment,
        reports: &mut Vec<Report>,
    ) {
        let mut removed = None;
        self.complete(flight, reports, |_, write| {
            if let RecordKey::NamespaceNode(namespace) = &write.record {
                removed = Some(namespace.clone());
            }
        });
        let Some(namespace) = removed else { return };
        if !matches!(answer, NamespaceNodeAnswer::Failed(_) | NamespaceNodeAnswer::Unanswered(_)) {
            let waiting = self.retries.answered(now);
            self.mark_each(waiting);
        }
        self.node_answered(&namespace, answer, now, reports);
    }

    fn node_answered(
        &mut self,
        namespace: &str,
        answer: NamespaceNodeAnswer,
        now: Moment,
        reports: &mut Vec<Report>,
    ) {
        let mut problems = BTreeSet::new();
        match answer {
            // What a resync under way has shown was there before.
            NamespaceNodeAnswer::Removed => {
                if let Some(resync) = &mut self.resync {
                    resync.namespace_nodes.remove(namespace);
                }
            }
            // What is on it is shown by the next resync.
            NamespaceNodeAnswer::InUse => {}
            NamespaceNodeAnswer::Foreign { node, ids } => {
                problems.insert(foreign_on_node(&node, &ids));
            }
            NamespaceNodeAnswer::Failed(_) | NamespaceNodeAnswer::Fenced => {
                self.namespace_nodes.retry(namespace, now);
            }
            // It may still take along what is written to the node from now on: the next resync shows that.
            NamespaceNodeAnswer::Unanswered(_) => {
                self.uncertain(now);
                self.namespace_nodes.retry(namespace, now);
            }
        }
        let key = ObjectKey::new("", namespace);
        self.problems.set(Subject::Namespace, &key, problems, reports);
    }

    fn write_answered(&mut self, target: Target, write: &Write, answer: Answer, now: Moment) {
        let Write { record, owner, .. } = write;
        if answer.shows_that_consul_writes() {
            let waiting = self.retries.answered(now);
            self.mark_each(waiting);
        }
        if !matches!(answer, Answer::Applied { .. }) {
            self.work.services.entry(owner.clone()).or_default().follow_up = true;
        }
        match answer {
            Answer::Applied { index } => {
                self.retries.clear(record);
                self.applied(target, write, index);
            }
            Answer::Conflict => {
                self.doubt_ptr(record);
                // The first conflict is settled by reading; whoever goes on writing is not outpaced
                // by writing faster.
                if self.retries.attempts(record) == 0 {
                    self.retries.failed_once(record, owner);
                } else {
                    self.retries.retry(record, owner, now);
                }
            }
            Answer::Refused(why) => self.refused(write, &why, now),
            Answer::Denied(why) => self.denied(write, &why, now),
            Answer::Failed(why) => self.failed(write, &why, now),
            Answer::Unanswered(why) => {
                self.doubt(write);
                self.uncertain(now);
                self.failed(write, &why, now);
            }
            Answer::Foreign(why) => {
                let problem = Problem::new(Reason::Contested, format!("{record}: {why}"));
                self.retries.denied(record, owner, problem, now);
            }
            // The write that it belongs to failed; the Service is planned again because of that.
            Answer::NotSent => {}
            Answer::Fenced => self.retries.retry(record, owner, now),
        }
    }

    fn refused(&mut self, Write { record, owner, sent }: &Write, why: &str, now: Moment) {
        let content = match sent.content {
            Content::Registration { fingerprint, .. } | Content::Ptr(fingerprint) => fingerprint,
            Content::Nothing | Content::Read => return self.denied_as(record, owner, why, now),
        };
        let problem = Problem::new(Reason::Refused, format!("Consul refused {record}: {why}"));
        self.retries.refused(record, owner, content, problem, now);
    }

    fn denied(&mut self, Write { record, owner, .. }: &Write, why: &str, now: Moment) {
        self.denied_as(record, owner, why, now);
    }

    fn denied_as(&mut self, record: &RecordKey, owner: &ObjectKey, why: &str, now: Moment) {
        let message = format!(
            "Consul denied the write of {record}: {why}. Give the token the missing permission"
        );
        let problem = Problem::new(Reason::Denied, message);
        self.retries.denied(record, owner, problem, now);
    }

    /// A write failed for a reason that passes, or that is the record's own.
    fn failed(&mut self, Write { record, owner, sent }: &Write, why: &str, now: Moment) {
        let problem = || {
            let message = format!(
                "Consul answers, and fails the write of {record} again and again: {why}. It is \
                 tried again every minute",
            );
            Problem::new(Reason::Failing, message)
        };
        self.retries.failed(record, owner, sent.answers, problem, now);
    }

    fn applied(&mut self, target: Target, Write { record, owner, sent }: &Write, index: u64) {
        let written = &mut self.work.services.entry(owner.clone()).or_default().written;
        match (record, &sent.content) {
            (_, Content::Read) | (RecordKey::NamespaceNode(_), _) => {}
            (RecordKey::Ptr(_), _) => written.ptr_records += 1,
            (RecordKey::Registration(_), Content::Nothing) => written.removed += 1,
            (RecordKey::Registration(id), _) => {
                let was_there = self.known.registration(owner, id).is_some();
                *if was_there { &mut written.updated } else { &mut written.added } += 1;
            }
        }
        let name_before = match record {
            RecordKey::Registration(id) => self.known.registration(owner, id),
            _ => None,
        };
        let name_before = name_before.map(|known| Arc::clone(&known.service));
        match (record, &sent.content) {
            (
                RecordKey::Registration(id),
                Content::Registration { name, fingerprint, critical },
            ) => {
                self.known.put(owner, id, name, Some(*fingerprint), *critical);
                self.names.taken(&lookup_form(name), owner);
                if sent.old_token {
                    self.known.resend(owner, id);
                }
            }
            (RecordKey::Registration(id), _) => {
                self.known.deregistered(owner, id);
                if target.has_namespace_nodes() && self.known.count_in(&owner.namespace) == 0 {
                    self.namespace_nodes.emptied(&owner.namespace);
                }
            }
            (RecordKey::Ptr(key), Content::Ptr(fingerprint)) => {
                self.known.put_ptr(key, PtrState::Ours(*fingerprint), index);
            }
            (RecordKey::Ptr(key), _) => {
                self.known.forget_ptr(key);
                if let Some(released) = self.ptr.released.get_mut(owner) {
                    released.remove(key);
                    if released.is_empty() {
                        self.ptr.released.remove(owner);
                    }
                }
            }
            (RecordKey::NamespaceNode(_), _) => {}
        }
        if let Some(name) = name_before.filter(|name| !self.known.holds_name(name)) {
            self.names.left((&*lookup_form(&name)).into());
        }
    }

    /// A write that got no answer may have been applied or not.
    fn doubt(&mut self, Write { record, owner, sent }: &Write) {
        match (record, &sent.content) {
            (RecordKey::Registration(id), Content::Registration { name, critical, .. }) => {
                let known = self.known.registration(owner, id);
                let resend = sent.old_token || known.is_some_and(|known| known.resend);
                self.known.put(owner, id, name, None, *critical);
                if resend {
                    self.known.resend(owner, id);
                }
            }
            (RecordKey::Registration(id), _) => {
                if let Some(known) = self.known.registration(owner, id).cloned() {
                    self.known.put(owner, id, &known.service, None, known.critical);
                }
            }
            (RecordKey::Ptr(_), _) => self.doubt_ptr(record),
            (RecordKey::NamespaceNode(_), _) => {}
        }
    }

    fn doubt_ptr(&mut self, record: &RecordKey) {
        if let RecordKey::Ptr(key) = record {
            self.known.put_ptr(key, PtrState::Unknown, 0);
        }
    }

    /// A write that got no answer may still be applied: a resync looks for what became of it.
    pub(super) fn uncertain(&mut self, now: Moment) {
        self.schedule.uncertain(now + MAY_STILL_APPLY);
    }

    /// Notes what a PTR key holds.
    pub(super) fn note_ptr(
        &mut self,
        cluster: &ClusterName,
        key: &str,
        found: Option<&ObservedPtr>,
    ) {
        let Some(found) = found else { return self.known.forget_ptr(key) };
        let state = match PtrOwner::of(found.flags, cluster) {
            PtrOwner::Ours => PtrState::Ours(found.record.fingerprint()),
            PtrOwner::OtherCluster => PtrState::OtherCluster,
            PtrOwner::Foreign => PtrState::Foreign(found.record.value.clone()),
        };
        self.known.put_ptr(key, state, found.index);
    }
}
