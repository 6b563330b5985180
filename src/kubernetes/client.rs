//! Finding the cluster, connecting to it, and asking what it is.
//!
//! The ways to the API, in this order: `--kube-url`, `--kubeconfig` or `--kube-context`, in-cluster,
//! `$KUBECONFIG`, `~/.kube/config`. A daemon is explicit, so kube's inference (kubeconfig first,
//! debug overrides from the environment) is not used.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http::Uri;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, PartialObjectMeta};
use kube::client::ClientBuilder;
use kube::config::{Config, KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, ResourceExt};

use crate::domain::text::{chain, one_line};
use crate::kubernetes::errors::failure;
use crate::kubernetes::limits::with_limits;

/// Time to open a connection. Within [`super::limits::HEADERS_TIMEOUT`], so that a connection that cannot be made
/// is reported as such.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Where a pod finds its credentials.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// How the user says to reach the cluster.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// `--kube-url`: an API without authentication, as `kubectl proxy` offers it.
    pub kube_url: Option<Uri>,
    /// `--kubeconfig`.
    pub kubeconfig: Option<PathBuf>,
    /// `--kube-context`.
    pub context: Option<String>,
}

/// What the process finds around itself; read once, by [`Environment::read`].
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// Whether this runs in a pod with a service account's credentials.
    pub in_cluster: bool,
    /// `$KUBECONFIG`, unless empty.
    pub kubeconfig: Option<PathBuf>,
    /// `~/.kube/config`, if it is there.
    pub home_kubeconfig: Option<PathBuf>,
}

/// A client and where it leads.
#[derive(Clone)]
pub struct Connected {
    /// The client; all its requests keep the bounds of [`super::limits`].
    pub client: Client,
    /// The API's URL.
    pub url: String,
    /// How it was found, in words.
    pub source: String,
}

/// What identifies the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClusterUid {
    /// The uid of the namespace `kube-system`.
    Known(String),
    /// It may not be read (403), and why.
    Denied(String),
}

/// What the endpoints of Services are read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndpointSource {
    /// `discovery.k8s.io/v1` EndpointSlices.
    EndpointSlices,
    /// `v1` Endpoints, where the API has no `discovery.k8s.io/v1`.
    Endpoints,
}

/// Why the cluster could not be found, connected to or asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No way to the API was given.
    #[error(
        "expected a way to the Kubernetes API, found none; give --kube-url (a kubectl proxy), \
         --kubeconfig or --kube-context, run in a pod with a service account, set KUBECONFIG, or \
         write ~/.kube/config"
    )]
    NoConfiguration,
    /// `--kube-url` is no URL of an API.
    #[error("--kube-url: expected http://HOST:PORT or https://HOST:PORT, found {0}")]
    Url(String),
    /// More than one way was given.
    #[error("--kube-url cannot be combined with --kubeconfig or --kube-context; give one of them")]
    Ambiguous,
    /// A kubeconfig could not be read or used.
    #[error("cannot use the kubeconfig of {origin}: {cause}; check the file and its context")]
    Kubeconfig {
        /// The path, or where it was named.
        origin: String,
        /// What was wrong.
        cause: String,
    },
    /// The pod's credentials could not be read.
    #[error("cannot use the pod's service account in {SERVICE_ACCOUNT}: {0}")]
    InCluster(String),
    /// The configuration does not make a client.
    #[error("cannot make a client for {url}: {cause}")]
    Client {
        /// The API's URL.
        url: String,
        /// What was wrong.
        cause: String,
    },
    /// The version could not be asked.
    #[error("cannot ask the Kubernetes API for its version: {0}")]
    Version(String),
    /// The namespace `kube-system` could not be read, but for a denial.
    #[error("cannot read the namespace kube-system, whose uid identifies the cluster: {0}")]
    ClusterUid(String),
    /// It could not be found out whether the API has EndpointSlices.
    #[error("cannot ask the Kubernetes API for discovery.k8s.io/v1: {0}")]
    Discovery(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Way {
    Url(Uri),
    /// A path of its own, or else what `$KUBECONFIG` and the home directory give.
    Kubeconfig(Option<PathBuf>),
    InCluster,
}

// === impl Error ===

impl Error {
    /// Whether the user's configuration is at fault, and trying again cannot help.
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::NoConfiguration
            | Self::Url(_)
            | Self::Ambiguous
            | Self::Kubeconfig { .. }
            | Self::InCluster(_)
            | Self::Client { .. } => true,
            Self::Version(_) | Self::ClusterUid(_) | Self::Discovery(_) => false,
        }
    }
}

// === impl Environment ===

impl Environment {
    /// Reads the process's environment.
    pub fn read() -> Self {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let in_cluster = set("KUBERNETES_SERVICE_HOST").is_some()
            && Path::new(SERVICE_ACCOUNT).join("token").exists();
        Self {
            in_cluster,
            kubeconfig: set("KUBECONFIG").map(PathBuf::from),
            home_kubeconfig: set("HOME")
                .map(|home| Path::new(&home).join(".kube").join("config"))
                .filter(|path| path.exists()),
        }
    }
}

