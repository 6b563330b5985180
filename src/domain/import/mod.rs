//! From Consul to Kubernetes: which instances a Service asks for, and the EndpointSlices that they
//! make.
//!
//! | file | what it is |
//! |---|---|
//! | [`addresses`] | where an import may lead |
//! | [`source`] | what a Service asks for, by its labels and annotations |
//! | [`instance`] | instances of Consul services, and the endpoints that they are |
//! | [`create`] | which Services are made for Consul services |
//! | [`core`] | the state: from what both sides show to the next requests |
//! | [`object`] | the parts of Kubernetes objects that matter |
//! | [`share`] | how many queries there are at a time |
//! | [`layout`] | how endpoints are laid out in slices, and in which order these are written |

pub mod addresses;
pub mod core;
pub mod create;
pub mod instance;
pub mod layout;
pub mod object;
pub mod share;
pub mod source;
