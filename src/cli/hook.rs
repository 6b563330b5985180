//! The flags of `register` and `deregister`, which are those of consul-registration-hook.

mod legacy;

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::cli::connections::KubernetesArgs;
use crate::cli::exit::{EXIT_DONE, failed, usage};
use crate::cli::log::{COMMON, LogArgs};
use crate::cli::values::{LONGEST, duration};
use crate::consul::http::config::{Config, ConfigError};
use crate::domain::hook::cli::{Flags, registration, service_id};
use crate::domain::hook::duration::parse as parse_go_duration;
use crate::domain::hook::k8s::{DefaultCheck, Variables};
use crate::domain::hook::mesos::Place;
use crate::domain::hook::ports::PORT_DEFINITIONS;
use crate::domain::hook::{Invalid, required, together};
use crate::domain::kube::names::ObjectKey;
use crate::domain::text::parse_bool;
use crate::kubernetes::client::Environment;
use crate::mesos;
use crate::run::hook::{self, ConsulOptions, HealthOptions, Job, Options, PodOptions, TaskOptions};
use crate::run::install::HOOK_NAME;

/// How long a pod gets to have an address, as there.
const GET_POD_TIMEOUT: &str = "10s";
/// How long its probe gets to succeed, as there.
const HEALTH_CHECK_TIMEOUT: &str = "300s";

const EXIT_CODES: &str = "Every CONSUL_* variable of Consul's own command is honoured.\n\nExit codes: 0 done (also \
     when there is nothing to register), 1 failed, 2 wrong usage or configuration.";

const POD_INPUTS: &str = "Read from the pod:
  label consul                  name of the service; without it nothing is registered
  label consulContainer         container whose first port and probes are registered
                                [default: the first that has a port]
  annotation CONSUL_TAG_<any>   a further tag
  readinessProbe, else livenessProbe of that container: Consul's check
  startupProbe, else readinessProbe of the first container: tried before registering

Read from the environment:
  KUBERNETES_POD_NAME, KUBERNETES_POD_NAMESPACE   which pod
  PORT_DEFINITIONS   JSON array of the ports to register instead, for example
                     [{\"port\": 31000, \"labels\": {\"service\": \"true\", \"my-tag\": \"tag\"}}]
  PORT_SERVICE       a tag service-port:<value>

Every CONSUL_* variable of Consul's own command is honoured.

Exit codes: 0 done (also when there is nothing to do), 1 failed, 2 wrong usage or
configuration. docs/hook.md has everything, also what differs from consul-registration-hook.";

const TASK_INPUTS: &str = "Read from the environment:
  MESOS_EXECUTOR_ID, MESOS_FRAMEWORK_ID   which task: the executor's first
  HOST                                    its address

Read from the task:
  discovery port's label consul   name of that port's service; where no port has one, the task's
                                  label consul names the service of its first port
  labels whose value is \"tag\"     the label's key is a tag

Every CONSUL_* variable of Consul's own command is honoured.

Exit codes: 0 done (also when there is nothing to do), 1 failed, 2 wrong usage or
configuration.";

/// Registers instances with Consul, and removes them, from lifecycle hooks.
#[derive(Debug, Parser)]
#[command(name = HOOK_NAME, version, propagate_version = true)]
pub struct HookCli {
    #[command(subcommand)]
    command: HookCommand,
    #[command(flatten)]
    log: LogArgs,
    #[command(flatten)]
    acl_file: AclFileArgs,
}

#[derive(Debug, Subcommand)]
enum HookCommand {
    /// Register an instance with Consul's agent
    Register(RegisterArgs),
    /// Remove an instance from Consul's agent
    Deregister(DeregisterArgs),
}

/// Heading of what stands before the verb, as in the original.
const OF_HOOK: &str = "Options of register and deregister";

/// The token's file, which stands before the verb.
#[derive(Clone, Debug, Default, Args)]
pub struct AclFileArgs {
    /// File with the ACL token, for register and deregister [default: $CONSUL_HTTP_TOKEN, then
    /// $CONSUL_HTTP_TOKEN_FILE]
    #[arg(long, global = true, env = "KUBE_CONSUL_CONSUL_ACL_FILE", value_name = "FILE", help_heading = OF_HOOK)]
    consul_acl_file: Option<OsString>,
}

impl AclFileArgs {
    /// Whether a file is named, which only the hook reads.
    pub fn is_given(&self) -> bool {
        self.consul_acl_file.as_ref().is_some_and(|file| !file.is_empty())
    }
}

/// `register`.
#[derive(Clone, Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub struct RegisterArgs {
    #[command(subcommand)]
    source: RegisterSource,
}

/// `deregister`.
#[derive(Clone, Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub struct DeregisterArgs {
    #[command(subcommand)]
    source: DeregisterSource,
}

