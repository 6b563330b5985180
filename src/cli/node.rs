//! The flags of `node`, and the command line of katalog-sync-daemon.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser};

use crate::cli::connections::{ConsulArgs, KubernetesArgs};
use crate::cli::exit::{EXIT_FAILED, finish, usage};
use crate::cli::katalog::{self, Lookup, go_duration};
use crate::cli::values::duration;
use crate::consul::http::config::{Config, ConfigError};
use crate::domain::node::wanted::Defaults;
use crate::domain::text::parse_bool;
use crate::grpc::address::{Address, InvalidAddress};
use crate::kubernetes::client::{Access, Environment};
use crate::kubernetes::kubelet::Kubelet;
use crate::run::daemon::options::Common;
use crate::run::node::{self, Options, PodSource};

pub(super) const EXAMPLES: &str = "Examples:
  # the pods of one node, from the API server, in the agent at 127.0.0.1:8500
  kube-consul node --node node-1

  # in a DaemonSet: NODE_NAME by the downward API, the agent on the host, and sidecars
  kube-consul node --consul-addr $(HOST_IP):8500 --bind-address unix:///run/kube-consul/node.sock

The variables of katalog-sync-daemon count where our own flag and variable are not given:
BIND_ADDRESS, METRICS_BIND_ADDRESS, PPROF_BIND_ADDRESS, DEFAULT_SYNC_INTERVAL, DEFAULT_CHECK_TTL,
SYNC_TTL_BUFFER_DURATION, MIN_SYNC_INTERVAL, MAX_SYNC_INTERVAL, KUBELET_API,
KUBELET_API_INSECURE_SKIP_VERIFY.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 130 interrupted.";

/// The name of katalog-sync's daemon.
pub(super) use crate::run::install::DAEMON_NAME as OLD_NAME;

/// Katalog-sync's defaults.
const SYNC_INTERVAL: Duration = Duration::from_secs(1);
const CHECK_TTL: Duration = Duration::from_secs(10);
const TTL_BUFFER: Duration = Duration::from_secs(10);
const MIN_INTERVAL: Duration = Duration::from_millis(500);
const MAX_INTERVAL: Duration = Duration::from_secs(5);
const KUBELET: &str = "http://localhost:10255/pods";

