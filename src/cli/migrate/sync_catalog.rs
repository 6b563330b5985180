//! The flags of `consul-k8s-control-plane sync-catalog` 1.8, and what each comes to.
//!
//! Its program reads them with Go's `flag` package: one dash or two, `-flag value` or `-flag=value`, and
//! for truth values the second form only. The last of repeated ones counts, where it takes no list.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::cli::migrate::translation::{Step, Translation};
use crate::domain::text::parse_bool;

/// When each command is run that is not run at once.
const BESIDE: &str = "beside it, until `kube-consul plan` with these flags has nothing to change";
const AFTER: &str = "once nothing of it runs any more";
const ALONE: &str = "then, in the place of the first one";

/// How a flag of theirs is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// A truth value.
    Switch,
    /// One value.
    Value,
}

/// Their flags; for those that are the business of no other code, why they come to nothing.
const FLAGS: &[(&str, Form, Option<&str>)] = &[
    ("add-k8s-namespace-suffix", Form::Switch, None),
    ("addresses", Form::Value, None),
    ("allow-k8s-namespace", Form::Value, None),
    ("api-timeout", Form::Value, Some("requests to Consul have deadlines of their own")),
    ("auth-method-name", Form::Value, None),
    ("ca-cert-file", Form::Value, None),
    (
        "ca-cert-pem",
        Form::Value,
        Some("put the certificate into a file and give that as --consul-ca-file"),
    ),
    ("consul-cross-namespace-acl-policy", Form::Value, Some(ENTERPRISE)),
    ("consul-destination-namespace", Form::Value, Some(ENTERPRISE)),
    ("consul-domain", Form::Value, None),
    ("consul-k8s-tag", Form::Value, None),
    ("consul-login-bearer-token-file", Form::Value, None),
    ("consul-login-datacenter", Form::Value, None),
    ("consul-login-meta", Form::Value, None),
    ("consul-login-namespace", Form::Value, Some(ENTERPRISE)),
    ("consul-login-partition", Form::Value, Some(ENTERPRISE)),
    ("consul-node-name", Form::Value, None),
    ("consul-service-prefix", Form::Value, None),
    ("consul-write-interval", Form::Value, Some("changes are written at once")),
    ("datacenter", Form::Value, None),
    ("deny-k8s-namespace", Form::Value, None),
    ("enable-ingress", Form::Switch, None),
    ("enable-k8s-namespace-mirroring", Form::Switch, Some(ENTERPRISE)),
    ("enable-metrics", Form::Switch, Some("metrics are always served, at --admin-addr")),
    ("enable-namespaces", Form::Switch, Some(ENTERPRISE)),
    ("filter", Form::Value, Some("purge removes all that consul-k8s made on the node")),
    ("grpc-port", Form::Value, Some("Consul is asked by HTTP alone")),
    ("http-port", Form::Value, None),
    ("k8s-default-sync", Form::Switch, None),
    ("k8s-namespace-mirroring-prefix", Form::Value, Some(ENTERPRISE)),
    ("k8s-service-prefix", Form::Value, None),
    ("k8s-source-namespace", Form::Value, None),
    ("k8s-write-namespace", Form::Value, None),
    ("kubeconfig", Form::Value, None),
    ("listen", Form::Value, None),
    ("loadBalancer-ips", Form::Switch, None),
    ("log-json", Form::Switch, None),
    ("log-level", Form::Value, None),
    ("metrics-path", Form::Value, Some("the path is /metrics, at --admin-addr")),
    ("metrics-port", Form::Value, Some("metrics are served at --admin-addr")),
    ("namespace", Form::Value, Some("set the variable CONSUL_NAMESPACE")),
    ("node-port-sync-type", Form::Value, None),
    ("partition", Form::Value, Some("set the variable CONSUL_PARTITION")),
    ("prometheus-retention-time", Form::Value, Some("what is served is kept as it is")),
    ("purge-k8s-services-from-node", Form::Switch, None),
    ("skip-server-watch", Form::Switch, Some("no servers are watched")),
    ("sync-clusterip-services", Form::Switch, None),
    (
        "sync-lb-services-endpoints",
        Form::Switch,
        Some("set the annotation kube-consul.io/address: endpoints on load-balancer Services"),
    ),
    ("tls-server-name", Form::Value, None),
    ("to-consul", Form::Switch, None),
    ("to-k8s", Form::Switch, None),
    ("token", Form::Value, Some("set the variable CONSUL_HTTP_TOKEN, or use --consul-token-file")),
    ("token-file", Form::Value, None),
    ("use-tls", Form::Switch, None),
];

