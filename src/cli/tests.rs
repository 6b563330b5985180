mod documentation;

use std::time::Duration;

use clap::CommandFactory;

use super::*;
use crate::cli::values::duration;
use crate::domain::services::settings::{Annotation, NodeAddress};

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
fn l14_a_star_is_all_namespaces() {
    for args in [&["--namespace", "*"][..], &["--namespace", "shop,*"], &[]] {
        assert!(options(args).unwrap().sync.settings.namespaces.is_empty(), "{args:?}");
    }
    assert_eq!(options(&["--namespace", "shop"]).unwrap().sync.settings.namespaces.len(), 1);
}

#[test]
fn l14_an_empty_variable_is_unset() {
    fn variables(command: &clap::Command) -> usize {
        let own = command.get_arguments().filter(|arg| arg.get_env().is_some()).count();
        own + command.get_subcommands().map(variables).sum::<usize>()
    }
    assert!(variables(&Cli::command()) > 40);
    assert_eq!(variables(&without_variables(Cli::command(), &|_| true)), 0);
    let only = |variable: &std::ffi::OsStr| variable == "KUBE_CONSUL_NAMESPACE";
    let left = variables(&without_variables(Cli::command(), &only));
    assert!(left > 0 && left < variables(&Cli::command()));
}

#[test]
fn wrong_usage_names_the_flag_and_what_was_expected() {
    for (args, expected) in [
        (vec!["--cluster", "Not A Label"], "--cluster"),
        (vec!["--address", "moon"], "auto, by-type, cluster-ip"),
        (vec!["--name-template", "{pod}"], "{service}"),
        (vec!["--selector", "a b"], "app=web"),
        (vec!["--namespace", "A"], "expected the name of a namespace"),
        (vec!["--resync", "soon"], "10s"),
        (vec!["--health", "always"], "--health always"),
        (vec!["--dns-domain", "a b"], "--dns-domain"),
        (vec!["--join-existing", "true"], "never, kubernetes, always"),
        (vec!["--annotations", "sync,sinc"], "found \"sinc\""),
        (vec!["--annotations", "all,sync"], "found \"all\""),
        (vec!["--annotations", "service-meta-x"], "service-meta, service-weight"),
        (
            vec!["--trusted-namespace", "shop", "--annotations=none", "--deny-namespace", "shop"],
            "--trusted-namespace shop",
        ),
        (
            vec!["--trusted-namespace", "shop", "--annotations=none", "--namespace", "other"],
            "--trusted-namespace shop",
        ),
        (vec!["--node-address", "moon"], "external-first, internal, external"),
        (vec!["--node-address", "internal", "--annotations", "sync"], "no node is registered"),
        (vec!["--node-port-nodes", "all", "--annotations", "sync"], "no node is registered"),
        (vec!["--service-type", "clusterip"], "ClusterIP, NodePort, LoadBalancer, ExternalName"),
        (vec!["--service-type", "ExternalName"], "--external-name beside it"),
        (vec!["--extra-ports", "no"], "on, off"),
        (vec!["--policy", "upsert"], "sync, upsert-only"),
        (vec!["--policy", "upsert-only", "--allow-removals"], "removes nothing"),
        (vec!["--tag", " "], "expected a tag"),
        (vec!["--tag-from-label", "a b"], "expected the key of a label"),
        (vec!["--tag-from-label", "team="], "expected KEY=TAG"),
        (vec!["--meta-from-label", "app.kubernetes.io/name"], "expected KEY=META"),
        (vec!["--meta-from-label", "team=external-source"], "does not mark ownership"),
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
fn n13_a_list_of_annotations_says_which_count() {
    let policy = |args: &[&str]| options(args).unwrap().sync.settings.annotations;
    assert_eq!(policy(&[]).allowed, None);
    assert_eq!(policy(&["--annotations", "all"]).allowed, None);
    assert_eq!(policy(&["--annotations", "none"]).allowed, Some([].into()));
    let some = policy(&["--annotations", "sync,join", "--trusted-namespace", "shop"]);
    assert_eq!(some.allowed, Some([Annotation::Sync, Annotation::Join].into()));
    assert!(some.trusted_namespaces.contains("shop"));
    for args in [
        &["--node-address=internal"][..],
        &["--node-address=internal", "--annotations=address"],
        &["--node-address=internal", "--annotations=none", "--trusted-namespace=shop"],
        &["--node-address=internal", "--annotations=none", "--address=node-port"],
    ] {
        assert_eq!(options(args).unwrap().sync.settings.node_address, NodeAddress::Internal);
    }
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
fn every_flag_has_its_variable_but_for_consent() {
    // The hook's flags keep the variables that its users have.
    let hook = ["register", "deregister"];
    let mut consent = Vec::new();
    let cli = Cli::command();
    for command in cli.get_subcommands().filter(|command| !hook.contains(&command.get_name())) {
        for arg in command.get_arguments().filter(|arg| arg.get_long().is_some()) {
            let (Some(long), env) = (arg.get_long(), arg.get_env()) else { continue };
            if ["help", "version"].contains(&long) {
                continue;
            }
            if ["yes", "allow-removals"].contains(&long) {
                assert_eq!(env, None, "a variable consents by --{long}");
                consent.push(long);
                continue;
            }
            let expected = format!("KUBE_CONSUL_{}", long.replace('-', "_").to_uppercase());
            assert_eq!(env.and_then(|name| name.to_str()), Some(expected.as_str()), "--{long}");
        }
    }
    assert_eq!(consent, ["allow-removals", "allow-removals", "allow-removals", "yes"]);
}

#[test]
fn the_flags_that_everybody_types_are_short() {
    let same = |short: &[&str], long: &[&str]| {
        let parsed = |args: &[&str]| {
            let args = ["kube-consul"].iter().chain(args);
            Cli::try_parse_from(args).map(|cli| format!("{cli:?}")).unwrap()
        };
        assert_eq!(parsed(short), parsed(long));
    };
    same(&["bridge", "-n", "shop", "-n", "blog"], &["bridge", "--namespace", "shop,blog"]);
    same(&["bridge", "-l", "app=web"], &["bridge", "--selector", "app=web"]);
    same(&["plan", "-o", "json", "-nshop"], &["plan", "--output", "json", "--namespace", "shop"]);
    same(&["plan", "--context", "eu"], &["plan", "--kube-context", "eu"]);
}

#[test]
fn the_help_of_plan_is_about_plan() {
    let mut cli = Cli::command();
    cli.build();
    let plan = cli.find_subcommand_mut("plan").unwrap().render_long_help().to_string();
    for flag in ["--leader-elect", "--resync", "--once", "--admin-addr"] {
        assert!(!plan.contains(flag), "{flag}: {plan}");
    }
    for flag in ["--output", "--allow-removals", "--address", "--adopt"] {
        assert!(plan.contains(flag), "{flag}: {plan}");
    }
    // The bridge's command line is taken as it is.
    let all = ["--leader-elect", "--sink=catalog", "--resync=5m", "--once", "--admin-addr=[::]:1"];
    let args = ["kube-consul", "plan"].iter().chain(&all);
    assert!(Cli::try_parse_from(args).is_ok());
}

#[test]
fn help_texts_are_for_people() {
    fn check(command: &mut clap::Command, checked: &mut usize) {
        for help in [command.render_long_help(), command.render_help()] {
            let help = help.to_string();
            // Links of rustdoc.
            assert!(!help.contains("[`") && !help.contains("`]"), "{help}");
            *checked += 1;
        }
        command.get_subcommands_mut().for_each(|command| check(command, checked));
    }
    let mut cli = Cli::command();
    cli.build();
    let mut checked = 0;
    check(&mut cli, &mut checked);
    assert!(checked > 20, "{checked}");
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
