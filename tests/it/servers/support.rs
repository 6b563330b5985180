//! The pods of `manifests/consul-servers` as processes.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kube_consul_stack::{
    ConsulApi, Kubernetes, Network, Pod, PodObjects, PodOptions, Program, ProgramOptions,
    data_folder, eventually, program_path,
};
use serde_json::{Value, json};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OnceCell;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::support::manifest;

/// A first election takes 5 s, the second round of an ACL job as much; several times that beside
/// a build.
pub const START_DEADLINE: Duration = Duration::from_mins(1);
/// A server that comes back without a leave is refused for 65 s, and votes 15 s later.
pub const REFUSED_DEADLINE: Duration = Duration::from_mins(2);
/// As the `StatefulSet` has it (`terminationGracePeriodSeconds`).
const GRACE: Duration = Duration::from_mins(1);
/// A probe is a process; a kubelet asks every two seconds.
const PROBE_EVERY: Duration = Duration::from_millis(500);
/// What has the ports of the manifest has them on an address of its own.
pub const HTTPS: u16 = 8501;

pub const SERVER_NAME: &str = "server.dc1.consul";

/// Runs kubectl or make with the shared cluster's configuration.
pub async fn run(words: &[&str]) -> Result<String> {
    run_with(Kubernetes::shared().await?, words).await
}

/// The same with another cluster's.
pub async fn run_with(cluster: &Kubernetes, words: &[&str]) -> Result<String> {
    let tools = program_path("consul")?;
    let tools = tools.parent().context("a program has a folder")?;
    let path = std::env::var("PATH").unwrap_or_default();
    let options = ProgramOptions::new("/usr/bin/env")
        .args(words)
        .env("KUBECONFIG", cluster.kubeconfig())
        .env("PATH", format!("{}:{path}", tools.display()));
    let program = Program::start(words.first().copied().unwrap_or_default(), options).await?;
    program.wait_for_code(0, START_DEADLINE).await?;
    Ok(program.stdout())
}

fn root() -> &'static str {
    env!("CARGO_MANIFEST_DIR")
}

/// `make consul-secrets`.
pub async fn make_secrets(cluster: &Kubernetes, namespace: &str) -> Result<String> {
    let namespace = format!("NAMESPACE={namespace}");
    run_with(cluster, &["make", "-C", root(), "consul-secrets", &namespace]).await
}

/// `manifests/consul/secrets`.
pub async fn secrets(namespace: &str, words: &[&str]) -> Result<String> {
    let namespace = format!("NAMESPACE={namespace}");
    let script = manifest("consul/secrets").display().to_string();
    run(&[&[&namespace[..], &script], words].concat()).await
}

/// The objects of a folder of manifests, as kustomize makes them.
pub async fn rendered(folder: &str) -> Result<Vec<Value>> {
    let path = manifest(folder).display().to_string();
    let flags = ["--dry-run=client", "--validate=false", "--output=json"];
    let text = run(&[&["kubectl", "apply", "--kustomize", &path][..], &flags].concat()).await?;
    let mut list: Value = serde_json::from_str(&text)?;
    match list["items"].take() {
        Value::Array(items) => Ok(items),
        _ => Ok(vec![list]),
    }
}

/// One object of a folder.
pub fn object<'a>(objects: &'a [Value], kind: &str, name: &str) -> Result<&'a Value> {
    let mut all = objects.iter();
    let found = all.find(|it| it["kind"] == kind && it["metadata"]["name"] == name);
    found.with_context(|| format!("no {kind} {name}"))
}

/// The objects that pods of these folders would find in a namespace where the Secrets were made:
/// the `ConfigMaps` of the folders, and the Secrets as the API server gives them.
pub async fn installed(namespace: &str, folders: &[&str]) -> Result<PodObjects> {
    let cluster = Kubernetes::shared().await?;
    let mut objects = PodObjects::read(cluster, namespace).await?;
    for folder in folders {
        for object in rendered(folder).await? {
            if object["kind"] != "ConfigMap" {
                continue;
            }
            let name = object["metadata"]["name"].as_str().context("a ConfigMap has a name")?;
            let data = object["data"].as_object().context("a ConfigMap has data")?;
            let data = data.iter().map(|(key, text)| {
                (key.clone(), text.as_str().unwrap_or_default().as_bytes().to_vec())
            });
            objects.config_maps.insert(name.to_owned(), data.collect());
        }
    }
    Ok(objects)
}

