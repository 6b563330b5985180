//! Gossip keys and certificates, renewed under running servers and agents.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kube_consul_stack::{ConsulApi, Kubernetes, Pod, PodOptions, Program, data_folder, eventually};
use serde_json::{Value, json};

use super::scenarios;
use super::support::{
    Load, SERVER_NAME, START_DEADLINE, Servers, installed, make_secrets, object, options, rendered,
    run, secrets,
};

/// Consul looks at its files every second or two.
pub(super) const RELOAD: Duration = Duration::from_secs(20);
const FOLDERS: [&str; 2] = ["consul-servers", "consul-agents"];
const ALIVE: u64 = 1;

/// Servers whose Secrets are nobody else's.
struct Rotation {
    namespace: String,
    servers: Servers,
    agent: Value,
    next: u8,
}

// === impl Rotation ===

impl Rotation {
    async fn start() -> Result<Self> {
        let cluster = Kubernetes::shared().await?;
        let namespace = cluster.namespace("rotation").await?;
        make_secrets(cluster, &namespace).await?;
        let objects = installed(&namespace, &FOLDERS).await?;
        let mut servers = Servers::new("consul-servers", &objects).await?;
        servers.boot_all(0..3).await?;
        servers.run_acl_job().await?;
        for ordinal in 0..3 {
            servers.wait_started(ordinal, START_DEADLINE).await?;
        }
        let rendered = rendered("consul-agents").await?;
        let agent = object(&rendered, "DaemonSet", "consul-agent")?;
        let agent = agent["spec"]["template"]["spec"].clone();
        Ok(Self { namespace, servers, agent, next: 0 })
    }

    /// A step with Secrets, which running pods get as a kubelet gives them.
    async fn secrets(&mut self, words: &[&str]) -> Result<()> {
        secrets(&self.namespace, words).await?;
        self.servers.objects = installed(&self.namespace, &FOLDERS).await?;
        self.servers.update()
    }

    /// A step with Consul's own command.
    /// All that are alive have to answer in time; it may be said again.
    async fn keyring(&self, words: &[&str]) -> Result<String> {
        eventually(START_DEADLINE, || self.keyring_once(words)).await
    }

    async fn keyring_once(&self, words: &[&str]) -> Result<String> {
        let pod = &self.servers.member(0)?.pod;
        let token = self.servers.objects.secret("consul-acl-management", "token")?;
        let words = [&["consul", "keyring"], words].concat();
        let command = pod.command_in("consul", &words)?;
        // As the documentation says.
        let command = command
            .env("CONSUL_HTTP_ADDR", format!("https://{}:8501", pod.address()))
            .env("CONSUL_HTTP_TOKEN_FILE", "")
            .env("CONSUL_HTTP_TOKEN", token);
        let program = Program::start("keyring", command).await?;
        program.wait_for_code(0, START_DEADLINE).await?;
        Ok(program.stdout())
    }

    fn keys(&self) -> Result<Vec<String>> {
        Ok(serde_json::from_str(&self.servers.objects.secret("consul-gossip", "keyring")?)?)
    }

    /// A fresh agent with its process.
    async fn agent(&mut self) -> Result<(Pod, Program)> {
        self.next += 1;
        let name = format!("agent-{}", self.next);
        let address = self.servers.new_address();
        let options = PodOptions {
            storage: data_folder(&name)?,
            names: self.servers.names(&[]),
            token: "e30.e30.".to_owned(),
            node: name.clone(),
            ..options(&name, address)
        };
        let pod = Pod::new(&self.agent, &self.servers.objects, options)?;
        pod.init().await?;
        let program = pod.start("consul").await?;
        Ok((pod, program))
    }

    async fn wait_alive(&self, name: &str, address: &str) -> Result<()> {
        let api = self.servers.api(0)?;
        eventually(START_DEADLINE, || async {
            let members = api.get("/v1/agent/members").await?;
            let mut all = members.as_array().into_iter().flatten();
            let found = all.find(|it| it["Name"] == name && it["Addr"] == address);
            ensure!(found.is_some_and(|it| it["Status"] == ALIVE), "{name}: {found:?}");
            Ok(())
        })
        .await
        .with_context(|| format!("{name} does not join"))
    }

