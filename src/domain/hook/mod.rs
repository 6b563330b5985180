//! What the registration hook registers: decided from a pod, a Mesos task or the command line.
//!
//! | file | decides from |
//! |---|---|
//! | [`k8s`] | a pod, its node and the environment |
//! | [`ports`] | `PORT_DEFINITIONS`, for [`k8s`] |
//! | [`mesos`] | the state of a Mesos agent |
//! | [`cli`] | flags |
//! | [`duration`] | (how durations in flags are written) |
//!
//! IDs, tags and checks are those of consul-registration-hook, so that its users can switch and
//! each overwrites what the other registered. The mark of a registration is its ID, made of
//! address and port: whoever has the address next overwrites what a dead pod left behind
//! (invariant: ownership; overwritten by design).

use std::net::Ipv6Addr;
use std::time::Duration;

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use crate::domain::text::excerpt;

pub mod cli;
pub mod duration;
pub mod k8s;
pub mod mesos;
pub mod ports;

/// What no URL may hold as it is; the rest of a path is taken as it was written.
const UNSAFE: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'<').add(b'>').add(b'`');

/// One instance as the hook registers it with the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookRegistration {
    /// `<address>_<port>`, with `-secured` behind it for a secured port.
    pub id: String,
    /// The service's name.
    pub name: String,
    /// An IP address, or with Mesos a host's name.
    pub address: String,
    /// The port.
    pub port: u16,
    /// In the order that users see.
    pub tags: Vec<String>,
    /// The only check; none where there is no probe that Consul could run.
    pub check: Option<HookCheck>,
}

/// A check that Consul's agent runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookCheck {
    /// What is asked.
    pub target: Target,
    /// Time from one run to the next.
    pub interval: Duration,
    /// Time that an answer may take.
    pub timeout: Duration,
    /// Whether it begins as passing: the same was asked just before, with success. Any other
    /// begins as critical, and DNS leaves the instance out until its first run.
    pub begins_passing: bool,
}

/// What a check or a probe asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// GET of a URL. A certificate is not checked, as the kubelet does not.
    Http {
        /// The URL.
        url: String,
        /// Headers to send, by name, in their order.
        headers: Vec<(String, String)>,
    },
    /// A connection to `host:port`.
    Tcp(String),
    /// gRPC's health protocol, without TLS as the kubelet.
    Grpc {
        /// `host:port`.
        address: String,
        /// The service to ask about; none: the server as a whole.
        service: Option<String>,
    },
}

/// Input that nothing can be registered from. It is the user's to correct: exit code 2.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// A variable that has to be set.
    #[error("{variable}: expected {expected}, found nothing; set it")]
    Missing {
        /// The variable, with its flag where there is one.
        variable: &'static str,
        /// What it should hold.
        expected: &'static str,
    },
    /// Several of these.
    #[error("{}", joined(.0))]
    Several(Vec<Invalid>),
    /// A variable whose value cannot be used.
    #[error("{variable}: expected {expected}, found {found}; correct it")]
    Variable {
        /// The variable, with its flag where there is one.
        variable: &'static str,
        /// What it should hold.
        expected: &'static str,
        /// What it holds, or what is wrong with it.
        found: String,
    },
    /// A label of the pod or task whose value cannot be used.
    #[error("label {label} of {object}: expected {expected}, found {found}; correct it")]
    Label {
        /// The label.
        label: &'static str,
        /// Whose label it is.
        object: String,
        /// What it should hold.
        expected: String,
        /// What it holds.
        found: String,
    },
    /// No port to register.
    #[error(
        "{object}: expected a container with a port, found none; declare a containerPort or set \
         PORT_DEFINITIONS"
    )]
    NoPort {
        /// The pod, and the container where one is named.
        object: String,
    },
    /// A probe that nobody can ask, the kubelet neither.
    #[error("{object}: {probe}: {wrong}; correct it")]
    Probe {
        /// The pod.
        object: String,
        /// Which of its probes.
        probe: String,
        /// What is wrong with it.
        wrong: String,
    },
    /// A port that is none.
    #[error("{object}: expected a port from 1 to 65535, found {found}; correct it")]
    Port {
        /// Whose port it is.
        object: String,
        /// What was found.
        found: i64,
    },
    /// The Mesos agent knows no such executor, or it has no task.
    #[error(
        "expected a task of executor {executor:?} of framework {framework:?} in the state of the \
         Mesos agent, found {found}; check MESOS_EXECUTOR_ID, MESOS_FRAMEWORK_ID and the agent's URL"
    )]
    NoTask {
        /// `MESOS_EXECUTOR_ID`.
        executor: String,
        /// `MESOS_FRAMEWORK_ID`.
        framework: String,
        /// How far the search came.
        found: String,
    },
}

