//! Where Consul is and how to speak to it: every variable that Consul's own command honours.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::domain::text::parse_bool;
use secrecy::SecretString;

/// Consul's own default address.
const DEFAULT_ADDRESS: &str = "127.0.0.1:8500";

/// How to reach Consul and who to be there.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where its HTTP API is (`CONSUL_HTTP_ADDR`).
    pub address: Address,
    /// Where else it is, of the same datacenter: tried in turn while nobody can be reached at the address
    /// in use.
    pub further: Vec<Address>,
    /// Speak TLS even where the address says `http://` or nothing (`CONSUL_HTTP_SSL`).
    pub tls: bool,
    /// Whether the server's certificate is checked (`CONSUL_HTTP_SSL_VERIFY`).
    pub tls_verify: bool,
    /// PEM file of the only CA certificates to trust (`CONSUL_CACERT`).
    pub ca_file: Option<PathBuf>,
    /// Directory of such files (`CONSUL_CAPATH`); not read where `ca_file` is given.
    pub ca_directory: Option<PathBuf>,
    /// PEM file of the client's certificate (`CONSUL_CLIENT_CERT`); goes with `client_key`.
    pub client_certificate: Option<PathBuf>,
    /// PEM file of the client's private key (`CONSUL_CLIENT_KEY`).
    pub client_key: Option<PathBuf>,
    /// DNS name that the server's certificate has to carry and that SNI asks for, where the
    /// address has another (`CONSUL_TLS_SERVER_NAME`).
    pub tls_server_name: Option<String>,
    /// Where the ACL token comes from.
    pub token: TokenSource,
    /// User and password of HTTP basic authentication (`CONSUL_HTTP_AUTH`).
    pub http_auth: Option<HttpAuth>,
    /// Enterprise namespace (`CONSUL_NAMESPACE`). The community edition answers any with 400.
    pub namespace: Option<String>,
    /// Enterprise admin partition (`CONSUL_PARTITION`); likewise.
    pub partition: Option<String>,
    /// Datacenter to read from and write to; none: the agent's own.
    pub datacenter: Option<String>,
}

/// Address of Consul's HTTP API: `host:port`, `http://`, `https://` with an optional path
/// prefix, or `unix://`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// Over TCP.
    Tcp {
        /// Whether the address itself asks for TLS.
        tls: bool,
        /// `host` or `host:port`.
        authority: String,
        /// Empty, or `/` and what comes before `/v1` without a slash at the end.
        prefix: String,
    },
    /// Over a Unix socket.
    Unix(PathBuf),
}

/// Where the ACL token comes from.
#[derive(Clone, Debug)]
pub enum TokenSource {
    /// None is sent: Consul's anonymous token applies.
    Anonymous,
    /// Given as it is (`CONSUL_HTTP_TOKEN`).
    Fixed(SecretString),
    /// A file, trimmed; read again when Consul refuses the token (`CONSUL_HTTP_TOKEN_FILE`).
    File(PathBuf),
    /// Logging in to an auth method with the bearer token (a Kubernetes service account's) of
    /// a file; again when Consul does not know the token any more.
    Login(Login),
}

/// Where and as whom to log in.
#[derive(Clone, Debug)]
pub struct Login {
    /// Name of the auth method.
    pub auth_method: String,
    /// File with the bearer token.
    pub bearer_token_file: PathBuf,
    /// The datacenter of the auth method; none: that of whoever is asked.
    pub datacenter: Option<String>,
    /// What the token says of itself in Consul's list of tokens.
    pub meta: BTreeMap<String, String>,
}

/// HTTP basic authentication.
#[derive(Clone, Debug)]
pub struct HttpAuth {
    /// The user.
    pub user: String,
    /// The password; none where the variable has no colon.
    pub password: Option<SecretString>,
}

/// A variable whose value cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Not an address.
    #[error("CONSUL_HTTP_ADDR: {0}")]
    Address(InvalidAddress),
    /// Not a truth value.
    #[error(
        "{variable}: expected true or false (or 1, t, 0, f), found {found:?}; correct or unset it"
    )]
    Boolean {
        /// The variable.
        variable: &'static str,
        /// Its value.
        found: String,
    },
    /// Several addresses where one agent is meant.
    #[error(
        "--consul-addr: expected one address, that of the agent, found {0}: an agent's registrations \
         are its own; give several with --sink catalog"
    )]
    SeveralAgents(usize),
    /// Several addresses of which some speak TLS: the token would go out in the clear while those are away.
    #[error(
        "--consul-addr: expected https for all addresses or for none, found {tls} and {plain}; \
         write https:// before each, or set CONSUL_HTTP_SSL=true"
    )]
    MixedSchemes {
        /// One with TLS.
        tls: String,
        /// One without.
        plain: String,
    },
    /// A client certificate without its key, or the reverse.
    #[error("{present} is set: expected {missing} too, found nothing; set both or neither")]
    Half {
        /// The one that is set.
        present: &'static str,
        /// The other.
        missing: &'static str,
    },
}

