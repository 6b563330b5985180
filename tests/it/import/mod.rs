//! `import`: Consul services as endpoints of Services, on the real servers, with the shipped role.

mod create;
mod dialect;
mod faults;
mod follow;
mod marks;
mod options;
mod page;
mod scenarios;
pub mod support;
mod unusual;
mod usage;
