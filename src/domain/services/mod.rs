//! From a Service to its registrations: what its annotations and the operator ask for, the names,
//! the instances, and which of several Services holds a name.

pub mod annotations;
pub mod claims;
pub mod consul8s;
pub mod desired;
pub mod labels;
pub mod overrides;
pub mod routes;
pub mod settings;
pub mod template;
