//! What somebody at a shell meets: completions, man pages, pipes, colours, progress, typing errors.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use kube_consul_stack::{Port, Program, ProgramOptions, data_folder};
use serde_json::{Value, json};

use crate::support::{
    Bridge, DEADLINE, Fixture, acts_on_terminals, ends_with, kube_consul, says, shipped_kubeconfig,
};

/// A bash in which `kube-consul` is on PATH.
fn bash(script: &str) -> ProgramOptions {
    let program = Path::new(env!("CARGO_BIN_EXE_kube-consul"));
    let folder = program.parent().unwrap_or(Path::new("/")).display().to_string();
    let path = std::env::var("PATH").unwrap_or_default();
    ProgramOptions::new("/bin/bash").args(["-c", script]).env("PATH", format!("{folder}:{path}"))
}

/// Runs a command on a terminal of its own, and gives all that is shown there.
async fn on_a_terminal(options: ProgramOptions) -> Result<String> {
    let program = Program::start("script", options).await?;
    program.wait_for_code(0, DEADLINE).await?;
    Ok(program.stdout())
}

/// The command line of `script`, which gives a command a terminal.
fn script(command: &str) -> ProgramOptions {
    bash("exec script --quiet --return --command \"$COMMAND\" /dev/null")
        .env("COMMAND", command)
        .env("TERM", "xterm")
}

/// Types these words, the last of them unfinished, and presses the tabulator key.
const COMPLETE: &str = r#"
source <(kube-consul completions bash)
registered=$(complete -p kube-consul)
[[ $registered =~ -F\ ([^ ]+) ]]
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
"${BASH_REMATCH[1]}" kube-consul "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\n' "${COMPREPLY[@]}"
"#;

#[tokio::test]
async fn bash_completes_commands_flags_and_their_words() -> Result<()> {
    let cases: [(&str, &[&str]); 9] = [
        ("kube-consul pl", &["plan"]),
        ("kube-consul bridge --name", &["--name-template", "--namespace", "--namespace-selector"]),
        ("kube-consul bridge --address c", &["cluster-ip"]),
        ("kube-consul bridge --sink ", &["agent", "catalog"]),
        ("kube-consul bridge --reverse-dns ", &["services", "all", "off"]),
        ("kube-consul plan -o ", &["text", "json"]),
        ("kube-consul register k8s --health", &["--health-check-timeout"]),
        ("kube-consul purge --owner ", &["consul-k8s"]),
        ("kube-consul completions z", &["zsh"]),
    ];
    for (typed, expected) in cases {
        let words = typed.split(' ');
        let said = says(0, bash(COMPLETE).arg("bash").args(words)).await?;
        let mut found: Vec<&str> = said.lines().collect();
        let mut expected = expected.to_vec();
        found.sort_unstable();
        expected.sort_unstable();
        ensure!(found == expected, "{typed:?} is completed by {found:?}, want {expected:?}");
    }
    Ok(())
}

/// What fish offers for words that are typed, without what it says of each.
#[tokio::test]
async fn fish_completes_commands_flags_and_their_words() -> Result<()> {
    let Some(fish) = shell("fish").await? else { return Ok(()) };
    for (typed, expected) in [
        ("kube-consul pl", &["plan"][..]),
        ("kube-consul bridge --name", &["--name-template", "--namespace", "--namespace-selector"]),
        ("kube-consul bridge --sink ", &["agent", "catalog"]),
        ("kube-consul plan -o ", &["json", "text"]),
        ("kube-consul purge --owner ", &["consul-k8s"]),
    ] {
        let script = "source (kube-consul completions fish | psub); complete -C $argv[1]";
        let said = says(0, fish.clone().args(["--no-config", "-c", script, typed])).await?;
        let mut found: Vec<&str> =
            said.lines().filter_map(|line| line.split('\t').next()).collect();
        found.sort_unstable();
        ensure!(found == expected, "{typed}: {found:?}, want {expected:?}");
    }
    Ok(())
}

