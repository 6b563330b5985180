//! The flags of `sidecar`, and the command line of katalog-sync-sidecar.

use std::ffi::OsString;
use std::time::Duration;

use clap::{Args, Parser};

use crate::cli::exit::{EXIT_FAILED, finish, usage};
use crate::cli::katalog::{self, Lookup, go_duration};
use crate::cli::values::duration;
use crate::domain::sidecar::Caller;
use crate::grpc::address::{Address, InvalidAddress};
use crate::grpc::client::Client;
use crate::run::sidecar::{self, Options};

pub(super) const EXAMPLES: &str = "Examples:
  # in the pod, beside the application; docs/sidecar.md has the whole manifest
  kube-consul sidecar --daemon 10.0.0.5:8501 --namespace shop --pod-name web-0

The variables of katalog-sync-sidecar count where its own flag and variable are not given:
KATALOG_SYNC_DAEMON, KATALOG_SYNC_DAEMON_MAX_BACKOFF, BIND_ADDRESS, NAMESPACE, POD_NAME,
CONTAINER_NAME.

Exit codes: 0 done, 1 failed (a second signal came first), 2 wrong usage or configuration,
130 interrupted.";

/// The name of katalog-sync's sidecar.
pub(super) use crate::run::install::SIDECAR_NAME as OLD_NAME;

/// Where `/ready` is answered, beside the port of the daemons' admin server.
const BIND_ADDRESS: &str = ":9656";
/// Longest time between two calls, as there.
const MAX_BACKOFF: Duration = Duration::from_secs(1);
/// Less would be a loop without a pause.
const LEAST_BACKOFF: Duration = Duration::from_millis(100);

/// `sidecar`.
#[derive(Clone, Debug, Args)]
pub struct SidecarArgs {
    /// The daemon of this node, such as katalog-sync-daemon: HOST:PORT or unix:///PATH
    /// [default: $KATALOG_SYNC_DAEMON]
    #[arg(
        long,
        visible_alias = "katalog-sync-daemon",
        env = "KUBE_CONSUL_DAEMON",
        value_name = "ADDRESS"
    )]
    daemon: Option<Address>,
    /// Longest time between two tries to reach it [default: 1s]
    #[arg(long, visible_alias = "katalog-sync-daemon-max-backoff", env = "KUBE_CONSUL_MAX_BACKOFF", value_parser = duration, value_name = "DURATION")]
    max_backoff: Option<Duration>,
    /// Where /ready and /deregister are served [default: :9656]
    #[arg(long, env = "KUBE_CONSUL_BIND_ADDRESS", value_name = "ADDRESS")]
    bind_address: Option<String>,
    /// Namespace of the pod [default: default]
    #[arg(short, long, env = "KUBE_CONSUL_NAMESPACE", value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Name of the pod [default: $POD_NAME]
    #[arg(long, env = "KUBE_CONSUL_POD_NAME", value_name = "NAME")]
    pod_name: Option<String>,
    /// Name of this container
    #[arg(long, env = "KUBE_CONSUL_CONTAINER_NAME", value_name = "NAME")]
    container_name: Option<String>,
    /// Register again where no signal has followed a call of /deregister for this long, as when only
    /// the application's container is restarted: longer than the pod's grace period; 0s: never
    #[arg(long, env = "KUBE_CONSUL_REGISTER_AGAIN_AFTER", default_value = "2m", value_parser = duration, value_name = "DURATION")]
    register_again_after: Duration,
}

