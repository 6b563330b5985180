//! Writes in Kubernetes.

use std::sync::Arc;

use kube::Client;

use crate::domain::import::core::{Failure, Write};
use crate::domain::import::object::OwnedSlice;
use crate::domain::kube::names::ObjectKey;
use crate::domain::problem::{Problem, Reason};
use crate::kubernetes::import::{WriteError, delete_slice, write_slice};

/// What became of a write.
pub(super) struct Applied {
    pub(super) service: ObjectKey,
    /// The uid of the Service.
    pub(super) owner: Arc<str>,
    /// The slice.
    pub(super) name: Box<str>,
    /// What the API server has now: a slice, or none after its deletion.
    pub(super) result: Result<Option<OwnedSlice>, Failure>,
}

/// Sends one write.
pub(super) async fn apply(client: Client, write: Write) -> Applied {
    match write {
        Write::Put { service, uid, name, slice } => {
            let result = write_slice(&client, &service, &uid, &name, &slice).await;
            let result = result.map(Some).map_err(|error| failure(&error));
            Applied { service, owner: uid, name, result }
        }
        Write::Delete { service, owner, name, uid } => {
            let slice = ObjectKey::new(service.namespace.clone(), name.clone());
            let result = delete_slice(&client, &slice, &uid).await;
            let result = result.map(|()| None).map_err(|error| failure(&error));
            Applied { service, owner, name, result }
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
