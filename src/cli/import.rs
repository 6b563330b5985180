//! The flags of `import`, and the command line of consul8s.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Parser, ValueEnum};

use crate::cli::connections::{ConsulArgs, KubernetesArgs};
use crate::cli::exit::{finish, usage};
use crate::cli::log::LogArgs;
use crate::cli::values::duration;
use crate::consul::http::config::{Address, Config, HttpAuth};
use crate::domain::import::addresses::{Addresses, Cidr};
use crate::domain::import::create::{Create, CreateAs, Pattern};
use crate::domain::kube::names::ClusterName;
use crate::kubernetes::client::{Access, Environment};
use crate::logging::{self, LogFormat};
use crate::run::daemon::options::Common;
use crate::run::import::{self, CreateOptions, Options};
use crate::run::install::CONSUL8S_NAME;

/// Longest --name-prefix: half of a name, so that something is left of the other half.
const MAX_PREFIX: usize = 31;

pub(super) const EXAMPLES: &str = "Examples:
  # the Services of one namespace that ask for it by annotation kube-consul.io/import
  kube-consul import --namespace shop

  # of all namespaces, once, for example in CI
  kube-consul import --all-namespaces --run-once

  # a Service for each Consul service, in namespace consul
  kube-consul import --create --target-namespace consul

  # what a Service says
  kubectl annotate service postgres kube-consul.io/import=postgres

Exit codes: 0 done, 1 failed (with --run-once: not in sync in time, or a problem stands),
2 wrong usage or configuration, 130 interrupted.";

/// `import`.
#[derive(Clone, Debug, Args)]
pub struct ImportArgs {
    /// Name of this cluster: what its bridge registered is not imported
    #[arg(long, env = "KUBE_CONSUL_CLUSTER", default_value = "kubernetes", value_name = "NAME")]
    cluster: ClusterName,
    /// Only the Services of this namespace (repeatable)
    #[arg(
        short = 'n',
        long,
        env = "KUBE_CONSUL_NAMESPACE",
        value_delimiter = ',',
        default_value = "default",
        value_name = "NAMESPACE"
    )]
    namespace: Vec<String>,
    /// The Services of all namespaces
    #[arg(short = 'A', long, env = "KUBE_CONSUL_ALL_NAMESPACES")]
    all_namespaces: bool,
    #[command(flatten)]
    create: CreateArgs,
    /// Only instances with an address in this range (repeatable)
    #[arg(long, env = "KUBE_CONSUL_ALLOW_CIDR", value_delimiter = ',', value_name = "CIDR")]
    allow_cidr: Vec<Cidr>,
    /// No instances with an address in this range, whatever is allowed (repeatable)
    #[arg(long, env = "KUBE_CONSUL_DENY_CIDR", value_delimiter = ',', value_name = "CIDR")]
    deny_cidr: Vec<Cidr>,
    /// Import once and exit: 0 when all is in sync, 1 when not
    #[arg(short = '1', long, env = "KUBE_CONSUL_RUN_ONCE")]
    run_once: bool,
    /// With --run-once: how long it may take
    #[arg(long, env = "KUBE_CONSUL_TIMEOUT", default_value = "30s", value_parser = duration, value_name = "DURATION")]
    timeout: Duration,
    /// Longest time between two reads of a Consul service, in seconds or as a duration; a minute at
    /// least, because changes are followed at once whatever this is
    #[arg(short, long, env = "KUBE_CONSUL_INTERVAL", default_value = "60s", value_parser = seconds, value_name = "DURATION")]
    interval: Duration,
    /// Serve the metrics on port 8000 too, as consul8s did
    #[arg(short, long, env = "KUBE_CONSUL_PROMETHEUS")]
    prometheus: bool,
    /// Where /livez, /readyz, /metrics and /status are served
    /// [default: [::]:9655, or 0.0.0.0:9655 without IPv6]
    #[arg(long, env = "KUBE_CONSUL_ADMIN_ADDR", value_name = "ADDRESS")]
    admin_addr: Option<SocketAddr>,

    #[command(flatten)]
    kubernetes: KubernetesArgs,
    /// Kubeconfig file, as consul8s called it
    #[arg(
        short,
        long,
        env = "KUBE_CONSUL_KUBE_CONFIG_PATH",
        value_name = "FILE",
        conflicts_with = "kubeconfig"
    )]
    kube_config_path: Option<PathBuf>,
    #[command(flatten)]
    consul: ConsulArgs,
    /// Address of Consul, as consul8s called it
    #[arg(
        short,
        long = "consul",
        env = "KUBE_CONSUL_CONSUL",
        value_name = "HOST:PORT",
        conflicts_with = "consul_addr"
    )]
    consul_host: Option<Address>,
}