/// Secrets that all tests share which do not change them: made once by `make consul-secrets`.
pub async fn shared_secrets() -> Result<&'static PodObjects> {
    static SHARED: OnceCell<PodObjects> = OnceCell::const_new();
    let made = SHARED.get_or_try_init(|| async {
        let cluster = Kubernetes::shared().await?;
        let namespace = cluster.namespace("secrets").await?;
        make_secrets(cluster, &namespace).await?;
        installed(&namespace, &["consul-servers", "consul-agents", "with-consul-servers"]).await
    });
    made.await
}

/// One server of the `StatefulSet`.
#[derive(Debug)]
pub struct Member {
    pub pod: Pod,
    pub program: Program,
}

/// The `StatefulSet`'s pods.
pub struct Servers {
    pub network: Network,
    pub objects: PodObjects,
    pub spec: Value,
    members: BTreeMap<u8, Member>,
    storage: std::path::PathBuf,
    next_host: u8,
    /// The addresses of the Service `consul`: servers that are ready.
    ready: Arc<Mutex<Vec<Ipv4Addr>>>,
}

// === impl Servers ===

impl Servers {
    /// No server yet.
    pub async fn new(folder: &str, objects: &PodObjects) -> Result<Self> {
        let rendered = rendered(folder).await?;
        let set = object(&rendered, "StatefulSet", "consul-server")?;
        let mut spec = set["spec"]["template"]["spec"].clone();
        // A claim of the template is a volume of the pod.
        let volumes = spec["volumes"].as_array_mut().context("no volumes")?;
        volumes.push(json!({"name": "data", "persistentVolumeClaim": {"claimName": "data"}}));
        Ok(Self {
            network: Network::pick()?,
            objects: objects.clone(),
            spec,
            members: BTreeMap::new(),
            storage: data_folder("claims")?,
            next_host: 1,
            ready: Arc::default(),
        })
    }

    /// Servers of the shipped `StatefulSet` that have started, with their tokens.
    pub async fn started(count: u8) -> Result<Self> {
        let mut servers = Self::new("consul-servers", shared_secrets().await?).await?;
        servers.boot_all(0..count).await?;
        servers.run_acl_job().await?;
        for ordinal in 0..count {
            servers.wait_started(ordinal, START_DEADLINE).await?;
        }
        Ok(servers)
    }

    /// An address that nothing had before, as every new pod gets one.
    pub fn new_address(&mut self) -> Ipv4Addr {
        self.next_host += 1;
        self.network.address(self.next_host)
    }

    /// What DNS has for the headless Service: every pod, ready or not.
    pub fn addresses(&self) -> Vec<Ipv4Addr> {
        self.members.values().map(|it| it.pod.address()).collect()
    }

    /// The names that a pod resolves.
    pub fn names(&self, more: &[Ipv4Addr]) -> Vec<(String, Vec<Ipv4Addr>)> {
        let addresses = [&self.addresses(), more].concat();
        let names = ["consul", "consul-server", "consul-server.kube-consul"];
        names.map(|it| (it.to_owned(), addresses.clone())).into()
    }

    /// Starts pods at once, each at a new address that the others' DNS has.
    pub async fn boot_all(&mut self, ordinals: impl IntoIterator<Item = u8>) -> Result<()> {
        let new: Vec<(u8, Ipv4Addr)> =
            ordinals.into_iter().map(|it| (it, self.new_address())).collect();
        let addresses: Vec<Ipv4Addr> = new.iter().map(|(_, address)| *address).collect();
        for (ordinal, address) in new {
            let name = format!("consul-server-{ordinal}");
            let options = PodOptions {
                storage: self.storage.join(&name),
                names: self.names(&addresses),
                ..options(&name, address)
            };
            let pod = Pod::new(&self.spec, &self.objects, options)?;
            pod.init().await?;
            let program = pod.start("consul").await?;
            self.members.insert(ordinal, Member { pod, program });
        }
        Ok(())
    }