/// `node`.
#[derive(Clone, Debug, Args)]
pub struct NodeArgs {
    /// Name of the node whose pods are registered [default: $NODE_NAME]
    #[arg(long, env = "KUBE_CONSUL_NODE", value_name = "NAME")]
    node: Option<String>,
    /// Poll the pods of this kubelet instead of watching them at the API server, for example
    /// https://127.0.0.1:10250/pods
    #[arg(long, env = "KUBE_CONSUL_KUBELET_API", value_name = "URL")]
    kubelet_api: Option<String>,
    /// Accept any certificate of the kubelet
    #[arg(long, env = "KUBE_CONSUL_KUBELET_API_INSECURE_SKIP_VERIFY")]
    kubelet_api_insecure_skip_verify: bool,
    /// File of the token that the kubelet is shown [default: the service account's, in a pod]
    #[arg(long, env = "KUBE_CONSUL_KUBELET_TOKEN_FILE", value_name = "FILE")]
    kubelet_token_file: Option<PathBuf>,
    /// File of the authority that signed the kubelet's certificate, PEM [default: the cluster's, in a pod]
    #[arg(long, env = "KUBE_CONSUL_KUBELET_CA_FILE", value_name = "FILE")]
    kubelet_ca_file: Option<PathBuf>,
    /// Answer sidecars at this address: HOST:PORT, :PORT or unix:///PATH [default: none]
    #[arg(long, env = "KUBE_CONSUL_BIND_ADDRESS", value_name = "ADDRESS")]
    bind_address: Option<String>,
    /// Sync interval of pods that name none: it is polled so often, and the TTL of a check is longer by
    /// --sync-ttl-buffer-duration [default: 1s]
    #[arg(long, env = "KUBE_CONSUL_DEFAULT_SYNC_INTERVAL", value_parser = duration, value_name = "DURATION")]
    default_sync_interval: Option<Duration>,
    /// TTL of the checks of pods that name none [default: 10s]
    #[arg(long, env = "KUBE_CONSUL_DEFAULT_CHECK_TTL", value_parser = duration, value_name = "DURATION")]
    default_check_ttl: Option<Duration>,
    /// How much longer than the sync interval a TTL is at least [default: 10s]
    #[arg(long, env = "KUBE_CONSUL_SYNC_TTL_BUFFER_DURATION", value_parser = duration, value_name = "DURATION")]
    sync_ttl_buffer_duration: Option<Duration>,
    /// Poll the kubelet no more often than this [default: 500ms]
    #[arg(long, env = "KUBE_CONSUL_MIN_SYNC_INTERVAL", value_parser = duration, value_name = "DURATION")]
    min_sync_interval: Option<Duration>,
    /// Poll the kubelet no less often than this [default: 5s]
    #[arg(long, env = "KUBE_CONSUL_MAX_SYNC_INTERVAL", value_parser = duration, value_name = "DURATION")]
    max_sync_interval: Option<Duration>,
    /// Let the agent remove what has been critical for so long, at least a minute: for nodes that never
    /// come back [default: never]
    #[arg(long, env = "KUBE_CONSUL_DEREGISTER_CRITICAL_AFTER", value_parser = duration, value_name = "DURATION")]
    deregister_critical_after: Option<Duration>,
    /// Serve the metrics at this address too, as katalog-sync did
    #[arg(long, env = "KUBE_CONSUL_METRICS_BIND_ADDRESS", value_name = "ADDRESS")]
    metrics_bind_address: Option<String>,
    /// Accepted and ignored: there is no Go profiler
    #[arg(long, env = "KUBE_CONSUL_PPROF_BIND_ADDRESS", value_name = "ADDRESS", hide = true)]
    pprof_bind_address: Option<String>,
    /// Where /livez, /readyz, /metrics and /status are served
    /// [default: [::]:9655, or 0.0.0.0:9655 without IPv6]
    #[arg(long, env = "KUBE_CONSUL_ADMIN_ADDR", value_name = "ADDRESS")]
    admin_addr: Option<SocketAddr>,

    #[command(flatten)]
    kubernetes: KubernetesArgs,
    #[command(flatten)]
    consul: ConsulArgs,
}

