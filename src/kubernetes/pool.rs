//! Names that many objects have in common, kept once.

use std::collections::HashSet;
use std::sync::Arc;

use crate::domain::kube::object::EndpointSlice;

/// Names that the pool holds before it first looks for unused ones.
const POOL_MIN: usize = 64;

/// Shares the text of equal names.
#[derive(Debug, Default)]
pub struct Pool {
    names: HashSet<Arc<str>>,
    /// At how many names unused ones are looked for.
    sweep_at: usize,
}

// === impl Pool ===

impl Pool {
    /// Replaces the names in `slice` by those of earlier slices that are equal.
    pub fn share(&mut self, slice: &mut EndpointSlice) {
        for endpoint in &mut slice.endpoints {
            for name in [&mut endpoint.node, &mut endpoint.zone].into_iter().flatten() {
                if let Some(known) = self.names.get(name) {
                    *name = Arc::clone(known);
                } else {
                    self.names.insert(Arc::clone(name));
                }
            }
        }
        if self.names.len() >= self.sweep_at.max(POOL_MIN) {
            self.names.retain(|name| Arc::strong_count(name) > 1);
            // Twice what is in use, so that the sweeps cost a constant a name.
            self.sweep_at = self.names.len() * 2;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_names_are_one_text_and_unused_ones_are_dropped() {
        let named = |number: usize| {
            let endpoint = crate::domain::kube::object::Endpoint {
                address: "10.0.0.1".parse().unwrap(),
                ready: true,
                draining: false,
                pod: None,
                hostname: None,
                node: Some(format!("node-{number}").into()),
                zone: Some("zone".into()),
            };
            EndpointSlice {
                service: "web".into(),
                ports: Box::default(),
                endpoints: Box::from([endpoint]),
                left_out: Box::default(),
            }
        };
        let mut pool = Pool::default();
        let (mut a, mut b) = (named(0), named(0));
        pool.share(&mut a);
        pool.share(&mut b);
        let node = |slice: &EndpointSlice| slice.endpoints[0].node.clone().unwrap();
        assert!(Arc::ptr_eq(&node(&a), &node(&b)));
        for number in 1..10_000 {
            pool.share(&mut named(number));
        }
        assert!(pool.names.len() <= POOL_MIN, "{}", pool.names.len());
        assert!(pool.names.contains(&node(&a)));
    }
}