const ENTERPRISE: &str = "of Consul Enterprise alone, there is no counterpart";

/// Their variables, which give a flag its value where it is not there.
const VARIABLES: &[(&str, &str)] = &[
    ("CONSUL_ACL_TOKEN", "token"),
    ("CONSUL_ACL_TOKEN_FILE", "token-file"),
    ("CONSUL_ADDRESSES", "addresses"),
    ("CONSUL_API_TIMEOUT", "api-timeout"),
    ("CONSUL_CACERT_FILE", "ca-cert-file"),
    ("CONSUL_CACERT_PEM", "ca-cert-pem"),
    ("CONSUL_DATACENTER", "datacenter"),
    ("CONSUL_GRPC_PORT", "grpc-port"),
    ("CONSUL_HTTP_PORT", "http-port"),
    ("CONSUL_LOGIN_AUTH_METHOD", "auth-method-name"),
    ("CONSUL_LOGIN_BEARER_TOKEN_FILE", "consul-login-bearer-token-file"),
    ("CONSUL_LOGIN_DATACENTER", "consul-login-datacenter"),
    ("CONSUL_LOGIN_META", "consul-login-meta"),
    ("CONSUL_LOGIN_NAMESPACE", "consul-login-namespace"),
    ("CONSUL_LOGIN_PARTITION", "consul-login-partition"),
    ("CONSUL_NAMESPACE", "namespace"),
    ("CONSUL_PARTITION", "partition"),
    ("CONSUL_SKIP_SERVER_WATCH", "skip-server-watch"),
    ("CONSUL_TLS_SERVER_NAME", "tls-server-name"),
    ("CONSUL_USE_TLS", "use-tls"),
];

/// The words before the flags, which may be left out.
const PROGRAM: [&str; 3] = ["exec", "consul-k8s-control-plane", "sync-catalog"];

/// What consul-k8s calls its node in the catalog unless told otherwise.
const NODE: &str = "k8s-sync";
/// Its tag, unless told otherwise.
const TAG: &str = "k8s";

/// What is not of their command line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::cli) enum UnknownArgument {
    #[error("{0:?}: expected a flag of sync-catalog, such as -to-k8s=false, found no such")]
    Flag(String),
    /// Not shown: it may be a token that stands a blank too far.
    #[error("argument {0}: expected a flag of sync-catalog, such as -to-k8s=false, found none")]
    NoFlag(usize),
    #[error("argument {0}: expected printable characters, found others")]
    Unprintable(usize),
    #[error("-{0}: expected a value, found none")]
    NoValue(&'static str),
    #[error("-{flag}: expected {expected}, found {found:?}")]
    Value { flag: &'static str, expected: &'static str, found: String },
}

/// A command line of sync-catalog.
#[derive(Debug, Default)]
pub(in crate::cli) struct SyncCatalog {
    /// The values of each flag that is there, in their order.
    given: BTreeMap<&'static str, Vec<String>>,
}

// === impl SyncCatalog ===