/// The value of a variable that has to be set; an empty one counts as unset.
pub fn required(
    variable: &'static str,
    expected: &'static str,
    value: Option<&str>,
) -> Result<String, Invalid> {
    match value.map(str::trim) {
        Some(text) if !text.is_empty() => Ok(text.to_owned()),
        _ => Err(Invalid::Missing { variable, expected }),
    }
}

/// All of these values, or all that is wrong with them.
pub fn together<const N: usize>(
    values: [Result<String, Invalid>; N],
) -> Result<[String; N], Invalid> {
    let mut wrong = Vec::new();
    let values = values.map(|value| value.map_err(|error| wrong.push(error)).unwrap_or_default());
    match wrong.len() {
        0 => Ok(values),
        1 => Err(wrong.swap_remove(0)),
        _ => Err(Invalid::Several(wrong)),
    }
}

fn joined(errors: &[Invalid]) -> String {
    let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
    errors.join(", and ")
}

/// ID of the instance at this address and port.
fn id(address: &str, port: u16) -> String {
    format!("{address}_{port}")
}

/// `host:port`, with brackets around an IPv6 address.
fn authority(host: &str, port: u16) -> String {
    if host.parse::<Ipv6Addr>().is_ok() {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

/// A URL of a path that a user wrote.
fn url(scheme: &str, host: &str, port: u16, path: &str) -> String {
    let slash = if path.starts_with('/') { "" } else { "/" };
    format!("{scheme}://{}{slash}{}", authority(host, port), utf8_percent_encode(path, UNSAFE))
}

/// A value in an error: quoted and bounded.
fn quoted(text: &str) -> String {
    format!("{:?}", excerpt(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_carry_any_address_and_path() {
        for (scheme, host, path, expected) in [
            ("http", "10.0.0.1", "/status", "http://10.0.0.1:80/status"),
            ("https", "10.0.0.1", "status", "https://10.0.0.1:80/status"),
            ("http", "10.0.0.1", "", "http://10.0.0.1:80/"),
            ("http", "fd00::1", "/a?b=c", "http://[fd00::1]:80/a?b=c"),
            ("http", "node.example", "/a b", "http://node.example:80/a%20b"),
            ("http", "10.0.0.1", "/ä%20", "http://10.0.0.1:80/%C3%A4%20"),
        ] {
            assert_eq!(url(scheme, host, 80, path), expected);
        }
    }

    #[test]
    fn a_required_variable_is_trimmed_and_named_when_missing() {
        assert_eq!(required("HOST", "a host", Some(" a\n")), Ok("a".to_owned()));
        for missing in [None, Some(""), Some(" ")] {
            let error = required("HOST", "a host", missing).unwrap_err().to_string();
            assert_eq!(error, "HOST: expected a host, found nothing; set it");
        }
    }

    #[test]
    fn everything_that_is_missing_is_told_at_once() {
        let value = |variable, value| required(variable, "a text", value);
        assert_eq!(together([value("A", Some("a"))]), Ok(["a".to_owned()]));
        let one = together([value("A", Some("a")), value("B", None)]).unwrap_err();
        assert_eq!(Err(one), value("B", None));
        let all = together([value("A", None), value("B", Some("b")), value("C", None)]);
        let all = all.unwrap_err().to_string();
        assert!(all.contains("A: expected") && all.contains(", and C: expected"), "{all}");
        assert!(!all.contains("B:"), "{all}");
    }
}
