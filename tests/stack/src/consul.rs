//! Real Consul agents: a single one, three servers, clients that join them.

use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;

use crate::certificates::{self, Authority, Certificate};
use crate::folder;
use crate::poll::eventually;
use crate::port::Port;
use crate::program::{Program, ProgramOptions};
use crate::tools;

mod api;

pub use api::ConsulApi;

/// One agent answers within a second, three servers elect within five; a debug
/// build beside it makes that several times as long.
const START_DEADLINE: Duration = Duration::from_mins(1);

/// How long an agent that is told to stop gets to leave its cluster. It takes
/// about 5 s for a client, a server may wait for its peers.
const STOP_GRACE: Duration = Duration::from_secs(15);

/// A port that was free may be taken by a program that does not pick its ports
/// here; twice in a row is no longer chance.
const ATTEMPTS: usize = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// A server with everything in memory.
    Dev,
    /// A server with a data folder, of so many that are expected.
    Server { expect: usize },
    /// A client agent with a data folder.
    Client,
}

/// What becomes of an agent's data when it is restarted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Data {
    /// It starts with what it had (nothing, in memory).
    Kept,
    /// It starts empty, as a container does.
    Lost,
}

/// How an agent is to be started.
#[derive(Debug, Clone)]
pub struct ConsulOptions {
    role: Role,
    address: Ipv4Addr,
    node: Option<String>,
    datacenter: String,
    join: Vec<SocketAddr>,
    join_wan: Vec<SocketAddr>,
    configuration: Vec<String>,
    token: Option<String>,
    ca: Option<String>,
    grpc: Option<u16>,
}

impl Default for ConsulOptions {
    fn default() -> Self {
        Self::dev()
    }
}

impl ConsulOptions {
    /// A single server that keeps everything in memory: `agent -dev`.
    pub fn dev() -> Self {
        Self {
            role: Role::Dev,
            address: Ipv4Addr::LOCALHOST,
            node: None,
            datacenter: "dc1".to_owned(),
            join: Vec::new(),
            join_wan: Vec::new(),
            configuration: Vec::new(),
            token: None,
            ca: None,
            grpc: None,
        }
    }

    /// A single server with a data folder.
    pub fn server() -> Self {
        Self { role: Role::Server { expect: 1 }, ..Self::dev() }
    }

    /// A client agent with a data folder that joins these servers.
    pub fn client<'a>(servers: impl IntoIterator<Item = &'a Consul>) -> Self {
        let mut options = Self { role: Role::Client, ..Self::dev() };
        for server in servers {
            options.join.push(server.serf_address());
            options.datacenter.clone_from(&server.options.datacenter);
            // The client's API asks the same of its users.
            options.token.clone_from(&server.options.token);
        }
        options
    }

    /// The agent's node name; a name of its own otherwise.
    #[must_use]
    pub fn node(mut self, name: &str) -> Self {
        self.node = Some(name.to_owned());
        self
    }

    /// The loopback address it binds; 127.0.0.1 otherwise.
    #[must_use]
    pub fn address(mut self, address: Ipv4Addr) -> Self {
        self.address = address;
        self
    }

    /// Joins the datacenter of this server to its own.
    #[must_use]
    pub fn federated_with(mut self, server: &Consul) -> Self {
        self.join_wan.push((server.options.address, server.ports.serf_wan.number()).into());
        self
    }

    /// The datacenter; `dc1` otherwise.
    #[must_use]
    pub fn datacenter(mut self, name: &str) -> Self {
        name.clone_into(&mut self.datacenter);
        self
    }

    /// Serves gRPC at this port; not at all otherwise.
    #[must_use]
    pub fn grpc(mut self, port: u16) -> Self {
        self.grpc = Some(port);
        self
    }

    /// Further configuration, HCL or JSON text.
    #[must_use]
    pub fn configuration(mut self, text: impl Into<String>) -> Self {
        self.configuration.push(text.into());
        self
    }

    /// ACLs with default policy deny and this management token (a UUID), which
    /// is the agent's own token too.
    #[must_use]
    pub fn acl(mut self, management: &str) -> Self {
        self.token = Some(management.to_owned());
        self.configuration(format!(
            "{:#}",
            json!({"acl": {
                "enabled": true,
                "default_policy": "deny",
                "tokens": {"initial_management": management, "agent": management},
            }})
        ))
    }

    /// HTTPS instead of HTTP, with a certificate of this authority for
    /// 127.0.0.1 and localhost; clients need one of it too if `verify_clients`.
    pub fn tls(self, authority: &Authority, verify_clients: bool) -> Result<Self> {
        let certificate = authority.issue(&["localhost", "127.0.0.1"])?;
        self.tls_with(authority, &certificate, verify_clients)
    }

    /// The same with this certificate.
    pub fn tls_with(
        mut self,
        authority: &Authority,
        certificate: &Certificate,
        verify_clients: bool,
    ) -> Result<Self> {
        self.ca = Some(authority.pem().to_owned());
        let folder = folder::data_folder("consul-tls")?;
        let write = |name: &str, text: &str| {
            let path = folder.join(name);
            fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
            anyhow::Ok(path)
        };
        let files = json!({
            "ca_file": write("ca.pem", authority.pem())?,
            "cert_file": write("server.pem", &certificate.certificate)?,
            "key_file": write("server.key", &certificate.key)?,
            "verify_incoming": verify_clients,
        });
        Ok(self.configuration(format!("{:#}", json!({"tls": {"https": files}}))))
    }
}