impl SyncCatalog {
    pub(in crate::cli) fn parse(arguments: &[String]) -> Result<Self, UnknownArgument> {
        let mut found = Self::default();
        let mut variables: Vec<(&'static str, String)> = Vec::new();
        let mut words = arguments.iter().zip(1..);
        let mut is_before = true;
        while let Some((word, place)) = words.next() {
            if word.contains(char::is_control) {
                return Err(UnknownArgument::Unprintable(place));
            }
            if let Some((variable, value)) = variable(word).filter(|_| is_before) {
                variables.push((variable, value));
                continue;
            }
            // The program may have a path, and stands before its flags.
            let program = word.rsplit('/').next().unwrap_or_default();
            if is_before && PROGRAM.contains(&program) {
                continue;
            }
            is_before = false;
            let (flag, form, value) = flag(word).ok_or_else(|| unknown(word, place))?;
            let value = match (value, form) {
                (Some(value), _) => value.to_owned(),
                (None, Form::Switch) => "true".to_owned(),
                (None, Form::Value) => {
                    let (value, place) = words.next().ok_or(UnknownArgument::NoValue(flag))?;
                    if value.contains(char::is_control) {
                        return Err(UnknownArgument::Unprintable(place));
                    }
                    value.clone()
                }
            };
            found.given.entry(flag).or_default().push(value);
        }
        for (flag, value) in variables.into_iter().filter(|(_, value)| !value.is_empty()) {
            found.given.entry(flag).or_insert_with(|| vec![value]);
        }
        found.check()
    }

    /// Refuses what their program refuses, as far as it matters here.
    fn check(self) -> Result<Self, UnknownArgument> {
        for (flag, form, _) in FLAGS {
            let is_switch = *form == Form::Switch;
            if let Some(found) = self.last(flag).filter(|it| is_switch && parse_bool(it).is_none())
            {
                let found = found.to_owned();
                return Err(UnknownArgument::Value { flag, expected: "true or false", found });
            }
        }
        if let Some(found) = self.last("node-port-sync-type")
            && node_address(found).is_none()
        {
            return Err(UnknownArgument::Value {
                flag: "node-port-sync-type",
                expected: "ExternalOnly, InternalOnly or ExternalFirst",
                found: found.to_owned(),
            });
        }
        Ok(self)
    }

    fn all(&self, flag: &str) -> &[String] {
        self.given.get(flag).map_or(&[], Vec::as_slice)
    }

    fn last(&self, flag: &str) -> Option<&str> {
        self.all(flag).last().map(String::as_str)
    }

    fn text(&self, flag: &str) -> Option<&str> {
        self.last(flag).filter(|text| !text.is_empty())
    }

    fn is(&self, flag: &str, default: bool) -> bool {
        self.last(flag).and_then(parse_bool).unwrap_or(default)
    }

    /// What takes its place.
    pub(super) fn translate(&self) -> Translation {
        let mut translation = Translation::default();
        let node = self.text("consul-node-name").unwrap_or(NODE);
        let mut purge = Command::new(&["purge", "--owner", "consul-k8s"]);
        purge.option("--node", Some(node));
        purge.option("--datacenter", self.text("datacenter"));
        self.connections(&mut purge);
        if self.is("purge-k8s-services-from-node", false) {
            translation.commands.push(purge.when(""));
            return translation;
        }
        let bridge = self.is("to-consul", true).then(|| self.bridge(&mut translation.notes));
        if let Some(bridge) = &bridge {
            // It holds the names, and deregisters what carries its tag and is not its own.
            let mut beside = bridge.clone();
            beside.option("--join-existing", Some("kubernetes"));
            translation.commands.push(beside.when(BESIDE));
        }
        if self.is("to-k8s", true) {
            translation.commands.push(self.import(&mut translation.notes).when(""));
        }
        if let Some(mut bridge) = bridge {
            translation.commands.push(purge.when(AFTER));
            let tag = self.tag(&mut translation.notes);
            translation.notes.extend(tag.and_then(tag_of_a_namespace));
            bridge.option("--tag", tag);
            translation.commands.push(bridge.when(ALONE));
        }
        let mut nothing: Vec<_> =
            FLAGS.iter().filter(|(flag, ..)| self.given.contains_key(flag)).collect();
        nothing.retain(|(flag, form, _)| *form == Form::Value || self.is(flag, false));
        if self.text("listen").is_some() && self.listen().is_none() {
            let why = "it is no address: give one with --admin-addr";
            translation.notes.push(format!("-listen: {why}"));
        }
        if self.text("addresses").is_some_and(|it| it.starts_with("exec=")) {
            let why = "no command is run to find Consul: give --consul-addr";
            translation.notes.push(format!("-addresses: {why}"));
        }
        let told =
            nothing.iter().filter_map(|(flag, _, why)| Some(format!("-{flag}: {}", (*why)?)));
        translation.notes.extend(told);
        translation
    }

    fn bridge(&self, notes: &mut Vec<String>) -> Command {
        let mut bridge = Command::new(&[
            "bridge",
            "--sink",
            "catalog",
            "--leader-elect",
            "--address",
            "by-type",
        ]);
        let sync_type = self.last("node-port-sync-type").and_then(node_address);
        bridge.option("--node-address", sync_type.or(Some("external")));
        // It registers one port of a Service, all Services of a name, and no PTR records.
        bridge.option("--extra-ports", Some("off"));
        bridge.option("--on-conflict", Some("merge"));
        bridge.option("--reverse-dns", Some("off"));
        let prefix = self.text("consul-service-prefix").unwrap_or_default();
        let suffix = if self.is("add-k8s-namespace-suffix", false) { "-{namespace}" } else { "" };
        let template = format!("{prefix}{{service}}{suffix}");
        if prefix.contains(['{', '}']) {
            notes.push(
                "-consul-service-prefix: braces are for {service} and the like in --name-template: \
                 choose another prefix"
                    .to_owned(),
            );
        }
        bridge.option("--name-template", Some(&*template).filter(|it| *it != "{service}"));
        if !self.is("k8s-default-sync", true) {
            bridge.option("--default-sync", Some("false"));
        }
        if !self.is("sync-clusterip-services", true) {
            bridge.option("--service-type", Some("NodePort"));
            bridge.option("--service-type", Some("LoadBalancer"));
        }
        if self.is("enable-ingress", false) {
            bridge.0.push("--ingress".to_owned());
            if self.is("loadBalancer-ips", false) {
                bridge.0.push("--ingress-addresses".to_owned());
            }
            notes.push(
                "It takes the last rule with the path / of a Service, and its last host; ours takes \
                 every path and every host."
                    .to_owned(),
            );
        } else if self.is("loadBalancer-ips", false) {
            notes.push("-loadBalancer-ips does nothing without -enable-ingress.".to_owned());
        }
        self.namespaces(&mut bridge, notes);
        bridge.option("--datacenter", self.text("datacenter"));
        self.daemon(&mut bridge);
        bridge
    }

    /// The tag by which it knows its own.
    fn tag(&self, notes: &mut Vec<String>) -> Option<&str> {
        match self.last("consul-k8s-tag") {
            Some(tag) if tag.trim().is_empty() || tag.contains(',') => {
                notes.push(format!(
                    "-consul-k8s-tag: {tag:?} is no tag here: give it with the annotation \
                     service-tags"
                ));
                None
            }
            tag => tag.or(Some(TAG)),
        }
    }

    fn namespaces(&self, bridge: &mut Command, notes: &mut Vec<String>) {
        let source = self.text("k8s-source-namespace");
        let allowed = self.all("allow-k8s-namespace");
        if let Some(namespace) = source {
            bridge.option("--namespace", Some(namespace));
        } else if !allowed.iter().any(|namespace| namespace == "*") {
            for namespace in allowed {
                bridge.option("--namespace", Some(namespace));
            }
            if allowed.is_empty() {
                notes.push(
                    "Without -allow-k8s-namespace it registers nothing; ours registers all \
                     namespaces."
                        .to_owned(),
                );
            }
        }
        for namespace in self.all("deny-k8s-namespace") {
            bridge.option("--deny-namespace", Some(namespace));
        }
    }

    fn import(&self, notes: &mut Vec<String>) -> Command {
        let mut import = Command::new(&["import", "--create", "--create-as", "external-name"]);
        let asked = self.last("k8s-write-namespace");
        let namespace = asked.filter(|it| !it.is_empty()).unwrap_or("default");
        import.option("--target-namespace", Some(namespace));
        import.option("--name-prefix", self.text("k8s-service-prefix"));
        import.option("--consul-domain", self.text("consul-domain"));
        import.0.push("--adopt-consul-k8s".to_owned());
        if asked.is_some_and(|it| it.is_empty() || it.contains('$')) {
            notes.push(format!(
                "-k8s-write-namespace: expected a namespace, found {:?}, which is for a shell to \
                 replace: put the namespace in its place, which in the chart is that of the release",
                asked.unwrap_or_default()
            ));
        }
        if self.text("datacenter").is_some() {
            notes.push(
                "-datacenter: import looks in the datacenter of the Consul that it asks: let \
                 --consul-addr be one there"
                    .to_owned(),
            );
        }
        self.daemon(&mut import);
        import
    }

    /// What every daemon has.
    fn daemon(&self, command: &mut Command) {
        command.option("--kubeconfig", self.text("kubeconfig"));
        command.option("--admin-addr", self.listen().map(|it| it.to_string()).as_deref());
        command.option("--log-level", self.text("log-level"));
        if self.is("log-json", false) {
            command.option("--log-format", Some("json"));
        }
        self.connections(command);
    }

    /// Where pages are served, if that is an address and not a host's name.
    fn listen(&self) -> Option<SocketAddr> {
        let (host, port) = self.text("listen")?.rsplit_once(':')?;
        let host = match host.trim_matches(['[', ']']) {
            "" => Ipv4Addr::UNSPECIFIED.into(),
            "localhost" => Ipv4Addr::LOCALHOST.into(),
            host => host.parse::<IpAddr>().ok()?,
        };
        Some((host, port.parse().ok()?).into())
    }

    /// How Consul is reached.
    fn connections(&self, command: &mut Command) {
        let is_tls = self.is("use-tls", false);
        if let Some(host) = self.text("addresses").filter(|it| !it.starts_with("exec=")) {
            let (scheme, port) = if is_tls { ("https", "8501") } else { ("http", "8500") };
            let port = self.text("http-port").filter(|it| *it != "0").unwrap_or(port);
            let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
            command.option("--consul-addr", Some(&format!("{scheme}://{host}:{port}")));
        }
        command.option("--consul-ca-file", self.text("ca-cert-file"));
        command.option("--consul-tls-server-name", self.text("tls-server-name"));
        command.option("--consul-token-file", self.text("token-file"));
        let Some(auth_method) = self.text("auth-method-name") else { return };
        command.option("--consul-auth-method", Some(auth_method));
        let bearer = self.text("consul-login-bearer-token-file");
        command.option("--consul-bearer-token-file", bearer);
        command.option("--consul-login-datacenter", self.text("consul-login-datacenter"));
        for pair in self.all("consul-login-meta") {
            command.option("--consul-login-meta", Some(pair));
        }
    }
}

/// A command line of ours in the making.
#[derive(Clone)]
struct Command(Vec<String>);

// === impl Command ===

impl Command {
    fn new(words: &[&str]) -> Self {
        let words = std::iter::once(&"kube-consul").chain(words);
        Self(words.map(ToString::to_string).collect())
    }