    /// The same for one.
    pub async fn boot(&mut self, ordinal: u8) -> Result<()> {
        self.boot_all([ordinal]).await
    }

    pub fn member(&self, ordinal: u8) -> Result<&Member> {
        self.members.get(&ordinal).with_context(|| format!("no pod consul-server-{ordinal}"))
    }

    /// The pods' volumes get what the objects have become.
    pub fn update(&mut self) -> Result<()> {
        self.members.values_mut().try_for_each(|it| it.pod.update(&self.objects))
    }

    /// What deletes a pod: it is no longer ready, its preStop hook runs, then SIGTERM. Gives what
    /// the hook said.
    pub async fn delete_pod(&mut self, ordinal: u8) -> Result<String> {
        let member = self.members.remove(&ordinal).context("no such pod")?;
        self.unready(&member);
        let hook = self.spec["containers"][0]["lifecycle"]["preStop"].clone();
        let said = member.pod.exec("consul", &hook).await?;
        member.program.stop(GRACE).await?;
        Ok(said.stdout())
    }

    fn unready(&self, member: &Member) {
        let gone = member.pod.address();
        self.ready.lock().expect("nobody panics").retain(|it| *it != gone);
    }

    /// SIGKILL, and the pod is gone: its node has lost power.
    pub async fn lose(&mut self, ordinal: u8) -> Result<()> {
        let member = self.members.remove(&ordinal).context("no such pod")?;
        self.unready(&member);
        member.program.kill().await
    }

    /// The process is killed and started again in the same pod.
    pub async fn crash(&mut self, ordinal: u8) -> Result<()> {
        let member = self.members.get_mut(&ordinal).context("no such pod")?;
        member.program.kill().await?;
        member.pod.init().await?;
        member.program = member.pod.start("consul").await?;
        Ok(())
    }

    /// A pod's volume is deleted.
    pub fn wipe(&self, ordinal: u8) -> Result<()> {
        Ok(fs::remove_dir_all(self.storage.join(format!("consul-server-{ordinal}")))?)
    }

    /// The startup probe, and what it said.
    pub async fn startup_probe(&self, ordinal: u8) -> Result<(bool, String)> {
        let probe = &self.spec["containers"][0]["startupProbe"];
        let probe = self.member(ordinal)?.pod.exec("consul", probe).await?;
        let passed = probe.exit_status().is_some_and(|it| it.success());
        Ok((passed, probe.stdout()))
    }

    /// The status that the readiness or the liveness probe gets.
    pub async fn http_probe(&self, ordinal: u8, probe: &str) -> Result<u16> {
        let get = &self.spec["containers"][0][probe]["httpGet"];
        ensure!(get["scheme"] == "HTTPS" && get["port"] == "https", "{probe}: {get}");
        let path = get["path"].as_str().context("no path")?;
        self.api(ordinal)?.with_token(None).status(path).await
    }

    /// Waits until the startup probe passes, and gives how long that took.
    pub async fn wait_started(&self, ordinal: u8, deadline: Duration) -> Result<Duration> {
        let began = Instant::now();
        eventually(deadline, || async {
            let (passed, said) = self.startup_probe(ordinal).await?;
            if !passed {
                sleep(PROBE_EVERY).await;
            }
            ensure!(passed, "consul-server-{ordinal} has not started: {said}");
            Ok(())
        })
        .await?;
        let status = self.http_probe(ordinal, "readinessProbe").await?;
        ensure!(status == 200, "it has started and is not ready: {status}");
        let address = self.member(ordinal)?.pod.address();
        let mut ready = self.ready.lock().expect("nobody panics");
        if !ready.contains(&address) {
            ready.push(address);
        }
        Ok(began.elapsed())
    }

    /// The addresses of the Service `consul`.
    pub fn ready(&self) -> Arc<Mutex<Vec<Ipv4Addr>>> {
        Arc::clone(&self.ready)
    }

    /// A server's API with the management token.
    pub fn api(&self, ordinal: u8) -> Result<ConsulApi> {
        let token = self.objects.secret("consul-acl-management", "token")?;
        self.api_at(self.member(ordinal)?.pod.address(), Some(&token))
    }

