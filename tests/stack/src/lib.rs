//! A real local cluster for tests and for `make run`: Kubernetes without nodes
//! ([`Kubernetes`]), Consul ([`Consul`], [`ConsulCluster`]) and the program
//! under test ([`Program`]) as child processes, with links between them that a
//! test can cut ([`TcpLink`]) or listen to ([`HttpRecorder`]).
//!
//! - Every port is picked free at run time and reserved among all tests that
//!   run at once ([`Port`]).
//! - Every process is a child that ends with its handle and with this process,
//!   SIGKILL included ([`Program`]).
//! - Data and logs are in one folder a process ([`run_folder`]), printed when
//!   something panics, gone after a day.
//! - One [`Kubernetes::shared`] serves all tests of a binary; a Consul starts
//!   in about a second, so each test has its own.

mod background;
mod certificates;
mod consul;
pub mod documentation;
mod folder;
mod kubernetes;
mod link;
mod network;
mod pod;
mod poll;
mod port;
mod program;
mod recorder;
mod tools;

pub use certificates::{Authority, Certificate, install_provider};
pub use consul::{Consul, ConsulApi, ConsulCluster, ConsulOptions, Data};
pub use folder::{data_folder, remove_run_folder, run_folder};
pub use kubernetes::{Endpoint, KubectlProxy, Kubernetes, KubernetesOptions, ServiceKind};
pub use link::TcpLink;
pub use network::Network;
pub use pod::{Pod, PodObjects, PodOptions};
pub use poll::eventually;
pub use port::Port;
pub use program::{Program, ProgramOptions};
pub use recorder::{Fault, HttpRecorder, Recorded};
pub use tools::program as program_path;