/// Types words into a zsh of its own, presses the tabulator key, and has the line printed.
const TYPED: &str = r#"
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell 'PS1="REA""DY> "; bindkey -e; autoload -Uz compinit; compinit -u -D; source <(kube-consul completions zsh)'
zpty -r shell out '*READY> *'
for words in "$@"; do
    zpty -w -n shell $words$'\t\x01echo completed: \n'
    zpty -r shell out $'*READY> *'
    print -r -- $out
done
zpty -d shell
"#;

#[tokio::test]
async fn zsh_completes_commands_flags_and_their_words() -> Result<()> {
    let cases = [
        ("kube-consul pl", "kube-consul plan"),
        ("kube-consul bridge --sink cat", "kube-consul bridge --sink catalog"),
        ("kube-consul bridge --name-t", "kube-consul bridge --name-template"),
        ("kube-consul plan -o js", "kube-consul plan -o json"),
        ("kube-consul purge --owner con", "kube-consul purge --owner consul-k8s"),
    ];
    let typed = cases.iter().map(|(typed, _)| *typed);
    let Some(zsh) = shell("zsh").await? else { return Ok(()) };
    let zsh = zsh.env("TERM", "dumb").args(["-f", "-c", TYPED, "zsh"]).args(typed);
    let said = says(0, zsh).await?;
    let completed: Vec<&str> =
        said.lines().filter_map(|line| line.strip_prefix("completed: ")).map(str::trim).collect();
    let expected: Vec<&str> = cases.iter().map(|(_, completed)| *completed).collect();
    ensure!(completed == expected, "{completed:?}, want {expected:?}: {said}");
    Ok(())
}

/// A shell with `kube-consul` on its PATH; none on a machine that lacks it, which is an error in CI.
async fn shell(name: &str) -> Result<Option<ProgramOptions>> {
    let found = Program::start("command", bash("command -v \"$0\" || true").arg(name)).await?;
    found.wait_for_code(0, DEADLINE).await?;
    if found.stdout().is_empty() {
        let how = format!("'{name}' is not on PATH (Debian, Ubuntu: apt-get install {name})");
        ensure!(std::env::var_os("CI").is_none(), "{how}");
        eprintln!("skipped: {how}");
        return Ok(None);
    }
    Ok(Some(bash("exec \"$@\"").args([name, name])))
}

#[tokio::test]
async fn man_shows_the_page_of_a_command() -> Result<()> {
    let folder = data_folder("man")?.join("man1");
    says(0, kube_consul().args(["man", "--out"]).arg(&folder)).await?;
    let page = folder.join("kube-consul-register-k8s.1");
    ensure!(page.is_file(), "there is no {}", page.display());
    let said = ends_with(2, kube_consul().args(["man", "bridges"])).await?;
    ensure!(said.contains("bridge, plan"), "{said}");
    if says(0, bash("command -v man || true")).await?.is_empty() {
        // The container of a build may have none; CI has.
        ensure!(std::env::var_os("CI").is_none(), "'man' is not on PATH: install man-db");
        println!("skipped: 'man' is not on PATH (Debian, Ubuntu: apt-get install man-db)");
        return Ok(());
    }
    for (command, name, flag) in [
        (&["man", "bridge"][..], "kube-consul-bridge(1)", "--name-template"),
        (&["man", "register", "k8s"], "kube-consul-register-k8s(1)", "--health-check-timeout"),
        (&["man"], "kube-consul(1)", "kube-consul-bridge(1)"),
    ] {
        let script =
            format!("kube-consul {} | MANPAGER=cat MANWIDTH=100 man -l -", command.join(" "));
        let shown = says(0, bash(&script)).await?;
        // Words are underlined or bold by overtyping.
        let shown = says(0, bash("printf %s \"$SHOWN\" | col -b").env("SHOWN", shown)).await?;
        ensure!(shown.contains(name) && shown.contains(flag), "{command:?}: {shown}");
    }
    Ok(())
}