#[derive(Clone, Debug, Subcommand)]
enum RegisterSource {
    /// What the labels of the pod say
    #[command(after_help = POD_INPUTS)]
    K8s(RegisterPodArgs),
    /// What the labels of the Mesos task say
    #[command(after_help = TASK_INPUTS)]
    Mesos(RegisterTaskArgs),
    /// What the flags say
    #[command(after_help = EXIT_CODES)]
    Cli(RegisterFlags),
}

#[derive(Clone, Debug, Subcommand)]
enum DeregisterSource {
    /// What `register k8s` registers
    #[command(after_help = POD_INPUTS)]
    K8s(DeregisterPodArgs),
    /// What `register mesos` registers
    #[command(after_help = TASK_INPUTS)]
    Mesos(DeregisterTaskArgs),
    /// The instance of an ID
    #[command(after_help = EXIT_CODES)]
    Cli(DeregisterFlags),
}

/// What each source of `register` has.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = COMMON)]
struct RegisterCommon {
    /// How long Consul's agent is tried
    #[arg(long, env = "KUBE_CONSUL_TIMEOUT", default_value = "30s", value_parser = hook_duration, value_name = "DURATION", allow_hyphen_values = true)]
    timeout: Duration,
    #[command(flatten)]
    wait: WaitArgs,
}

/// What each source of `deregister` has.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = COMMON)]
struct DeregisterCommon {
    /// How long Consul's agent is tried: a third of a pod's grace period
    #[arg(long, env = "KUBE_CONSUL_TIMEOUT", default_value = "10s", value_parser = hook_duration, value_name = "DURATION", allow_hyphen_values = true)]
    timeout: Duration,
    #[command(flatten)]
    wait: WaitArgs,
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = COMMON)]
struct WaitArgs {
    /// How long the change is waited for in the catalog; 0s: not at all
    #[arg(long, env = "KUBE_CONSUL_WAIT_CATALOG", default_value = "5s", value_parser = hook_duration, value_name = "DURATION", allow_hyphen_values = true)]
    wait_catalog: Duration,
}

#[derive(Clone, Debug, Args)]
struct PodArgs {
    /// How long the pod is tried to be read, until it has an address
    #[arg(long, env = "KUBERNETES_GET_POD_TIMEOUT", default_value = GET_POD_TIMEOUT, value_parser = |text: &str| duration_or(text, GET_POD_TIMEOUT), value_name = "DURATION", allow_hyphen_values = true)]
    get_pod_timeout: Duration,
    #[command(flatten)]
    kubernetes: KubernetesArgs,
}

#[derive(Clone, Debug, Args)]
struct RegisterPodArgs {
    // What is flattened comes last: it ends in help headings of its own.
    /// How long its startup or readiness probe is tried, from the probe's initial delay on
    #[arg(long, env = "KUBERNETES_HEALTH_CHECK_TIMEOUT", default_value = HEALTH_CHECK_TIMEOUT, value_parser = |text: &str| duration_or(text, HEALTH_CHECK_TIMEOUT), value_name = "DURATION", allow_hyphen_values = true)]
    health_check_timeout: Duration,
    /// How long what its check asks is tried, where that is not the probe that was; 0s: not at all
    #[arg(long, env = "KUBE_CONSUL_WAIT_CHECK", default_value = "30s", value_parser = hook_duration, value_name = "DURATION", allow_hyphen_values = true)]
    wait_check: Duration,
    /// The check of an instance that no probe gives one
    #[arg(
        long,
        env = "KUBE_CONSUL_DEFAULT_CHECK",
        default_value = "none",
        value_name = "CHECK",
        value_enum
    )]
    default_check: DefaultCheckArg,
    #[command(flatten)]
    pod: PodArgs,
    #[command(flatten)]
    common: RegisterCommon,
}

