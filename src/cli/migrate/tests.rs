use std::os::unix::fs::PermissionsExt as _;

use clap::Parser as _;

use super::*;
use crate::cli::Cli;

fn text(arguments: &[&str]) -> String {
    let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
    SyncCatalog::parse(&arguments).unwrap().translate().text()
}

/// The commands, each a line of words without quotes.
fn commands(text: &str) -> Vec<Vec<String>> {
    let joined = text.replace(" \\\n", "");
    let lines = joined.lines().filter(|line| line.starts_with("kube-consul"));
    lines.map(|line| line.split_whitespace().map(|it| it.replace('\'', "")).collect()).collect()
}

#[test]
fn their_defaults_are_these_commands() {
    let text =
        text(&["exec", "consul-k8s-control-plane", "sync-catalog", "-allow-k8s-namespace=*"]);
    let [beside, import, purge, alone] = &commands(&text)[..] else { panic!("{text}") };
    let bridge = "kube-consul bridge --sink catalog --leader-elect --address by-type \
                  --node-address external --extra-ports off --on-conflict merge --reverse-dns off";
    // As long as theirs runs it holds the names, and deregisters what carries its tag.
    assert_eq!(beside.join(" "), format!("{bridge} --join-existing kubernetes"));
    assert_eq!(alone.join(" "), format!("{bridge} --tag k8s"));
    assert_eq!(
        import.join(" "),
        "kube-consul import --create --create-as external-name --target-namespace default \
         --adopt-consul-k8s"
    );
    assert_eq!(purge.join(" "), "kube-consul purge --owner consul-k8s --node k8s-sync");
}

