//! The flags of `register` and `deregister`, which are those of consul-registration-hook.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::cli::{EXIT_DONE, EXIT_USAGE, KubernetesArgs, LogArgs, duration, usage};
use crate::consul::http::config::{Config, ConfigError, TokenSource};
use crate::domain::hook::cli::{Flags, registration, service_id};
use crate::domain::hook::k8s::Variables;
use crate::domain::hook::mesos::Place;
use crate::domain::hook::ports::{PORT_DEFINITIONS, PortDefinitions};
use crate::domain::hook::{Invalid, required, together};
use crate::domain::kube::names::ObjectKey;
use crate::domain::text::chain;
use crate::kubernetes::client::Environment;
use crate::mesos;
use crate::run::hook::{self, Job, Options, PodOptions, TaskOptions};
use crate::run::install::HOOK_NAME;

/// How long a pod gets to have an address, as there.
const GET_POD_TIMEOUT: &str = "10s";
/// How long its probe gets to succeed, as there.
const HEALTH_CHECK_TIMEOUT: &str = "300s";

const EXIT_CODES: &str = "Every CONSUL_* variable of Consul's own command is honoured.\n\nExit codes: 0 done (also \
     when there is nothing to register), 1 failed, 2 wrong usage or configuration.";

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

/// The token's file, which stands before the verb.
#[derive(Clone, Debug, Default, Args)]
pub struct AclFileArgs {
    /// File with the ACL token, for register and deregister [default: $CONSUL_HTTP_TOKEN_FILE,
    /// then $CONSUL_HTTP_TOKEN]
    #[arg(long, global = true, env = "KUBE_CONSUL_CONSUL_ACL_FILE", value_name = "FILE")]
    consul_acl_file: Option<OsString>,
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
    /// What the labels of the pod say (variables KUBERNETES_POD_NAME, KUBERNETES_POD_NAMESPACE,
    /// PORT_DEFINITIONS, PORT_SERVICE)
    K8s(RegisterPodArgs),
    /// What the labels of the Mesos task say (variables MESOS_EXECUTOR_ID,
    /// MESOS_FRAMEWORK_ID, HOST)
    Mesos(TaskArgs),
    /// What the flags say
    Cli(RegisterFlags),
}

#[derive(Clone, Debug, Subcommand)]
enum DeregisterSource {
    /// What `register k8s` registers
    K8s(PodArgs),
    /// What `register mesos` registers
    Mesos(TaskArgs),
    /// The instance of an ID
    Cli(DeregisterFlags),
}

#[derive(Clone, Debug, Args)]
struct CommonArgs {
    /// How long the change is waited for in the catalog; 0s: not at all
    #[arg(long, env = "KUBE_CONSUL_WAIT_CATALOG", default_value = "5s", value_parser = duration, value_name = "DURATION")]
    wait_catalog: Duration,
    /// How long Consul's agent is tried
    #[arg(long, env = "KUBE_CONSUL_TIMEOUT", default_value = "30s", value_parser = duration, value_name = "DURATION")]
    timeout: Duration,
}

#[derive(Clone, Debug, Args)]
struct PodArgs {
    #[command(flatten)]
    common: CommonArgs,
    /// How long the pod is tried to be read, until it has an address
    #[arg(long, env = "KUBERNETES_GET_POD_TIMEOUT", default_value = GET_POD_TIMEOUT, value_parser = |text: &str| duration_or(text, GET_POD_TIMEOUT), value_name = "DURATION")]
    get_pod_timeout: Duration,
    #[command(flatten)]
    kubernetes: KubernetesArgs,
}

#[derive(Clone, Debug, Args)]
struct RegisterPodArgs {
    // First: what is flattened ends in a help heading of its own.
    /// How long its startup or readiness probe is tried
    #[arg(long, env = "KUBERNETES_HEALTH_CHECK_TIMEOUT", default_value = HEALTH_CHECK_TIMEOUT, value_parser = |text: &str| duration_or(text, HEALTH_CHECK_TIMEOUT), value_name = "DURATION")]
    health_check_timeout: Duration,
    #[command(flatten)]
    pod: PodArgs,
}

#[derive(Clone, Debug, Args)]
struct TaskArgs {
    #[command(flatten)]
    common: CommonArgs,
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
    #[command(flatten)]
    common: CommonArgs,
    /// The service's name
    #[arg(long, env = "KUBERNETES_SERVICE_NAME", value_name = "NAME")]
    service_name: Option<String>,
    /// The instance's address
    #[arg(long, env = "KUBERNETES_POD_IP", value_name = "ADDRESS")]
    pod_ip: Option<String>,
    /// Its port
    #[arg(long, env = "KUBERNETES_CONTAINER_PORT", value_name = "PORT")]
    container_port: Option<String>,
    /// Its tags, separated by commas
    #[arg(long, env = "KUBERNETES_SERVICE_TAGS", value_name = "TAGS")]
    service_tags: Option<String>,
    /// Path that its HTTP check asks for [default: /]
    #[arg(long, env = "KUBERNETES_CHECK_PATH", value_name = "PATH")]
    check_path: Option<String>,
}

#[derive(Clone, Debug, Args)]
struct DeregisterFlags {
    #[command(flatten)]
    common: CommonArgs,
    /// The instance's ID, ADDRESS_PORT
    #[arg(long, env = "KUBERNETES_SERVICE_ID", value_name = "ID")]
    service_id: Option<String>,
}

