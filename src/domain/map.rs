//! Hash maps and sets as the standard library has them, but that a test sees the same order again.
//!
//! In what order they give their entries is random in each process, since whoever names the keys must not
//! choose which collide. Nothing may depend on it; where something does all the same, the simulator has to
//! fail again with the seed that it prints. So there the order is another one in each sequence, and the
//! same each time.

#[cfg(test)]
pub use self::repeatable::{Order, set_order};
#[cfg(not(test))]
use std::hash::RandomState as Order;

/// A map in no order.
pub type HashMap<K, V> = std::collections::HashMap<K, V, Order>;

/// A set in no order.
pub type HashSet<T> = std::collections::HashSet<T, Order>;

#[cfg(test)]
mod repeatable {
    use std::cell::Cell;
    use std::hash::BuildHasher;

    use foldhash::quality::{FixedState, FoldHasher};

    thread_local! {
        static SEED: Cell<u64> = const { Cell::new(0) };
    }

    /// The order of the maps that this thread makes from now on.
    pub fn set_order(seed: u64) {
        SEED.set(seed);
    }

    /// An order that a seed gives.
    #[derive(Clone, Debug)]
    pub struct Order(FixedState);

    impl Default for Order {
        fn default() -> Self {
            Self(FixedState::with_seed(SEED.get()))
        }
    }

    impl BuildHasher for Order {
        type Hasher = FoldHasher<'static>;

        fn build_hasher(&self) -> Self::Hasher {
            self.0.build_hasher()
        }
    }
}
