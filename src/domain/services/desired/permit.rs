//! Whether a Service may use a name that it wants, and what people are told when it may not.

use crate::domain::consul::names::{Holder, lookup_form};
use crate::domain::kube::names::ObjectKey;
use crate::domain::problem::{Problem, Reason};
use crate::domain::services::desired::wanted::{CONSULS_OWN_NAME, WantedPort};
use crate::domain::services::settings::{Annotation, JoinExisting, Settings};

/// Whether a Service may use a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Permit {
    /// It may, beside these.
    Granted(Neighbours),
    /// It may not: another Service comes first.
    Taken(First),
    /// It may not: what that Service has registered under it is not removed now.
    Kept(ObjectKey, Keeps),
    /// These hold instances under it, and it is not to be joined.
    Foreign(Holder),
    /// So do they, but what is registered already stays.
    ForeignToo(Holder, Neighbours),
    /// Not known yet.
    Unknown,
}

/// Why what a Service has registered is not removed, whatever is known of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeps {
    /// By `--policy upsert-only`.
    Policy,
    /// A list lacks the Service, or it could not be read: whether it still claims the name is not known.
    Unseen,
}

/// The Service that comes first for a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum First {
    /// This one.
    Told(ObjectKey),
    /// There are too many others for each to be told which it is.
    Untold,
}

/// Who else is, or wants to be, under a name: a tag must not pass for one of theirs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Neighbours {
    /// Whether it is joined to instances that do not come from Kubernetes.
    pub joined: bool,
    /// Namespaces of the other Services that claim it.
    pub namespaces: Vec<Box<str>>,
    /// The Service that comes first and has registered nothing under it yet, if another one does.
    pub first: Option<First>,
}

// === impl Neighbours ===

impl Neighbours {
    /// Whether an instance may have the tag: `<tag>.<name>` must not lead to it where people mean
    /// a neighbour. Where those are not from Kubernetes nobody knows which tags they mean.
    pub(super) fn allow(&self, tag: &str) -> bool {
        let tag = lookup_form(tag);
        !self.joined && !self.namespaces.iter().any(|namespace| **namespace == *tag)
    }
}

/// The name under which a port is registered.
pub(super) struct Name<'w> {
    pub(super) text: &'w str,
    pub(super) standing: Standing,
    pub(super) neighbours: Neighbours,
}

/// Whether a port may be registered under its name, as far as that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Granted,
    Undecided,
    Blocked,
    Taken,
}

/// The name that a wanted port is to have, and whether it may.
pub(super) fn permitted_name<'w>(
    wanted: &'w WantedPort<'_>,
    join_of: &impl Fn(&str) -> JoinExisting,
    advice: Advice,
    permit: &impl Fn(&str, JoinExisting) -> Permit,
    problems: &mut Vec<Problem>,
) -> Name<'w> {
    let foreign =
        |name: &str, holder: &Holder, then: &str| foreign_name(name, holder, then, advice);
    let candidates = std::iter::once(&wanted.name).chain(&wanted.fallback);
    for name in candidates {
        let is_last = wanted.fallback.as_ref().is_none_or(|last| last == name);
        let (standing, neighbours) = match permit(name, join_of(name)) {
            Permit::Granted(neighbours) => {
                if let Some(first) = neighbours.first.as_ref().filter(|_| is_last) {
                    problems.push(name_conflict(name, first, advice));
                }
                (Standing::Granted, neighbours)
            }
            Permit::Unknown => (Standing::Undecided, Neighbours::default()),
            Permit::ForeignToo(holder, neighbours) => {
                problems.push(foreign(name, &holder, "what this Service has registered stays"));
                (Standing::Granted, neighbours)
            }
            Permit::Foreign(holder) => {
                problems.push(foreign(name, &holder, "it is not registered under it"));
                (Standing::Blocked, Neighbours::default())
            }
            Permit::Taken(first) => {
                if is_last {
                    problems.push(name_conflict(name, &first, advice));
                }
                continue;
            }
            Permit::Kept(holder, keeps) => {
                if is_last {
                    problems.push(name_kept(name, &holder, keeps, advice));
                }
                continue;
            }
        };
        return Name { text: name, standing, neighbours };
    }
    let neighbours = Neighbours::default();
    Name { text: &wanted.name, standing: Standing::Taken, neighbours }
}

/// What whoever owns the Service can do about its name: an annotation that does not count there is
/// not suggested.
#[derive(Clone, Copy, Debug)]
pub(super) struct Advice {
    may_rename: bool,
    may_join: bool,
}

// === impl Advice ===

impl Advice {
    pub(super) fn new(settings: &Settings, key: &ObjectKey) -> Self {
        let counts = |it| settings.annotations.counts(&key.namespace, it);
        Self { may_rename: counts(Annotation::ServiceName), may_join: counts(Annotation::Join) }
    }

    fn another_name(self, option: &str) -> String {
        if self.may_rename {
            let annotation = "kube-consul.io/service-name";
            format!("choose another with the annotation {annotation}, or see {option}")
        } else {
            format!("rename the Service, or see {option}")
        }
    }
}

/// Another Service comes first for the name. It is the same before and after that has taken it: people are
/// told once.
fn name_conflict(name: &str, first: &First, advice: Advice) -> Problem {
    let first = match first {
        First::Told(first) => format!("Service {first}"),
        First::Untold => "another Service".to_owned(),
    };
    let rest = advice.another_name("--on-conflict");
    let message = format!("{first} comes first for the Consul name {name:?}; {rest}");
    Problem::new(Reason::NameConflict, message)
}

/// What is registered under the name is another Service's, and stays.
fn name_kept(name: &str, holder: &ObjectKey, keeps: Keeps, advice: Advice) -> Problem {
    let holder = if holder.is_orphaned() {
        "a Service that is not known any more".to_owned()
    } else {
        format!("Service {holder}")
    };
    let rest = advice.another_name("--on-conflict");
    let why = match keeps {
        Keeps::Policy => "which --policy upsert-only keeps",
        Keeps::Unseen => "which was not listed or could not be read, so that its records stay",
    };
    let message = format!("the Consul name {name:?} is registered for {holder}, {why}; {rest}");
    Problem::new(Reason::NameConflict, message)
}

fn foreign_name(name: &str, holder: &Holder, consequence: &str, advice: Advice) -> Problem {
    let holder = match holder {
        Holder::Kubernetes { cluster: Some(cluster) } => {
            format!("were registered by the bridge of the cluster {cluster:?}")
        }
        Holder::Kubernetes { cluster: None } => {
            "were registered by another cluster's bridge or by consul-k8s".to_owned()
        }
        Holder::Other => "were not registered from Kubernetes".to_owned(),
    };
    let join = "set the annotation kube-consul.io/join: \"true\" to share the name, or ";
    let may_join = advice.may_join && lookup_form(name) != CONSULS_OWN_NAME;
    let join = if may_join { join } else { "" };
    let rest = advice.another_name("--join-existing");
    let message = format!("instances of {name:?} in Consul {holder}; {consequence}: {join}{rest}");
    Problem::new(Reason::ForeignName, message)
}
