//! Writes in Kubernetes.

use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use tokio::time::Instant;

use crate::domain::import::core::{Failure, Write};
use crate::domain::import::object::{OwnedSlice, Service};
use crate::domain::kube::names::ObjectKey;
use crate::domain::problem::{Problem, Reason};
use crate::kubernetes::import::{
    WriteError, create_service, delete_old_endpoints, delete_service, delete_slice, update_service,
    write_slice,
};

/// What is written, as metrics call it.
pub(super) const VERBS: [&str; 6] =
    ["write", "delete", "delete_endpoints", "create_service", "update_service", "delete_service"];

/// What became of a write.
pub(super) struct Applied {
    pub(super) verb: &'static str,
    /// How long the API server took.
    pub(super) took: Duration,
    pub(super) service: ObjectKey,
    pub(super) outcome: Outcome,
}

/// What the API server has now: an object, or none after its deletion.
pub(super) enum Outcome {
    Slice {
        /// The uid of the Service.
        owner: Arc<str>,
        name: Box<str>,
        result: Result<Option<OwnedSlice>, Failure>,
    },
    Service(Result<Option<Service>, Failure>),
    /// Whether Endpoints were deleted.
    Endpoints(Arc<str>, Result<bool, Failure>),
}

/// Sends one write.
pub(super) async fn apply(client: Client, write: Write) -> Applied {
    let began = Instant::now();
    let applied = sent(client, write).await;
    Applied { took: began.elapsed(), ..applied }
}

async fn sent(client: Client, write: Write) -> Applied {
    match write {
        Write::Put { service, uid, name, slice } => {
            let result = write_slice(&client, &service, &uid, &name, &slice).await;
            let result = result.map(Some).map_err(|error| failure(&error));
            Applied::new("write", service, Outcome::Slice { owner: uid, name, result })
        }
        Write::Delete { service, owner, name, uid } => {
            let slice = ObjectKey::new(service.namespace.clone(), name.clone());
            let result = delete_slice(&client, &slice, &uid).await;
            let result = result.map(|()| None).map_err(|error| failure(&error));
            Applied::new("delete", service, Outcome::Slice { owner, name, result })
        }
        Write::DeleteEndpoints { service, uid } => {
            let result = delete_old_endpoints(&client, &service).await;
            let result = result.map_err(|error| failure(&error));
            Applied::new("delete_endpoints", service, Outcome::Endpoints(uid, result))
        }
        Write::CreateService { service, wanted } => {
            let result = create_service(&client, &service, &wanted).await.map(Some);
            Applied::service("create_service", service, result)
        }
        Write::UpdateService { service, uid, version, wanted } => {
            let result = update_service(&client, &service, (&uid, &version), &wanted).await;
            Applied::service("update_service", service, result.map(Some))
        }
        Write::DeleteService { service, uid, version } => {
            let result = delete_service(&client, &service, (&uid, &version)).await;
            Applied::service("delete_service", service, result.map(|()| None))
        }
    }
}

fn failure(error: &WriteError) -> Failure {
    let reason = match error {
        WriteError::Denied { .. } => Reason::Denied,
        WriteError::Conflict { .. } => Reason::Contested,
        WriteError::Failed { .. } => Reason::Failing,
    };
    let problem = Problem::new(reason, error.to_string());
    Failure { problem, retry_after: error.retry_after().unwrap_or_default() }
}

// === impl Applied ===

impl Applied {
    fn new(verb: &'static str, service: ObjectKey, outcome: Outcome) -> Self {
        Self { verb, took: Duration::ZERO, service, outcome }
    }

    fn service(
        verb: &'static str,
        service: ObjectKey,
        result: Result<Option<Service>, WriteError>,
    ) -> Self {
        let outcome = Outcome::Service(result.map_err(|error| failure(&error)));
        Self::new(verb, service, outcome)
    }

    /// Whether it was done.
    pub(super) fn is_done(&self) -> bool {
        match &self.outcome {
            Outcome::Slice { result, .. } => result.is_ok(),
            Outcome::Service(result) => result.is_ok(),
            Outcome::Endpoints(_, result) => result.is_ok(),
        }
    }
}