/// Each flag of theirs, an argument, and what is in the text then.
#[test]
fn each_of_their_flags_is_translated_or_told() {
    let rows = [
        ("-add-k8s-namespace-suffix", "--name-template '{service}-{namespace}'"),
        ("-addresses=consul.example.com", "--consul-addr http://consul.example.com:8500"),
        ("-allow-k8s-namespace=shop", "--namespace shop"),
        ("-api-timeout=5s", "# -api-timeout: "),
        ("-auth-method-name=m", "--consul-auth-method m"),
        ("-ca-cert-file=/ca.pem", "--consul-ca-file /ca.pem"),
        ("-ca-cert-pem=x", "# -ca-cert-pem: put the certificate into a file"),
        ("-consul-cross-namespace-acl-policy=p", "# -consul-cross-namespace-acl-policy: of Consul"),
        ("-consul-destination-namespace=n", "# -consul-destination-namespace: of Consul"),
        ("-consul-domain=example", "--consul-domain example"),
        ("-consul-k8s-tag=kube", "--tag kube"),
        ("-consul-login-bearer-token-file=/t", "--consul-bearer-token-file /t"),
        ("-consul-login-datacenter=dc2", "--consul-login-datacenter dc2"),
        ("-consul-login-meta=a=b", "--consul-login-meta a=b"),
        ("-consul-login-namespace=n", "# -consul-login-namespace: of Consul"),
        ("-consul-login-partition=p", "# -consul-login-partition: of Consul"),
        ("-consul-node-name=k8s", "purge \\\n  --owner consul-k8s \\\n  --node k8s"),
        ("-consul-service-prefix=p-", "--name-template 'p-{service}'"),
        ("-consul-write-interval=30s", "# -consul-write-interval: changes are written at once"),
        ("-datacenter=dc2", "--datacenter dc2"),
        ("-deny-k8s-namespace=kube-system", "--deny-namespace kube-system"),
        ("-enable-ingress", "--ingress"),
        ("-enable-k8s-namespace-mirroring", "# -enable-k8s-namespace-mirroring: of Consul"),
        ("-enable-metrics", "# -enable-metrics: metrics are always served"),
        ("-enable-namespaces", "# -enable-namespaces: of Consul"),
        ("-filter=x", "# -filter: "),
        ("-grpc-port=8502", "# -grpc-port: Consul is asked by HTTP"),
        ("-http-port=8501", "https://c:8501"),
        ("-k8s-default-sync=false", "--default-sync false"),
        ("-k8s-namespace-mirroring-prefix=x", "# -k8s-namespace-mirroring-prefix: of Consul"),
        ("-k8s-service-prefix=c-", "--name-prefix c-"),
        ("-k8s-source-namespace=shop", "--namespace shop"),
        ("-k8s-write-namespace=consul", "--target-namespace consul"),
        ("-kubeconfig=/k", "--kubeconfig /k"),
        ("-listen=:8080", "--admin-addr 0.0.0.0:8080"),
        ("-loadBalancer-ips", "--ingress \\\n  --ingress-addresses"),
        ("-log-json", "--log-format json"),
        ("-log-level=debug", "--log-level debug"),
        ("-metrics-path=/m", "# -metrics-path: the path is /metrics"),
        ("-metrics-port=20300", "# -metrics-port: "),
        ("-namespace=n", "# -namespace: set the variable CONSUL_NAMESPACE"),
        ("-node-port-sync-type=InternalOnly", "--node-address internal"),
        ("-partition=p", "# -partition: set the variable CONSUL_PARTITION"),
        ("-prometheus-retention-time=1m", "# -prometheus-retention-time: "),
        ("-purge-k8s-services-from-node", "kube-consul purge"),
        ("-skip-server-watch", "# -skip-server-watch: "),
        ("-sync-clusterip-services=false", "--service-type NodePort \\\n  --service-type LoadB"),
        ("-sync-lb-services-endpoints", "# -sync-lb-services-endpoints: set the annotation"),
        ("-tls-server-name=server.dc1.consul", "--consul-tls-server-name server.dc1.consul"),
        ("-to-consul=false", "kube-consul import"),
        ("-to-k8s=false", "kube-consul bridge"),
        ("-token=secret", "# -token: set the variable CONSUL_HTTP_TOKEN"),
        ("-token-file=/t", "--consul-token-file /t"),
        ("-use-tls", "--consul-addr https://c:8501"),
    ];
    let named: Vec<&str> =
        rows.iter().filter_map(|(it, _)| it.trim_start_matches('-').split('=').next()).collect();
    let all: Vec<&str> = sync_catalog::flags().map(|(flag, _)| flag).collect();
    assert_eq!(named, all);
    for (argument, expected) in rows {
        let mut arguments = vec![argument, "--allow-k8s-namespace", "shop"];
        if argument.contains("http-port") || argument.contains("use-tls") {
            arguments.extend(["-addresses=c", "-use-tls"]);
        }
        if argument.contains("loadBalancer") {
            arguments.push("-enable-ingress");
        }
        if argument.contains("login") {
            arguments.push("-auth-method-name=m");
        }
        let text = text(&arguments);
        assert!(text.contains(expected), "{argument}: expected {expected:?}, found\n{text}");
        assert!(!text.contains("secret"), "{text}");
        // Whatever it is, our program takes it.
        for command in commands(&text) {
            let parsed = Cli::try_parse_from(&command).map(drop);
            assert!(parsed.is_ok(), "{argument}: {command:?}: {}", parsed.unwrap_err());
        }
    }
}

#[test]
fn a_direction_that_is_off_has_no_command() {
    let bridge = text(&["-to-k8s=false", "-allow-k8s-namespace=*"]);
    assert!(!bridge.contains("kube-consul import"), "{bridge}");
    let import = text(&["-to-consul=false"]);
    assert!(!import.contains("kube-consul bridge") && !import.contains("purge"), "{import}");
    // A switch that is off has nothing to tell.
    let text = text(&["-enable-ingress=false", "-allow-k8s-namespace=*"]);
    assert!(!text.contains("ingress"), "{text}");
}

