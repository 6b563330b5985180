//! The catalog sink: synthetic nodes, transactions, a fenced leader.

mod basics;
mod election;
mod support;
