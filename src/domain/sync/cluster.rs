//! What is known of the Kubernetes cluster, whoever leads.
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::domain::Moment;
use crate::domain::kube::cache::ClusterCache;
use crate::domain::kube::names::ObjectKey;
use crate::domain::kube::object::{Kind, Namespace, SeenObject, Service};
use crate::domain::problem::{Problem, Reason};
use crate::domain::services::claims::{NameClaims, TOLD};
use crate::domain::services::desired::{is_read_label, left_out, wanted};
use crate::domain::services::routes::route_problems;
use crate::domain::services::settings::{OnConflict, PtrScope, Settings};
use crate::domain::sync::confirm::Suspects;
use crate::domain::sync::node_watch::NodeWatch;
use crate::domain::sync::problems::Problems;
use crate::domain::sync::report::Report;

/// What is known of Kubernetes: it survives a lost lead.
#[derive(Debug, Default)]
pub(super) struct Cluster {
    pub(super) cache: ClusterCache,
    pub(super) name_claims: NameClaims,
    /// Whether all that claim a name are registered under it.
    pub(super) shares_names: bool,
    pub(super) suspects: Suspects,
    /// The Services of objects that the last list of a kind lacked when it was not known what they have in
    /// Consul: what they would lose by that waits for a second list.
    pub(super) unweighed: BTreeMap<Kind, BTreeSet<ObjectKey>>,
    pub(super) node_watch: NodeWatch,
    /// Services of namespaces that were not seen yet: whether they are selected is not known. For the
    /// cache they are as if they could not be read, so nothing of theirs is removed.
    of_unseen_namespaces: BTreeMap<ObjectKey, Service>,
    /// Whether it was reported that no Service is selected.
    nothing_selected: bool,
    /// What is wrong with objects that could not be read, wholly or in part.
    pub(super) problems: Problems,
}

/// Who has to be planned again, in this order.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Services that want names for which another one comes first now, that one before the others: the
    /// name must not be empty in between. The others learn which it is.
    pub(super) claimants: Vec<ObjectKey>,
    /// Names of which that may follow, or which the Service claims otherwise than before: whoever has
    /// something under one is concerned, too.
    pub(super) names: Vec<Arc<str>>,
    /// Services that the objects are, belong to or serve.
    pub(super) services: Vec<ObjectKey>,
    /// The slice of theirs of which nothing has changed but what it says of the same endpoints, if that
    /// is all.
    pub(super) same_endpoints: Option<ObjectKey>,
}

// === impl Cluster ===

impl Cluster {
    /// Nothing is known yet.
    pub(super) fn new(settings: &Settings) -> Self {
        let by_labels = !settings.namespace_selector.is_empty();
        let cache =
            ClusterCache::new(settings.reverse == PtrScope::All, by_labels, settings.routes);
        let shares_names = settings.on_conflict == OnConflict::Merge;
        Self { cache, shares_names, ..Self::default() }
    }

    /// Takes an object as it is now.
    pub(super) fn seen(
        &mut self,
        settings: &Settings,
        mut seen: SeenObject,
        reports: &mut Vec<Report>,
    ) -> Changes {
        if let SeenObject::Service(_, service) = &mut seen {
            // The others would be most of what is kept of a Service, and changes of theirs would
            // have it planned. Collected again: a map that was emptied keeps a node of 368 bytes.
            let labels = std::mem::take(&mut service.labels).into_iter();
            service.labels = labels.filter(|(key, _)| is_read_label(settings, key)).collect();
        }
        let kind = seen.kind();
        if let SeenObject::Namespace(key, namespace) = &seen {
            return self.namespace_seen(settings, key, namespace, reports);
        }
        let seen = self.with_namespace(seen);
        let (key, problems) = match &seen {
            SeenObject::Service(key, _)
            | SeenObject::EndpointSlice(key, _)
            | SeenObject::Namespace(key, _) => (key.clone(), BTreeSet::new()),
            SeenObject::Undecodable(Kind::Service, key, _)
                if self.of_unseen_namespaces.contains_key(key) =>
            {
                (key.clone(), BTreeSet::new())
            }
            SeenObject::Node(key, node) => {
                (key.clone(), left_out(&node.left_out).collect::<BTreeSet<_>>())
            }
            SeenObject::Ingress(key, _)
            | SeenObject::HttpRoute(key, _)
            | SeenObject::Gateway(key, _) => (key.clone(), route_problems(settings, &seen)),
            SeenObject::Undecodable(_, key, why) => {
                (key.clone(), [Problem::new(Reason::Undecodable, why.clone())].into())
            }
        };
        self.suspects.remove(kind, &key);
        self.problems.set(kind.into(), &key, problems, reports);
        let concerned = self.concerned_by_unread(kind, &key);
        let mut changes = Changes::default();
        if let SeenObject::EndpointSlice(key, slice) = &seen
            && concerned.is_empty()
            && self.cache.has_same_endpoints(key, slice)
        {
            changes.same_endpoints = Some(key.clone());
        }
        let services = self.cache.seen(seen);
        if kind == Kind::Service
            && let Some(key) = services.get(&key)
        {
            self.claim_names(settings, key, &mut changes);
        }
        changes.services = services.into_iter().chain(concerned).collect();
        changes
    }