    fn option(&mut self, name: &str, value: Option<&str>) {
        match value {
            // It would be read as a flag.
            Some(value) if value.starts_with('-') => self.0.push(format!("{name}={value}")),
            _ => {
                let words = value.iter().flat_map(|value| [name.to_owned(), (*value).to_owned()]);
                self.0.extend(words);
            }
        }
    }

    fn when(self, when: &'static str) -> Step {
        Step { when, command: self.0 }
    }
}

/// `NAME=VALUE`, of one of their variables: the flag that it stands for.
fn variable(word: &str) -> Option<(&'static str, String)> {
    let (name, value) = word.split_once('=')?;
    let (_, flag) = VARIABLES.iter().find(|(variable, _)| *variable == name)?;
    Some((flag, value.to_owned()))
}

/// One of their flags, and the value that stands in the same word.
fn flag(word: &str) -> Option<(&'static str, Form, Option<&str>)> {
    let rest = word.strip_prefix("--").or_else(|| word.strip_prefix('-'))?;
    let (name, value) = match rest.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (rest, None),
    };
    let (flag, form, _) = FLAGS.iter().find(|(flag, ..)| *flag == name)?;
    Some((flag, *form, value))
}

/// A word that is none of theirs; what follows a `=` may be a secret, and so may one without a dash.
fn unknown(word: &str, place: usize) -> UnknownArgument {
    match word.split_once('=') {
        Some((name, _)) => UnknownArgument::Flag(name.to_owned()),
        None if word.starts_with('-') => UnknownArgument::Flag(word.to_owned()),
        None => UnknownArgument::NoFlag(place),
    }
}

/// A tag that is there without `--tag`, where it may be.
fn tag_of_a_namespace(tag: &str) -> Option<String> {
    let is_label = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (tag != TAG && tag.bytes().all(is_label)).then(|| {
        format!(
            "-consul-k8s-tag: what has a namespace, port or host name {tag} has that tag in any case, \
             and theirs deregisters it: if there is one, stop theirs before the first command"
        )
    })
}

fn node_address(sync_type: &str) -> Option<&'static str> {
    match sync_type {
        "ExternalOnly" => Some("external"),
        "InternalOnly" => Some("internal"),
        "ExternalFirst" => Some("external-first"),
        _ => None,
    }
}

#[cfg(test)]
pub(super) fn flags() -> impl Iterator<Item = (&'static str, bool)> {
    FLAGS.iter().map(|(flag, form, _)| (*flag, *form == Form::Switch))
}

#[cfg(test)]
pub(super) fn variables() -> impl Iterator<Item = &'static (&'static str, &'static str)> {
    VARIABLES.iter()
}
