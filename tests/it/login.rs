//! Logging in to Consul with a Kubernetes service account: each login makes a token, which has to
//! go with its process, unless an agent goes on using it.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kube_consul_stack::{ConsulOptions, Fault, HttpRecorder, ProgramOptions};
use serde_json::json;

use crate::support::{
    Bridge, Fixture, ends_with, kube_consul, kubeconfig_with, says, shipped_token,
};

const MANAGEMENT: &str = "11111111-1111-1111-1111-111111111111";

/// All that plan, purge and a bridge with either sink ask for.
const RULES: &str = r#"
service_prefix "" { policy = "write" }
node_prefix "" { policy = "write" }
agent_prefix "" { policy = "read" }
session_prefix "" { policy = "write" }
key_prefix "" { policy = "write" }
"#;

/// A Consul that denies by default and whose auth method asks the Kubernetes API.
struct Guarded {
    fixture: Fixture,
    /// The service account's token.
    bearer: PathBuf,
    _folder: tempfile::TempDir,
}

// === impl Guarded ===

impl Guarded {
    async fn start(prefix: &str) -> Result<Self> {
        let fixture = Fixture::with_consul(prefix, ConsulOptions::dev().acl(MANAGEMENT)).await?;
        let (kubernetes, consul) = (fixture.kubernetes, fixture.consul.api());
        // What Consul itself asks the API server for.
        let reviewer = kubernetes.namespace("reviewer").await?;
        let rules = [
            json!({"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"],
                "verbs": ["create"]}),
            json!({"apiGroups": [""], "resources": ["serviceaccounts"], "verbs": ["get"]}),
        ];
        kubeconfig_with(kubernetes, &reviewer, &rules).await?;
        let method = json!({"Name": "kubernetes", "Type": "kubernetes", "Config": {
            "Host": kubernetes.url(), "CACert": kubernetes.ca_pem(),
            "ServiceAccountJWT": kubernetes.service_account_token(&reviewer, "limited").await?,
        }});
        consul.put("/v1/acl/auth-method", &method).await?;
        consul.put("/v1/acl/policy", &json!({"Name": "all", "Rules": RULES})).await?;
        let role = json!({"Name": "all", "Policies": [{"Name": "all"}]});
        consul.put("/v1/acl/role", &role).await?;
        let binding = json!({"AuthMethod": "kubernetes", "BindType": "role", "BindName": "all"});
        consul.put("/v1/acl/binding-rule", &binding).await?;
        let folder = tempfile::tempdir()?;
        let bearer = folder.path().join("token");
        std::fs::write(&bearer, shipped_token(kubernetes).await?)?;
        Ok(Self { fixture, bearer, _folder: folder })
    }

    /// The command, which logs in.
    fn logs_in(&self, command: ProgramOptions) -> ProgramOptions {
        let command = command.args(["--consul-auth-method", "kubernetes"]);
        let command = command.arg("--consul-bearer-token-file").arg(&self.bearer);
        command.env("CONSUL_HTTP_ADDR", self.fixture.consul.url())
    }

    /// How many tokens of logins there are.
    async fn tokens(&self) -> Result<usize> {
        let found = self.fixture.consul.api().get("/v1/acl/tokens?authmethod=kubernetes").await?;
        Ok(found.as_array().context("no list of tokens")?.len())
    }
}

#[tokio::test]
async fn what_is_over_leaves_no_token_behind() -> Result<()> {
    let guarded = Guarded::start("login").await?;
    let fixture = &guarded.fixture;
    fixture.web("web", &[("http", 80)]).await?;
    let plan = || async { anyhow::Ok(guarded.logs_in(fixture.subcommand("plan").await?)) };
    let purge = || guarded.logs_in(kube_consul().args(["purge", "--cluster", "kubernetes"]));

    // Nothing else has the right to read what they show.
    says(2, plan().await?).await?;
    ensure!(guarded.tokens().await? == 0, "plan leaves its token");
    // A Consul that does not answer holds nobody up, for as long as a request may take.
    let recorder = HttpRecorder::start(fixture.consul.url()).await?;
    let minute = Fault::Delay(Duration::from_mins(1));
    recorder.fault(minute, |request| request.path.starts_with("/v1/acl/logout"));
    let silent = plan().await?.env("CONSUL_HTTP_ADDR", recorder.url());
    let said = ends_with(2, silent).await?;
    ensure!(said.contains("no answer to logging out"), "{said}");
    drop(recorder);
    let left = guarded.tokens().await?;

    let flags = ["--sink", "catalog", "--leader-elect"];
    let bridge = Bridge::start(guarded.logs_in(fixture.command().await?.args(flags))).await?;
    bridge.wait_ready().await?;
    ensure!(guarded.tokens().await? == left + 1, "one login is enough");
    bridge.stop().await?;
    ensure!(guarded.tokens().await? == left, "a bridge with the catalog sink leaves its token");
    let log = bridge.program.stdout() + &bridge.program.stderr();
    ensure!(log.contains("released the lock"), "it had no right to any more: {log}");
    // One that is not confirmed is over too.
    says(2, purge()).await?;
    ensure!(guarded.tokens().await? == left, "a purge that is not confirmed leaves its token");
    let said = says(0, purge().arg("--yes")).await?;
    ensure!(said.contains("Removed: "), "{said}");
    ensure!(guarded.tokens().await? == left, "purge leaves its token");
    Ok(())
}

#[tokio::test]
async fn an_agent_keeps_the_token_of_what_it_was_given() -> Result<()> {
    let guarded = Guarded::start("login").await?;
    let fixture = &guarded.fixture;
    fixture.web("web", &[("http", 80)]).await?;
    let once = fixture.command().await?.arg("--once");
    ends_with(0, guarded.logs_in(once)).await?;
    ensure!(guarded.tokens().await? == 1, "without it the agent cannot keep the catalog in sync");
    let bridge = Bridge::start(guarded.logs_in(fixture.command().await?)).await?;
    bridge.wait_ready().await?;
    bridge.stop().await?;
    ensure!(guarded.tokens().await? == 2, "each registration has the token that it was sent with");
    fixture.wait_for_instances("web", 1).await
}