#[test]
fn variables_stand_for_flags_that_are_not_there() {
    let names: Vec<&str> = sync_catalog::variables().map(|(_, flag)| *flag).collect();
    assert!(names.iter().all(|name| sync_catalog::flags().any(|(flag, _)| flag == *name)));
    let text = text(&[
        "CONSUL_ADDRESSES=consul",
        "CONSUL_USE_TLS=true",
        "CONSUL_HTTP_PORT=443",
        "CONSUL_LOGIN_AUTH_METHOD=from-variable",
        "consul-k8s-control-plane",
        "sync-catalog",
        "-auth-method-name=from-flag",
        "-to-k8s=false",
    ]);
    assert!(text.contains("--consul-addr https://consul:443"), "{text}");
    assert!(text.contains("--consul-auth-method from-flag"), "{text}");
    // Theirs does nothing without a list of namespaces.
    assert!(text.contains("it registers nothing"), "{text}");
}

#[test]
fn what_is_not_theirs_is_refused_without_its_value() {
    let refused = |arguments: &[&str]| {
        let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
        SyncCatalog::parse(&arguments).map(drop).unwrap_err().to_string()
    };
    let told = refused(&["-tokn=secret"]);
    assert!(told.contains("-tokn") && !told.contains("secret"), "{told}");
    assert!(refused(&["-listen"]).contains("-listen: expected a value"));
    assert!(refused(&["-to-k8s=perhaps"]).contains("true or false"));
    assert!(refused(&["-node-port-sync-type=All"]).contains("ExternalFirst"));
}

/// A shell that reads the output runs these commands with these words, and nothing else.
#[test]
fn a_shell_finds_no_command_in_a_hostile_command_line() {
    let folder = tempfile::tempdir().unwrap();
    let (program, ran) = (folder.path().join("kube-consul"), folder.path().join("ran"));
    let record = format!("#!/bin/sh\nprintf '%s\\0' \"$@\" end >> {}\n", ran.display());
    std::fs::write(&program, record).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    for value in [
        "$(reboot)",
        "`id`",
        "a b",
        "a;reboot",
        "a'b\"c",
        "--yes",
        "-x",
        "#",
        "~",
        "*",
        "exec",
        "\\",
        "ä",
        "$HOME",
        "!!",
        "&",
        "|",
        ">x",
    ] {
        let flags = sync_catalog::flags();
        let flags = flags.filter(|(flag, is_switch)| !is_switch && *flag != "node-port-sync-type");
        let arguments: Vec<String> =
            flags.flat_map(|(flag, _)| [format!("-{flag}"), value.to_owned()]).collect();
        let translation = SyncCatalog::parse(&arguments).unwrap().translate();
        let commands = translation.commands.iter().map(|step| &step.command);
        let words =
            commands.flat_map(|command| command.iter().skip(1).map(String::as_str).chain(["end"]));
        let expected: Vec<String> = words.map(ToOwned::to_owned).collect();
        let shell = std::process::Command::new("/bin/sh")
            .args(["-eu", "-c", &translation.text()])
            .current_dir(&folder)
            .env_clear()
            .env("PATH", folder.path())
            .output()
            .unwrap();
        assert!(shell.status.success() && shell.stderr.is_empty(), "{value}: {shell:?}");
        let found = std::fs::read_to_string(&ran).unwrap();
        let found: Vec<&str> = found.trim_end_matches('\0').split('\0').collect();
        assert_eq!(found, expected, "{value}");
        // No option of ours but those that are meant.
        assert!(!found.contains(&"--yes"), "{found:?}");
        std::fs::remove_file(&ran).unwrap();
    }
    let left = std::fs::read_dir(&folder).unwrap().count();
    assert_eq!(left, 1, "the program alone");
}

