//! Requests to Consul's HTTP API.
//!
//! | file | what it is |
//! |---|---|
//! | [`config`] | where Consul is and who to be there: every variable of Consul's own command |
//! | `addresses` | which of several addresses is asked |
//! | [`setup`] | certificates, server name, HTTP authentication |
//! | [`certificate`] | when certificates run out |
//! | [`verifier`] | trust in CA certificates that were given |
//! | [`authorities`] | naming both CAs where the server's is not trusted |
//! | [`request`] | one request |
//! | [`operation`] | what a request asks for, as one of a few words |
//! | [`error`] | what can go wrong, sorted by what it means for a write |
//! | [`transport`] | connections, bounded bodies, the headers that say how complete an answer is |
//! | [`token`] | the token in use, and its renewal |
//! | [`client`] | requests with the token |
//! | [`stream`] | long answers, item by item |

mod addresses;
mod authorities;
pub mod certificate;
pub mod client;
pub mod config;
pub mod error;
pub mod operation;
pub mod request;
pub mod setup;
pub mod stream;
pub mod token;
pub mod transport;
mod verifier;
