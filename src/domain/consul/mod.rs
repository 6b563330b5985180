//! What is registered in Consul: records, their IDs, their ownership marks, and how Consul compares
//! names.

pub mod meta;
pub mod names;
pub mod node_names;
pub mod pairs;
pub mod ptr;
pub mod record;
pub mod registration_id;