/// A running agent; dropped, it is killed.
#[derive(Debug)]
pub struct Consul {
    options: ConsulOptions,
    node: String,
    folder: PathBuf,
    ports: Ports,
    api: ConsulApi,
    program: Program,
}

#[derive(Debug)]
struct Ports {
    http: Port,
    dns: Port,
    server: Port,
    serf_lan: Port,
    serf_wan: Port,
}

impl Consul {
    /// Starts an agent and waits until it has a leader and is in the catalog.
    pub async fn start(options: ConsulOptions) -> Result<Self> {
        let mut attempt = 1;
        loop {
            let started = async {
                let consul = Self::launch(options.clone()).await?;
                consul.wait_ready().await?;
                anyhow::Ok(consul)
            };
            match started.await {
                Err(error) if attempt < ATTEMPTS && is_port_taken(&error) => attempt += 1,
                outcome => return outcome.context("start Consul"),
            }
        }
    }

    /// Starts the process without waiting for it.
    async fn launch(options: ConsulOptions) -> Result<Self> {
        certificates::install_provider();
        let node =
            options.node.clone().unwrap_or_else(|| format!("agent-{}", folder::random_name()));
        let folder = folder::data_folder("consul")?;
        let ports = Ports {
            http: Port::pick()?,
            dns: Port::pick()?,
            server: Port::pick()?,
            serf_lan: Port::pick()?,
            serf_wan: Port::pick()?,
        };
        let scheme = if options.ca.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{}:{}", options.address, ports.http.number());
        let api = ConsulApi::new(&url, options.token.as_deref(), options.ca.as_deref())?;
        write_configuration(&options, &folder, &ports)?;
        let program = Program::start("consul", command(&options, &node, &folder, &ports)?).await?;
        Ok(Self { options, node, folder, ports, api, program })
    }

    /// Waits until the agent has a leader and its own node is in the catalog.
    pub async fn wait_ready(&self) -> Result<()> {
        let path = format!("/v1/catalog/node/{}?consistent", self.node);
        let ready = eventually(START_DEADLINE, || async {
            let leader = self.api.get("/v1/status/leader").await?;
            ensure!(leader != "", "it has no leader");
            let node = self.api.get(&path).await?;
            ensure!(node["Node"].is_object(), "its node is not in the catalog");
            anyhow::Ok(())
        });
        tokio::select! {
            outcome = ready => outcome.map_err(|error| self.program.failure(&format!("{error:#}"))),
            // Only the end matters here: how it ended is in its log.
            _ = self.program.wait(START_DEADLINE) => Err(self.program.failure("ended at its start")),
        }
    }

    /// The HTTP API's URL, for `CONSUL_HTTP_ADDR`.
    pub fn url(&self) -> &str {
        self.api.url()
    }

    /// The HTTP API's address, for a [`crate::TcpLink`] in front of it.
    pub fn address(&self) -> SocketAddr {
        (self.options.address, self.ports.http.number()).into()
    }

