//! The edge to the Kubernetes API: reads Services, EndpointSlices and Nodes, writes Events.
//!
//! - [`client`] finds the cluster, connects to it and asks what it is.
//! - [`limits`] bounds what the client leaves unbounded: time to headers, bodies, restarted watches.
//! - [`slim`], [`endpoints`] and [`routes`] decode objects to the fields that can change a registration.
//! - [`watch`] turns lists and watches into [`WatchEvent`](crate::domain::kube::object::WatchEvent)s.
//! - [`kubelet`] shows the same by polling the node's kubelet.
//! - [`node`] decodes the pods of one node, for its daemon.
//! - [`pods`] gets one pod and its node, for the registration hook.
//! - [`errors`] makes what the client fails with fit for a line.
//! - [`events`] reports problems on the objects that have them.
//!
//! Two invariants are kept here. **Nothing is removed out of ignorance**: `ListCompleted` is said
//! only of a quorum list whose every page arrived whole. **One bad object harms only itself**: an
//! object that does not decode is reported as such, and the rest of its page arrives.

pub mod client;
pub mod endpoints;
pub mod errors;
pub mod events;
pub mod import;
pub mod kubelet;
pub mod limits;
pub mod node;
pub mod permissions;
pub mod pods;
pub mod pool;
pub mod routes;
pub mod slim;
pub mod watch;
mod wire;

/// What a log filter has to silence: kube logs the whole body of a response that it cannot read
/// at `warn`, each denied watch at `warn` and each broken connection at `error`. All of it is reported
/// again by [`watch::Trouble`], shortened and at a bounded rate.
///
/// The syntax is that of `tracing_subscriber::EnvFilter`.
pub const LOG_DIRECTIVES: [&str; 1] = ["kube_client::client=off"];