    /// The API at an address with a token.
    pub fn api_at(&self, address: Ipv4Addr, token: Option<&str>) -> Result<ConsulApi> {
        let ca = self.objects.secret("consul-ca", "ca.crt")?;
        ConsulApi::named(SERVER_NAME, SocketAddr::from((address, HTTPS)), token, &ca)
    }

    /// The ordinal of the leader, as this server sees it.
    pub async fn leader_seen_by(&self, ordinal: u8) -> Result<u8> {
        let leader = self.api(ordinal)?.get("/v1/status/leader").await?;
        let leader = leader.as_str().unwrap_or_default();
        let mut all = self.members.iter();
        let found = all.find(|(_, it)| leader == format!("{}:8300", it.pod.address()));
        found.map(|(ordinal, _)| *ordinal).with_context(|| format!("'{leader}' is none of them"))
    }

    /// The names of the servers in Raft, and whether they vote.
    pub async fn peers(&self, by: u8) -> Result<BTreeMap<String, bool>> {
        let found = self.api(by)?.get("/v1/operator/raft/configuration").await?;
        let servers = found["Servers"].as_array().context("no list")?;
        let peer =
            |it: &Value| (it["Node"].as_str().unwrap_or_default().into(), it["Voter"] == true);
        Ok(servers.iter().map(peer).collect())
    }

    /// A pod of the job that makes policies and tokens.
    pub async fn acl_pod(&self) -> Result<Pod> {
        let rendered = rendered("consul-servers").await?;
        let job = object(&rendered, "Job", "consul-acl")?;
        self.pod(&job["spec"]["template"]["spec"], "consul-acl", self.network.address(254))
    }

    /// A pod in the same namespace.
    pub fn pod(&self, spec: &Value, name: &str, address: Ipv4Addr) -> Result<Pod> {
        let options = PodOptions {
            storage: self.storage.join(name),
            names: self.names(&[]),
            ..options(name, address)
        };
        Pod::new(spec, &self.objects, options)
    }

    /// Runs the job that makes policies and tokens to its end.
    pub async fn run_acl_job(&self) -> Result<String> {
        let program = self.acl_pod().await?.start("acl").await?;
        program.wait_for_code(0, START_DEADLINE).await?;
        Ok(program.stdout())
    }
}

/// What kube-proxy does for a Service, and a `hostPort` for a node: each connection to one address
/// goes to one of others, whatever these are by then.
pub struct Forwarded {
    pub address: Ipv4Addr,
    _connections: JoinSet<()>,
}

impl Forwarded {
    pub async fn start(
        address: Ipv4Addr,
        ports: &[u16],
        targets: Arc<Mutex<Vec<Ipv4Addr>>>,
    ) -> Result<Self> {
        let mut connections = JoinSet::new();
        for &port in ports {
            let listener = TcpListener::bind((address, port)).await?;
            let targets = Arc::clone(&targets);
            connections.spawn(async move {
                let mut forwarded = JoinSet::new();
                for turn in 0.. {
                    let Ok((mut client, _)) = listener.accept().await else { continue };
                    let target = {
                        let targets = targets.lock().expect("nobody panics");
                        targets.get(turn % targets.len().max(1)).copied()
                    };
                    let Some(target) = target else { continue };
                    forwarded.spawn(async move {
                        if let Ok(mut upstream) = TcpStream::connect((target, port)).await {
                            let _ = copy_bidirectional(&mut client, &mut upstream).await;
                        }
                    });
                    while forwarded.try_join_next().is_some() {}
                }
            });
        }
        Ok(Self { address, _connections: connections })
    }
}

/// What every pod has alike.
pub fn options(name: &str, address: Ipv4Addr) -> PodOptions {
    PodOptions {
        name: name.to_owned(),
        namespace: "kube-consul".to_owned(),
        address,
        node: format!("node-of-{name}"),
        token: String::new(),
        storage: Path::new("/nowhere").to_owned(),
        names: Vec::new(),
        replacements: Vec::new(),
    }
}

/// The command of a container of ours with the built program. Which namespaces are meant says the test.
pub fn command(pod: &Pod, container: &str) -> Result<ProgramOptions> {
    let arguments = pod.container(container)?["args"].clone();
    let arguments = arguments.as_array().into_iter().flatten().filter_map(Value::as_str);
    let arguments = arguments.filter(|it| *it != "--all-namespaces");
    let words: Vec<_> = [env!("CARGO_BIN_EXE_kube-consul")].into_iter().chain(arguments).collect();
    pod.command_in(container, &words)
}