/// Makes a client for the cluster that the flags and the environment name. Nothing is sent yet.
///
/// It has to be called within a tokio runtime.
pub async fn connect(access: &Access, environment: &Environment) -> Result<Connected, Error> {
    let way = choose(access, environment)?;
    let (mut config, source) = match &way {
        Way::Url(url) => (Config::new(url.clone()), "--kube-url".to_owned()),
        Way::InCluster => {
            let config = Config::incluster().map_err(|error| Error::InCluster(chain(&error)))?;
            (config, "the pod's service account".to_owned())
        }
        Way::Kubeconfig(path) => {
            from_kubeconfig(path.as_deref(), access.context.clone(), environment).await?
        }
    };
    if config.cluster_url.scheme_str() == Some("http") && config.root_cert.is_none() {
        // Or kube looks for the system's CA bundle, which the image does not have.
        config.root_cert = Some(Vec::new());
    }
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    // It hides refusals for minutes; the callers retry, and tell.
    config.default_retry = false;
    let url = config.cluster_url.to_string();
    let client = ClientBuilder::try_from(config)
        .map_err(|error| Error::Client { url: url.clone(), cause: failure(&error) })?
        .build();
    Ok(Connected { client: with_limits(client), url, source })
}

fn choose(access: &Access, environment: &Environment) -> Result<Way, Error> {
    if let Some(url) = &access.kube_url {
        if access.kubeconfig.is_some() || access.context.is_some() {
            return Err(Error::Ambiguous);
        }
        return check_url(url).map(Way::Url);
    }
    if access.kubeconfig.is_some() {
        return Ok(Way::Kubeconfig(access.kubeconfig.clone()));
    }
    let kubeconfig_there =
        environment.kubeconfig.is_some() || environment.home_kubeconfig.is_some();
    if access.context.is_some() && kubeconfig_there {
        Ok(Way::Kubeconfig(None))
    } else if access.context.is_none() && environment.in_cluster {
        Ok(Way::InCluster)
    } else if access.context.is_none() && kubeconfig_there {
        Ok(Way::Kubeconfig(None))
    } else {
        Err(Error::NoConfiguration)
    }
}

fn check_url(url: &Uri) -> Result<Uri, Error> {
    let scheme = matches!(url.scheme_str(), Some("http" | "https"));
    let credentials = url.authority().is_some_and(|it| it.as_str().contains('@'));
    if credentials {
        return Err(Error::Url("one with credentials, which would show in logs".to_owned()));
    }
    if !scheme || url.host().is_none_or(str::is_empty) || url.query().is_some() {
        return Err(Error::Url(format!("{:?}", url.to_string())));
    }
    Ok(url.clone())
}

async fn from_kubeconfig(
    path: Option<&Path>,
    context: Option<String>,
    environment: &Environment,
) -> Result<(Config, String), Error> {
    // `$KUBECONFIG` may be a list of files; kube reads and merges it.
    let from_variable = path.is_none() && environment.kubeconfig.is_some();
    let path = path.or(environment.home_kubeconfig.as_deref()).filter(|_| !from_variable);
    let origin = match (path, &environment.kubeconfig) {
        (Some(path), _) => path.display().to_string(),
        (None, Some(paths)) => format!("KUBECONFIG={}", paths.display()),
        (None, None) => return Err(Error::NoConfiguration),
    };
    let failed =
        |error: KubeconfigError| Error::Kubeconfig { origin: origin.clone(), cause: chain(&error) };
    let options = KubeConfigOptions { context, ..KubeConfigOptions::default() };
    let config = match path {
        Some(path) => {
            let kubeconfig = Kubeconfig::read_from(path).map_err(failed)?;
            Config::from_custom_kubeconfig(kubeconfig, &options).await
        }
        None => Config::from_kubeconfig(&options).await,
    };
    Ok((config.map_err(failed)?, format!("the kubeconfig of {origin}")))
}

/// The API server's version, as `v1.36.1`.
pub async fn server_version(client: &Client) -> Result<String, Error> {
    let info = client.apiserver_version().await.map_err(|error| Error::Version(failure(&error)))?;
    Ok(one_line(&info.git_version, 64))
}

/// The uid of the namespace `kube-system`: what a cluster is known by.
pub async fn kube_system_uid(client: &Client) -> Result<ClusterUid, Error> {
    let namespaces: Api<PartialObjectMeta<Namespace>> = Api::all(client.clone());
    match namespaces.get("kube-system").await {
        Ok(namespace) => namespace
            .uid()
            .filter(|uid| !uid.is_empty())
            .map(ClusterUid::Known)
            .ok_or_else(|| Error::ClusterUid("it has none".to_owned())),
        Err(error) if has_code(&error, 403) => Ok(ClusterUid::Denied(failure(&error))),
        Err(error) => Err(Error::ClusterUid(failure(&error))),
    }
}

/// Whether the API has EndpointSlices. Only a 404 says that it has not: when discovery is closed
/// to us (403), the list itself will tell.
pub async fn endpoint_source(client: &Client) -> Result<EndpointSource, Error> {
    match client.list_api_group_resources("discovery.k8s.io/v1").await {
        Ok(_) => Ok(EndpointSource::EndpointSlices),
        Err(error) if has_code(&error, 404) => Ok(EndpointSource::Endpoints),
        Err(error) if has_code(&error, 403) => Ok(EndpointSource::EndpointSlices),
        Err(error) => Err(Error::Discovery(failure(&error))),
    }
}

fn has_code(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}

#[cfg(test)]
mod tests;
