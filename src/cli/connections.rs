//! How Kubernetes and Consul are reached: flags that several subcommands share.

use std::path::PathBuf;

use clap::Args;
use http::Uri;

use crate::consul::http::config::{Address, Config, ConfigError, Login, TokenSource};
use crate::kubernetes::client::Access;

/// How the Kubernetes API is reached.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Kubernetes")]
pub struct KubernetesArgs {
    /// URL of a `kubectl proxy`, for example http://127.0.0.1:8001
    #[arg(long, env = "KUBE_CONSUL_KUBE_URL", value_name = "URL", conflicts_with_all = ["kubeconfig", "kube_context"])]
    kube_url: Option<Uri>,
    /// Kubeconfig file [default: the pod's service account, then $KUBECONFIG, then ~/.kube/config]
    #[arg(long, env = "KUBE_CONSUL_KUBECONFIG", value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig [default: its current one]
    #[arg(long, visible_alias = "context", env = "KUBE_CONSUL_KUBE_CONTEXT", value_name = "NAME")]
    kube_context: Option<String>,
}

/// How Consul is reached, where it differs from the `CONSUL_*` variables.
#[derive(Clone, Debug, Args)]
#[command(
    next_help_heading = "Consul (every CONSUL_* variable of Consul's own command is honoured)"
)]
#[expect(clippy::struct_field_names, reason = "the names are those of the flags")]
pub struct ConsulArgs {
    /// Address of Consul's HTTP API; of several (repeatable) of one datacenter each is tried in turn,
    /// but for an agent's registrations [default: $CONSUL_HTTP_ADDR, then 127.0.0.1:8500]
    #[arg(long, env = "KUBE_CONSUL_CONSUL_ADDR", value_delimiter = ',', value_name = "ADDRESS")]
    consul_addr: Vec<Address>,
    /// File with the ACL token [default: $CONSUL_HTTP_TOKEN_FILE, then $CONSUL_HTTP_TOKEN]
    #[arg(
        long,
        env = "KUBE_CONSUL_CONSUL_TOKEN_FILE",
        value_name = "FILE",
        conflicts_with = "consul_auth_method"
    )]
    consul_token_file: Option<PathBuf>,
    /// Auth method to log in to with a Kubernetes service account's token
    #[arg(long, env = "KUBE_CONSUL_CONSUL_AUTH_METHOD", value_name = "NAME")]
    consul_auth_method: Option<String>,
    /// The service account's token
    #[arg(
        long,
        env = "KUBE_CONSUL_CONSUL_BEARER_TOKEN_FILE",
        value_name = "FILE",
        default_value = "/var/run/secrets/kubernetes.io/serviceaccount/token"
    )]
    consul_bearer_token_file: PathBuf,
    /// Datacenter of the auth method [default: that of whoever is asked]
    #[arg(
        long,
        env = "KUBE_CONSUL_CONSUL_LOGIN_DATACENTER",
        value_name = "NAME",
        requires = "consul_auth_method"
    )]
    consul_login_datacenter: Option<String>,
    /// What Consul's list of tokens shows of the one that a login makes (repeatable)
    #[arg(
        long,
        env = "KUBE_CONSUL_CONSUL_LOGIN_META",
        value_delimiter = ',',
        value_parser = pair,
        value_name = "KEY=VALUE",
        requires = "consul_auth_method"
    )]
    consul_login_meta: Vec<(String, String)>,
    /// CA certificates to trust, PEM [default: $CONSUL_CACERT]
    #[arg(long, env = "KUBE_CONSUL_CONSUL_CA_FILE", value_name = "FILE")]
    consul_ca_file: Option<PathBuf>,
    /// Client certificate, PEM [default: $CONSUL_CLIENT_CERT]
    #[arg(
        long,
        env = "KUBE_CONSUL_CONSUL_CLIENT_CERT",
        value_name = "FILE",
        requires = "consul_client_key"
    )]
    consul_client_cert: Option<PathBuf>,
    /// Its key, PEM [default: $CONSUL_CLIENT_KEY]
    #[arg(
        long,
        env = "KUBE_CONSUL_CONSUL_CLIENT_KEY",
        value_name = "FILE",
        requires = "consul_client_cert"
    )]
    consul_client_key: Option<PathBuf>,
    /// Name in the server's certificate [default: $CONSUL_TLS_SERVER_NAME, then the address]
    #[arg(long, env = "KUBE_CONSUL_CONSUL_TLS_SERVER_NAME", value_name = "NAME")]
    consul_tls_server_name: Option<String>,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(key, _)| !key.trim().is_empty());
    let (key, value) = pair.ok_or_else(|| format!("expected KEY=VALUE, found {text:?}"))?;
    Ok((key.trim().to_owned(), value.to_owned()))
}

// === impl KubernetesArgs ===

impl KubernetesArgs {
    /// What they say.
    pub fn access(&self) -> Access {
        Access {
            kube_url: self.kube_url.clone(),
            kubeconfig: self.kubeconfig.clone(),
            context: self.kube_context.clone(),
        }
    }
}

// === impl ConsulArgs ===

impl ConsulArgs {
    /// The same for those who register with an agent: of one alone, which the registrations are
    /// local to.
    pub fn config_of_agent(&self) -> Result<Config, ConfigError> {
        match self.consul_addr.len() {
            0 | 1 => self.config(),
            found => Err(ConfigError::SeveralAgents(found)),
        }
    }

    /// The variables of the environment, with what the flags say instead.
    pub fn config(&self) -> Result<Config, ConfigError> {
        let mut config = Config::from_env(|name| std::env::var(name).ok())?;
        if let [address, further @ ..] = &*self.consul_addr {
            config.address = address.clone();
            config.further = further.to_vec();
            config.check_addresses()?;
        }
        if let Some(file) = &self.consul_token_file {
            config.token = TokenSource::File(file.clone());
        }
        if let Some(auth_method) = &self.consul_auth_method {
            config.token = TokenSource::Login(Login {
                auth_method: auth_method.clone(),
                bearer_token_file: self.consul_bearer_token_file.clone(),
                datacenter: self.consul_login_datacenter.clone(),
                meta: self.consul_login_meta.iter().cloned().collect(),
            });
        }
        let replace = |setting: &mut Option<PathBuf>, flag: &Option<PathBuf>| {
            if flag.is_some() {
                setting.clone_from(flag);
            }
        };
        replace(&mut config.ca_file, &self.consul_ca_file);
        replace(&mut config.client_certificate, &self.consul_client_cert);
        replace(&mut config.client_key, &self.consul_client_key);
        if self.consul_tls_server_name.is_some() {
            config.tls_server_name.clone_from(&self.consul_tls_server_name);
        }
        Ok(config)
    }
}
