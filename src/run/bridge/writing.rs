//! Sending writes and taking their answers.

use std::time::Duration;

use futures::FutureExt as _;
use futures::stream::StreamExt as _;
use tokio::time::{Instant, timeout};

use super::Bridge;
use super::jobs::{self, Done};
use super::leadership::Term;
use crate::domain::reconciler::Action;
use crate::domain::record::{Answer, NamespaceNodeAnswer, RecordKey};

/// How long writes in flight may take to finish at the end (invariant 10).
const FINISH: Duration = Duration::from_secs(5);

// === impl Bridge ===

impl Bridge {
    /// Sends what can be sent.
    pub(super) fn dispatch(&mut self) {
        while self.introduced.is_some()
            && self.leadership.may_write()
            && self.writing < self.sink.requests()
        {
            let actions = self.state.next_actions(self.now(), self.sink.groups());
            if actions.is_empty() {
                return;
            }
            let mut groups = Vec::new();
            for action in actions {
                match action {
                    Action::Write(writes) => groups.push(writes),
                    Action::ReadReverse(key) => {
                        self.send(jobs::read_reverse(self.consul.clone(), key));
                    }
                    Action::RemoveNamespaceNode(namespace) => {
                        self.send(jobs::remove_node(self.term, self.sink.clone(), namespace));
                    }
                }
            }
            if !groups.is_empty() {
                self.send(jobs::write(self.term, self.sink.clone(), groups));
            }
        }
    }

    fn send(&mut self, job: impl Future<Output = Done> + Send + 'static) {
        self.writing += 1;
        self.jobs.push(job.boxed());
    }

    pub(super) fn node_removed(
        &mut self,
        term: Term,
        namespace: &str,
        answer: NamespaceNodeAnswer,
    ) {
        self.writing = self.writing.saturating_sub(1);
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
        self.writing = self.writing.saturating_sub(1);
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
        let state = &mut self.state;
        let (jobs, writing, began) = (&mut self.jobs, &mut self.writing, self.began);
        let finished = timeout(FINISH, async {
            while *writing > 0 {
                match jobs.next().await {
                    Some(Done::Wrote(_, answers, _)) => {
                        *writing -= 1;
                        for (record, answer) in answers {
                            state.answered(&record, answer, began.elapsed());
                        }
                    }
                    Some(Done::ReverseRead(..) | Done::NodeRemoved(..)) => *writing -= 1,
                    Some(_) => {}
                    None => return,
                }
            }
        });
        if finished.await.is_err() {
            tracing::warn!("{} writes were not answered in time", self.writing);
        }
    }
}