    /// Keys are changed on all that are taken for alive: those that are not have to be known.
    async fn forget(&self, names: &[&str]) -> Result<()> {
        let api = self.servers.api(0)?;
        for name in names {
            api.put(&format!("/v1/agent/force-leave/{name}?prune"), &Value::Null).await?;
        }
        eventually(START_DEADLINE, || async {
            let members = api.get("/v1/agent/members").await?;
            let mut all = members.as_array().into_iter().flatten();
            let alive = all.find(|it| names.iter().any(|name| it["Name"] == **name));
            ensure!(alive.is_none_or(|it| it["Status"] != ALIVE), "{alive:?}");
            Ok(())
        })
        .await
    }

    /// Who comes now joins: a server with data, a fresh one, a fresh agent.
    async fn everybody_joins(&mut self, after: &str) -> Result<()> {
        self.servers.crash(2).await?;
        // Each with a name of its own; it is not meant to stay.
        let fresh = 10 + self.next;
        self.servers.boot(fresh).await?;
        let (agent, program) = self.agent().await?;
        for ordinal in [2, fresh] {
            let address = self.servers.member(ordinal)?.pod.address().to_string();
            let name = format!("consul-server-{ordinal}");
            self.wait_alive(&name, &address).await.with_context(|| after.to_owned())?;
        }
        let name = format!("agent-{}", self.next);
        let address = agent.address().to_string();
        self.wait_alive(&name, &address).await.with_context(|| after.to_owned())?;
        self.servers.lose(fresh).await?;
        program.kill().await?;
        self.forget(&[&format!("consul-server-{fresh}"), &name]).await?;
        self.servers.wait_started(2, START_DEADLINE).await.map(drop)
    }
}

#[tokio::test]
async fn s10_while_the_gossip_key_is_rotated_everybody_joins_after_each_step() -> Result<()> {
    scenarios::run("gossip").await
}

pub async fn gossip_keys() -> Result<()> {
    let mut rotation = Rotation::start().await?;
    let former = rotation.keys()?;
    let [old] = former.as_slice() else { anyhow::bail!("{former:?}") };
    rotation.secrets(&["gossip", "add"]).await?;
    let keys = rotation.keys()?;
    let new = keys.iter().find(|it| *it != old).context("no new key")?.clone();
    rotation.everybody_joins("the Secret has a second key").await?;
    rotation.keyring(&[&format!("-install={new}")]).await?;
    rotation.everybody_joins("the new key is installed").await?;
    rotation.secrets(&["gossip", "use"]).await?;
    rotation.keyring(&[&format!("-use={new}")]).await?;
    rotation.everybody_joins("the new key is used").await?;
    rotation.keyring(&[&format!("-remove={old}")]).await?;
    rotation.everybody_joins("the old key is removed").await?;
    rotation.secrets(&["gossip", "end"]).await?;
    ensure!(rotation.keys()? == [new.clone()], "{:?}", rotation.keys()?);
    rotation.everybody_joins("the Secret has only the new key").await?;
    let known = rotation.keyring(&["-list"]).await?;
    ensure!(known.contains(&new) && !known.contains(old.as_str()), "{known}");

    // Nobody joins with the old key.
    let keyring = rotation.servers.objects.secrets.get_mut("consul-gossip").context("none")?;
    keyring.insert("keyring".to_owned(), json!([old]).to_string().into_bytes());
    let (_pod, program) = rotation.agent().await?;
    let refused = |line: &str| line.contains("No installed keys could decrypt the message");
    program.wait_for_line("that it is refused", START_DEADLINE, refused).await?;
    Ok(())
}

/// The certificate that a server shows.
pub(super) async fn shown(address: &str) -> Result<String> {
    let connect =
        format!("openssl s_client -connect {address} -servername {SERVER_NAME} </dev/null");
    run(&["/bin/sh", "-c", &connect]).await
}