/// Why a command line and its environment make no hook.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Invalid(#[from] Invalid),
    #[error(transparent)]
    Consul(#[from] ConfigError),
    #[error(transparent)]
    Mesos(#[from] mesos::Error),
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
        Self::parse_from(std::env::args_os().map(with_two_dashes))
    }

    /// Runs it and gives the exit code; an error is told on standard error.
    pub fn run(self) -> u8 {
        if let Err(error) = self.log.start() {
            return usage(&error);
        }
        match self.command {
            HookCommand::Register(args) => args.run(&self.acl_file),
            HookCommand::Deregister(args) => args.run(&self.acl_file),
        }
    }
}

// === impl RegisterArgs ===

impl RegisterArgs {
    /// Runs it and gives the exit code; an error is told on standard error.
    pub fn run(self, acl_file: &AclFileArgs) -> u8 {
        finish(self.options(acl_file, &environment))
    }

    fn options(self, acl_file: &AclFileArgs, lookup: Lookup<'_>) -> Result<Options, Error> {
        let (common, job) = match self.source {
            RegisterSource::K8s(args) => {
                let pod = args.pod.options(lookup, args.health_check_timeout)?;
                (args.pod.common, Job::RegisterPod(Box::new(pod)))
            }
            RegisterSource::Mesos(args) => {
                (args.common.clone(), Job::RegisterTask(args.options(lookup)?))
            }
            RegisterSource::Cli(args) => {
                let flags = Flags {
                    name: args.service_name.as_deref(),
                    address: args.pod_ip.as_deref(),
                    port: args.container_port.as_deref(),
                    tags: args.service_tags.as_deref(),
                    check_path: args.check_path.as_deref(),
                };
                (args.common, Job::Register(registration(&flags)?))
            }
        };
        common.options(acl_file, lookup, job)
    }
}

// === impl DeregisterArgs ===

impl DeregisterArgs {
    /// Runs it and gives the exit code; an error is told on standard error.
    pub fn run(self, acl_file: &AclFileArgs) -> u8 {
        finish(self.options(acl_file, &environment))
    }

    fn options(self, acl_file: &AclFileArgs, lookup: Lookup<'_>) -> Result<Options, Error> {
        let (common, job) = match self.source {
            DeregisterSource::K8s(args) => {
                let pod = args.options(lookup, Duration::ZERO)?;
                (args.common, Job::DeregisterPod(Box::new(pod)))
            }
            DeregisterSource::Mesos(args) => {
                (args.common.clone(), Job::DeregisterTask(args.options(lookup)?))
            }
            DeregisterSource::Cli(args) => {
                let id = service_id(args.service_id.as_deref())?;
                (args.common, Job::Deregister(id))
            }
        };
        common.options(acl_file, lookup, job)
    }
}

// === impl CommonArgs ===

impl CommonArgs {
    fn options(
        self,
        acl_file: &AclFileArgs,
        lookup: Lookup<'_>,
        job: Job,
    ) -> Result<Options, Error> {
        let mut consul = Config::from_env(lookup)?;
        if let Some(file) = acl_file.consul_acl_file.as_ref().filter(|file| !file.is_empty()) {
            consul.token = TokenSource::File(file.into());
        }
        Ok(Options { consul, timeout: self.timeout, wait_catalog: self.wait_catalog, job })
    }
}

// === impl PodArgs ===

impl PodArgs {
    fn options(
        &self,
        lookup: Lookup<'_>,
        health_check_timeout: Duration,
    ) -> Result<PodOptions, Error> {
        let set = |variable: &str| lookup(variable).filter(|value| !value.is_empty());
        let pod = |variable, expected| required(variable, expected, set(variable).as_deref());
        let [namespace, name] = together([
            pod("KUBERNETES_POD_NAMESPACE", "the pod's namespace"),
            pod("KUBERNETES_POD_NAME", "the pod's name"),
        ])?;
        let definitions = set(PORT_DEFINITIONS);
        Ok(PodOptions {
            access: self.kubernetes.access(),
            environment: Environment::read(),
            key: ObjectKey::new(namespace, name),
            variables: Variables {
                port_definitions: definitions.as_deref().map(PortDefinitions::parse).transpose()?,
                port_service: set("PORT_SERVICE"),
            },
            get_pod_timeout: self.get_pod_timeout,
            health_check_timeout,
        })
    }
}

// === impl TaskArgs ===

impl TaskArgs {
    fn options(&self, lookup: Lookup<'_>) -> Result<TaskOptions, Error> {
        let get = |variable, expected| required(variable, expected, lookup(variable).as_deref());
        let [executor, framework, host] = together([
            get("MESOS_EXECUTOR_ID", "the executor's ID"),
            get("MESOS_FRAMEWORK_ID", "the framework's ID"),
            get("HOST", "the host's address"),
        ])?;
        let place = Place { host, framework, executor };
        Ok(TaskOptions { place, agent: self.mesos_agent_url.parse()? })
    }
}

/// A long flag with one dash, which consul-registration-hook takes as well; no flag's value here
/// begins with one.
fn with_two_dashes(argument: OsString) -> OsString {
    match argument.to_str().and_then(|text| text.strip_prefix('-')) {
        Some("v") => "--version".into(),
        Some(long) if long.len() > 1 && !long.starts_with('-') => format!("--{long}").into(),
        _ => argument,
    }
}

fn environment(variable: &str) -> Option<String> {
    std::env::var(variable).ok()
}

fn finish(options: Result<Options, Error>) -> u8 {
    match options {
        Err(error) => {
            eprintln!("error: {}", chain(&error));
            EXIT_USAGE
        }
        Ok(options) => match hook::main(options) {
            Ok(()) => EXIT_DONE,
            Err(error) => {
                eprintln!("error: {}", chain(&error));
                error.exit_code()
            }
        },
    }
}

/// As [`duration`]; an empty variable counts as unset.
fn duration_or(text: &str, default: &str) -> Result<Duration, String> {
    duration(if text.is_empty() { default } else { text })
}