#[tokio::test]
async fn a_reader_that_has_seen_enough_ends_it_quietly() -> Result<()> {
    let fixture = Fixture::new("pipe").await?;
    fixture.web("web", &[("http", 80)]).await?;
    let plan = format!(
        "kube-consul plan --log-level error --namespace {} --kubeconfig {}",
        fixture.namespace,
        shipped_kubeconfig().await?.display()
    );
    // The reader has ended before anything is written.
    let piped =
        |command: &str| format!("(sleep 0.3; exec {command}) | true; exit ${{PIPESTATUS[0]}}");
    for (command, code) in
        [(plan.as_str(), 2), ("kube-consul completions bash", 0), ("kube-consul man bridge", 0)]
    {
        let options = bash(&piped(command)).env("CONSUL_HTTP_ADDR", fixture.consul.url());
        let said = ends_with(code, options).await?;
        ensure!(said.is_empty(), "{command}: {said}");
    }
    Ok(())
}

#[tokio::test]
async fn the_hooks_token_file_is_refused_where_it_would_not_be_read() -> Result<()> {
    for (command, code) in [("bridge", 2), ("plan", 1), ("purge", 2)] {
        let command = kube_consul().args([command, "--cluster", "eu", "--consul-acl-file", "/t"]);
        let said = ends_with(code, command).await?;
        ensure!(said.contains("--consul-token-file"), "{said}");
    }
    Ok(())
}

#[tokio::test]
async fn a_level_that_is_none_is_refused() -> Result<()> {
    for (command, code) in [("bridge", 2), ("plan", 1), ("purge", 2)] {
        let command = kube_consul().args([command, "--cluster", "eu", "--log-level", "debg"]);
        let said = ends_with(code, command).await?;
        ensure!(said.contains("--log-level") && said.contains("debg"), "{said}");
    }
    Ok(())
}

#[tokio::test]
async fn the_final_error_looks_like_the_log() -> Result<()> {
    let nobody = format!("http://127.0.0.1:{}", Port::pick()?.number());
    let command = |flags: &[&str]| {
        let command =
            kube_consul().args(["bridge", "--once", "--timeout=1s", "--kube-url", &nobody]);
        command.args(flags).env("CONSUL_HTTP_ADDR", &nobody)
    };
    // Not on a terminal, whatever the filter is, and of the hook, too.
    let missing = || kube_consul().args(["register", "cli"]);
    for (code, expected, command) in [
        (1, "--timeout", command(&["--log-format=auto"])),
        (1, "--timeout", command(&["--log-format=json", "--log-level=off"])),
        (2, "--service-name", missing()),
    ] {
        let said = ends_with(code, command).await?;
        for line in said.lines() {
            let line: Value = serde_json::from_str(line).with_context(|| said.clone())?;
            ensure!(line["message"].is_string() && line["timestamp"].is_string(), "{line}");
        }
        let last: Value = serde_json::from_str(said.lines().last().context("nothing is said")?)?;
        let message = last["message"].as_str().unwrap_or_default();
        ensure!(last["level"] == "ERROR" && message.contains(expected), "{last}");
    }
    let said = ends_with(1, command(&["--log-format=text"])).await?;
    ensure!(said.lines().last().is_some_and(|it| it.starts_with("error: ")), "{said}");
    Ok(())
}

#[tokio::test]
async fn colours_are_for_a_terminal_that_wants_them() -> Result<()> {
    let fixture = Fixture::new("colours").await?;
    let command = format!(
        "kube-consul bridge --once --namespace {} --kubeconfig {}",
        fixture.namespace,
        shipped_kubeconfig().await?.display()
    );
    let options = || script(&command).env("CONSUL_HTTP_ADDR", fixture.consul.url());
    let shown = on_a_terminal(options()).await?;
    ensure!(shown.contains("Kubernetes API") && shown.contains("\u{1b}["), "{shown:?}");
    for (name, value) in [("NO_COLOR", "1"), ("TERM", "dumb")] {
        let shown = on_a_terminal(options().env(name, value)).await?;
        ensure!(shown.contains("Kubernetes API"), "{shown:?}");
        ensure!(!shown.contains("\u{1b}["), "{name}={value}: {shown:?}");
    }
    Ok(())
}