    /// Where its DNS listens, UDP and TCP.
    pub fn dns_address(&self) -> SocketAddr {
        (self.options.address, self.ports.dns.number()).into()
    }

    /// Where its gossip listens.
    pub fn serf_address(&self) -> SocketAddr {
        (self.options.address, self.ports.serf_lan.number()).into()
    }

    /// Its node name.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Its raw API, with the management token if there is one.
    pub fn api(&self) -> &ConsulApi {
        &self.api
    }

    /// The process.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// SIGKILL: the agent is gone without a word.
    pub async fn kill(&self) -> Result<()> {
        self.program.kill().await
    }

    /// SIGTERM: the agent ends in order. A client leaves its cluster then, as
    /// Consul does by default; a server does not.
    pub async fn stop(&self) -> Result<()> {
        self.program.stop(STOP_GRACE).await
    }

    /// SIGSTOP: the agent does not answer, its connections stay open.
    pub async fn pause(&self) {
        self.program.pause().await;
    }

    /// SIGCONT after a pause.
    pub async fn resume(&self) {
        self.program.resume().await;
    }

    /// Starts the agent again on the same ports, killing it first if it still
    /// runs. Does not wait until it is ready: see [`Consul::wait_ready`].
    pub async fn restart(&mut self, data: Data) -> Result<()> {
        if self.program.exit_status().is_none() {
            self.program.kill().await?;
        }
        let kept = self.folder.join(DATA);
        if data == Data::Lost && kept.exists() {
            fs::remove_dir_all(&kept).with_context(|| format!("remove {}", kept.display()))?;
        }
        let command = command(&self.options, &self.node, &self.folder, &self.ports)?;
        self.program = Program::start("consul", command).await?;
        Ok(())
    }
}

const DATA: &str = "data";