/// A command line that makes no daemon.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(
        "--node: expected the name of a node, found none: give it, or set NODE_NAME by the downward \
         API (fieldRef spec.nodeName), or poll the kubelet with --kubelet-api"
    )]
    NoNode,
    #[error("{flag}: {error}")]
    Address { flag: &'static str, error: InvalidAddress },
    #[error("{name}: expected {expected}, found {found:?}")]
    Value { name: &'static str, expected: &'static str, found: String },
    #[error(transparent)]
    Consul(#[from] ConfigError),
}

/// The command line of katalog-sync-daemon.
#[derive(Debug, Parser)]
#[command(name = OLD_NAME, disable_version_flag = true, disable_help_flag = true, args_override_self = true)]
pub(super) struct OldCli {
    /// Which log lines are written: debug, info, warn, error
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// Where sidecars are answered
    #[arg(long, value_name = "ADDRESS")]
    bind_address: Option<String>,
    /// Where the metrics are served
    #[arg(long, value_name = "ADDRESS")]
    metrics_bind_address: Option<String>,
    /// There is no Go profiler
    #[arg(long, value_name = "ADDRESS")]
    pprof_bind_address: Option<String>,
    /// Least time between two polls
    #[arg(long, value_name = "DURATION")]
    min_sync_interval: Option<String>,
    /// Longest time between two polls
    #[arg(long, value_name = "DURATION")]
    max_sync_interval: Option<String>,
    /// Between two polls
    #[arg(long, value_name = "DURATION")]
    default_sync_interval: Option<String>,
    /// TTL of checks
    #[arg(long, value_name = "DURATION")]
    default_check_ttl: Option<String>,
    /// How much longer than the sync interval a TTL is at least
    #[arg(long, value_name = "DURATION")]
    sync_ttl_buffer_duration: Option<String>,
    /// The kubelet's list of pods
    #[arg(long, value_name = "URL")]
    kubelet_api: Option<String>,
    /// Accept any certificate of the kubelet
    #[arg(long)]
    kubelet_api_insecure_skip_verify: bool,
    /// Show this help
    #[arg(short, long, action = clap::ArgAction::Help)]
    help: Option<bool>,
    /// What it had no use for
    #[arg(hide = true)]
    ignored: Vec<OsString>,
}

/// A duration of the original's flag, else of its variable, else the default. A variable that is none
/// counted as 0 there, which made it spin.
fn old_duration(
    given: Option<String>,
    lookup: Lookup<'_>,
    name: &'static str,
    default: Duration,
) -> Result<Duration, Error> {
    match (given, lookup(name)) {
        (Some(found), _) => go_duration(&found).ok_or(Error::Value {
            name,
            expected: "a duration such as 500ms or 1m30s",
            found,
        }),
        (None, Some(found)) => Ok(go_duration(&found).unwrap_or(default)),
        (None, None) => Ok(default),
    }
}

fn address(flag: &'static str, text: Option<String>) -> Result<Option<Address>, Error> {
    let text = text.filter(|text| !text.is_empty());
    text.map(|text| text.parse().map_err(|error| Error::Address { flag, error })).transpose()
}

fn common(access: Access, consul: Config, admin_addr: Option<SocketAddr>) -> Common {
    let environment = Environment::read();
    Common { access, environment, consul, cluster_uid: None, adopt: None, admin_addr }
}

/// The durations of both command lines, as far as they were given.
struct GivenTimes<T> {
    sync: Option<T>,
    least: Option<T>,
    longest: Option<T>,
    check_ttl: Option<T>,
    ttl_buffer: Option<T>,
}

/// What follows from them.
struct Times {
    defaults: Defaults,
    /// Between two polls of the kubelet.
    poll: Duration,
}

// === impl GivenTimes ===

impl<T> GivenTimes<T> {
    /// `time`: what is given, else the variable of that name, else the default.
    fn times(
        self,
        time: impl Fn(Option<T>, &'static str, Duration) -> Result<Duration, Error>,
    ) -> Result<Times, Error> {
        let sync_interval = time(self.sync, "DEFAULT_SYNC_INTERVAL", SYNC_INTERVAL)?;
        let least = time(self.least, "MIN_SYNC_INTERVAL", MIN_INTERVAL)?;
        let longest = time(self.longest, "MAX_SYNC_INTERVAL", MAX_INTERVAL)?;
        let defaults = Defaults {
            sync_interval,
            check_ttl: time(self.check_ttl, "DEFAULT_CHECK_TTL", CHECK_TTL)?,
            ttl_buffer: time(self.ttl_buffer, "SYNC_TTL_BUFFER_DURATION", TTL_BUFFER)?,
            deregister_critical_after: None,
        };
        Ok(Times { defaults, poll: poll_interval(sync_interval, least, longest) })
    }
}

/// The time between two polls: within the bounds, of which the upper one wins.
fn poll_interval(interval: Duration, least: Duration, longest: Duration) -> Duration {
    // Less would be a loop without a pause.
    interval.max(least).min(longest).max(Duration::from_millis(100))
}

// === impl NodeArgs ===

impl NodeArgs {
    /// What they say, and the variables of katalog-sync-daemon for what they do not say.
    pub(super) fn options(self, lookup: Lookup<'_>) -> Result<Options, Error> {
        let time = |given: Option<Duration>, name, default| match given {
            Some(given) => Ok(given),
            None => old_duration(None, lookup, name, default),
        };
        let given = GivenTimes {
            sync: self.default_sync_interval,
            least: self.min_sync_interval,
            longest: self.max_sync_interval,
            check_ttl: self.default_check_ttl,
            ttl_buffer: self.sync_ttl_buffer_duration,
        };
        let times = given.times(time)?;
        let skip_verify = self.kubelet_api_insecure_skip_verify || skips_verification(lookup);
        let pods = if let Some(url) = self.kubelet_api.or_else(|| lookup("KUBELET_API")) {
            let interval = times.poll;
            let (token_file, ca_file) = (self.kubelet_token_file, self.kubelet_ca_file);
            PodSource::Kubelet(Kubelet { url, skip_verify, interval, token_file, ca_file })
        } else {
            let node = self.node.or_else(|| lookup("NODE_NAME"));
            PodSource::Node(node.filter(|node| !node.is_empty()).ok_or(Error::NoNode)?)
        };
        let variable = |given: Option<String>, name| given.or_else(|| lookup(name));
        Ok(Options {
            common: common(
                self.kubernetes.access(),
                self.consul.config_of_agent()?,
                self.admin_addr,
            ),
            pods,
            defaults: Defaults {
                deregister_critical_after: self.deregister_critical_after,
                ..times.defaults
            },
            sidecars: address("--bind-address", variable(self.bind_address, "BIND_ADDRESS"))?,
            serves_admin: true,
            metrics_address: variable(self.metrics_bind_address, "METRICS_BIND_ADDRESS"),
            has_pprof: variable(self.pprof_bind_address, "PPROF_BIND_ADDRESS").is_some(),
        })
    }
}

fn skips_verification(lookup: Lookup<'_>) -> bool {
    lookup("KUBELET_API_INSECURE_SKIP_VERIFY").as_deref().and_then(parse_bool).unwrap_or(false)
}

// === impl OldCli ===

impl OldCli {
    /// Runs what it says and gives the exit code; an error is told on standard error.
    pub(super) fn run(self) -> u8 {
        let lookup: Lookup<'_> = &katalog::environment;
        let level = self.log_level.clone().or_else(|| lookup("LOG_LEVEL"));
        if let Err(error) = katalog::start_log(level.as_deref()) {
            return usage(&error).min(EXIT_FAILED);
        }
        let consul = Config::from_env(|name| std::env::var(name).ok());
        match consul.map_err(Error::from).and_then(|consul| self.options(consul, lookup)) {
            Ok(options) => finish(node::main(options)),
            Err(error) => usage(&error),
        }
    }

    /// What it says: the kubelet is polled, because the roles of its users let it do no more, and
    /// nothing listens that was not asked for.
    fn options(self, consul: Config, lookup: Lookup<'_>) -> Result<Options, Error> {
        let variable = |given: Option<String>, name| given.or_else(|| lookup(name));
        let time = |given, name, default| old_duration(given, lookup, name, default);
        let given = GivenTimes {
            sync: self.default_sync_interval,
            least: self.min_sync_interval,
            longest: self.max_sync_interval,
            check_ttl: self.default_check_ttl,
            ttl_buffer: self.sync_ttl_buffer_duration,
        };
        let times = given.times(time)?;
        let access = Access { kube_url: None, kubeconfig: None, context: None };
        Ok(Options {
            common: common(access, consul, None),
            pods: PodSource::Kubelet(Kubelet {
                url: variable(self.kubelet_api, "KUBELET_API")
                    .unwrap_or_else(|| KUBELET.to_owned()),
                skip_verify: self.kubelet_api_insecure_skip_verify || skips_verification(lookup),
                interval: times.poll,
                token_file: None,
                ca_file: None,
            }),
            defaults: times.defaults,
            sidecars: address("--bind-address", variable(self.bind_address, "BIND_ADDRESS"))?,
            serves_admin: false,
            metrics_address: variable(self.metrics_bind_address, "METRICS_BIND_ADDRESS"),
            has_pprof: variable(self.pprof_bind_address, "PPROF_BIND_ADDRESS").is_some(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn old(arguments: &str, variables: &[(&str, &str)]) -> Result<Options, Error> {
        let words = [OLD_NAME].into_iter().chain(arguments.split_whitespace());
        let found = |name: &str| {
            let it = variables.iter().find(|(it, _)| *it == name);
            it.map(|(_, value)| (*value).to_owned())
        };
        let consul = Config::from_env(|_| None)?;
        let cli = katalog::parse::<OldCli>(words.map(OsString::from)).unwrap();
        cli.options(consul, &found)
    }

    fn kubelet(options: &Options) -> &Kubelet {
        match &options.pods {
            PodSource::Kubelet(kubelet) => kubelet,
            PodSource::Node(node) => panic!("{node}"),
        }
    }

    #[test]
    fn the_old_daemons_flags_and_variables_are_taken_word_for_word() {
        let none = old("", &[]).unwrap();
        assert_eq!(kubelet(&none).url, "http://localhost:10255/pods");
        assert!(!none.serves_admin && none.sidecars.is_none() && none.metrics_address.is_none());
        assert_eq!(kubelet(&none).interval, SYNC_INTERVAL);
        let flags = old(
            "--log-level=DEBUG --bind-address=:8501 --metrics-bind-address=:9200 \
             --pprof-bind-address=:6060 --min-sync-interval=2s --max-sync-interval=4s \
             --default-sync-interval=3s --default-check-ttl=1m30s --sync-ttl-buffer-duration=5s \
             --kubelet-api=https://10.0.0.1:10250/pods --kubelet-api-insecure-skip-verify extra",
            &[("DEFAULT_CHECK_TTL", "1s"), ("BIND_ADDRESS", ":1")],
        )
        .unwrap();
        let expected = Defaults {
            sync_interval: Duration::from_secs(3),
            check_ttl: Duration::from_secs(90),
            ttl_buffer: Duration::from_secs(5),
            deregister_critical_after: None,
        };
        assert_eq!(flags.defaults, expected);
        assert_eq!(kubelet(&flags).url, "https://10.0.0.1:10250/pods");
        assert!(kubelet(&flags).skip_verify && flags.has_pprof);
        assert_eq!(flags.sidecars.unwrap().to_string(), ":8501");
        assert_eq!(flags.metrics_address.as_deref(), Some(":9200"));
        let variables = old(
            "",
            &[
                ("BIND_ADDRESS", ":8501"),
                ("METRICS_BIND_ADDRESS", ":9200"),
                ("PPROF_BIND_ADDRESS", ":6060"),
                ("MIN_SYNC_INTERVAL", "2s"),
                ("MAX_SYNC_INTERVAL", "4s"),
                ("DEFAULT_SYNC_INTERVAL", "3s"),
                ("DEFAULT_CHECK_TTL", "1m30s"),
                ("SYNC_TTL_BUFFER_DURATION", "5s"),
                ("KUBELET_API", "https://10.0.0.1:10250/pods"),
                ("KUBELET_API_INSECURE_SKIP_VERIFY", "True"),
            ],
        )
        .unwrap();
        assert_eq!(variables.defaults, expected);
        assert_eq!(variables.pods, flags.pods);
        assert!(variables.has_pprof && variables.sidecars.is_some());
        // A bad variable made the original spin; a bad flag ended it.
        let bad = old("", &[("MAX_SYNC_INTERVAL", "soon")]).unwrap();
        assert_eq!(kubelet(&bad).interval, SYNC_INTERVAL);
        assert!(old("--max-sync-interval=soon", &[]).is_err());
        assert!(kubelet(&old("--kubelet-api-insecure-skip-verify true", &[]).unwrap()).skip_verify);
        for wrong in ["-h", "-bind-address=:1", "--nope", "--kubelet-api-insecure-skip-verify=true"]
        {
            let words = [OLD_NAME, wrong].map(OsString::from);
            assert!(katalog::parse::<OldCli>(words).is_err(), "{wrong}");
        }
    }
}
