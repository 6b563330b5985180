//! What the owner of the state does.

use std::sync::Arc;
use std::time::Duration;

use crate::domain::import::create::Wanted;
use crate::domain::import::layout::Slice;
use crate::domain::import::object::Version;
use crate::domain::import::source::Source;
use crate::domain::kube::names::ObjectKey;
use crate::domain::problem::Problem;

/// The name of a namespace.
pub type Namespace = Box<str>;

/// What the owner of the state has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Follow this source for Services of the namespace, and tell its answers by
    /// [`Importer::handle_instances`].
    Follow(Source, Namespace),
    /// Follow it no longer for them.
    Unfollow(Source, Namespace),
    /// Ask this source anew, at once: what it answered last is to be confirmed.
    Confirm(Source),
    /// Send this to the API server; wants [`Importer::handle_written`].
    Write(Write),
}

/// Why a write was not made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What people are told.
    pub problem: Problem,
    /// How long the API server asks to wait; zero: it does not say.
    pub retry_after: Duration,
}

/// A change in Kubernetes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Write this slice of the Service.
    Put {
        /// The Service that owns it.
        service: ObjectKey,
        /// The uid of the Service.
        uid: Arc<str>,
        /// The name of the slice.
        name: Box<str>,
        /// What is in it.
        slice: Slice,
    },
    /// Delete this slice of the Service, if it still has this uid.
    Delete {
        /// The Service that it is of.
        service: ObjectKey,
        /// The uid of the Service.
        owner: Arc<str>,
        /// The name of the slice.
        name: Box<str>,
        /// The uid of the slice.
        uid: Box<str>,
    },
    /// Delete the Endpoints of this Service, if they can be shown to be those that consul8s left.
    DeleteEndpoints {
        /// The Service.
        service: ObjectKey,
        /// Its uid.
        uid: Arc<str>,
    },
    /// Make this Service, unless there is one.
    CreateService {
        /// Its namespace and name.
        service: ObjectKey,
        /// How it ought to be.
        wanted: Wanted,
    },
    /// Change this Service, if it still is this one at this version.
    UpdateService {
        /// The Service.
        service: ObjectKey,
        /// Its uid.
        uid: Arc<str>,
        /// Its version.
        version: Version,
        /// How it ought to be.
        wanted: Wanted,
    },
    /// Delete this Service, if it still is this one at this version.
    DeleteService {
        /// The Service.
        service: ObjectKey,
        /// Its uid.
        uid: Arc<str>,
        /// Its version.
        version: Version,
    },
}
