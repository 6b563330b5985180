//! Sending writes and taking their answers.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use crate::domain::consul::record::{Answer, NamespaceNodeAnswer, RecordKey};
use crate::domain::sync::Action;
use crate::run::bridge::Bridge;
use crate::run::bridge::jobs::{self, Done, Job};
use crate::run::bridge::leadership::Term;

/// How long writes in flight may take to finish at the end (invariant 10).
const FINISH: Duration = Duration::from_secs(5);

/// What Consul was asked for on behalf of records and has not answered yet: writes, and readings of
/// single keys.
pub(super) struct Requests {
    unanswered: FuturesUnordered<Job>,
    limit: usize,
    /// One for each that may be under way. What a batch has beyond them waits here, in order.
    turns: Arc<Semaphore>,
}

// === impl Requests ===

impl Requests {
    /// `limit`: how many may be under way at a time.
    pub(super) fn new(limit: usize) -> Self {
        let turns = Arc::new(Semaphore::new(limit));
        Self { unanswered: FuturesUnordered::new(), limit, turns }
    }

    /// Whether more may be sent at once.
    fn has_room(&self) -> bool {
        self.unanswered.len() < self.limit
    }

    /// Sends one as soon as there is room for it.
    fn send(&self, request: Job) {
        let turns = Arc::clone(&self.turns);
        let in_turn = async move {
            // It is never closed, so this gives a permit.
            let _turn = turns.acquire().await;
            request.await
        };
        self.unanswered.push(in_turn.boxed());
    }

    /// The next answer; none: there is nothing to wait for.
    pub(super) async fn answered(&mut self) -> Option<Done> {
        self.unanswered.next().await
    }
}

// === impl Bridge ===

impl Bridge {
    /// Sends what can be sent.
    pub(super) fn dispatch(&mut self) {
        while self.peers.is_some() && self.leadership.may_write() && self.requests.has_room() {
            let actions = self.state.next_actions(self.now(), self.sink.groups());
            if actions.is_empty() {
                return;
            }
            let (mut groups, mut single) = (Vec::new(), Vec::new());
            for action in actions {
                match action {
                    Action::Write(writes) => groups.push(writes),
                    Action::ReadPtr(key) => {
                        single.push(jobs::read_ptr(self.consul.clone(), key).boxed());
                    }
                    Action::RemoveNamespaceNode(namespace) => {
                        let removal =
                            jobs::remove_namespace_node(self.term, self.sink.clone(), namespace);
                        single.push(removal.boxed());
                    }
                }
            }
            if !groups.is_empty() {
                let write = jobs::write(self.term, self.sink.clone(), groups);
                self.requests.send(write.boxed());
            }
            for request in single {
                self.requests.send(request);
            }
        }
    }

    pub(super) fn namespace_node_removed(
        &mut self,
        term: Term,
        namespace: &str,
        answer: NamespaceNodeAnswer,
    ) {
        match &answer {
            NamespaceNodeAnswer::Fenced => self.fenced(term),
            NamespaceNodeAnswer::Failed(why) | NamespaceNodeAnswer::Unanswered(why) => {
                let what = format!("the empty node of namespace {namespace} is not removed");
                self.drift.failed(&what, why.clone());
            }
            _ => self.drift.heard(),
        }
        let now = self.now();
        self.state.namespace_node_answered(namespace, answer, now);
    }

    pub(super) fn wrote(&mut self, term: Term, answers: Vec<(RecordKey, Answer)>, took: Duration) {
        let now = self.now();
        if answers.iter().any(|(_, answer)| *answer == Answer::Fenced) {
            self.fenced(term);
        }
        for (record, answer) in answers {
            if !matches!(answer, Answer::Failed(_) | Answer::Unanswered(_) | Answer::NotSent) {
                self.drift.heard();
            }
            match &answer {
                Answer::Applied { .. } => self.last_step = Instant::now(),
                Answer::Failed(why) | Answer::Unanswered(why) => {
                    self.drift.failed("a write failed and is tried again", why.clone());
                }
                _ => {}
            }
            self.tell_write(&record, &answer, took);
            self.state.answered(&record, answer, now);
        }
    }

    /// Lets the writes in flight finish.
    pub(super) async fn finish(&mut self) {
        let finished = timeout(FINISH, async { while self.requests.answered().await.is_some() {} });
        if finished.await.is_err() {
            tracing::warn!("{} writes were not answered in time", self.requests.unanswered.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::time::sleep;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_batch_of_many_requests_keeps_to_the_bound() {
        const LIMIT: usize = 4;
        let (under_way, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let mut requests = Requests::new(LIMIT);
        for number in 0..60 {
            let (under_way, most) = (Arc::clone(&under_way), Arc::clone(&most));
            let request = async move {
                most.fetch_max(under_way.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
                sleep(Duration::from_millis(1)).await;
                under_way.fetch_sub(1, Ordering::Relaxed);
                Done::PtrRead(format!("{number}").into(), Ok(None))
            };
            requests.send(request.boxed());
        }
        assert!(!requests.has_room());
        let mut answers = Vec::new();
        while let Some(Done::PtrRead(key, _)) = requests.answered().await {
            answers.push(key);
        }
        assert_eq!(answers.len(), 60);
        assert_eq!(most.load(Ordering::Relaxed), LIMIT);
        assert!(requests.has_room());
    }
}
