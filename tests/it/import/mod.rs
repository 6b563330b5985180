//! `import`: Consul services as endpoints of Services, on the real servers, with the shipped role.

mod create;
mod faults;
mod follow;
pub mod support;
mod unusual;
mod usage;