/// What is made with `--create`.
#[derive(Clone, Debug, Args)]
struct CreateArgs {
    /// Make a Service for each Consul service: all but Consul's own, proxies and gateways, and what
    /// this cluster registered
    #[arg(long, env = "KUBE_CONSUL_CREATE")]
    create: bool,
    /// Only for Consul services of this name, in which * stands for any characters (repeatable);
    /// proxies, gateways and `consul` only so
    #[arg(
        long = "match",
        env = "KUBE_CONSUL_MATCH",
        value_delimiter = ',',
        value_name = "PATTERN",
        requires = "create"
    )]
    pattern: Vec<String>,
    /// Only for Consul services with this tag, and only their instances with it (repeatable)
    #[arg(
        long,
        env = "KUBE_CONSUL_MATCH_TAG",
        value_delimiter = ',',
        value_name = "TAG",
        requires = "create"
    )]
    match_tag: Vec<String>,
    /// Only for Consul services with an instance that passes this filter expression, for example
    /// 'ServiceMeta.env == "production"'
    #[arg(long, env = "KUBE_CONSUL_MATCH_FILTER", value_name = "EXPRESSION", requires = "create")]
    match_filter: Option<String>,
    /// Namespace of the Services that are made
    #[arg(
        long,
        env = "KUBE_CONSUL_TARGET_NAMESPACE",
        value_name = "NAMESPACE",
        requires = "create"
    )]
    target_namespace: Option<String>,
    /// Kind of the Services that are made [default: headless]
    #[arg(long, env = "KUBE_CONSUL_CREATE_AS", value_name = "KIND", requires = "create")]
    create_as: Option<CreateAsArg>,
    /// What the names of the Services begin with
    #[arg(
        long,
        env = "KUBE_CONSUL_NAME_PREFIX",
        value_name = "PREFIX",
        value_parser = prefix,
        requires = "create"
    )]
    name_prefix: Option<Box<str>>,
    /// Consul's DNS domain, for --create-as external-name [default: consul]
    #[arg(long, env = "KUBE_CONSUL_CONSUL_DOMAIN", value_name = "DOMAIN", requires = "create")]
    consul_domain: Option<String>,
    /// Take over the Services that consul-k8s made (label consul=true) in the target namespace
    #[arg(long, env = "KUBE_CONSUL_ADOPT_CONSUL_K8S", requires = "create")]
    adopt_consul_k8s: bool,
}

/// `--create-as`.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum CreateAsArg {
    /// Without a cluster IP: DNS answers with the instances' addresses
    Headless,
    /// With a cluster IP
    ClusterIp,
    /// A CNAME record of Consul's DNS, as consul-k8s makes it
    ExternalName,
}

// === impl CreateArgs ===

impl CreateArgs {
    fn options(self) -> CreateOptions {
        let form = match self.create_as {
            None | Some(CreateAsArg::Headless) => CreateAs::Headless,
            Some(CreateAsArg::ClusterIp) => CreateAs::ClusterIp,
            Some(CreateAsArg::ExternalName) => CreateAs::ExternalName,
        };
        let domain = self.consul_domain.unwrap_or_else(|| "consul".to_owned());
        let create = Create {
            namespace: self.target_namespace.unwrap_or_else(|| "default".to_owned()).into(),
            patterns: self.pattern.iter().map(|it| Pattern::from(&**it)).collect(),
            tags: self.match_tag.into_iter().map(Into::into).collect(),
            prefix: self.name_prefix.unwrap_or_default(),
            form,
            domain: domain.trim_matches('.').into(),
            adopts: self.adopt_consul_k8s,
        };
        CreateOptions { create, filter: self.match_filter }
    }
}

/// The beginning of a Service's name.
fn prefix(text: &str) -> Result<Box<str>, String> {
    let is_valid = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    let begins = text.is_empty() || text.starts_with(|c: char| c.is_ascii_lowercase());
    if begins && text.len() <= MAX_PREFIX && text.bytes().all(is_valid) {
        return Ok(text.into());
    }
    Err(format!(
        "expected at most {MAX_PREFIX} characters of a-z, 0-9 and '-' that begin with a letter"
    ))
}

// === impl ImportArgs ===

impl ImportArgs {
    /// What they say.
    pub(super) fn options(self) -> Result<Options, Box<dyn std::error::Error>> {
        let mut access = self.kubernetes.access();
        access.kubeconfig = access.kubeconfig.or(self.kube_config_path);
        let mut consul = self.consul.config()?;
        if let Some(address) = self.consul_host {
            consul.address = address;
            consul.further.clear();
        }
        let all = self.all_namespaces || self.namespace.iter().any(|it| it == "*");
        let namespaces = if all { Vec::new() } else { self.namespace };
        Ok(Options {
            common: common(access, consul, self.admin_addr),
            cluster: Some(self.cluster),
            namespaces: namespaces.into_iter().map(Into::into).collect(),
            create: self.create.create.then(|| self.create.options()),
            addresses: Addresses { allowed: self.allow_cidr, denied: self.deny_cidr },
            resync: self.interval,
            once: self.run_once.then_some(self.timeout),
            serves_admin: true,
            serves_prometheus: self.prometheus,
        })
    }
}

