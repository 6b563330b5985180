//! `sidecar` and the old program of its kind, as processes beside a daemon.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kube_consul::domain::sidecar::{Caller, SyncError, SyncKind};
use kube_consul::grpc::address::Address;
use kube_consul::grpc::server::{Listener, QUEUE, SyncRequest, serve};
use kube_consul_stack::{Port, Program, ProgramOptions, install_provider};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::support::DEADLINE;

/// Longer than anything here takes at once.
const SOON: Duration = Duration::from_secs(10);

/// The gRPC server that the shipped daemon has, with the test as its loop.
struct Daemon {
    asked: mpsc::Receiver<SyncRequest>,
    quit: Option<oneshot::Sender<()>>,
    served: JoinHandle<()>,
}

impl Daemon {
    async fn start(address: &str) -> Result<Self> {
        let address: Address = address.parse()?;
        let listener = Listener::bind(&address).await?;
        let (requests, asked) = mpsc::channel(QUEUE);
        let (quit, quits) = oneshot::channel::<()>();
        let served = tokio::spawn(async move {
            let served = serve(listener, requests, async { drop(quits.await) }).await;
            served.expect("the server ends well");
        });
        Ok(Self { asked, quit: Some(quit), served })
    }

    /// The next request of this kind; others are answered as a daemon that waits for containers.
    async fn next(&mut self, kind: SyncKind) -> Result<SyncRequest> {
        timeout(DEADLINE, async {
            loop {
                let request = self.asked.recv().await.context("the server has ended")?;
                if request.kind == kind {
                    return Ok(request);
                }
                // It may have gone.
                let _ = request.reply.send(Err(SyncError::NotReady("web".to_owned())));
            }
        })
        .await
        .with_context(|| format!("no request to {kind:?}"))?
    }

    async fn answer(&mut self, kind: SyncKind) -> Result<()> {
        let reply = self.next(kind).await?.reply;
        ensure!(reply.send(Ok(())).is_ok(), "nobody waits for the answer");
        Ok(())
    }

    async fn stop(mut self) -> Result<()> {
        drop(self.quit.take());
        drop(self.asked);
        timeout(DEADLINE, self.served).await??;
        Ok(())
    }
}

struct Sidecar {
    program: Program,
    port: Port,
    _folder: tempfile::TempDir,
}

impl Sidecar {
    fn options(folder: &tempfile::TempDir, name: &str) -> Result<ProgramOptions> {
        let path = folder.path().join(name);
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_kube-consul"), &path)?;
        Ok(ProgramOptions::new(path))
    }

    async fn start(daemon: &str) -> Result<Self> {
        let (folder, port) = (tempfile::tempdir()?, Port::pick()?);
        let options = Self::options(&folder, "kube-consul")?
            .args(["sidecar", "--namespace", "shop", "--pod-name", "web-0"])
            .args(["--container-name", "sidecar", "--daemon", daemon])
            .arg(format!("--bind-address=127.0.0.1:{}", port.number()));
        let program = Program::start("sidecar", options).await?;
        Ok(Self { program, port, _folder: folder })
    }

    /// As users of the old sidecar have it in their manifests.
    async fn start_old(daemon: &str) -> Result<Self> {
        let (folder, port) = (tempfile::tempdir()?, Port::pick()?);
        let options = Self::options(&folder, "katalog-sync-sidecar")?
            .arg(format!("--katalog-sync-daemon={daemon}"))
            .arg(format!("--bind-address=127.0.0.1:{}", port.number()))
            .env("LOG_LEVEL", "DEBUG")
            .env("NAMESPACE", "shop")
            .env("POD_NAME", "web-0")
            .env("CONTAINER_NAME", "katalog-sync-sidecar");
        let program = Program::start("katalog-sync-sidecar", options).await?;
        Ok(Self { program, port, _folder: folder })
    }

    async fn get(&self, path: &str) -> Result<(u16, String)> {
        let url = format!("http://127.0.0.1:{}{path}", self.port.number());
        let answer = http()?.get(url).send().await?;
        Ok((answer.status().as_u16(), answer.text().await?))
    }

    async fn wait_for_ready(&self, code: u16, limit: Duration) -> Result<()> {
        let began = Instant::now();
        loop {
            let found = self.get("/ready").await;
            match &found {
                Ok((status, _)) if *status == code => return Ok(()),
                Ok(_) | Err(_) => {}
            }
            let what = || self.program.failure(&format!("/ready is {found:?}, not {code}"));
            if began.elapsed() > limit {
                return Err(what());
            }
            sleep(Duration::from_millis(20)).await;
        }
    }
}

fn http() -> Result<reqwest::Client> {
    install_provider();
    let builder = reqwest::Client::builder().no_proxy().tls_certs_only([]);
    Ok(builder.timeout(DEADLINE).build()?)
}

fn socket(folder: &tempfile::TempDir) -> (String, PathBuf) {
    let path = folder.path().join("node.sock");
    (format!("unix://{}", path.display()), path)
}

#[tokio::test]
async fn the_pod_is_unready_until_it_is_registered_and_deregistered_before_the_sidecar_ends()
-> Result<()> {
    let port = Port::pick()?;
    let address = format!("127.0.0.1:{}", port.number());
    let mut daemon = Daemon::start(&address).await?;
    let sidecar = Sidecar::start(&address).await?;
    let first = daemon.next(SyncKind::Register).await?;
    ensure!(first.caller == Caller::new("shop", "web-0", "sidecar"), "{:?}", first.caller);
    first.reply.send(Err(SyncError::NotReady("web is not".to_owned()))).ok();
    let second = daemon.next(SyncKind::Register).await?;
    let (status, why) = sidecar.get("/ready").await?;
    ensure!(status == 500 && why.contains("web is not"), "{status}: {why}");
    second.reply.send(Ok(())).ok();
    sidecar.wait_for_ready(200, SOON).await?;

    sidecar.program.terminate().await;
    let request = daemon.next(SyncKind::Deregister).await?;
    // The catalog does not show it yet.
    sidecar.wait_for_ready(500, SOON).await?;
    sleep(Duration::from_millis(500)).await;
    ensure!(sidecar.program.exit_status().is_none(), "it ended before the daemon had answered");
    request.reply.send(Ok(())).ok();
    sidecar.program.wait_for_code(0, SOON).await
}