/// A text that is no address of Consul's HTTP API.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected host:port, http://host:port, https://host:port (with an optional path prefix) or \
     unix:///path, found {found}: {reason}"
)]
pub struct InvalidAddress {
    /// Debug form of the text; left out where it may hold a password.
    found: String,
    reason: &'static str,
}

// === impl Config ===

impl Default for Config {
    fn default() -> Self {
        Self {
            address: Address::default(),
            further: Vec::new(),
            tls: false,
            tls_verify: true,
            ca_file: None,
            ca_directory: None,
            client_certificate: None,
            client_key: None,
            tls_server_name: None,
            token: TokenSource::Anonymous,
            http_auth: None,
            namespace: None,
            partition: None,
            datacenter: None,
        }
    }
}

impl Config {
    /// The configuration that the environment gives. `lookup` is the environment; a variable
    /// that is empty counts as unset, as for Consul's own command.
    pub fn from_env(lookup: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let get = |variable: &str| lookup(variable).filter(|value| !value.is_empty());
        let path = |variable: &str| get(variable).map(PathBuf::from);
        let address = match get("CONSUL_HTTP_ADDR") {
            Some(text) => text.parse().map_err(ConfigError::Address)?,
            None => Address::default(),
        };
        // The file wins over the token.
        let token = match (path("CONSUL_HTTP_TOKEN_FILE"), get("CONSUL_HTTP_TOKEN")) {
            (Some(file), _) => TokenSource::File(file),
            (None, Some(token)) => TokenSource::Fixed(token.into()),
            (None, None) => TokenSource::Anonymous,
        };
        let config = Self {
            address,
            further: Vec::new(),
            tls: boolean("CONSUL_HTTP_SSL", get("CONSUL_HTTP_SSL"), false)?,
            tls_verify: boolean("CONSUL_HTTP_SSL_VERIFY", get("CONSUL_HTTP_SSL_VERIFY"), true)?,
            ca_file: path("CONSUL_CACERT"),
            ca_directory: path("CONSUL_CAPATH"),
            client_certificate: path("CONSUL_CLIENT_CERT"),
            client_key: path("CONSUL_CLIENT_KEY"),
            tls_server_name: get("CONSUL_TLS_SERVER_NAME"),
            token,
            http_auth: get("CONSUL_HTTP_AUTH").map(|text| HttpAuth::from_text(&text)),
            namespace: get("CONSUL_NAMESPACE"),
            partition: get("CONSUL_PARTITION"),
            datacenter: None,
        };
        match (&config.client_certificate, &config.client_key) {
            (Some(_), None) => Err(ConfigError::Half {
                present: "CONSUL_CLIENT_CERT",
                missing: "CONSUL_CLIENT_KEY",
            }),
            (None, Some(_)) => Err(ConfigError::Half {
                present: "CONSUL_CLIENT_KEY",
                missing: "CONSUL_CLIENT_CERT",
            }),
            _ => Ok(config),
        }
    }

    /// Makes sure that all addresses over TCP speak TLS or none does.
    pub fn check_addresses(&self) -> Result<(), ConfigError> {
        let over_tcp = || self.each().filter(|it| matches!(it.address, Address::Tcp { .. }));
        let (tls, plain) = (over_tcp().find(Self::uses_tls), over_tcp().find(|it| !it.uses_tls()));
        match (tls, plain) {
            (Some(tls), Some(plain)) => Err(ConfigError::MixedSchemes {
                tls: tls.display_url(),
                plain: plain.display_url(),
            }),
            _ => Ok(()),
        }
    }

    /// The same for each address alone, in their order.
    pub fn each(&self) -> impl Iterator<Item = Self> {
        let addresses = std::iter::once(&self.address).chain(&self.further);
        addresses.map(|address| Self {
            address: address.clone(),
            further: Vec::new(),
            ..self.clone()
        })
    }

    /// Whether requests go over TLS.
    pub fn uses_tls(&self) -> bool {
        match &self.address {
            Address::Tcp { tls, .. } => *tls || self.tls,
            Address::Unix(_) => false,
        }
    }

