//! A simulated agent and what Kubernetes shows, in the core's own time.

mod agent;
mod core;
mod faults;
mod hostile;
mod table;

use crate::domain::kube::names::ObjectKey;
use crate::domain::node::pod::{Container, PREFIXES, Phase, Pod, Status};
use crate::domain::node::wanted::Defaults;

/// A running pod with a ready container `app` with port 8080 (`http`) and these annotations of
/// katalog-sync, or of ours where the word begins with a `+`.
fn pod(annotations: &[(&str, &str)]) -> Pod {
    let key = |word: &str| match word.strip_prefix('+') {
        Some(word) => format!("{}{word}", PREFIXES[0]).into(),
        None => format!("{}{word}", PREFIXES[1]).into(),
    };
    Pod {
        uid: "uid-1".into(),
        annotations: annotations.iter().map(|(word, value)| (key(word), (*value).into())).collect(),
        phase: Phase::Running,
        ip: Some("10.1.0.1".into()),
        containers: vec![container("app", Some(true))],
        ..Pod::default()
    }
}

/// A container with port 8080, ready or not, or without a status.
fn container(name: &str, ready: Option<bool>) -> Container {
    Container {
        name: name.into(),
        is_native_sidecar: false,
        ports: vec![("http".into(), 8080)],
        status: ready.map(|is_ready| Status { is_ready, restarts: 0 }),
    }
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("shop", name)
}

fn defaults() -> Defaults {
    Defaults {
        sync_interval: std::time::Duration::from_secs(1),
        check_ttl: std::time::Duration::from_secs(10),
        ttl_buffer: std::time::Duration::from_secs(10),
        deregister_critical_after: None,
    }
}
