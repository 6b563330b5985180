//! What README and the guides show is run, as a newcomer would, on a cluster of its own: its output
//! is what they say.

use std::env;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use kube_consul_stack::documentation::{Shown, blocks, is_as_shown, pages};
use kube_consul_stack::{
    Consul, ConsulOptions, Kubernetes, KubernetesOptions, Program, ProgramOptions, program_path,
};

use crate::support::DEADLINE;

/// The pages with commands that are run, in the order in which somebody would read them: later ones
/// find what earlier ones made.
const READ: [&str; 5] =
    ["README.md", "docs/bridge.md", "docs/annotations.md", "docs/purge.md", "docs/install.md"];

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
