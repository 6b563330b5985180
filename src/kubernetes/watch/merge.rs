//! Watches of several namespaces as one.
//!
//! A relist of one namespace is no list of the kind. So a list of the kind is a round: it begins
//! with the first list of a member and is complete when each member has listed since. A member
//! that lists again has the others list too; what each costs is bounded by its own back-off.

use std::collections::BTreeSet;

use futures::stream::{self, BoxStream, SelectAll, StreamExt as _};

use crate::domain::kube::object::{Kind, WatchEvent};
use crate::kubernetes::watch::notice::Notice;
use crate::kubernetes::watch::relist::Relist;

/// How far the list of one member is in this round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// It has not begun.
    Waiting,
    /// Its first page came.
    Begun,
    /// It is complete.
    Complete,
}

/// The watch of one kind in several namespaces.
struct Merge<T> {
    kind: Kind,
    members: SelectAll<BoxStream<'static, (usize, Notice<T>)>>,
    relists: Vec<Relist>,
    relist: Relist,
    progress: Vec<Progress>,
    /// Members in trouble.
    troubled: BTreeSet<usize>,
}

/// Makes one stream of those of `members`, each with its own handle. `relist` asks all of them.
pub fn merge<T: Send + 'static>(
    kind: Kind,
    members: impl Iterator<Item = (BoxStream<'static, Notice<T>>, Relist)>,
    relist: Relist,
) -> BoxStream<'static, Notice<T>> {
    let (streams, relists): (Vec<_>, Vec<_>) = members.unzip();
    let numbered = streams
        .into_iter()
        .enumerate()
        .map(|(member, stream)| stream.map(move |notice| (member, notice)).boxed());
    let merge = Merge {
        kind,
        members: stream::select_all(numbered),
        progress: vec![Progress::Waiting; relists.len()],
        relists,
        relist,
        troubled: BTreeSet::new(),
    };
    stream::unfold(merge, |mut merge| async move { Some((merge.next().await?, merge)) }).boxed()
}

// === impl Merge ===

impl<T> Merge<T> {
    async fn next(&mut self) -> Option<Notice<T>> {
        loop {
            let (member, notice) = tokio::select! {
                biased;
                () = self.relist.requested() => {
                    self.progress.fill(Progress::Waiting);
                    self.relists.iter().for_each(Relist::request);
                    continue;
                }
                next = self.members.next() => next?,
            };
            if let Some(notice) = self.take(member, notice) {
                return Some(notice);
            }
        }
    }

    /// What a member's notice is for the kind.
    fn take(&mut self, member: usize, notice: Notice<T>) -> Option<Notice<T>> {
        match &notice {
            Notice::Event(WatchEvent::ListStarted(_)) => self.begun(member).then_some(notice),
            Notice::Event(WatchEvent::ListCompleted(_)) => {
                if self.progress[member] == Progress::Begun {
                    self.progress[member] = Progress::Complete;
                }
                let complete = self.progress.iter().all(|it| *it == Progress::Complete);
                complete.then_some(notice)
            }
            Notice::Trouble(_) => {
                self.troubled.insert(member);
                Some(notice)
            }
            Notice::Recovered(_) => {
                self.troubled.remove(&member);
                self.troubled.is_empty().then_some(Notice::Recovered(self.kind))
            }
            Notice::Event(_) | Notice::Heard(_) | Notice::NotServed(_) => Some(notice),
        }
    }

    /// A member's list has begun. Returns whether a round begins with it.
    fn begun(&mut self, member: usize) -> bool {
        let first = self.progress.iter().all(|it| *it == Progress::Waiting);
        let again = self.progress[member] != Progress::Waiting;
        if again {
            // What the others have listed before this counts for the former round.
            for (other, progress) in self.progress.iter_mut().enumerate() {
                if other != member && *progress != Progress::Waiting {
                    self.relists[other].request();
                }
                *progress = Progress::Waiting;
            }
        }
        self.progress[member] = Progress::Begun;
        first || again
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two() -> (Merge<()>, [Relist; 2]) {
        let relists = [Relist::default(), Relist::default()];
        let merge = Merge {
            kind: Kind::Service,
            members: SelectAll::new(),
            relists: relists.to_vec(),
            relist: Relist::default(),
            progress: vec![Progress::Waiting; 2],
            troubled: BTreeSet::new(),
        };
        (merge, relists)
    }

    fn started(merge: &mut Merge<()>, member: usize) -> bool {
        merge.take(member, Notice::Event(WatchEvent::ListStarted(Kind::Service))).is_some()
    }

    fn completed(merge: &mut Merge<()>, member: usize) -> bool {
        merge.take(member, Notice::Event(WatchEvent::ListCompleted(Kind::Service))).is_some()
    }

    #[test]
    fn l7_a_list_is_complete_when_each_namespace_is() {
        let (mut merge, relists) = two();
        assert!(started(&mut merge, 0), "a round begins");
        assert!(!completed(&mut merge, 0) && !started(&mut merge, 1));
        assert!(completed(&mut merge, 1));
        assert!(!relists.iter().any(Relist::take));
    }

    #[test]
    fn l7_a_namespace_that_lists_again_has_the_others_list_too() {
        let (mut merge, relists) = two();
        assert!(started(&mut merge, 0) && !completed(&mut merge, 0));
        assert!(!started(&mut merge, 1) && completed(&mut merge, 1));
        assert!(started(&mut merge, 1), "a new round");
        assert_eq!(relists.each_ref().map(Relist::take), [true, false]);
        assert!(!completed(&mut merge, 1), "the other has not listed since");
        assert!(!started(&mut merge, 0) && completed(&mut merge, 0));
    }

    #[test]
    fn l7_a_list_that_breaks_off_begins_a_new_round() {
        let (mut merge, relists) = two();
        assert!(started(&mut merge, 0) && started(&mut merge, 0));
        assert!(!relists.iter().any(Relist::take), "the other has not even begun");
        assert!(!completed(&mut merge, 0));
        assert!(!started(&mut merge, 1));
        assert!(started(&mut merge, 1), "it broke off");
        assert_eq!(relists.each_ref().map(Relist::take), [true, false]);
        assert!(!completed(&mut merge, 1));
    }

    #[test]
    fn l7_what_is_left_of_a_list_that_was_broken_off_completes_nothing() {
        let (mut merge, _) = two();
        assert!(started(&mut merge, 0) && !started(&mut merge, 1));
        merge.progress.fill(Progress::Waiting);
        assert!(!completed(&mut merge, 0) && !completed(&mut merge, 1));
    }

    #[test]
    fn l7_the_kind_has_recovered_when_each_namespace_has() {
        let (mut merge, _) = two();
        merge.troubled = [0, 1].into();
        assert!(merge.take(0, Notice::Recovered(Kind::Service)).is_none());
        assert!(merge.take(1, Notice::Recovered(Kind::Service)).is_some());
    }
}
