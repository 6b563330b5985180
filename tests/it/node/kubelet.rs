//! The kubelet's list over HTTPS, with a token, and every way in which it can be wrong.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kube_consul_stack::{Authority, Certificate, install_provider};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::support::{Site, USER, WISH, is_root};
use crate::support::{Bridge, DEADLINE};

const TOKEN: &str = "the-token-of-a-service-account";

/// What a kubelet shows to whoever asks with [`TOKEN`].
#[derive(Clone)]
struct Shown {
    tls: Arc<ServerConfig>,
    status: &'static str,
    body: String,
    /// So many bytes less than it says.
    missing: usize,
    /// It takes the request and says nothing.
    hangs: bool,
}

/// A kubelet with a certificate of its own.
struct Kubelet {
    url: String,
    shown: Arc<Mutex<Shown>>,
}

fn tls(certificate: &Certificate) -> Result<Arc<ServerConfig>> {
    let chain = vec![CertificateDer::from_pem_slice(certificate.certificate.as_bytes())?];
    let key = PrivateKeyDer::from_pem_slice(certificate.key.as_bytes())?;
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key)?;
    Ok(Arc::new(config))
}

// === impl Kubelet ===

impl Kubelet {
    /// Serves until the process ends.
    fn start(shown: Shown) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let url = format!("https://127.0.0.1:{}/pods", listener.local_addr()?.port());
        let shown = Arc::new(Mutex::new(shown));
        let serving = Arc::clone(&shown);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let Ok(shown) = serving.lock().map(|it| it.clone()) else { return };
                // A client that goes is a case of these tests.
                thread::spawn(move || answer(stream, &shown).is_ok());
            }
        });
        Ok(Self { url, shown })
    }

    fn show(&self, change: impl FnOnce(&mut Shown)) -> Result<()> {
        change(&mut *self.shown.lock().ok().context("a test failed")?);
        Ok(())
    }
}

fn answer(stream: TcpStream, shown: &Shown) -> Result<()> {
    let connection = ServerConnection::new(Arc::clone(&shown.tls))?;
    let mut stream = BufReader::new(StreamOwned::new(connection, stream));
    let (mut line, mut is_allowed) = (String::new(), false);
    while stream.read_line(&mut line)? > 2 {
        let header = line.trim().to_owned();
        is_allowed |= header.eq_ignore_ascii_case(&format!("authorization: bearer {TOKEN}"));
        line.clear();
    }
    if shown.hangs {
        // Until the client gives up.
        let _ = stream.read_line(&mut line);
        return Ok(());
    }
    let (status, body) = if is_allowed {
        (shown.status, shown.body.as_str())
    } else {
        ("401 Unauthorized", "Unauthorized")
    };
    let length = body.len() + shown.missing;
    let head =
        format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    let stream = stream.get_mut();
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())?;
    stream.conn.send_close_notify();
    stream.flush()?;
    // Until the client has read it.
    let _ = stream.read(&mut [0; 1]);
    Ok(())
}

fn pods(namespace: &str, names: &[&str]) -> String {
    let pod = |name: &&str| {
        json!({
            "metadata": {"name": name, "namespace": namespace, "uid": name,
                "annotations": {format!("{WISH}/service-names"): "web"}},
            "spec": {"containers": [{"name": "app", "ports": [{"containerPort": 8080}]}]},
            "status": {"phase": "Running", "podIP": "10.1.0.1", "containerStatuses": [
                {"name": "app", "ready": true, "restartCount": 0, "image": "a", "imageID": "a"}]},
        })
    };
    let items: Vec<Value> = names.iter().map(pod).collect();
    json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}).to_string()
}

/// Answers of which none is a list that counts, and the token that is sent for each. `one`: what would
/// remove a pod if it counted.
fn wrong_answers(
    good: &Shown,
    both: &str,
    one: &str,
    other: &Authority,
    cluster: &Authority,
) -> Result<[(&'static str, Shown, &'static str); 11]> {
    let one = one.to_owned();
    Ok([
        ("no list", Shown { body: "{}".into(), ..good.clone() }, TOKEN),
        ("null", Shown { body: "null".into(), ..good.clone() }, TOKEN),
        (
            "another authority",
            Shown { tls: tls(&other.issue(&["127.0.0.1"])?)?, body: one.clone(), ..good.clone() },
            TOKEN,
        ),
        (
            "another name",
            Shown {
                tls: tls(&cluster.issue(&["kubelet.example"])?)?,
                body: one.clone(),
                ..good.clone()
            },
            TOKEN,
        ),
        ("half a body", Shown { missing: 100, body: one.clone(), ..good.clone() }, TOKEN),
        ("another token", Shown { body: one.clone(), ..good.clone() }, "nope"),
        (
            "401",
            Shown { status: "401 Unauthorized", body: "Unauthorized".into(), ..good.clone() },
            TOKEN,
        ),
        (
            "500 with a list",
            Shown { status: "500 Internal Server Error", body: one.clone(), ..good.clone() },
            TOKEN,
        ),
        (
            "a Status",
            Shown { body: json!({"kind": "Status", "code": 403}).to_string(), ..good.clone() },
            TOKEN,
        ),
        (
            "a list cut in two",
            Shown { body: both[..both.len() / 2].to_owned(), ..good.clone() },
            TOKEN,
        ),
        (
            "a pod without a name",
            Shown { body: json!({"kind": "PodList", "items": [{}]}).to_string(), ..good.clone() },
            TOKEN,
        ),
    ])
}