    /// Where requests go, for people: it never holds a secret.
    pub fn display_url(&self) -> String {
        match &self.address {
            Address::Tcp { .. } => self.base_url(),
            Address::Unix(path) => format!("unix://{}", path.display()),
        }
    }

    /// What goes before `/v1` in each request's URL.
    pub(in crate::consul) fn base_url(&self) -> String {
        match &self.address {
            Address::Tcp { authority, prefix, .. } => {
                let scheme = if self.uses_tls() { "https" } else { "http" };
                format!("{scheme}://{authority}{prefix}")
            }
            // The host is not resolved over a Unix socket; it only fills the Host header.
            Address::Unix(_) => "http://localhost".to_owned(),
        }
    }
}

// === impl Address ===

impl Default for Address {
    fn default() -> Self {
        Address::Tcp { tls: false, authority: DEFAULT_ADDRESS.to_owned(), prefix: String::new() }
    }
}

impl FromStr for Address {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        let invalid = |reason| InvalidAddress { found: format!("{text:?}"), reason };
        let (tls, rest) = match text.trim().split_once("://") {
            None => (false, text.trim()),
            Some(("http", rest)) => (false, rest),
            Some(("https", rest)) => (true, rest),
            Some(("unix", "")) => return Err(invalid("the socket's path is missing")),
            Some(("unix", path)) => return Ok(Address::Unix(path.into())),
            Some(_) => return Err(invalid("another scheme")),
        };
        if rest.contains('@') {
            return Err(InvalidAddress {
                found: "user:password@".to_owned(),
                reason: "give user and password in CONSUL_HTTP_AUTH",
            });
        }
        let (authority, prefix) = match rest.split_once('/') {
            Some((authority, prefix)) => (authority, prefix.trim_matches('/')),
            None => (rest, ""),
        };
        if authority.is_empty() {
            return Err(invalid("the host is missing"));
        }
        let prefix = if prefix.is_empty() { String::new() } else { format!("/{prefix}") };
        // What the HTTP library will parse, parsed once here so that the error is ours.
        match reqwest::Url::parse(&format!("http://{authority}{prefix}/v1/")) {
            Ok(url) if url.query().is_none() && url.fragment().is_none() => {
                Ok(Address::Tcp { tls, authority: authority.to_owned(), prefix })
            }
            Ok(_) => Err(invalid("a query or fragment")),
            Err(_) => Err(invalid("no valid host and port")),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp { tls, authority, prefix } => {
                let scheme = if *tls { "https" } else { "http" };
                write!(f, "{scheme}://{authority}{prefix}")
            }
            Address::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

// === impl HttpAuth ===

impl HttpAuth {
    /// Parses `user:password`. Without a colon the whole is the user, as Consul's command has it.
    pub fn from_text(text: &str) -> Self {
        match text.split_once(':') {
            Some((user, password)) => {
                Self { user: user.to_owned(), password: Some(password.into()) }
            }
            None => Self { user: text.to_owned(), password: None },
        }
    }
}

/// Truth values as Go's `strconv.ParseBool` reads them, which Consul's command uses.
fn boolean(
    variable: &'static str,
    value: Option<String>,
    default: bool,
) -> Result<bool, ConfigError> {
    let Some(found) = value else { return Ok(default) };
    parse_bool(&found).ok_or(ConfigError::Boolean { variable, found })
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    fn config(variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
        Config::from_env(|name| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn an_address_has_every_form_of_consuls_command() {
        for (text, ssl, url) in [
            ("", "", "http://127.0.0.1:8500"),
            ("consul:8500", "", "http://consul:8500"),
            ("consul:8500", "true", "https://consul:8500"),
            ("http://consul:8500", "", "http://consul:8500"),
            // Never back to plain text when TLS was asked for.
            ("http://consul:8500", "1", "https://consul:8500"),
            ("https://consul:8501", "", "https://consul:8501"),
            ("https://consul:8501", "false", "https://consul:8501"),
            ("https://proxy/consul/", "", "https://proxy/consul"),
            ("http://proxy:80/a/b", "", "http://proxy:80/a/b"),
            ("[::1]:8500", "", "http://[::1]:8500"),
            ("unix:///run/consul.sock", "", "unix:///run/consul.sock"),
        ] {
            let config = config(&[("CONSUL_HTTP_ADDR", text), ("CONSUL_HTTP_SSL", ssl)]);
            assert_eq!(config.map(|config| config.display_url()), Ok(url.to_owned()), "{text}");
        }
    }

    #[test]
    fn an_invalid_address_says_what_was_expected() {
        for bad in
            ["ftp://consul", "consul:port", "http://", "unix://", "consul:8500?a=b", "a b:8500"]
        {
            let error = config(&[("CONSUL_HTTP_ADDR", bad)]).unwrap_err().to_string();
            assert!(error.starts_with("CONSUL_HTTP_ADDR: expected host:port"), "{bad}: {error}");
            assert!(error.contains(bad), "{bad}: {error}");
        }
        let error = config(&[("CONSUL_HTTP_ADDR", "http://me:hunter2@consul")]).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
    }

    #[test]
    fn the_token_file_wins_and_no_secret_shows() {
        let config = config(&[
            ("CONSUL_HTTP_TOKEN", "s3cret"),
            ("CONSUL_HTTP_TOKEN_FILE", "/token"),
            ("CONSUL_HTTP_AUTH", "me:pa:ss"),
        ])
        .unwrap();
        assert!(matches!(&config.token, TokenSource::File(path) if path.ends_with("token")));
        let auth = config.http_auth.as_ref().unwrap();
        assert_eq!(auth.user, "me");
        assert_eq!(auth.password.as_ref().unwrap().expose_secret(), "pa:ss");
        let shown = format!("{config:?}");
        assert!(!shown.contains("pa:ss") && !shown.contains("s3cret"), "{shown}");
    }

    #[test]
    fn a_token_alone_is_used_as_it_is() {
        let config = config(&[("CONSUL_HTTP_TOKEN", "s3cret")]).unwrap();
        assert!(matches!(&config.token, TokenSource::Fixed(t) if t.expose_secret() == "s3cret"));
        assert!(!format!("{config:?}").contains("s3cret"));
    }

    #[test]
    fn truth_values_are_gos() {
        for (text, expected) in [("0", false), ("False", false), ("t", true), ("TRUE", true)] {
            let config = config(&[("CONSUL_HTTP_SSL_VERIFY", text)]).unwrap();
            assert_eq!(config.tls_verify, expected, "{text}");
        }
        assert_eq!(
            config(&[("CONSUL_HTTP_SSL", "yes")]).unwrap_err(),
            ConfigError::Boolean { variable: "CONSUL_HTTP_SSL", found: "yes".into() }
        );
    }

    #[test]
    fn addresses_speak_tls_all_or_none() {
        for (addresses, ssl, is_right) in [
            (&["https://a:8501", "https://b:8501"][..], "", true),
            (&["a:8500", "http://b:8500", "unix:///c"], "", true),
            (&["https://a:8501", "b:8500"], "", false),
            (&["http://a:8500", "unix:///c", "https://b:8501"], "", false),
            (&["https://a:8501", "b:8501"], "true", true),
        ] {
            let mut all = addresses.iter().map(|it| it.parse().unwrap());
            let ssl = config(&[("CONSUL_HTTP_SSL", ssl)]).unwrap();
            let config = Config { address: all.next().unwrap(), further: all.collect(), ..ssl };
            let found = config.check_addresses();
            assert_eq!(found.is_ok(), is_right, "{addresses:?}: {found:?}");
        }
    }

    #[test]
    fn half_a_client_certificate_is_an_error() {
        for (present, missing) in [
            ("CONSUL_CLIENT_CERT", "CONSUL_CLIENT_KEY"),
            ("CONSUL_CLIENT_KEY", "CONSUL_CLIENT_CERT"),
        ] {
            let error = config(&[(present, "/a.pem")]).unwrap_err();
            assert_eq!(error, ConfigError::Half { present, missing });
        }
    }

    #[test]
    fn the_rest_is_taken_as_it_is() {
        let config = config(&[
            ("CONSUL_CACERT", "/ca.pem"),
            ("CONSUL_CAPATH", "/ca"),
            ("CONSUL_TLS_SERVER_NAME", "server.dc1.consul"),
            ("CONSUL_NAMESPACE", "team"),
            ("CONSUL_PARTITION", "part"),
        ])
        .unwrap();
        assert_eq!(config.ca_file, Some("/ca.pem".into()));
        assert_eq!(config.ca_directory, Some("/ca".into()));
        assert_eq!(config.tls_server_name.as_deref(), Some("server.dc1.consul"));
        assert_eq!(config.namespace.as_deref(), Some("team"));
        assert_eq!(config.partition.as_deref(), Some("part"));
        assert!(matches!(config.token, TokenSource::Anonymous));
    }
}
