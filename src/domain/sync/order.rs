//! In which order Services are planned that all have to be.

use std::hash::Hash;

use crate::domain::map::HashSet;

/// All of `items`, each once, and each after those that take over what it has (`takers`): a name is
/// left only once it is taken. Where two take over from each other, either comes first.
pub(super) fn takers_first<T: Clone + Eq + Hash>(
    items: impl IntoIterator<Item = T>,
    takers: impl Fn(&T) -> Vec<T>,
) -> Vec<T> {
    enum Step<T> {
        Enter(T),
        Leave(T),
    }
    let (mut order, mut entered) = (Vec::new(), HashSet::default());
    // A stack of our own: somebody may make a chain of all Services there are.
    let mut steps = Vec::new();
    for item in items {
        steps.push(Step::Enter(item));
        while let Some(step) = steps.pop() {
            match step {
                Step::Enter(item) if entered.insert(item.clone()) => {
                    let first = takers(&item);
                    steps.push(Step::Leave(item));
                    steps.extend(first.into_iter().map(Step::Enter));
                }
                Step::Enter(_) => {}
                Step::Leave(item) => order.push(item),
            }
        }
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_takes_over_comes_before_who_leaves() {
        // 1 leaves something to 4 and 3, 3 to 5; 6 and 7 to each other.
        let takers = |item: &u32| match item {
            1 => vec![4, 3],
            3 => vec![5],
            6 => vec![7],
            7 => vec![6],
            _ => Vec::new(),
        };
        let order = takers_first([1, 2, 3, 4, 6, 7], takers);
        let place = |item| order.iter().position(|it| *it == item).expect("each is in it");
        assert!(place(5) < place(3) && place(3) < place(1) && place(4) < place(1), "{order:?}");
        assert_eq!(order.len(), 7, "{order:?}");
    }

    #[test]
    fn a_chain_of_all_services_costs_no_stack() {
        let order = takers_first(0..100_000_u32, |item| vec![(item + 1).min(99_999)]);
        assert!(order.iter().rev().copied().eq(0..100_000));
    }
}