/// Something that is done every 100 ms through whichever server is ready, and how it went.
pub struct Load {
    task: tokio::task::JoinHandle<Done>,
    stop: tokio::sync::oneshot::Sender<()>,
}

/// What a load has done.
#[derive(Debug, Default)]
pub struct Done {
    /// How many were answered.
    pub count: u32,
    /// The longest time in which none was.
    pub longest_gap: Duration,
    last_error: String,
}

#[derive(Debug, Clone, Copy)]
enum Work {
    Write,
    Read,
}

/// Between two operations of a load, as long as each is answered at once.
const LOAD_EVERY: Duration = Duration::from_millis(100);
/// A client that waits longer for one server asks another.
const CLIENT_DEADLINE: Duration = Duration::from_secs(2);

// === impl Load ===

impl Load {
    /// Writes the keys `load/1`, `load/2`, … each with its number, each until it was accepted.
    pub fn writes(servers: &Servers) -> Result<Self> {
        Self::start(servers, Work::Write)
    }

    /// Reads the first of them.
    pub fn reads(servers: &Servers) -> Result<Self> {
        Self::start(servers, Work::Read)
    }

    fn start(servers: &Servers, work: Work) -> Result<Self> {
        let ready = servers.ready();
        let ca = servers.objects.secret("consul-ca", "ca.crt")?;
        let token = servers.objects.secret("consul-acl-management", "token")?;
        let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
        let task = tokio::spawn(async move {
            let mut clients = BTreeMap::new();
            let mut done = Done::default();
            let mut last = Instant::now();
            for turn in 0.. {
                if stopped.try_recv() != Err(tokio::sync::oneshot::error::TryRecvError::Empty) {
                    break;
                }
                let address = {
                    let ready = ready.lock().expect("nobody panics");
                    ready.get(turn % ready.len().max(1)).copied()
                };
                let Some(address) = address else {
                    sleep(LOAD_EVERY).await;
                    continue;
                };
                let api = clients.entry(address).or_insert_with(|| {
                    let at = SocketAddr::from((address, HTTPS));
                    ConsulApi::named(SERVER_NAME, at, Some(&token), &ca)
                });
                let outcome = match api {
                    Ok(api) => timeout(CLIENT_DEADLINE, work.once(api, done.count + 1)).await,
                    Err(error) => Ok(Err(anyhow::anyhow!("{error:#}"))),
                };
                match outcome {
                    Ok(Ok(())) => {
                        done.count += 1;
                        done.longest_gap = done.longest_gap.max(last.elapsed());
                        last = Instant::now();
                    }
                    Ok(Err(error)) => done.last_error = format!("{address}: {error:#}"),
                    Err(_) => done.last_error = format!("{address}: no answer"),
                }
                sleep(LOAD_EVERY).await;
            }
            done.longest_gap = done.longest_gap.max(last.elapsed());
            done
        });
        Ok(Self { task, stop })
    }

    /// Ends it.
    pub async fn finish(self, what: &str) -> Result<Done> {
        drop(self.stop);
        let done = self.task.await?;
        println!("{what}: {done:?}");
        Ok(done)
    }
}

impl Work {
    async fn once(self, api: &ConsulApi, number: u32) -> Result<()> {
        match self {
            Self::Write => {
                let path = format!("/v1/kv/load/{number}");
                ensure!(api.put_text(&path, &number.to_string()).await? == true, "refused");
            }
            Self::Read => ensure!(api.key("load/1").await?.is_some(), "the key is gone"),
        }
        Ok(())
    }
}

/// All that was written is there.
pub async fn nothing_is_lost(api: &ConsulApi, written: u32) -> Result<()> {
    let found = api.get("/v1/kv/load/?keys&consistent").await?;
    let found: std::collections::BTreeSet<_> =
        found.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    for number in 1..=written {
        let key = format!("load/{number}");
        ensure!(found.contains(key.as_str()), "{key} is lost");
    }
    Ok(())
}