/// A command line that makes no sidecar.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(
        "--daemon: expected the address of the node's daemon, found none: give HOST:PORT or unix:///PATH"
    )]
    NoDaemon,
    #[error(
        "--pod-name: expected the name of this pod, found none: set POD_NAME from metadata.name"
    )]
    NoPod,
    #[error("{variable}: {error}")]
    Address { variable: &'static str, error: InvalidAddress },
    #[error("{variable}: expected a duration such as 500ms or 1s, found {found:?}")]
    Duration { variable: &'static str, found: String },
}

/// The command line of katalog-sync-sidecar.
#[derive(Debug, Parser)]
#[command(name = OLD_NAME, disable_version_flag = true, disable_help_flag = true, args_override_self = true)]
pub(super) struct OldCli {
    /// Which log lines are written: debug, info, warn, error
    #[arg(long, env = "LOG_LEVEL", value_name = "LEVEL")]
    log_level: Option<String>,
    /// The daemon: HOST:PORT
    #[arg(long, env = "KATALOG_SYNC_DAEMON", value_name = "ADDRESS")]
    katalog_sync_daemon: Option<String>,
    /// Longest time between two tries to reach it
    #[arg(long, env = "KATALOG_SYNC_DAEMON_MAX_BACKOFF", value_name = "DURATION")]
    katalog_sync_daemon_max_backoff: Option<String>,
    /// Where /ready is served; none: any free port
    #[arg(long, env = "BIND_ADDRESS", value_name = "ADDRESS")]
    bind_address: Option<String>,
    /// Namespace of the pod
    #[arg(long, env = "NAMESPACE")]
    namespace: Option<String>,
    /// Name of the pod
    #[arg(long, env = "POD_NAME")]
    pod_name: Option<String>,
    /// Name of this container
    #[arg(long, env = "CONTAINER_NAME")]
    container_name: Option<String>,
    /// Show this help
    #[arg(short, long, action = clap::ArgAction::Help)]
    help: Option<bool>,
    /// What it had no use for
    #[arg(hide = true)]
    ignored: Vec<OsString>,
}

// === impl SidecarArgs ===

impl SidecarArgs {
    /// What they say, and the variables of katalog-sync-sidecar for what they do not say.
    pub(super) fn options(self, lookup: Lookup<'_>) -> Result<Options, Error> {
        let variable = |given: Option<String>, name: &str| given.or_else(|| lookup(name));
        let daemon = match (self.daemon, lookup("KATALOG_SYNC_DAEMON")) {
            (Some(address), _) => address,
            (None, None) => return Err(Error::NoDaemon),
            (None, Some(text)) => text
                .parse()
                .map_err(|error| Error::Address { variable: "KATALOG_SYNC_DAEMON", error })?,
        };
        let daemon =
            Client::new(&daemon).map_err(|error| Error::Address { variable: "--daemon", error })?;
        let max_backoff = match (self.max_backoff, lookup("KATALOG_SYNC_DAEMON_MAX_BACKOFF")) {
            (Some(given), _) => given,
            (None, None) => MAX_BACKOFF,
            (None, Some(found)) => go_duration(&found)
                .ok_or(Error::Duration { variable: "KATALOG_SYNC_DAEMON_MAX_BACKOFF", found })?,
        };
        let pod = variable(self.pod_name, "POD_NAME").ok_or(Error::NoPod)?;
        let namespace = variable(self.namespace, "NAMESPACE").unwrap_or_default();
        let container = variable(self.container_name, "CONTAINER_NAME").unwrap_or_default();
        let bind_address = variable(self.bind_address, "BIND_ADDRESS");
        let again = self.register_again_after;
        Ok(Options {
            daemon: Ok(daemon),
            caller: Caller::new(&namespace, &pod, &container),
            bind_address: bind_address.unwrap_or_else(|| BIND_ADDRESS.to_owned()),
            max_backoff: max_backoff.max(LEAST_BACKOFF),
            register_again_after: (!again.is_zero()).then_some(again),
            is_old_name: false,
        })
    }
}

// === impl OldCli ===

impl OldCli {
    /// Runs what it says and gives the exit code; an error is told on standard error.
    pub(super) fn run(self) -> u8 {
        match katalog::start_log(self.log_level.as_deref()) {
            Ok(()) => finish(sidecar::main(self.options())),
            Err(error) => usage(&error).min(EXIT_FAILED),
        }
    }

    /// What it says. Nothing of it was an error there.
    fn options(self) -> Options {
        let text = self.katalog_sync_daemon.unwrap_or_default();
        let daemon = text.parse::<Address>().and_then(|address| Client::new(&address));
        let backoff = self.katalog_sync_daemon_max_backoff.as_deref().and_then(go_duration);
        let or_empty = Option::unwrap_or_default;
        let namespace: String = or_empty(self.namespace);
        let pod: String = or_empty(self.pod_name);
        let container: String = or_empty(self.container_name);
        Options {
            daemon: daemon.map_err(|error| format!("--katalog-sync-daemon: {error}")),
            caller: Caller::new(&namespace, &pod, &container),
            bind_address: self.bind_address.unwrap_or_else(|| ":0".to_owned()),
            max_backoff: backoff.unwrap_or(MAX_BACKOFF).max(LEAST_BACKOFF),
            register_again_after: None,
            is_old_name: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn old(arguments: &str) -> Options {
        let words = [OLD_NAME].into_iter().chain(arguments.split_whitespace());
        katalog::parse::<OldCli>(words.map(OsString::from)).unwrap().options()
    }

    /// Each as the original's own library reads it.
    #[test]
    fn the_old_command_line_is_read_as_the_original_reads_it() {
        let options = old(
            "--log-level=DEBUG --katalog-sync-daemon=10.0.0.5:8501 --katalog-sync-daemon-max-backoff=2s \
             --bind-address=:8080 --namespace=shop --pod-name=web-0 --container-name=katalog-sync-sidecar",
        );
        assert_eq!(options.caller, Caller::new("shop", "web-0", "katalog-sync-sidecar"));
        assert_eq!(options.max_backoff, Duration::from_secs(2));
        assert!(options.bind_address == ":8080" && options.daemon.is_ok());
        for (arguments, pod) in [
            ("--pod-name web-0", "web-0"),
            ("--pod-name a --pod-name=b", "b"),
            ("--pod-name a extra arguments", "a"),
            ("extra --pod-name a", "a"),
            ("-- --pod-name a", ""),
            ("", ""),
        ] {
            assert_eq!(&*old(arguments).caller.pod.name, pod, "{arguments}");
        }
        // No daemon is no error: it went on trying.
        assert!(old("").daemon.is_err() && old("--katalog-sync-daemon nope").daemon.is_err());
        assert_eq!(old("--katalog-sync-daemon-max-backoff=0").max_backoff, LEAST_BACKOFF);
        assert_eq!(old("--katalog-sync-daemon-max-backoff=soon").max_backoff, MAX_BACKOFF);
        assert!(old("").bind_address == ":0");
        for wrong in ["-pod-name=a", "-h", "--nope", "--pod-name"] {
            let words = [OLD_NAME].into_iter().chain(wrong.split_whitespace());
            assert!(katalog::parse::<OldCli>(words.map(OsString::from)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_old_variables_count_under_the_own_name_too() {
        #[derive(Debug, Parser)]
        struct Cli {
            #[command(flatten)]
            args: SidecarArgs,
        }
        let options = |arguments: &str, variables: &[(&str, &str)]| {
            let words = ["sidecar"].into_iter().chain(arguments.split_whitespace());
            let found = |name: &str| {
                let it = variables.iter().find(|(it, _)| *it == name);
                it.map(|(_, value)| (*value).to_owned())
            };
            Cli::try_parse_from(words).unwrap().args.options(&found)
        };
        let variables = [
            ("KATALOG_SYNC_DAEMON", "10.0.0.5:8501"),
            ("KATALOG_SYNC_DAEMON_MAX_BACKOFF", "1m30s"),
            ("BIND_ADDRESS", "127.0.0.1:8080"),
            ("NAMESPACE", "shop"),
            ("POD_NAME", "web-0"),
            ("CONTAINER_NAME", "sidecar"),
        ];
        let found = options("", &variables).unwrap();
        assert_eq!(found.caller, Caller::new("shop", "web-0", "sidecar"));
        assert_eq!(found.bind_address, "127.0.0.1:8080");
        assert_eq!(found.max_backoff, Duration::from_secs(90));
        let given =
            "--katalog-sync-daemon=unix:///a.sock --pod-name=web-1 --register-again-after=0s";
        let found = options(given, &variables).unwrap();
        assert_eq!(found.caller, Caller::new("shop", "web-1", "sidecar"));
        assert_eq!(found.register_again_after, None);
        let error = options("", &[]).unwrap_err().to_string();
        assert!(error.contains("--daemon"), "{error}");
        let error = options("--daemon :8501", &[]).unwrap_err().to_string();
        assert!(error.contains("POD_NAME"), "{error}");
        let error = options("", &[("KATALOG_SYNC_DAEMON", "nope")]).unwrap_err().to_string();
        assert!(error.starts_with("KATALOG_SYNC_DAEMON: expected HOST:PORT"), "{error}");
    }
}
