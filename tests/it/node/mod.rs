//! The daemon of a node: pods on kwok, a client agent, and a server that has the catalog.

mod basics;
mod gates;
mod support;