#[tokio::test]
async fn p13_a_daemon_that_is_away_for_20_s_or_is_killed_is_found_again() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (address, path) = socket(&folder);
    let sidecar = Sidecar::start(&address).await?;
    sleep(Duration::from_secs(20)).await;
    ensure!(sidecar.program.exit_status().is_none(), "{}", sidecar.program.stderr());
    let (status, why) = sidecar.get("/ready").await?;
    ensure!(status == 500 && why.contains("node.sock"), "{status}: {why}");
    let mut daemon = Daemon::start(&address).await?;
    daemon.answer(SyncKind::Register).await?;
    sidecar.wait_for_ready(200, SOON).await?;

    // Its socket is left behind, as by a process that was killed.
    daemon.stop().await?;
    drop(std::os::unix::net::UnixListener::bind(&path)?);
    sleep(Duration::from_secs(2)).await;
    ensure!(sidecar.get("/ready").await?.0 == 200, "a daemon that is away makes no pod unready");
    sidecar.program.terminate().await;
    sleep(Duration::from_secs(2)).await;
    ensure!(sidecar.program.exit_status().is_none(), "{}", sidecar.program.stderr());
    let mut daemon = Daemon::start(&address).await?;
    daemon.answer(SyncKind::Deregister).await?;
    sidecar.program.wait_for_code(0, SOON).await
}

#[tokio::test]
async fn p1_a_pre_stop_hook_waits_for_the_catalog_and_the_signal_after_it_ends_at_once()
-> Result<()> {
    let folder = tempfile::tempdir()?;
    let (address, _) = socket(&folder);
    let mut daemon = Daemon::start(&address).await?;
    let sidecar = Sidecar::start(&address).await?;
    daemon.answer(SyncKind::Register).await?;
    sidecar.wait_for_ready(200, SOON).await?;
    let hook = async {
        let began = Instant::now();
        let (status, _) = sidecar.get("/deregister").await?;
        ensure!(status == 200, "{status}");
        Ok(began.elapsed())
    };
    let catalog = async {
        let request = daemon.next(SyncKind::Deregister).await?;
        sleep(Duration::from_secs(2)).await;
        ensure!(request.reply.send(Ok(())).is_ok(), "nobody waits for the answer");
        Ok(())
    };
    let (took, ()) = tokio::try_join!(hook, catalog)?;
    ensure!(took >= Duration::from_secs(2), "the hook was answered after {took:?}");
    ensure!(sidecar.get("/ready").await?.0 == 500, "the pod is ready again");
    // A second hook is answered at once.
    ensure!(sidecar.get("/deregister").await?.0 == 200);
    daemon.stop().await?;
    sidecar.program.terminate().await;
    sidecar.program.wait_for_code(0, SOON).await
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (address, _) = socket(&folder);
    let mut daemon = Daemon::start(&address).await?;
    for code in [1, 0] {
        let sidecar = match code {
            0 => Sidecar::start_old(&address).await?,
            _ => Sidecar::start(&address).await?,
        };
        daemon.answer(SyncKind::Register).await?;
        sidecar.wait_for_ready(200, SOON).await?;
        sidecar.program.terminate().await;
        let _unanswered = daemon.next(SyncKind::Deregister).await?;
        sidecar.program.terminate().await;
        sidecar.program.wait_for_code(code, SOON).await?;
    }
    Ok(())
}

#[tokio::test]
async fn the_old_sidecar_works_as_it_did_and_serves_nothing_else() -> Result<()> {
    let port = Port::pick()?;
    let address = format!("127.0.0.1:{}", port.number());
    let sidecar = Sidecar::start_old(&address).await?;
    let mut daemon = Daemon::start(&address).await?;
    let request = daemon.next(SyncKind::Register).await?;
    let caller = Caller::new("shop", "web-0", "katalog-sync-sidecar");
    ensure!(request.caller == caller, "{:?}", request.caller);
    let unready = (500, "Internal Server Error\n".to_owned());
    ensure!(sidecar.get("/ready").await? == unready);
    request.reply.send(Ok(())).ok();
    sidecar.wait_for_ready(200, SOON).await?;
    ensure!(sidecar.get("/ready").await? == (200, String::new()));
    let any = http()?.post(format!("http://127.0.0.1:{}/ready", sidecar.port.number()));
    ensure!(any.send().await?.status() == 200, "any method is answered");
    for path in ["/", "/deregister", "/metrics", "/livez"] {
        ensure!(sidecar.get(path).await?.0 == 404, "{path}");
    }
    ensure!(sidecar.program.has_written("register complete, waiting for signals"));
    let hang_up = ["-HUP", &sidecar.program.pid().to_string()];
    ensure!(std::process::Command::new("kill").args(hang_up).status()?.success());
    sleep(Duration::from_millis(200)).await;
    ensure!(sidecar.program.exit_status().is_none(), "a hang-up ends it");
    sidecar.program.interrupt().await;
    daemon.answer(SyncKind::Deregister).await?;
    sidecar.program.wait_for_code(0, SOON).await
}