    /// Takes a namespace as it is now, and the Services that have waited for it.
    fn namespace_seen(
        &mut self,
        settings: &Settings,
        key: &ObjectKey,
        namespace: &Namespace,
        reports: &mut Vec<Report>,
    ) -> Changes {
        self.suspects.remove(Kind::Namespace, key);
        let is_selected = settings.namespace_selector.selects(&namespace.labels);
        let services = self.cache.namespace_seen(key, is_selected);
        let mut changes = Changes::default();
        for service in &services {
            self.claim_names(settings, service, &mut changes);
        }
        changes.services.extend(services);
        let first = ObjectKey::new(key.name.clone(), "");
        let of_it = self.of_unseen_namespaces.range(first..).map(|(waiting, _)| waiting);
        let of_it = of_it.take_while(|waiting| waiting.namespace == key.name);
        for waiting in of_it.cloned().collect::<Vec<_>>() {
            let Some(service) = self.of_unseen_namespaces.remove(&waiting) else { continue };
            let more = self.seen(settings, SeenObject::Service(waiting, service), reports);
            changes.claimants.extend(more.claimants);
            changes.names.extend(more.names);
            changes.services.extend(more.services);
        }
        changes
    }

    /// A Service whose namespace was not seen yet waits for it.
    fn with_namespace(&mut self, seen: SeenObject) -> SeenObject {
        match seen {
            SeenObject::Service(key, service)
                if self.cache.selects_namespace(&key.namespace).is_none() =>
            {
                self.of_unseen_namespaces.insert(key.clone(), service);
                let why = "its namespace has not been listed yet".to_owned();
                SeenObject::Undecodable(Kind::Service, key, why)
            }
            SeenObject::Undecodable(Kind::Service, key, why) => {
                self.of_unseen_namespaces.remove(&key);
                SeenObject::Undecodable(Kind::Service, key, why)
            }
            seen => seen,
        }
    }

    /// Forgets an object of which it is known that it no longer exists.
    pub(super) fn remove(
        &mut self,
        settings: &Settings,
        kind: Kind,
        key: &ObjectKey,
        reports: &mut Vec<Report>,
    ) -> Changes {
        self.suspects.remove(kind, key);
        if kind == Kind::Service {
            self.of_unseen_namespaces.remove(key);
        }
        let concerned = self.concerned_by_unread(kind, key);
        let services = self.cache.remove(kind, key);
        let mut changes = Changes::default();
        if kind == Kind::Service {
            self.claim_names(settings, key, &mut changes);
        }
        self.problems.set(kind.into(), key, BTreeSet::new(), reports);
        changes.services = services.into_iter().chain(concerned).collect();
        changes
    }

    /// Nodes are watched no longer.
    pub(super) fn forget_nodes(&mut self, reports: &mut Vec<Report>) {
        self.cache.forget_nodes();
        self.suspects.forget(Kind::Node);
        let subject = Kind::Node.into();
        let wrong: Vec<ObjectKey> = self.problems.subjects(subject).cloned().collect();
        for key in wrong {
            self.problems.set(subject, &key, BTreeSet::new(), reports);
        }
        self.node_watch.stopped();
    }

    /// The API server does not serve this kind, which shows nothing of its objects: none of them is
    /// missing, and what is known of them stays.
    pub(super) fn not_served(&mut self, kind: Kind) {
        self.cache.not_served(kind);
        self.suspects.forget(kind);
    }

    /// Takes what a watch could not do; only the first list of nodes matters. Whether that changes
    /// anything for the Services that use nodes.
    pub(super) fn watch_failed(&mut self, kind: Kind, denied: Option<String>) -> bool {
        kind == Kind::Node && !self.cache.is_listed(Kind::Node) && self.node_watch.failed(denied)
    }

