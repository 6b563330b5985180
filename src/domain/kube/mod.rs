//! What Kubernetes shows: its objects as far as they can change a registration, and all of them
//! together.

pub mod cache;
pub mod names;
pub mod object;
pub mod packed;
pub mod pod;
pub mod route;
pub mod routes;
pub mod selector;
mod slices;
pub mod store;
