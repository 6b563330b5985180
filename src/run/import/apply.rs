//! Writes in Kubernetes.

use std::time::Duration;

use kube::Client;

use crate::domain::import::core::Write;
use crate::domain::import::object::OwnedSlice;
use crate::domain::kube::names::ObjectKey;
use crate::domain::problem::{Problem, Reason};
use crate::kubernetes::import::{WriteError, delete_slice, write_slice};

/// What became of a write.
pub(super) struct Applied {
    pub(super) service: ObjectKey,
    /// The slice.
    pub(super) name: Box<str>,
    /// What the API server has now: a slice, or none after its deletion; or why not, and how long
    /// it asks to wait.
    pub(super) result: Result<Option<OwnedSlice>, (Problem, Option<Duration>)>,
}

/// Sends one write.
pub(super) async fn apply(client: Client, write: Write) -> Applied {
    match write {
        Write::Put { service, uid, name, slice } => {
            let result = write_slice(&client, &service, &uid, &name, &slice).await;
            Applied { service, name, result: result.map(Some).map_err(|error| problem(&error)) }
        }
        Write::Delete { service, name, uid } => {
            let slice = ObjectKey::new(service.namespace.clone(), name.clone());
            let result = delete_slice(&client, &slice, &uid).await;
            Applied {
                service,
                name,
                result: result.map(|()| None).map_err(|error| problem(&error)),
            }
        }
    }
}

fn problem(error: &WriteError) -> (Problem, Option<Duration>) {
    let reason = match error {
        WriteError::Denied { .. } => Reason::Denied,
        WriteError::Conflict { .. } => Reason::Contested,
        WriteError::Failed { .. } => Reason::Failing,
    };
    (Problem::new(reason, error.to_string()), error.retry_after())
}
