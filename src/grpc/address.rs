//! Where a daemon listens, and where its sidecars find it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use thiserror::Error;

/// A TCP address or a unix socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// By host, which may be empty or a name, and port.
    Tcp {
        /// Without the brackets of IPv6. Empty: all addresses of this host, or this host.
        host: String,
        /// The port; 0 is any free one.
        port: u16,
    },
    /// The path of a socket.
    Unix(PathBuf),
}

/// Text that is no address.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "expected HOST:PORT, :PORT or unix:///PATH, found {found:?}: give for example 10.0.0.5:8501 or unix:///run/kube-consul/node.sock"
)]
pub struct InvalidAddress {
    found: String,
}

/// Other ways in which gRPC clients write HOST:PORT.
const RESOLVERS: [&str; 2] = ["dns:///", "passthrough:///"];

impl FromStr for Address {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        let invalid = || InvalidAddress { found: text.to_owned() };
        if let Some(path) = text.strip_prefix("unix://").or_else(|| text.strip_prefix("unix:")) {
            let is_path = !path.is_empty() && !path.contains('\0');
            return is_path.then(|| Self::Unix(path.into())).ok_or_else(invalid);
        }
        let rest = RESOLVERS.iter().find_map(|it| text.strip_prefix(it)).unwrap_or(text);
        let (host, port) = rest.rsplit_once(':').ok_or_else(invalid)?;
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let is_bracketed = bare.is_some();
        let host = bare.unwrap_or(host);
        let is_host =
            |c: char| c.is_ascii_alphanumeric() || ".-_%".contains(c) || is_bracketed && c == ':';
        if !host.chars().all(is_host) || port.starts_with('+') {
            return Err(invalid());
        }
        Ok(Self::Tcp { host: host.to_owned(), port: port.parse().map_err(|_| invalid())? })
    }
}

// === impl Address ===

impl Address {
    /// The error of one that some library does not take.
    pub(super) fn invalid(&self) -> InvalidAddress {
        InvalidAddress { found: self.to_string() }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_go_reads_them() {
        let tcp = |host: &str, port| Some(Address::Tcp { host: host.to_owned(), port });
        let unix = |path: &str| Some(Address::Unix(path.into()));
        for (text, expected) in [
            (":8501", tcp("", 8501)),
            ("10.0.0.5:8501", tcp("10.0.0.5", 8501)),
            ("[fd00::5]:8501", tcp("fd00::5", 8501)),
            ("node-1.example:1", tcp("node-1.example", 1)),
            ("dns:///node-1:8501", tcp("node-1", 8501)),
            ("passthrough:///10.0.0.5:8501", tcp("10.0.0.5", 8501)),
            ("unix:///run/a.sock", unix("/run/a.sock")),
            ("unix:a.sock", unix("a.sock")),
            ("", None),
            ("10.0.0.5", None),
            ("10.0.0.5:", None),
            ("10.0.0.5:+1", None),
            ("10.0.0.5:65536", None),
            ("fd00::5:8501", None),
            ("http://node:8501", None),
            ("$(HOST_IP):8501", None),
            ("unix://", None),
        ] {
            let found = text.parse::<Address>().ok();
            assert_eq!(found, expected, "{text}");
            if let Some(address) = found {
                assert_eq!(address.to_string().parse(), Ok(address), "{text}");
            }
        }
    }
}