#[tokio::test]
async fn consent_is_given_on_the_command_line_and_progress_ends_at_its_end() -> Result<()> {
    let fixture = Fixture::new("consent").await?;
    fixture.web("web", &[("http", 80), ("metrics", 9090)]).await?;
    ends_with(0, fixture.command().await?.arg("--once")).await?;
    let consul = fixture.consul.url();
    let purge = kube_consul().args(["purge", "--cluster", "kubernetes"]);
    let purge = purge.env("CONSUL_HTTP_ADDR", consul).env("KUBE_CONSUL_YES", "true");
    let said = ends_with(2, purge).await?;
    ensure!(said.contains("--yes"), "{said}");
    fixture.wait_for_instances("web", 1).await?;

    let command = script("kube-consul purge --cluster kubernetes --yes");
    let shown = on_a_terminal(command.env("CONSUL_HTTP_ADDR", consul)).await?;
    ensure!(shown.contains("Removed: 5."), "{shown:?}");
    let counts: Vec<(u32, u32)> = shown
        .split(|it: char| !(it.is_ascii_digit() || it == '/'))
        .filter_map(|word| word.split_once('/'))
        .filter_map(|(done, of)| Some((done.parse().ok()?, of.parse().ok()?)))
        .collect();
    ensure!(counts.iter().all(|(done, of)| done <= of), "{counts:?}");
    ensure!(counts.last() == Some(&(5, 5)), "{counts:?} in {shown:?}");
    Ok(())
}

#[tokio::test]
async fn an_instance_that_is_not_there_is_not_deregistered() -> Result<()> {
    let fixture = Fixture::new("unknown").await?;
    let hook = |arguments: &[&str]| {
        kube_consul().args(arguments).env("CONSUL_HTTP_ADDR", fixture.consul.url())
    };
    let deregister = || hook(&["deregister", "cli", "--service-id", "10.0.0.1_80"]);
    let messages = |said: &str| -> Result<Vec<String>> {
        let line = |line| Ok(serde_json::from_str::<Value>(line)?["message"].to_string());
        said.lines().map(line).collect()
    };
    let said = messages(&ends_with(0, deregister()).await?)?;
    ensure!(said.iter().any(|it| it.contains("no instance of this ID")), "{said:?}");
    ensure!(!said.contains(&"\"deregistered\"".to_owned()), "{said:?}");

    let register = ["--service-name=web", "--pod-ip=10.0.0.1", "--container-port=80"];
    let register = [&["register", "cli"][..], &register, &["--check-path=/"]].concat();
    ends_with(0, hook(&register)).await?;
    let said = messages(&ends_with(0, deregister()).await?)?;
    ensure!(said == ["\"deregistered\""], "{said:?}");
    Ok(())
}

/// Records of ours that no Service explains any more: a PTR record tells nothing of its Service.
#[tokio::test]
async fn what_has_no_service_is_told_without_one() -> Result<()> {
    let fixture = Fixture::new("orphans").await?;
    for name in ["stays", "goes", "orphan"] {
        fixture.web(name, &[("http", 80)]).await?;
    }
    ends_with(0, fixture.command().await?.arg("--once")).await?;
    fixture.delete("goes").await?;
    // Its instance goes by another's hand, and leaves the PTR record.
    fixture.delete("orphan").await?;
    let services = fixture.consul.api().get("/v1/agent/services").await?;
    let mut ids = services.as_object().context("no services")?.keys();
    let orphan = ids.find(|id| id.contains("_orphan_")).context("it is not registered")?;
    let path = format!("/v1/agent/service/deregister/{orphan}");
    fixture.consul.api().put(&path, &Value::Null).await?;
    let said = ends_with(0, fixture.command().await?.arg("--once")).await?;
    let lines = said.lines().map(serde_json::from_str::<Value>).collect::<Result<Vec<_>, _>>()?;
    for line in &lines {
        let is_empty = |field: &str| line[field] == "";
        ensure!(!is_empty("namespace") && !is_empty("service") && !is_empty("name"), "{line}");
    }
    let orphans =
        lines.iter().find(|it| it["message"] == "removed records that belong to no Service");
    ensure!(orphans.is_some_and(|it| it["ptr_records"] == 1), "{said}");
    Ok(())
}

