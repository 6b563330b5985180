//! The gRPC of sidecars beside a client and a server in Go, generated from the same .proto. Neither
//! needs `protoc`: protox compiles the .proto, Go's own generators take what it makes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kube_consul::domain::sidecar::{Caller, SyncError, SyncKind};
use kube_consul::grpc::client::Client;
use kube_consul::grpc::server::{Listener, QUEUE, serve};
use kube_consul_stack::{Program, ProgramOptions, data_folder};
use prost::Message as _;
use prost_types::compiler::{CodeGeneratorRequest, CodeGeneratorResponse};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tokio::sync::mpsc;

use crate::support::DEADLINE;

/// Compiling grpc-go from nothing takes 40 s on two idle cores.
const BUILD_DEADLINE: Duration = Duration::from_mins(5);
/// The package that the generated code is in.
const PACKAGE: &str = "katalogsync/generated";

fn go(folder: &Path) -> Command {
    let mut go = Command::new("go");
    go.current_dir(folder).env("CGO_ENABLED", "0").kill_on_drop(true);
    go
}

/// What a generator makes of the .proto.
async fn generate(folder: &Path, generator: &str) -> Result<()> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/grpc");
    let descriptors = protox::compile(["katalogsync.proto"], [source])?;
    let request = CodeGeneratorRequest {
        file_to_generate: vec!["katalogsync.proto".to_owned()],
        parameter: Some(format!("Mkatalogsync.proto={PACKAGE},paths=source_relative")),
        proto_file: descriptors.file,
        compiler_version: None,
    };
    let mut generator = go(folder)
        .args(["tool", generator])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("expected Go on PATH")?;
    let mut stdin = generator.stdin.take().context("no standard input")?;
    stdin.write_all(&request.encode_to_vec()).await?;
    drop(stdin);
    let output = generator.wait_with_output().await?;
    ensure!(output.status.success(), "the generator ends with {}", output.status);
    let response = CodeGeneratorResponse::decode(&*output.stdout)?;
    ensure!(response.error.is_none(), "{:?}", response.error);
    for file in response.file {
        let path = folder.join("generated").join(file.name());
        fs::create_dir_all(path.parent().context("a file without a folder")?)?;
        fs::write(path, file.content())?;
    }
    Ok(())
}

/// The program in Go.
async fn build() -> Result<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tools/katalogsync");
    let folder = data_folder("katalogsync")?;
    for name in ["go.mod", "go.sum", "main.go"] {
        fs::copy(source.join(name), folder.join(name))?;
    }
    for generator in ["protoc-gen-go", "protoc-gen-go-grpc"] {
        generate(&folder, generator).await?;
    }
    let program = folder.join("katalogsync");
    let mut build = go(&folder);
    build.args(["build", "-mod=readonly", "-o"]).arg(&program).arg(".");
    let output = tokio::time::timeout(BUILD_DEADLINE, build.output()).await??;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(program)
}

async fn call(program: &Path, address: &str, verb: &str) -> Result<String> {
    let words = ["call", address, verb, "shop", "web-0", "sidecar"];
    let call = Program::start("go-client", ProgramOptions::new(program).args(words)).await?;
    call.wait_for_code(0, DEADLINE).await?;
    Ok(call.stdout())
}

#[tokio::test]
async fn a_client_and_a_server_in_go_talk_to_ours() -> Result<()> {
    let program = build().await?;

    // Their client, our server.
    let folder = tempfile::tempdir()?;
    let socket = format!("unix://{}", folder.path().join("node.sock").display());
    for address in ["127.0.0.1:0".to_owned(), socket] {
        let listener = Listener::bind(&address.parse()?).await?;
        let address = listener.address()?.to_string();
        let (requests, mut asked) = mpsc::channel(QUEUE);
        let _served = tokio::spawn(serve(listener, requests, std::future::pending()));
        for (verb, kind, answer, expected) in [
            ("register", SyncKind::Register, Ok(()), "OK: "),
            (
                "register",
                SyncKind::Register,
                Err(SyncError::NotReady("web".to_owned())),
                "Unknown: not ready: web",
            ),
            (
                "deregister",
                SyncKind::Deregister,
                Err(SyncError::UnknownPod("no pod".to_owned())),
                "NotFound: no pod",
            ),
            ("deregister", SyncKind::Deregister, Ok(()), "OK: "),
        ] {
            let answered = async {
                let request = asked.recv().await.context("the server has ended")?;
                ensure!(request.kind == kind, "{:?}", request.kind);
                ensure!(request.caller == Caller::new("shop", "web-0", "sidecar"));
                ensure!(request.reply.send(answer).is_ok(), "nobody waits");
                Ok(())
            };
            let (found, ()) = tokio::try_join!(call(&program, &address, verb), answered)?;
            ensure!(found.trim_end() == expected.trim_end(), "{verb}: {found}");
        }
    }

    // Our client, their server.
    let server = Program::start("go-server", ProgramOptions::new(&program).arg("serve")).await?;
    let mut address = String::new();
    while address.is_empty() {
        tokio::time::sleep(Duration::from_millis(20)).await;
        ensure!(server.exit_status().is_none(), "{}", server.stderr());
        address = server.stdout().lines().next().unwrap_or_default().to_owned();
    }
    let client = Client::new(&address.parse()?)?;
    let caller = Caller::new("shop", "web-0", "sidecar");
    let first = client.call(SyncKind::Register, &caller, DEADLINE).await;
    ensure!(matches!(first, Err(SyncError::NotReady(_))), "{first:?}");
    client.call(SyncKind::Register, &caller, DEADLINE).await?;
    client.call(SyncKind::Deregister, &caller, DEADLINE).await?;
    let unknown = Caller::new("shop", "unknown", "");
    let answer = client.call(SyncKind::Deregister, &unknown, DEADLINE).await;
    ensure!(answer == Err(SyncError::UnknownPod("no such pod".to_owned())), "{answer:?}");
    let said = server.stdout();
    let expected = ["register shop/web-0 sidecar", "deregister shop/web-0 sidecar"];
    ensure!(expected.iter().all(|line| said.lines().any(|it| it == *line)), "{said}");
    server.kill().await
}
