//! What people are shown of records: the difference between two states of one, and what a bridge
//! would change.

pub mod difference;
pub mod forecast;