/// Whether a server's certificate is of this authority.
async fn trusts(ca: &str, address: std::net::Ipv4Addr) -> Result<bool> {
    let api = ConsulApi::named(SERVER_NAME, SocketAddr::from((address, 8501)), None, ca)?;
    Ok(api.get("/v1/status/leader").await.is_ok())
}

#[tokio::test]
async fn s11_certificates_and_their_ca_are_replaced_without_a_restart() -> Result<()> {
    scenarios::run("certificates").await
}

pub async fn certificates() -> Result<()> {
    let mut rotation = Rotation::start().await?;
    let (agent, program) = rotation.agent().await?;
    let address = agent.address().to_string();
    rotation.wait_alive("agent-1", &address).await?;
    let mut agent = agent;
    let pids: Vec<i32> = pids(&rotation.servers)?;
    let reads = Load::reads(&rotation.servers)?;
    rotation.servers.api(0)?.put_text("/v1/kv/load/1", "1").await?;

    // The same CA.
    rotation.secrets(&["renew"]).await?;
    agent.update(&rotation.servers.objects)?;
    for ordinal in 0..3 {
        let certificate = rotation.servers.objects.secret("consul-server-tls", "tls.crt")?;
        let at = rotation.servers.member(ordinal)?.pod.address();
        eventually(RELOAD, || async {
            let at_https = shown(&format!("{at}:8501")).await?;
            ensure!(at_https.contains(&certificate), "consul-server-{ordinal} has the old one");
            Ok(())
        })
        .await?;
    }

    // Another CA: first everybody trusts both, then certificates are of the new one, then only that
    // is trusted.
    let old = rotation.servers.objects.secret("consul-ca", "ca.crt")?;
    rotation.secrets(&["ca", "begin"]).await?;
    agent.update(&rotation.servers.objects)?;
    let both = rotation.servers.objects.secret("consul-ca", "ca.crt")?;
    let new = rotation.servers.objects.secret("consul-ca", "tls.crt")?;
    ensure!(both.contains(&old) && both.contains(&new) && old != new, "{both}");
    tokio::time::sleep(RELOAD / 4).await;
    rotation.secrets(&["renew"]).await?;
    agent.update(&rotation.servers.objects)?;
    for ordinal in 0..3 {
        let at = rotation.servers.member(ordinal)?.pod.address();
        eventually(RELOAD, || async {
            ensure!(trusts(&new, at).await?, "consul-server-{ordinal} has no certificate of it");
            ensure!(!trusts(&old, at).await?, "consul-server-{ordinal} is still of the old one");
            Ok(())
        })
        .await?;
    }
    rotation.secrets(&["ca", "end"]).await?;
    agent.update(&rotation.servers.objects)?;
    tokio::time::sleep(RELOAD / 4).await;
    ensure!(rotation.servers.objects.secret("consul-ca", "ca.crt")? == new, "both are trusted");

    // The agent, which has its certificate from the servers, still reaches them; so do those that
    // start now.
    let hook = rotation.servers.objects.secret("consul-acl", "agent-token")?;
    let at_agent = ConsulApi::new(&format!("http://{}:8500", agent.address()), Some(&hook), None)?;
    let found = at_agent.get("/v1/catalog/nodes?consistent").await?;
    ensure!(found.as_array().is_some_and(|it| it.len() >= 4), "{found}");
    let reads = reads.finish("reads").await?;
    ensure!(reads.longest_gap < Duration::from_secs(10), "no read for {:?}", reads.longest_gap);
    ensure!(pids == self::pids(&rotation.servers)?, "a server was restarted");
    ensure!(program.exit_status().is_none(), "the agent has ended");
    rotation.everybody_joins("only the new CA is trusted").await
}

fn pids(servers: &Servers) -> Result<Vec<i32>> {
    (0..3).map(|ordinal| Ok(servers.member(ordinal)?.program.pid())).collect()
}
