//! A queue in which each thing is once.

use std::collections::{HashSet, VecDeque};
use std::hash::Hash;

#[derive(Debug)]
pub(super) struct Queue<T> {
    order: VecDeque<T>,
    members: HashSet<T>,
}

// === impl Queue ===

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { order: VecDeque::new(), members: HashSet::new() }
    }
}

impl<T: Clone + Eq + Hash> Queue<T> {
    /// Adds at the end, unless it is in the queue.
    pub(super) fn push(&mut self, item: T) {
        if self.members.insert(item.clone()) {
            self.order.push_back(item);
        }
    }

    /// Takes the first.
    pub(super) fn pop(&mut self) -> Option<T> {
        let item = self.order.pop_front()?;
        self.members.remove(&item);
        if self.order.is_empty() {
            // A burst must not leave its memory behind.
            self.order.shrink_to(0);
            self.members.shrink_to(0);
        }
        Some(item)
    }

    /// Those that are in it, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.members.iter()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.order.len()
    }
}
