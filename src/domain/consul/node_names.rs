//! What the synthetic nodes of one cluster are called: a base node, `k8s-<cluster>`, and one node for
//! each namespace that has registrations, `k8s-<cluster>.<namespace>`. A dot joins the two because no
//! label contains one: the names are injective.

use crate::domain::kube::names::ClusterName;

/// What the nodes of one cluster are called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeNames {
    base: Box<str>,
}

// === impl NodeNames ===

impl NodeNames {
    /// The names for this cluster, or those that begin with `base` where the operator gave it.
    pub fn new(cluster: &ClusterName, base: Option<&str>) -> Self {
        Self { base: base.map_or_else(|| format!("k8s-{cluster}").into(), Into::into) }
    }

    /// The base node.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// The node of a namespace.
    pub fn of_namespace(&self, namespace: &str) -> Box<str> {
        format!("{}.{namespace}", self.base).into()
    }

    /// The namespace whose node this is.
    pub fn namespace_of<'a>(&self, node: &'a str) -> Option<&'a str> {
        node.strip_prefix(&*self.base)?.strip_prefix('.').filter(|rest| !rest.contains('.'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_names_tell_their_namespace() {
        let cluster: ClusterName = "eu".parse().unwrap();
        for (names, base) in [
            (NodeNames::new(&cluster, None), "k8s-eu"),
            (NodeNames::new(&cluster, Some("my.node")), "my.node"),
        ] {
            assert_eq!(names.base(), base);
            let node = names.of_namespace("shop");
            assert_eq!(*node, format!("{base}.shop"));
            assert_eq!(names.namespace_of(&node), Some("shop"));
            for other in [base.to_owned(), format!("{base}x"), format!("{base}.a.b"), "x".into()] {
                assert_eq!(names.namespace_of(&other), None, "{other}");
            }
        }
    }
}
