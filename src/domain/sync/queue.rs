//! A queue in which each thing is once, and large ones take turns with the others.

use std::collections::VecDeque;
use std::hash::Hash;

use crate::domain::map::HashMap;

/// So many others at most come before a large one that waits: about as many writes as its own step
/// has, so that neither keeps the other waiting for more than that.
const OTHERS: usize = 60;

#[derive(Debug)]
pub(super) struct Queue<T> {
    order: VecDeque<Place<T>>,
    /// What was taken and goes on: its next step.
    large: VecDeque<Place<T>>,
    /// What is in it, each at the place of this number; its former places are passed over.
    members: HashMap<T, u64>,
    /// The number of the next place.
    next: u64,
    /// How many others were taken since a large one was.
    others: usize,
}

#[derive(Debug)]
struct Place<T> {
    number: u64,
    item: T,
}

// === impl Queue ===

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self {
            order: VecDeque::new(),
            large: VecDeque::new(),
            members: HashMap::default(),
            next: 0,
            others: 0,
        }
    }
}

impl<T: Clone + Eq + Hash> Queue<T> {
    /// Adds at the end, unless it is in the queue.
    pub(super) fn push(&mut self, item: T) {
        if !self.members.contains_key(&item) {
            let place = self.place(item);
            self.order.push_back(place);
        }
    }

    /// Adds the next step of a large one, unless it is in the queue.
    pub(super) fn push_large(&mut self, item: T) {
        if !self.members.contains_key(&item) {
            let place = self.place(item);
            self.large.push_back(place);
        }
    }

    /// Has one that waits wait for all others that do by now.
    pub(super) fn move_to_end(&mut self, item: &T) {
        if !self.members.contains_key(item) {
            return;
        }
        let place = self.place(item.clone());
        self.order.push_back(place);
        if self.order.len() > 2 * self.members.len() + OTHERS {
            // Most are former places: a queue may stand still for long, and what waits be moved often.
            self.order.retain(|it| self.members.get(&it.item) == Some(&it.number));
        }
    }

    /// From now on the item is there and nowhere else.
    fn place(&mut self, item: T) -> Place<T> {
        let number = self.next;
        self.next += 1;
        self.members.insert(item.clone(), number);
        Place { number, item }
    }

    /// Takes the next one.
    pub(super) fn pop(&mut self) -> Option<T> {
        for places in [&mut self.order, &mut self.large] {
            let is_former = |it: &Place<T>| self.members.get(&it.item) != Some(&it.number);
            while places.front().is_some_and(is_former) {
                places.pop_front();
            }
        }
        let is_large = self.order.is_empty() || self.others >= OTHERS;
        let large = if is_large { self.large.pop_front() } else { None };
        self.others = if large.is_some() { 0 } else { self.others.saturating_add(1) };
        let Place { item, .. } = large.or_else(|| self.order.pop_front())?;
        self.members.remove(&item);
        if self.is_empty() {
            // A burst must not leave its memory behind.
            self.order = VecDeque::new();
            self.members.shrink_to(0);
        }
        Some(item)
    }

    /// Those that are in it, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.members.keys()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.members.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_is_moved_to_the_end_comes_after_all_others() {
        let mut queue = Queue::default();
        for number in 0..4 {
            queue.push(number);
        }
        queue.push_large(4);
        queue.move_to_end(&1);
        queue.move_to_end(&4);
        queue.move_to_end(&7);
        queue.push(1);
        assert_eq!(std::iter::from_fn(|| queue.pop()).collect::<Vec<_>>(), [0, 2, 3, 1, 4]);
    }

    #[test]
    fn what_is_moved_often_does_not_heap_up() {
        let mut queue = Queue::default();
        queue.push(0);
        queue.push(1);
        for _ in 0..10_000 {
            queue.move_to_end(&0);
            queue.move_to_end(&1);
        }
        assert!(queue.order.len() <= 3 * OTHERS);
        assert_eq!([queue.pop(), queue.pop(), queue.pop()], [Some(0), Some(1), None]);
    }

    #[test]
    fn l4_a_large_one_takes_turns_with_the_others() {
        let mut queue = Queue::default();
        for number in 0..3 * OTHERS {
            queue.push(number);
        }
        queue.push_large(1_000);
        queue.push_large(1_000);
        queue.push(1_000);
        let mut places = Vec::new();
        for place in 0.. {
            let Some(item) = queue.pop() else { break };
            if item == 1_000 {
                places.push(place);
                if places.len() < 5 {
                    queue.push_large(item);
                }
            }
        }
        // At its turn, and when there are no others.
        let turn = OTHERS + 1;
        let all = 3 * OTHERS;
        assert_eq!(places, [OTHERS, OTHERS + turn, all + 2, all + 3, all + 4]);
        assert!(queue.is_empty());
    }
}
