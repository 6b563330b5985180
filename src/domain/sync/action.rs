//! What comes out of the core to be done.

use std::sync::Arc;

use crate::domain::consul::record::Write;
use crate::domain::flights::FlightId;
use crate::domain::kube::names::ObjectKey;

/// What the owner of the state has to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send these groups in one request; wants [`Core::handle_answers`].
    Write {
        /// The number to answer with.
        flight: FlightId,
        /// What is sent, in order.
        groups: Vec<Group>,
    },
    /// Read this PTR key; wants [`Core::handle_ptr_read`].
    ReadPtr {
        /// The number to answer with.
        flight: FlightId,
        /// The KV key.
        key: Box<str>,
    },
    /// Remove the catalog's node of this namespace, on which nothing is registered any more; wants
    /// [`Core::handle_namespace_node`]. Only with [`Target::Catalog`].
    RemoveNamespaceNode {
        /// The number to answer with.
        flight: FlightId,
        /// The namespace.
        namespace: Box<str>,
    },
    /// Read all that is ours; wants each record in [`Core::handle_observation`], and then
    /// [`Core::handle_resync`]. One at a time.
    Resync {
        /// Whether it must show all that a former leader has written.
        consistent: bool,
    },
    /// Read the names under which others than bridges hold instances; wants
    /// [`Core::handle_names`]. Those of [`Core::held_names`] need no answer.
    ReadNames,
    /// Look up who else holds this Consul name; wants [`Core::handle_name`]. A few at a time.
    ReadName(Arc<str>),
    /// Read which service IDs the catalog shows on the agent's node; wants
    /// [`Core::handle_catalog`]. Only with [`Target::Agent`].
    ReadCatalog,
    /// Follow the PTR keys that begin with this, in the place of what was followed before; `None`:
    /// follow none. Wants [`Core::handle_ptr_keys`] at each change.
    FollowPtr {
        /// What the keys begin with.
        prefix: Option<Box<str>>,
    },
    /// List all kinds again, by a quorum.
    Relist,
    /// Read the cluster's identity; wants [`Core::handle_identity`].
    ReadIdentity,
    /// Watch nodes.
    WatchNodes,
    /// Watch nodes no longer.
    StopWatchingNodes,
    /// Write the agent's marker, with the token in use now, and watch it; wants
    /// [`Core::handle_marker_written`]. Only with [`Target::Agent`].
    WriteMarker,
    /// Ask Consul for a sign of life; wants [`Core::handle_heartbeat`].
    Heartbeat,
}

/// Writes that belong together: one record, or an instance with its PTR record. If one fails, those
/// after it are not sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// The Service.
    pub service: ObjectKey,
    /// The writes, in order.
    pub writes: Vec<Write>,
}

/// One thing to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Planned {
    /// These writes belong together: if one fails, those after it are not sent.
    Write(Vec<Write>),
    /// This PTR key has to be read before it can be written.
    ReadPtr(Box<str>),
}
