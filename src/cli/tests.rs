use std::fmt::Write as _;

use clap::CommandFactory;

use super::*;

fn options(args: &[&str]) -> Result<run::bridge::Options, String> {
    let args = ["kube-consul", "bridge"].iter().chain(args);
    let cli = Cli::try_parse_from(args).map_err(|error| error.to_string())?;
    match cli.command {
        Command::Bridge(args) => args.options().map_err(|error| error.to_string()),
        other => Err(format!("expected bridge, found {other:?}")),
    }
}

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn wrong_usage_names_the_flag_and_what_was_expected() {
    for (args, expected) in [
        (vec!["--cluster", "Not A Label"], "--cluster"),
        (vec!["--address", "moon"], "auto, cluster-ip"),
        (vec!["--name-template", "{pod}"], "{service}"),
        (vec!["--selector", "a b"], "app=web"),
        (vec!["--namespace", "A"], "expected the name of a namespace"),
        (vec!["--resync", "soon"], "10s"),
        (vec!["--health", "always"], "--health always"),
        (vec!["--dns-domain", "a b"], "--dns-domain"),
        (vec!["--kube-url", "http://a", "--kubeconfig", "b"], "--kube-url"),
        (vec!["--nonsense"], "--nonsense"),
    ] {
        let error = options(&args).map(drop).expect_err(&format!("{args:?} was accepted"));
        assert!(error.contains(expected), "{args:?}: {error}");
    }
}

#[test]
fn the_defaults_are_those_of_the_documentation() {
    let options = options(&[]).unwrap();
    assert_eq!(options.sync.settings.cluster.as_str(), "kubernetes");
    assert_eq!(options.resync, Duration::from_mins(1));
    assert!(options.sync.settings.default_sync && options.once.is_none());
}

#[test]
fn purge_names_whose_records_go() {
    let options = |args: &[&str]| {
        let args = ["kube-consul", "purge"].iter().chain(args);
        let cli = Cli::try_parse_from(args).map_err(|error| error.to_string())?;
        match cli.command {
            Command::Purge(args) => args.options().map_err(|error| error.to_string()),
            other => Err(format!("expected purge, found {other:?}")),
        }
    };
    for (args, expected) in [
        (vec![], "--cluster"),
        (vec!["--cluster", "Not A Label"], "--cluster"),
        (vec!["--owner", "consul-k8s"], "--node"),
        (vec!["--cluster", "eu", "--node", "a"], "--owner"),
        (vec!["--owner", "nomad", "--node", "a"], "consul-k8s"),
    ] {
        let error = options(&args).map(drop).expect_err(&format!("{args:?} was accepted"));
        assert!(error.contains(expected), "{args:?}: {error}");
    }
    for (sink, agent, catalog) in [(None, true, true), (Some("agent"), true, false)] {
        let sink = sink.map(|sink| format!("--sink={sink}"));
        let options = options(
            &[&["--cluster=eu"], &*sink.as_deref().into_iter().collect::<Vec<_>>()].concat(),
        );
        match options.unwrap().owner {
            run::purge::Owner::Cluster(cluster) => {
                assert_eq!((cluster.agent, cluster.catalog), (agent, catalog), "{sink:?}");
            }
            other @ run::purge::Owner::ConsulK8s { .. } => panic!("{other:?}"),
        }
    }
}

#[test]
fn every_flag_has_its_variable() {
    // The hook's flags keep the variables that its users have.
    let hook = ["register", "deregister"];
    let cli = Cli::command();
    for command in cli.get_subcommands().filter(|command| !hook.contains(&command.get_name())) {
        for arg in command.get_arguments().filter(|arg| arg.get_long().is_some()) {
            let (Some(long), env) = (arg.get_long(), arg.get_env()) else { continue };
            if ["help", "version"].contains(&long) {
                continue;
            }
            let expected = format!("KUBE_CONSUL_{}", long.replace('-', "_").to_uppercase());
            assert_eq!(env.and_then(|name| name.to_str()), Some(expected.as_str()), "--{long}");
        }
    }
}

#[test]
fn durations_are_read_as_people_write_them() {
    for (text, expected) in
        [("500ms", 500), ("10s", 10_000), ("1m30s", 90_000), ("0", 0), ("0s", 0)]
    {
        assert_eq!(duration(text), Ok(Duration::from_millis(expected)), "{text}");
    }
    for text in ["", "10", "-1s", "soon"] {
        assert!(duration(text).is_err(), "{text:?} was accepted");
    }
}

/// Regenerates the README's tables with `UPDATE_README=1`.
#[test]
fn the_readme_lists_the_flags() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
    let mut readme = std::fs::read_to_string(path).unwrap();
    for subcommand in ["bridge", "purge", "register k8s"] {
        let start = format!("<!-- flags of {subcommand}: begin -->\n");
        let end = format!("<!-- flags of {subcommand}: end -->");
        let (before, rest) = readme.split_once(&start).expect("the README has the table's begin");
        let (found, after) = rest.split_once(&end).expect("the README has the table's end");
        let expected = flag_table(subcommand);
        if std::env::var_os("UPDATE_README").is_some() {
            readme = format!("{before}{start}{expected}{end}{after}");
            std::fs::write(path, &readme).unwrap();
        } else {
            assert_eq!(found, expected, "run: UPDATE_README=1 cargo test --lib readme");
        }
    }
}

fn flag_table(subcommand: &str) -> String {
    let mut table = String::from("| flag | default | meaning |\n|---|---|---|\n");
    let cli = Cli::command();
    let command =
        subcommand.split(' ').fold(&cli, |command, name| command.find_subcommand(name).unwrap());
    for arg in command.get_arguments() {
        let Some(long) = arg.get_long().filter(|long| !["help", "version"].contains(long)) else {
            continue;
        };
        let value = match arg.get_value_names() {
            Some([name]) if arg.get_action().takes_values() => format!(" {name}"),
            _ => String::new(),
        };
        let default: Vec<_> =
            arg.get_default_values().iter().map(|v| v.to_string_lossy()).collect();
        let default = if default.concat().is_empty() || value.is_empty() {
            String::new()
        } else {
            format!("`{}`", default.join(","))
        };
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        // What is in angle brackets would be taken for HTML.
        let help = help.replace('\n', " ").replace('<', "\\<");
        writeln!(table, "| `--{long}{value}` | {default} | {help} |").unwrap();
    }
    table
}