fn common(access: Access, consul: Config, admin_addr: Option<SocketAddr>) -> Common {
    Common {
        access,
        environment: Environment::read(),
        consul,
        cluster_uid: None,
        adopt: None,
        admin_addr,
    }
}

/// A duration, or a number of seconds as consul8s took it.
fn seconds(text: &str) -> Result<Duration, String> {
    let interval = match text.trim().parse::<u32>() {
        Ok(seconds) => Duration::from_secs(seconds.into()),
        Err(_) => duration(text)?,
    };
    // Less would be a poll, which no change waits for.
    Ok(interval.max(Duration::from_secs(1)))
}

/// Where consul8s finds Consul: its option went into a URL, and so might name a user.
#[derive(Clone, Debug)]
struct Authority {
    address: Address,
    http_auth: Option<HttpAuth>,
}

fn authority(text: &str) -> Result<Authority, String> {
    let (auth, address) = match text.rsplit_once('@') {
        Some((auth, address)) => (Some(auth), address),
        None => (None, text),
    };
    let auth = auth.map(|auth| auth.split_once(':').unwrap_or((auth, "")));
    let http_auth = auth.map(|(user, password)| HttpAuth {
        user: user.to_owned(),
        password: Some(password.to_owned().into()),
    });
    let address = address.parse::<Address>().map_err(|error| error.to_string())?;
    Ok(Authority { address, http_auth })
}

/// The command line of consul8s: that of Python's click, so without long options of one dash.
#[derive(Debug, Parser)]
#[command(name = "consul8s", disable_version_flag = true, disable_help_flag = true)]
pub(super) struct Consul8sCli {
    /// Kubeconfig file; without one the service account is used
    #[arg(
        short,
        long,
        env = "KUBECONFIG",
        value_name = "FILE",
        overrides_with = "kube_config_path"
    )]
    kube_config_path: Option<PathBuf>,
    /// Namespace; empty: that of the context
    #[arg(short, long, default_value = "default", overrides_with = "namespace")]
    namespace: String,
    /// Seconds between two readings
    #[arg(short, long, default_value = "60", overrides_with = "interval")]
    interval: String,
    /// Import once and exit
    #[arg(short = '1', long)]
    run_once: bool,
    /// Serve metrics on port 8000
    #[arg(short, long)]
    prometheus: bool,
    /// Address of Consul
    #[arg(short, long, default_value = "localhost:8500", overrides_with = "consul", value_parser = authority)]
    consul: Authority,
    /// Show this help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
}

/// Whether the program was called by the name of consul8s.
pub(super) fn is_invoked_as_consul8s(program: Option<OsString>) -> bool {
    program.is_some_and(|name| Path::new(&name).file_name().is_some_and(|it| it == CONSUL8S_NAME))
}

// === impl Consul8sCli ===

impl Consul8sCli {
    /// Runs it and gives the exit code; an error is reported on standard error.
    pub(super) fn run(self) -> u8 {
        let log =
            LogArgs { log_level: logging::DEFAULT_LEVEL.to_owned(), log_format: LogFormat::Auto };
        if let Err(error) = log.start() {
            return usage(&error);
        }
        match self.options() {
            Ok(options) => finish(import::main(options)),
            Err(error) => usage(&*error),
        }
    }

    /// What it says. No variable of Consul's was read, and no token.
    fn options(self) -> Result<Options, Box<dyn std::error::Error>> {
        let kubeconfig = self.kube_config_path.filter(|path| !path.as_os_str().is_empty());
        let access = Access { kube_url: None, kubeconfig, context: None };
        let Authority { address, http_auth } = self.consul;
        let consul = Config { address, http_auth, ..Config::from_env(|_| None)? };
        // It was read only after the first loop, so a wrong one mattered to nobody who ran once.
        let interval = match seconds(&self.interval) {
            Ok(interval) => interval,
            Err(_) if self.run_once => Duration::from_mins(1),
            Err(why) => return Err(format!("--interval: {why}").into()),
        };
        let namespaces: BTreeSet<Box<str>> = [self.namespace.into()].into();
        Ok(Options {
            common: common(access, consul, None),
            cluster: None,
            namespaces,
            create: None,
            addresses: Addresses::default(),
            resync: interval,
            once: self.run_once.then_some(Duration::from_mins(1)),
            serves_admin: false,
            serves_prometheus: self.prometheus,
        })
    }
}
