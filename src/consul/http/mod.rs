//! Requests to Consul's HTTP API: configuration, TLS, tokens, deadlines, bounded bodies, errors.

pub mod client;
pub mod config;
pub mod error;
pub mod setup;
pub mod stream;
pub mod token;
pub mod wire;
