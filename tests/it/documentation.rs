//! What README and the guides show is run, as a newcomer would, on a cluster of its own: its output
//! is what they say.

use std::env;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use kube_consul_stack::documentation::{Shown, blocks, calls, is_as_shown, pages};
use kube_consul_stack::{
    Consul, ConsulOptions, Kubernetes, KubernetesOptions, Program, ProgramOptions, program_path,
};

use crate::acl::MANAGEMENT;
use crate::support::{Bridge, DEADLINE, kube_consul};

/// The pages with commands that are run, in the order in which somebody would read them: later ones
/// find what earlier ones made.
const READ: [&str; 6] = [
    "README.md",
    "docs/bridge.md",
    "docs/annotations.md",
    "docs/purge.md",
    "docs/install.md",
    "docs/migration.md",
];

/// A shell of the reader's.
struct Shell {
    kubernetes: Kubernetes,
    consul: Consul,
    path: String,
}

// === impl Shell ===

impl Shell {
    async fn start() -> Result<Self> {
        let consul = Consul::start(ConsulOptions::dev());
        let kubernetes = Kubernetes::start(KubernetesOptions::default());
        let (consul, kubernetes) = tokio::try_join!(consul, kubernetes)?;
        let folder = |program: &Path| program.parent().map(Path::to_owned);
        let ours = folder(Path::new(env!("CARGO_BIN_EXE_kube-consul"))).context("no folder")?;
        let tools = folder(&program_path("kubectl")?).context("no folder")?;
        let inherited = env::var_os("PATH").unwrap_or_default();
        let path = env::join_paths([ours, tools].into_iter().chain(env::split_paths(&inherited)))?;
        let path = path.into_string().ok().context("PATH is no text")?;
        Ok(Self { kubernetes, consul, path })
    }

    /// Runs a command in the checkout; it has to print what is shown.
    async fn run(&self, shown: &Shown) -> Result<()> {
        let Shown { command, output } = shown;
        let script = format!("cd {}\n{command}", env!("CARGO_MANIFEST_DIR"));
        let options = ProgramOptions::new("/bin/bash")
            .args(["-c", &script])
            .env("PATH", &self.path)
            .env("KUBECONFIG", self.kubernetes.kubeconfig())
            .env("CONSUL_HTTP_ADDR", self.consul.url());
        let program = Program::start("shown", options).await?;
        let status = program.wait(DEADLINE * 2).await?;
        let printed = program.stdout();
        let lines: Vec<&str> = printed.trim_end().lines().collect();
        let end = output.iter().rposition(|line| !line.trim().is_empty());
        let output = &output[..end.map_or(0, |last| last + 1)];
        ensure!(
            is_as_shown(output, &lines),
            "$ {command}\nshown:\n{}\nprinted:\n{printed}\n{}",
            output.join("\n"),
            program.stderr()
        );
        // A plan with changes says so by its exit code.
        let wanted: &[i32] = if command.starts_with("kube-consul plan") { &[0, 2] } else { &[0] };
        let code = status.code().context("ended by a signal")?;
        ensure!(wanted.contains(&code), "$ {command}\nended with {code}: {}", program.stderr());
        Ok(())
    }
}

/// The commands of a page that are run.
fn shown(page: &str) -> Result<Vec<Shown>> {
    let marked = blocks(page)?.into_iter().filter(|block| block.is_run);
    marked.map(|block| block.commands()).collect::<Result<Vec<_>>>().map(|all| all.concat())
}

#[tokio::test]
async fn what_the_documentation_shows_is_what_a_newcomer_sees() -> Result<()> {
    let pages = pages(Path::new(env!("CARGO_MANIFEST_DIR")))?;
    for (path, page) in &pages {
        let is_read = READ.iter().any(|it| Path::new(it) == path);
        ensure!(is_read != shown(page)?.is_empty(), "{}: read or not?", path.display());
    }
    let shell = Shell::start().await?;
    for path in READ {
        let page = pages.iter().find(|(it, _)| it == Path::new(path));
        let (_, page) = page.with_context(|| format!("there is no {path}"))?;
        for shown in shown(page)? {
            shell.run(&shown).await.with_context(|| path.to_owned())?;
        }
    }
    Ok(())
}