#[derive(Clone, Debug, Args)]
struct DeregisterPodArgs {
    #[command(flatten)]
    pod: PodArgs,
    #[command(flatten)]
    common: DeregisterCommon,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum DefaultCheckArg {
    /// None: it passes until it is deregistered
    None,
    /// A connection to its port
    Tcp,
}

#[derive(Clone, Debug, Args)]
struct RegisterTaskArgs {
    #[command(flatten)]
    task: TaskArgs,
    #[command(flatten)]
    common: RegisterCommon,
}

#[derive(Clone, Debug, Args)]
struct DeregisterTaskArgs {
    #[command(flatten)]
    task: TaskArgs,
    #[command(flatten)]
    common: DeregisterCommon,
}

#[derive(Clone, Debug, Args)]
struct TaskArgs {
    /// The Mesos agent: a URL, or host:port
    #[arg(
        long,
        env = "MESOS_AGENT_ENDPOINT",
        default_value = "http://localhost:5050",
        value_name = "URL"
    )]
    mesos_agent_url: String,
}

#[derive(Clone, Debug, Args)]
struct RegisterFlags {
    /// The service's name
    #[arg(long, env = "KUBERNETES_SERVICE_NAME", value_name = "NAME", allow_hyphen_values = true)]
    service_name: Option<String>,
    /// The instance's address
    #[arg(long, env = "KUBERNETES_POD_IP", value_name = "ADDRESS", allow_hyphen_values = true)]
    pod_ip: Option<String>,
    /// Its port
    #[arg(
        long,
        env = "KUBERNETES_CONTAINER_PORT",
        value_name = "PORT",
        allow_hyphen_values = true
    )]
    container_port: Option<String>,
    /// Its tags, separated by commas
    #[arg(long, env = "KUBERNETES_SERVICE_TAGS", value_name = "TAGS", allow_hyphen_values = true)]
    service_tags: Option<String>,
    /// Path that its HTTP check asks for [default: /]
    #[arg(long, env = "KUBERNETES_CHECK_PATH", value_name = "PATH", allow_hyphen_values = true)]
    check_path: Option<String>,
    #[command(flatten)]
    common: RegisterCommon,
}

#[derive(Clone, Debug, Args)]
struct DeregisterFlags {
    /// The instance's ID, ADDRESS_PORT
    #[arg(long, env = "KUBERNETES_SERVICE_ID", value_name = "ID", allow_hyphen_values = true)]
    service_id: Option<String>,
    #[command(flatten)]
    common: DeregisterCommon,
}

/// Why a command line and its environment make no hook.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Invalid(#[from] Invalid),
    #[error(transparent)]
    Mesos(#[from] mesos::Error),
}

/// Under which name the program runs: under the old one it is the original's replacement, whose
/// users did not choose what is new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Name {
    Own,
    Old,
}

/// The process's environment, or a test's.
type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Whether the program was started under the hook's own name.
pub fn is_invoked_as_hook() -> bool {
    std::env::args_os()
        .next()
        .is_some_and(|name| Path::new(&name).file_name().is_some_and(|name| name == HOOK_NAME))
}

// === impl HookCli ===

impl HookCli {
    /// The process's command line. Ends the process where that is wrong or asks for help.
    pub fn read() -> Self {
        Self::parse_from(legacy::arguments(std::env::args_os()))
    }

    /// Runs it and gives the exit code; an error is reported on standard error.
    pub fn run(self) -> u8 {
        if let Err(error) = self.log.start() {
            return usage(&error);
        }
        match self.command {
            HookCommand::Register(args) => finish(args.options(&self.acl_file, Name::Old)),
            HookCommand::Deregister(args) => finish(args.options(&self.acl_file, Name::Old)),
        }
    }
}

// === impl RegisterArgs ===

impl RegisterArgs {
    /// Runs it and gives the exit code; an error is reported on standard error.
    pub fn run(self, acl_file: &AclFileArgs) -> u8 {
        finish(self.options(acl_file, Name::Own))
    }

    fn options(self, acl_file: &AclFileArgs, name: Name) -> Result<Options, Error> {
        let (common, job) = match self.source {
            RegisterSource::K8s(args) => {
                let health = HealthOptions {
                    health_check_timeout: args.health_check_timeout,
                    wait_check: args.wait_check,
                };
                let pod = args.pod.options(args.default_check)?;
                (args.common, Job::RegisterPod(Box::new(pod), health))
            }
            RegisterSource::Mesos(args) => (args.common, Job::RegisterTask(args.task.options()?)),
            RegisterSource::Cli(args) => {
                let flags = Flags {
                    name: args.service_name.as_deref(),
                    address: args.pod_ip.as_deref(),
                    port: args.container_port.as_deref(),
                    tags: args.service_tags.as_deref(),
                    check_path: args.check_path.as_deref(),
                };
                let registration = registration(&flags)?;
                (args.common, Job::Register(registration))
            }
        };
        let consul = consul(acl_file, name, common.timeout, &common.wait);
        Ok(Options { consul, job })
    }
}