#[tokio::test]
async fn a_kubelet_over_https_is_believed_with_its_certificate_and_whole_lists_only() -> Result<()>
{
    install_provider();
    let site = Site::new("node-https").await?;
    let (cluster, other) = (Authority::new("cluster")?, Authority::new("another")?);
    let right = tls(&cluster.issue(&["127.0.0.1"])?)?;
    let both = pods(&site.namespace, &["web-0", "web-1"]);
    let good = Shown {
        tls: right.clone(),
        status: "200 OK",
        body: both.clone(),
        missing: 0,
        hangs: false,
    };
    let kubelet = Kubelet::start(good.clone())?;
    let folder = tempfile::tempdir()?;
    let (ca, token) = (folder.path().join("ca.crt"), folder.path().join("token"));
    fs::write(&ca, cluster.pem())?;
    fs::write(&token, format!("{TOKEN}\n"))?;
    // As the user of katalog-sync's image: its files are that user's, and it may read no other's.
    if is_root()? {
        for file in [&ca, &token] {
            std::os::unix::fs::chown(file, Some(USER), Some(USER))?;
            fs::set_permissions(file, fs::Permissions::from_mode(0o400))?;
        }
    }
    let daemon = site
        .unprivileged_command(folder.path())?
        .args(["--kubelet-api", &kubelet.url, "--default-sync-interval=500ms"])
        .args(["--kubelet-token-file".as_ref(), token.as_os_str()])
        .args(["--kubelet-ca-file".as_ref(), ca.as_os_str()]);
    let daemon = Bridge::start(daemon).await?;
    daemon.wait_ready().await?;
    let passing = ["web-0:8080 passing", "web-1:8080 passing"];
    site.wait_for("web", &passing).await?;

    let one = pods(&site.namespace, &["web-0"]);
    let errors = "katalog_sync_kubelet_sync_count_total{status=\"error\"}";
    let mut before = daemon.metric(errors).await?.unwrap_or_default();
    let cases = wrong_answers(&good, &both, &one, &other, &cluster)?;
    for (what, shown, sent) in cases {
        fs::write(&token, sent)?;
        kubelet.show(|it| *it = shown)?;
        sleep(Duration::from_secs(2)).await;
        ensure!(site.catalog("web").await? == passing, "{what}: {:?}", site.catalog("web").await?);
        kubelet.show(|it| *it = good.clone())?;
        fs::write(&token, TOKEN)?;
        kube_consul_stack::eventually(DEADLINE, || async {
            let now = daemon.metric(errors).await?.unwrap_or_default();
            ensure!(now > before, "{what} is no failure");
            Ok(())
        })
        .await?;
        // The next case begins with a list that is believed.
        sleep(Duration::from_secs(1)).await;
        before = daemon.metric(errors).await?.unwrap_or_default();
    }
    ensure!(!daemon.program.stderr().contains(TOKEN), "the token is in the log");

    // One that hangs for longer than a TTL of 11 s lets no check run out.
    kubelet.show(|it| it.hangs = true)?;
    sleep(Duration::from_secs(14)).await;
    ensure!(site.catalog("web").await? == passing, "it hangs: {:?}", site.catalog("web").await?);
    kubelet.show(|it| *it = good.clone())?;

    // No pod at all, again and again: nothing is removed.
    kubelet.show(|it| it.body = pods(&site.namespace, &[]))?;
    site.wait_for("web", &["web-0:8080 critical", "web-1:8080 critical"]).await?;
    sleep(Duration::from_secs(3)).await;
    ensure!(site.catalog("web").await?.len() == 2, "an empty list removes");
    kubelet.show(|it| it.body = both)?;
    site.wait_for("web", &passing).await?;
    // What is gone from a list that is believed goes.
    kubelet.show(|it| it.body = one)?;
    site.wait_for("web", &passing[..1]).await?;
    daemon.stop().await
}
