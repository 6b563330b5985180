//! The problems of objects.
use std::collections::{BTreeMap, BTreeSet};

use crate::domain::kube::names::ObjectKey;
use crate::domain::kube::object::Subject;
use crate::domain::problem::Problem;
use crate::domain::sync::report::Report;

/// The problems of objects, by kind, namespace and name.
#[derive(Debug, Default)]
pub(super) struct Problems(BTreeMap<(Subject, ObjectKey), BTreeSet<Problem>>);

// === impl Problems ===

impl Problems {
    /// Replaces the problems of one object, and reports what is new and what is solved.
    pub(super) fn set(
        &mut self,
        subject: Subject,
        key: &ObjectKey,
        problems: BTreeSet<Problem>,
        reports: &mut Vec<Report>,
    ) {
        let place = (subject, key.clone());
        let before = self.0.remove(&place).unwrap_or_default();
        let report = |report: fn(Subject, ObjectKey, Problem) -> Report| {
            move |problem: &Problem| report(subject, key.clone(), problem.clone())
        };
        reports.extend(problems.difference(&before).map(report(Report::Problem)));
        reports.extend(before.difference(&problems).map(report(Report::Solved)));
        if !problems.is_empty() {
            self.0.insert(place, problems);
        }
    }

    /// Reports that nothing is known of any of them any longer.
    pub(super) fn withdraw(self, reports: &mut Vec<Report>) {
        for ((subject, key), problems) in self.0 {
            let withdrawn = problems.into_iter();
            reports.extend(withdrawn.map(|it| Report::Withdrawn(subject, key.clone(), it)));
        }
    }

    /// The objects of this kind that have problems.
    pub(super) fn subjects(&self, subject: Subject) -> impl Iterator<Item = &ObjectKey> {
        let keys = self.0.keys();
        keys.filter(move |(other, _)| *other == subject).map(|(_, key)| key)
    }

    /// All of them, by object.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Subject, &ObjectKey, &Problem)> {
        self.0.iter().flat_map(|((subject, key), problems)| {
            problems.iter().map(move |problem| (*subject, key, problem))
        })
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.0.values().map(BTreeSet::len).sum()
    }
}