    /// Whether nodes are listed, if a Service uses node ports.
    pub(super) fn needed_nodes_are_listed(&self) -> bool {
        self.cache.node_users().is_empty() || self.cache.is_listed(Kind::Node)
    }

    fn wanted_nodes_are_listed(&self) -> bool {
        !self.cache.wants_nodes() || self.cache.is_listed(Kind::Node)
    }

    /// Whether all that can be listed is: everything, but for nodes that may not be.
    pub(super) fn is_listed(&self) -> bool {
        self.cache.is_complete()
            && (self.wanted_nodes_are_listed() || self.node_watch.denied().is_some())
    }

    /// Whether the first reconciliation may be made. It waits for nodes, so that what they take
    /// away is weighed together with all else, unless it turns out that they do not come.
    pub(super) fn may_start(&self) -> bool {
        self.cache.is_complete()
            && (self.wanted_nodes_are_listed() || !self.node_watch.may_still_come())
    }

    /// Whether any Service is to be registered, or nothing limits which are.
    pub(super) fn selects_any(&self, settings: &Settings) -> bool {
        !settings.limits_services() || !self.name_claims.is_empty()
    }

    /// Reports a selection that matches nothing, once, and when it matches something again.
    pub(super) fn report_selection(&mut self, settings: &Settings, reports: &mut Vec<Report>) {
        let nothing = !self.selects_any(settings);
        if std::mem::replace(&mut self.nothing_selected, nothing) != nothing {
            reports.push(if nothing { Report::NothingSelected } else { Report::SelectedAgain });
        }
    }

    /// When a confirmation has something to ask.
    pub(super) fn next_timeout(&self) -> Option<Moment> {
        self.suspects.next()
    }

    /// Who else is concerned when an object is read, or goes, that could not be read before: PTR
    /// records that nobody claims may belong to such a Service, or to an instance that such a slice
    /// keeps; and endpoints that no slice has, to such a slice.
    fn concerned_by_unread(&self, kind: Kind, key: &ObjectKey) -> Vec<ObjectKey> {
        match kind {
            _ if self.cache.undecodable(kind, key).is_none() => Vec::new(),
            Kind::Service | Kind::Ingress | Kind::HttpRoute => vec![ObjectKey::orphaned()],
            Kind::EndpointSlice => {
                let services = self.cache.concerned_by_unread(key).into_iter();
                services.chain([ObjectKey::orphaned()]).collect()
            }
            // Whoever waits for one is concerned by any change of it.
            Kind::Node | Kind::Namespace | Kind::Pod | Kind::Gateway => Vec::new(),
        }
    }

    /// Who may be registered under a name that they want, as far as claims say that.
    pub(super) fn contenders(&self, name: &str) -> impl Iterator<Item = ObjectKey> {
        let all = if self.shares_names { usize::MAX } else { 1 };
        self.name_claims.claimants(name).take(all)
    }

    /// Notes which names the Service wants, and who is concerned by the difference.
    fn claim_names(&mut self, settings: &Settings, key: &ObjectKey, changes: &mut Changes) {
        let (claims, uses_nodes) =
            self.cache.service(key).map_or_else(Default::default, |service| {
                let wanted = wanted(settings, key, service);
                (wanted.claims(settings, key, service), wanted.uses_nodes())
            });
        self.cache.set_node_user(key, uses_nodes);
        // Who is behind whom changes without another first, too. (Where all have the name nobody is.)
        if !self.shares_names {
            changes.names.extend(self.name_claims.differing(key, &claims));
        }
        let handovers = self.name_claims.set(key, claims);
        // What it leaves comes first: whoever takes that is planned before it moves on.
        let (left, others): (Vec<_>, Vec<_>) =
            handovers.into_iter().partition(|handover| handover.from.as_ref() == Some(key));
        for handover in left.into_iter().chain(others) {
            // One more than is told: one that there was, or will be.
            let tells_all =
                self.shares_names || self.name_claims.count(&handover.thing) <= TOLD + 1;
            let concerned = if tells_all { usize::MAX } else { 1 };
            changes.claimants.extend(self.name_claims.claimants(&handover.thing).take(concerned));
            changes.claimants.extend(handover.from);
            if self.shares_names {
                changes.names.push(handover.thing);
            }
        }
    }
}
