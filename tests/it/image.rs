//! The shipped image: built as users build it, but in the profile of the tests, and run without
//! a daemon. It has nothing but the program, so the program must resolve names by itself.

use std::env;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kube_consul_stack::{KubectlProxy, Program, ProgramOptions, data_folder};
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

use crate::support::{DEADLINE, Fixture, shipped_kubeconfig};

const IMAGE: &str = "localhost/kube-consul:test";
/// Compiling takes 40 s on two idle cores.
const BUILD_DEADLINE: Duration = Duration::from_mins(10);
/// A resolver asks this port and no other. Its address is not one that a machine's own resolver
/// listens on.
const RESOLVER: (Ipv4Addr, u16) = (Ipv4Addr::new(127, 53, 101, 7), 53);
/// The longest answer over UDP without EDNS (RFC 1035).
const LONGEST: usize = 512;

/// Images and containers of this test, apart from those of the machine.
struct Storage {
    folder: PathBuf,
}

impl Storage {
    fn flags(&self) -> [String; 4] {
        let path = |name| self.folder.join(name).display().to_string();
        [
            "--storage-driver=vfs".to_owned(),
            format!("--root={}", path("root")),
            format!("--runroot={}", path("run")),
            "--log-level=warn".to_owned(),
        ]
    }

    /// `make image`, with the compiled dependencies of the tests.
    async fn build(&self) -> Result<String> {
        let program = Path::new(env!("CARGO_BIN_EXE_kube-consul"));
        let target = program.ancestors().nth(2).context("no target directory")?;
        let make = ProgramOptions::new("/usr/bin/make")
            .args(["-C", env!("CARGO_MANIFEST_DIR"), "image", "PROFILE=dev", "ENGINE=buildah"])
            .arg(format!("IMAGE={IMAGE}"))
            .arg(format!("BUILDAH=buildah {}", self.flags().join(" ")))
            .env("CARGO_TARGET_DIR", target);
        // What cargo finds its toolchain and its registry by.
        let variables = ["HOME", "CARGO_HOME", "RUSTUP_HOME", "RUSTUP_TOOLCHAIN", "RUSTFLAGS"];
        let make = variables.into_iter().fold(make, |make, name| match env::var_os(name) {
            Some(value) => make.env(name, value),
            None => make,
        });
        let make = Program::start("make", make).await?;
        make.wait_for_code(0, BUILD_DEADLINE).await?;
        Ok(make.stdout())
    }

    async fn buildah(&self, arguments: &[&str]) -> Result<String> {
        self.ends(arguments, 0).await
    }

    /// What it says, where it ends with this code.
    async fn ends(&self, arguments: &[&str], code: i32) -> Result<String> {
        let path = env::split_paths(&env::var_os("PATH").unwrap_or_default())
            .map(|folder| folder.join("buildah"))
            .find(|path| path.is_file())
            .context(
                "'buildah' is not on PATH: install it (Debian, Ubuntu: apt-get install buildah)",
            )?;
        let options = ProgramOptions::new(path).args(self.flags()).args(arguments);
        let buildah = Program::start("buildah", options).await?;
        buildah.wait_for_code(code, DEADLINE * 2).await?;
        Ok(buildah.stdout())
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        // It is large. What cannot be removed goes with the run's folder.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Passes questions on to Consul's DNS, whose port no resolver can be told.
async fn resolver(consul: SocketAddr) -> Result<JoinHandle<std::io::Result<()>>> {
    let socket = UdpSocket::bind(RESOLVER).await.with_context(|| {
        format!("expected to listen on {RESOLVER:?}, which takes root or CAP_NET_BIND_SERVICE")
    })?;
    let upstream = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    upstream.connect(consul).await?;
    Ok(tokio::spawn(async move {
        let mut message = [0; LONGEST];
        loop {
            let (length, from) = socket.recv_from(&mut message).await?;
            upstream.send(&message[..length]).await?;
            let length = upstream.recv(&mut message).await?;
            socket.send_to(&message[..length], from).await?;
        }
    }))
}

#[tokio::test]
async fn the_image_resolves_names_and_registers_a_service() -> Result<()> {
    let storage = Storage { folder: data_folder("image")? };
    let built = storage.build().await?;
    let size = built.lines().find(|line| line.starts_with("image: "));
    println!("{} (unoptimized)", size.with_context(|| format!("no size is told: {built}"))?);

    let fixture = Fixture::new("image").await?;
    fixture.web("web", &[("http", 80)]).await?;
    let proxy = KubectlProxy::start(shipped_kubeconfig().await?).await?;
    let resolver = resolver(fixture.consul.dns_address()).await?;
    let dns = format!("--dns={}", RESOLVER.0);
    let container = storage.buildah(&["from", &dns, IMAGE]).await?;
    let container = container.trim();
    let inspect = ["inspect", "--format={{.OCIv1.Config.User}} {{.OCIv1.Config.Entrypoint}}"];
    let image = storage.buildah(&[&inspect[..], &[container]].concat()).await?;
    ensure!(image.trim() == "65532:65532 [/kube-consul]", "{image}");

    // The programs that it replaces, where their manifests call them; each knows its own flags only.
    let run = ["run", "--isolation=chroot", container, "--"];
    for (path, flag, code) in [
        ("/bin/katalog-sync-daemon", "--kubelet-api-insecure-skip-verify", 1),
        ("/bin/katalog-sync-sidecar", "--katalog-sync-daemon-max-backoff", 1),
        ("/bin/consul-registration-hook", "--consul-acl-file", 0),
        ("/usr/local/bin/consul8s", "--kube-config-path", 0),
    ] {
        let help = storage.ends(&[&run[..], &[path, "--help"]].concat(), code).await?;
        ensure!(help.contains(flag), "{path} --help: {help}");
    }

    // A name of /etc/hosts and one of DNS: Consul's own.
    let kubernetes = proxy.url().replace("127.0.0.1", "localhost");
    let port = fixture.consul.address().port();
    let consul = format!("http://consul.service.consul:{port}");
    let run = [&run[..], &["/kube-consul", "bridge", "--once"]].concat();
    let flags = ["--namespace", &fixture.namespace, "--kube-url", &kubernetes];
    let flags = [&flags[..], &["--consul-addr", &consul]].concat();
    storage.buildah(&[&run[..], &flags].concat()).await?;
    resolver.abort();
    ensure!(fixture.instances("web").await?.len() == 1, "web is not registered");
    Ok(())
}