fn write_configuration(
    options: &ConsulOptions,
    folder: &std::path::Path,
    ports: &Ports,
) -> Result<()> {
    let mut texts = options.configuration.clone();
    let http = ports.http.number();
    let http = if options.ca.is_some() {
        json!({"http": -1, "https": http})
    } else {
        json!({"http": http})
    };
    texts.push(format!("{:#}", json!({"ports": http, "disable_update_check": true})));
    if options.role != Role::Dev {
        // What -dev does too: elections in one second instead of five, gossip
        // that notices a dead agent in seconds. And a server that comes back
        // votes after one second instead of ten.
        texts.push(
            "performance { raft_multiplier = 1 }\n\
             gossip_lan { gossip_interval = \"100ms\" probe_interval = \"100ms\" \
             probe_timeout = \"100ms\" suspicion_mult = 3 }\n\
             autopilot { server_stabilization_time = \"1s\" }\n"
                .to_owned(),
        );
    }
    for (number, text) in texts.iter().enumerate() {
        // Consul reads both as HCL: JSON begins with a brace, HCL does not.
        let extension = if text.trim_start().starts_with('{') { "json" } else { "hcl" };
        let path = folder.join(format!("{number:02}.{extension}"));
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

fn command(
    options: &ConsulOptions,
    node: &str,
    folder: &std::path::Path,
    ports: &Ports,
) -> Result<ProgramOptions> {
    // Without -log-level, -dev logs at DEBUG and is ten times slower.
    let mut command = ProgramOptions::new(tools::program("consul")?)
        .args(["agent", "-log-level=warn", "-grpc-tls-port=-1"])
        .arg(format!("-grpc-port={}", options.grpc.map_or(-1, i32::from)))
        .arg(format!("-bind={}", options.address))
        .arg(format!("-client={}", options.address))
        .arg(format!("-node={node}"))
        .arg(format!("-node-id={}", node_id(node)))
        .arg(format!("-datacenter={}", options.datacenter))
        .arg(format!("-dns-port={}", ports.dns.number()))
        .arg(format!("-server-port={}", ports.server.number()))
        .arg(format!("-serf-lan-port={}", ports.serf_lan.number()))
        .arg(format!("-serf-wan-port={}", ports.serf_wan.number()));
    for entry in fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let path = entry?.path();
        if path.is_file() {
            command = command.arg(format!("-config-file={}", path.display()));
        }
    }
    for server in &options.join_wan {
        command = command.arg(format!("-retry-join-wan={server}"));
    }
    for server in &options.join {
        command = command.arg(format!("-retry-join={server}"));
    }
    if options.role == Role::Dev {
        return Ok(command.arg("-dev"));
    }
    let data = folder.join(DATA);
    fs::create_dir_all(&data).with_context(|| format!("create {}", data.display()))?;
    command = command.arg(format!("-data-dir={}", data.display())).arg("-retry-interval=250ms");
    if let Role::Server { expect } = options.role {
        command = command.arg("-server").arg(format!("-bootstrap-expect={expect}"));
    }
    Ok(command)
}

/// A node ID that stays when the data is lost, as that of a machine does: with
/// another one Consul refuses the node's name for as long as gossip says that
/// the node is alive, which it is.
fn node_id(node: &str) -> String {
    let mut hasher = DefaultHasher::new();
    node.hash(&mut hasher);
    let number = hasher.finish();
    format!(
        "{:08x}-{:04x}-4000-8000-{:012x}",
        number >> 32,
        number & 0xffff,
        number & 0xffff_ffff_ffff
    )
}

fn is_port_taken(error: &anyhow::Error) -> bool {
    format!("{error:#}").contains("address already in use")
}

/// Three servers on 127.0.0.1, 127.0.0.2 and 127.0.0.3.
#[derive(Debug)]
pub struct ConsulCluster {
    /// The servers.
    pub servers: Vec<Consul>,
}

impl ConsulCluster {
    /// Three servers; waits until they have a leader.
    pub async fn start() -> Result<Self> {
        Self::start_with(ConsulOptions::server()).await
    }

    /// Three servers with these options (role, address and peers are set here).
    pub async fn start_with(options: ConsulOptions) -> Result<Self> {
        const SERVERS: u8 = 3;
        let mut servers: Vec<Consul> = Vec::new();
        for number in 1..=SERVERS {
            let mut options = options.clone();
            options.role = Role::Server { expect: usize::from(SERVERS) };
            options.address = Ipv4Addr::new(127, 0, 0, number);
            // The first is there for everybody; gossip tells them of the rest.
            options.join = servers.first().map(Consul::serf_address).into_iter().collect();
            options.node = Some(format!("server-{number}"));
            servers.push(Consul::launch(options).await?);
        }
        // Restarted, the first has to find the others too.
        let others = servers[1..].iter().map(Consul::serf_address).collect();
        servers[0].options.join = others;
        for server in &servers {
            server.wait_ready().await?;
        }
        Ok(Self { servers })
    }

    /// Waits until one leads that runs, and gives its index in `servers`.
    pub async fn wait_for_leader(&self) -> Result<usize> {
        eventually(START_DEADLINE, || async {
            let leader = self.leader().await?;
            let runs = self.servers[leader].program.exit_status().is_none();
            ensure!(runs, "the others still take the dead one for their leader");
            Ok(leader)
        })
        .await
    }

    /// Waits until the others would go on without any one of the servers. One
    /// that Consul's autopilot found dead was taken out, and comes back without
    /// a vote: until it has one again, the two that vote need each other.
    pub async fn wait_until_one_may_fail(&self) -> Result<()> {
        eventually(START_DEADLINE, || async {
            let leader = self.servers[self.leader().await?].api();
            let health = leader.get("/v1/operator/autopilot/health").await?;
            let tolerance = health["FailureTolerance"].as_u64().unwrap_or_default();
            ensure!(tolerance > 0, "none of the servers may fail: {health}");
            Ok(())
        })
        .await
    }

    /// The index in `servers` of the one that leads.
    pub async fn leader(&self) -> Result<usize> {
        for server in &self.servers {
            let Ok(leader) = server.api().get("/v1/status/leader").await else {
                continue;
            };
            let leader = leader.as_str().unwrap_or_default();
            let of = |server: &Consul| {
                SocketAddr::from((server.options.address, server.ports.server.number())).to_string()
            };
            if let Some(index) = self.servers.iter().position(|server| of(server) == leader) {
                return Ok(index);
            }
        }
        bail!("none of the three servers knows a leader")
    }
}