// === impl DeregisterArgs ===

impl DeregisterArgs {
    /// Runs it and gives the exit code; an error is reported on standard error.
    pub fn run(self, acl_file: &AclFileArgs) -> u8 {
        finish(self.options(acl_file, Name::Own))
    }

    fn options(self, acl_file: &AclFileArgs, name: Name) -> Result<Options, Error> {
        let (common, job) = match self.source {
            DeregisterSource::K8s(args) => {
                let pod = args.pod.options(DefaultCheckArg::None)?;
                (args.common, Job::DeregisterPod(Box::new(pod)))
            }
            DeregisterSource::Mesos(args) => {
                (args.common, Job::DeregisterTask(args.task.options()?))
            }
            DeregisterSource::Cli(args) => {
                let id = service_id(args.service_id.as_deref())?;
                (args.common, Job::Deregister(id))
            }
        };
        let consul = consul(acl_file, name, common.timeout, &common.wait);
        Ok(Options { consul, job })
    }
}

/// The agent: the environment's, with the token of the flag's file.
fn consul(acl_file: &AclFileArgs, name: Name, timeout: Duration, wait: &WaitArgs) -> ConsulOptions {
    let (config, warnings) = consul_config(&environment, name);
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    let acl_file = acl_file.consul_acl_file.as_ref().filter(|file| !file.is_empty());
    let acl_file = acl_file.map(Into::into);
    ConsulOptions { config, acl_file, timeout, wait_catalog: wait.wait_catalog }
}

/// The configuration of the environment, without what the original's library passed over: that
/// must not end a container which it started. Each such variable is reported.
fn consul_config(lookup: Lookup<'_>, name: Name) -> (Result<Config, ConfigError>, Vec<String>) {
    let set = |variable: &str| lookup(variable).filter(|value| !value.is_empty());
    let mut ignored: Vec<(&str, &str)> = Vec::new();
    for variable in ["CONSUL_HTTP_SSL", "CONSUL_HTTP_SSL_VERIFY"] {
        if set(variable).is_some_and(|value| parse_bool(&value).is_none()) {
            ignored.push((variable, "it is neither true nor false"));
        }
    }
    let client = ["CONSUL_CLIENT_CERT", "CONSUL_CLIENT_KEY"];
    if let [Some(variable), None] | [None, Some(variable)] =
        client.map(|variable| set(variable).map(|_| variable))
    {
        ignored
            .push((variable, "a client certificate needs its key too, and a key its certificate"));
    }
    if name == Name::Old {
        for variable in ["CONSUL_NAMESPACE", "CONSUL_PARTITION"] {
            if set(variable).is_some() {
                ignored.push((variable, "consul-registration-hook did not know it"));
            }
        }
    }
    let config = Config::from_env(|variable: &str| {
        // The token comes first here, which the original knew alone.
        let is_ignored = ignored.iter().any(|(ignored, _)| *ignored == variable)
            || variable == "CONSUL_HTTP_TOKEN_FILE" && set("CONSUL_HTTP_TOKEN").is_some();
        set(variable).filter(|_| !is_ignored)
    });
    let warning = |(variable, why): &(&str, &str)| format!("{variable} is passed over: {why}");
    (config, ignored.iter().map(warning).collect())
}

// === impl PodArgs ===

impl PodArgs {
    fn options(&self, default_check: DefaultCheckArg) -> Result<PodOptions, Error> {
        let set = |variable: &str| environment(variable).filter(|value| !value.is_empty());
        let pod = |variable, expected| required(variable, expected, set(variable).as_deref());
        let [namespace, name] = together([
            pod("KUBERNETES_POD_NAMESPACE", "the pod's namespace"),
            pod("KUBERNETES_POD_NAME", "the pod's name"),
        ])?;
        Ok(PodOptions {
            access: self.kubernetes.access(),
            environment: Environment::read(),
            key: ObjectKey::new(namespace, name),
            variables: Variables {
                port_definitions: set(PORT_DEFINITIONS),
                port_service: set("PORT_SERVICE"),
                default_check: match default_check {
                    DefaultCheckArg::None => DefaultCheck::None,
                    DefaultCheckArg::Tcp => DefaultCheck::Tcp,
                },
            },
            get_pod_timeout: self.get_pod_timeout,
        })
    }
}

// === impl TaskArgs ===