#[test]
fn what_may_be_a_secret_is_never_shown() {
    let told = |arguments: &[&str]| {
        let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
        match SyncCatalog::parse(&arguments) {
            Ok(parsed) => parsed.translate().text(),
            Err(error) => format!("{error} {error:?}"),
        }
    };
    for arguments in [
        &["-token", "hunter2"][..],
        &["-token=hunter2"],
        &["--token=hunter2", "-use-tls"],
        // A blank too many.
        &["-token=", "hunter2"],
        &["-token-file", "/t", "hunter2"],
        &["CONSUL_ACL_TOKEN=hunter2", "sync-catalog"],
        // None of its variables, and one that stands behind.
        &["CONSUL_HTTP_TOKEN=hunter2", "sync-catalog"],
        &["-use-tls", "CONSUL_ACL_TOKEN=hunter2"],
        &["-tokn=hunter2"],
        &["hunter2"],
    ] {
        let told = told(arguments);
        assert!(!told.contains("hunter2"), "{arguments:?}: {told}");
    }
}

#[test]
fn odd_values_come_to_what_they_mean_or_are_told() {
    // Not the program's name: a value.
    assert!(text(&["-consul-k8s-tag", "exec", "-to-k8s=false"]).contains("--tag exec"));
    assert!(
        text(&["/bin/consul-k8s-control-plane", "sync-catalog"]).contains("kube-consul bridge")
    );
    for (argument, expected) in [
        ("-consul-k8s-tag=", "# -consul-k8s-tag: \"\" is no tag here"),
        ("-consul-k8s-tag=a,b", "# -consul-k8s-tag: \"a,b\" is no tag here"),
        ("-consul-service-prefix={x}", "# -consul-service-prefix: braces"),
        ("-listen=localhost:8080", "--admin-addr 127.0.0.1:8080"),
        ("-listen=[::1]:8080", "--admin-addr '[::1]:8080'"),
        ("-listen=pod.example:8080", "# -listen: it is no address"),
        ("-addresses=exec=find-consul", "# -addresses: no command is run"),
        ("-consul-node-name=-x", "--node=-x"),
    ] {
        let text = text(&[argument]);
        assert!(text.contains(expected), "{argument}: expected {expected:?}, found\n{text}");
    }
    let unprintable = ["-k8s-write-namespace=$x\nreboot".to_owned()];
    assert!(SyncCatalog::parse(&unprintable).is_err());
    let unprintable = ["-consul-k8s-tag".to_owned(), "\u{1b}[2J".to_owned()];
    assert!(SyncCatalog::parse(&unprintable).is_err());
}

/// What they registered is in the datacenter of the flag, and that is where it has to go.
#[test]
fn each_command_means_the_datacenter_that_theirs_means() {
    let text = text(&["CONSUL_DATACENTER=dc2", "sync-catalog", "-allow-k8s-namespace=*"]);
    let [beside, import, purge, alone] = &commands(&text)[..] else { panic!("{text}") };
    for command in [beside, purge, alone] {
        assert!(command.join(" ").contains("--datacenter dc2"), "{command:?}");
    }
    assert!(!import.join(" ").contains("dc2") && text.contains("# -datacenter: "), "{text}");
}

#[test]
fn what_the_shell_was_to_put_in_is_asked_for() {
    let text = |value: &str| text(&["-allow-k8s-namespace=*", "-k8s-write-namespace", value]);
    for (value, target) in [("${NAMESPACE}", "${NAMESPACE}"), ("", "default")] {
        let text = text(value);
        assert!(text.contains("# -k8s-write-namespace: "), "{text}");
        assert!(text.contains("put the namespace in its place"), "{text}");
        let import = &commands(&text)[1];
        assert!(import.join(" ").contains(&format!("--target-namespace {target}")), "{import:?}");
    }
    assert!(!text("shop").contains("# -k8s-write-namespace"));
}

/// It has the namespace, the port and the host name as tags whatever `--tag` says.
#[test]
fn a_tag_that_may_be_a_namespace_is_told() {
    let text =
        |tag: &str| text(&["-allow-k8s-namespace=*", "-to-k8s=false", "-consul-k8s-tag", tag]);
    assert!(text("prod").contains("# -consul-k8s-tag: what has a namespace"), "{}", text("prod"));
    assert!(!text("k8s").contains("what has a"), "their default: hardly anybody's namespace");
    assert!(!text("of_kubernetes").contains("what has a"));
}
