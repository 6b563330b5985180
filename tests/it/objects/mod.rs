//! What stands in Consul for an object, and beside its neighbours: on the real servers, by what
//! clients are answered.

mod fights;
mod names;
mod records;
mod support;
mod upgrade;