impl TaskArgs {
    fn options(&self) -> Result<TaskOptions, Error> {
        let get =
            |variable, expected| required(variable, expected, environment(variable).as_deref());
        let [executor, framework, host] = together([
            get("MESOS_EXECUTOR_ID", "the executor's ID"),
            get("MESOS_FRAMEWORK_ID", "the framework's ID"),
            get("HOST", "the host's address"),
        ])?;
        let place = Place { host, framework, executor };
        Ok(TaskOptions { place, agent: self.mesos_agent_url.parse()? })
    }
}

fn environment(variable: &str) -> Option<String> {
    std::env::var(variable).ok()
}

fn finish(options: Result<Options, Error>) -> u8 {
    match options {
        Err(error) => usage(&error),
        Ok(options) => match hook::main(options) {
            Ok(()) => EXIT_DONE,
            Err(error) => {
                failed(&error);
                error.exit_code()
            }
        },
    }
}

/// As consul-registration-hook reads durations, or as people write them.
fn hook_duration(text: &str) -> Result<Duration, String> {
    match parse_go_duration(text) {
        Some(duration) => Ok(duration.min(LONGEST)),
        None => duration(text),
    }
}

/// As [`hook_duration`]; an empty variable counts as unset.
fn duration_or(text: &str, default: &str) -> Result<Duration, String> {
    hook_duration(if text.is_empty() { default } else { text })
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;
    use crate::consul::http::config::TokenSource;

    fn config(variables: &[(&str, &str)], name: Name) -> (Config, Vec<String>) {
        let lookup = |name: &str| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        };
        let (config, warnings) = consul_config(&lookup, name);
        (config.unwrap(), warnings)
    }

    #[test]
    fn h3_variables_that_the_original_passed_over_are_told_and_passed_over() {
        for (variable, value) in [
            ("CONSUL_HTTP_SSL", "maybe"),
            ("CONSUL_HTTP_SSL_VERIFY", "maybe"),
            ("CONSUL_CLIENT_CERT", "/cert"),
            ("CONSUL_CLIENT_KEY", "/key"),
            ("CONSUL_NAMESPACE", "team"),
            ("CONSUL_PARTITION", "team"),
        ] {
            let (config, warnings) = config(&[(variable, value)], Name::Old);
            assert!(warnings[0].starts_with(variable), "{warnings:?}");
            // What cannot be read leaves certificates checked.
            assert!(!config.tls && config.tls_verify);
            assert_eq!((config.client_certificate, config.client_key), (None, None));
            assert_eq!((config.namespace, config.partition), (None, None));
        }
        let set = [("CONSUL_NAMESPACE", "team"), ("CONSUL_HTTP_SSL", "1")];
        let (own, warnings) = config(&set, Name::Own);
        assert_eq!((own.namespace.as_deref(), own.tls, warnings.len()), (Some("team"), true, 0));
        let (config, _) = consul_config(&|_| Some("ftp://x".to_owned()), Name::Old);
        assert!(config.is_err());
    }

    #[test]
    fn h10_the_token_comes_before_its_file() {
        let file = ("CONSUL_HTTP_TOKEN_FILE", "/file");
        match config(&[file, ("CONSUL_HTTP_TOKEN", "x")], Name::Own).0.token {
            TokenSource::Fixed(token) => assert_eq!(token.expose_secret(), "x"),
            other => panic!("{other:?}"),
        }
        for empty in [vec![file], vec![file, ("CONSUL_HTTP_TOKEN", "")]] {
            let token = config(&empty, Name::Own).0.token;
            assert!(matches!(token, TokenSource::File(_)), "{token:?}");
        }
    }

    #[test]
    fn durations_are_the_originals_and_peoples() {
        for (text, millis) in
            [(".5s", 500), ("5m0s", 300_000), ("-5s", 0), ("1m 30s", 90_000), ("", 10_000)]
        {
            let expected = Duration::from_millis(millis);
            assert_eq!(duration_or(text, GET_POD_TIMEOUT), Ok(expected), "{text}");
        }
        assert!(hook_duration("5").is_err());
        assert_eq!(hook_duration("99999h"), Ok(LONGEST));
    }

    #[test]
    fn h7_a_value_may_begin_with_a_dash() {
        for arguments in [["--service-tags", "-a,b"], ["--check-path", "--x"]] {
            let arguments = ["hook", "register", "cli"].iter().chain(&arguments);
            HookCli::try_parse_from(arguments).unwrap();
        }
    }
}