/// The name by which pages say that a block is run here.
const HERE: &str = "run by documentation::what_is_shown_runs";
/// Blocks that nothing runs, each for the reason that stands before it.
const NOT_RUN: usize = 10;

/// Whether a test, or a function that one calls, is where `module::module::name` says.
fn is_there(name: &str) -> Result<bool> {
    let (modules, function) = name.rsplit_once("::").context("a test has a module")?;
    let file =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it").join(modules.replace("::", "/"));
    let text = std::fs::read_to_string(file.with_extension("rs"))?;
    Ok(text.contains(&format!("fn {function}(")))
}

#[test]
fn every_block_of_commands_is_run_or_says_why_not() -> Result<()> {
    let mut not_run = 0;
    for (path, page) in pages(Path::new(env!("CARGO_MANIFEST_DIR")))? {
        for block in blocks(&page)? {
            if block.is_run || block.commands()?.is_empty() {
                continue;
            }
            let place = format!("{}:{}", path.display(), block.line);
            let said = block.elsewhere.with_context(|| format!("{place}: who runs it?"))?;
            match said.strip_prefix("run by ") {
                Some(test) => ensure!(is_there(test)?, "{place}: there is no {test}"),
                None => not_run += 1,
            }
        }
    }
    ensure!(not_run == NOT_RUN, "{not_run} are not run, expected {NOT_RUN}");
    Ok(())
}

/// Runs what is shown beside real servers: a daemon until it is ready, everything else to its end.
#[tokio::test]
async fn what_is_shown_runs() -> Result<()> {
    // Its own: an import of all namespaces keeps what other tests import from their Consul, too.
    let kubernetes = Kubernetes::start(KubernetesOptions::default());
    let consul = Consul::start(ConsulOptions::dev().acl(MANAGEMENT));
    let (kubernetes, consul) = tokio::try_join!(kubernetes, consul)?;
    kubernetes.kubectl(&["create", "namespace", "consul-services"]).await?;
    let mut ran = 0;
    for (path, page) in pages(Path::new(env!("CARGO_MANIFEST_DIR")))? {
        for block in blocks(&page)?.into_iter().filter(|it| it.elsewhere.as_deref() == Some(HERE)) {
            for Shown { command, .. } in block.commands()? {
                let place = format!("{}:{}: {command}", path.display(), block.line);
                let in_environment = |options: ProgramOptions| {
                    options
                        .env("KUBECONFIG", kubernetes.kubeconfig())
                        .env("CONSUL_HTTP_ADDR", consul.url())
                        .env("CONSUL_HTTP_TOKEN", MANAGEMENT)
                };
                is_run(&command, in_environment).await.context(place)?;
                ran += 1;
            }
        }
    }
    ensure!(ran >= 15, "only {ran}");
    Ok(())
}

async fn is_run(
    command: &str,
    in_environment: impl Fn(ProgramOptions) -> ProgramOptions,
) -> Result<()> {
    let words = calls(command)?.into_iter().next().context("no call")?;
    let is_daemon = ["bridge", "import", "node"].iter().any(|it| words[1] == *it);
    if is_daemon && !words.contains(&"--run-once".to_owned()) {
        let daemon = Bridge::start(in_environment(kube_consul().args(&words[1..]))).await?;
        daemon.wait_ready_within(DEADLINE).await?;
        return daemon.stop().await;
    }
    let ours = Path::new(env!("CARGO_BIN_EXE_kube-consul")).parent().context("no folder")?;
    let tools = program_path("consul")?;
    let tools = tools.parent().context("no folder")?;
    let path = env::var("PATH").unwrap_or_default();
    let script = format!("set -o pipefail; cd {}\n{command}", env!("CARGO_MANIFEST_DIR"));
    let options = ProgramOptions::new("/bin/bash")
        .args(["-c", &script])
        .env("PATH", format!("{}:{}:{path}", ours.display(), tools.display()));
    let program = Program::start("shown", in_environment(options)).await?;
    let code = program.wait(DEADLINE).await?.code();
    // A plan with changes says so by its exit code.
    let changes = command.starts_with("kube-consul plan") && code == Some(2);
    ensure!(code == Some(0) || changes, "ended with {code:?}: {}", program.stderr());
    Ok(())
}
