//! The problems of objects.
use std::collections::{BTreeMap, BTreeSet};

use crate::domain::kube::names::ObjectKey;
use crate::domain::kube::object::Subject;
use crate::domain::problem::Problem;
use crate::domain::sync::report::Report;

/// The problems of objects, by kind, namespace and name.
#[derive(Debug, Default)]
pub(super) struct Problems {
    objects: BTreeMap<(Subject, ObjectKey), BTreeSet<Problem>>,
    /// How many there are: asked for with each event.
    count: usize,
}

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
        let before = self.objects.remove(&place).unwrap_or_default();
        self.count = self.count + problems.len() - before.len();
        let report = |report: fn(Subject, ObjectKey, Problem) -> Report| {
            move |problem: &Problem| report(subject, key.clone(), problem.clone())
        };
        reports.extend(problems.difference(&before).map(report(Report::Problem)));
        reports.extend(before.difference(&problems).map(report(Report::Solved)));
        if !problems.is_empty() {
            self.objects.insert(place, problems);
        }
    }

    /// Reports that nothing is known of any of them any longer.
    pub(super) fn withdraw(self, reports: &mut Vec<Report>) {
        for ((subject, key), problems) in self.objects {
            let withdrawn = problems.into_iter();
            reports.extend(withdrawn.map(|it| Report::Withdrawn(subject, key.clone(), it)));
        }
    }

    /// The objects of this kind that have problems.
    pub(super) fn subjects(&self, subject: Subject) -> impl Iterator<Item = &ObjectKey> {
        let keys = self.objects.keys();
        keys.filter(move |(other, _)| *other == subject).map(|(_, key)| key)
    }

    /// All of them, by object.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Subject, &ObjectKey, &Problem)> {
        self.objects.iter().flat_map(|((subject, key), problems)| {
            problems.iter().map(move |problem| (*subject, key, problem))
        })
    }

    /// Those of one object.
    pub(super) fn of(&self, subject: Subject, key: &ObjectKey) -> impl Iterator<Item = &Problem> {
        self.objects.get(&(subject, key.clone())).into_iter().flatten()
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.count
    }
}