#[tokio::test]
async fn one_problem_is_no_problems() -> Result<()> {
    let fixture = Fixture::new("plural").await?;
    for (name, expected) in
        [("one", "1 problem, as logged above"), ("two", "2 problems, as logged above")]
    {
        fixture.web(name, &[("http", 80)]).await?;
        let weight = serde_json::json!({"kube-consul.io/service-weight": "heavy"});
        fixture.annotate(name, weight).await?;
        let said = ends_with(1, fixture.command().await?.arg("--once")).await?;
        ensure!(said.contains(expected), "want {expected}: {said}");
    }
    Ok(())
}

/// What tenants write reaches whoever reads a plan or a log, and does nothing to the terminal.
#[tokio::test]
async fn what_tenants_write_does_nothing_to_a_terminal() -> Result<()> {
    let fixture = Fixture::new("terminal").await?;
    fixture.web("web", &[("http", 80)]).await?;
    let hostile = "a\u{9b}31m\u{202e}\u{1b}[2J";
    fixture
        .annotate(
            "web",
            json!({
                "kube-consul.io/service-meta-note": hostile,
                "kube-consul.io/service-tags": hostile,
                "kube-consul.io/address": hostile,
            }),
        )
        .await?;
    for format in ["json", "text"] {
        let plan = fixture.subcommand("plan").await?.arg(format!("--output={format}"));
        let said = says(2, plan).await?;
        ensure!(said.contains("web") && !said.contains(acts_on_terminals), "{said:?}");
        if format == "json" {
            serde_json::from_str::<Value>(&said)?;
        }
    }
    for format in ["json", "text"] {
        let log = fixture.command().await?.arg(format!("--log-format={format}"));
        let bridge = Bridge::start(log).await?;
        bridge.wait_ready().await?;
        let url = bridge.url("");
        for output in ["json", "text"] {
            for command in [&["status"][..], &["explain", &format!("{}/web", fixture.namespace)]] {
                let asked = kube_consul().args(command).args(["--admin-url", &url, "-o", output]);
                let said = says(0, asked).await?;
                ensure!(!said.contains(acts_on_terminals), "{command:?} {output}: {said:?}");
            }
        }
        let (_, page) = bridge.get("/status").await?;
        ensure!(page.contains("kube-consul.io/address"), "the problem is not told: {page}");
        for text in [page, bridge.program.stderr()] {
            ensure!(!text.contains(acts_on_terminals), "{text:?}");
        }
        bridge.stop().await?;
    }
    // Whoever may register in Consul changes what is there.
    let agent = fixture.consul.api().get("/v1/agent/services").await?;
    let mut web = agent
        .as_object()
        .and_then(|all| all.values().find(|it| it["Service"] == "web"))
        .cloned()
        .context("web is not registered")?;
    let changed = json!({
        "ID": web["ID"].take(), "Name": "web", "Tags": [hostile], "Address": web["Address"].take(),
        "Port": 80, "Meta": web["Meta"].take(),
    });
    fixture.consul.api().put("/v1/agent/service/register", &changed).await?;
    for format in ["json", "text"] {
        let plan = fixture.subcommand("plan").await?.arg(format!("--output={format}"));
        let said = says(2, plan).await?;
        ensure!(said.contains("31m") && !said.contains(acts_on_terminals), "{said:?}");
        if format == "json" {
            let plan: Value = serde_json::from_str(&said)?;
            let field = &plan["services"][0]["changes"][0]["fields"][0];
            ensure!(field["old"] == json!([hostile]), "a program reads {field}");
        }
    }
    Ok(())
}
