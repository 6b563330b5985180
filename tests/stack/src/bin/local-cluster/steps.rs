//! What a user tries next: commands that work when pasted into another shell.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kube_consul_stack::{Program, ProgramOptions, eventually};

use crate::Screen;

/// Scaling takes a second until Consul shows it.
const ANSWER_DEADLINE: Duration = Duration::from_secs(20);

/// One command.
pub struct Step {
    about: &'static str,
    command: String,
    /// The program that it needs, when that is not installed everywhere.
    needs: Option<&'static str>,
    /// What its output has, and how often.
    expected: (String, usize),
}

/// Where everything is.
pub struct Places {
    pub program: PathBuf,
    pub kubectl: PathBuf,
    pub kubeconfig: PathBuf,
    pub consul: String,
    pub dns: SocketAddr,
    pub admin: String,
    pub address: String,
}

/// The commands, in the order in which they make sense.
pub fn steps(places: &Places) -> Result<Vec<Step>> {
    let Places { consul, dns, admin, address, .. } = places;
    let kubectl = format!(
        "KUBECONFIG={} {}",
        quoted(&places.kubeconfig.display().to_string()),
        quoted(&places.kubectl.display().to_string())
    );
    let program = quoted(&places.program.display().to_string());
    let dig = format!("dig +short @{} -p {}", dns.ip(), dns.port());
    let step = |about, command: String, expected: &str, times| Step {
        about,
        needs: command.starts_with("dig ").then_some("dig"),
        command,
        expected: (expected.to_owned(), times),
    };
    Ok(vec![
        step(
            "the sample application in Kubernetes",
            format!("{kubectl} get deployments,services"),
            "service/",
            2,
        ),
        step("the Service web by DNS", format!("{dig} web.service.consul"), address, 1),
        step(
            "... with its port, by the port's name",
            format!("{dig} _web._http.service.consul SRV"),
            " 80 ",
            1,
        ),
        step(
            "the same over Consul's HTTP API",
            format!("curl -sS '{consul}/v1/health/service/web?passing'"),
            address,
            1,
        ),
        step(
            "its PTR record, for other DNS servers",
            format!("curl -sS '{consul}/v1/kv/{}?raw'; echo", ptr_key(address)?),
            "web.service.dc1.consul",
            1,
        ),
        step(
            "scale the headless Service db ...",
            format!("{kubectl} scale deployment db --replicas=5"),
            "scaled",
            1,
        ),
        step("... its pods are its instances", format!("{dig} db.service.consul"), "10.244.", 5),
        step(
            "... over Consul's HTTP API",
            format!("curl -sS '{consul}/v1/catalog/service/db' | grep '\"ServiceAddress\"'"),
            "10.244.",
            5,
        ),
        step(
            "what the bridge does with each Service",
            format!("{program} status --admin-url {admin}"),
            "web,web-metrics",
            1,
        ),
        step(
            "... and why one is in Consul as it is",
            format!("{program} explain default/db --admin-url {admin}"),
            "passing",
            5,
        ),
        step(
            "its page (open the address in a browser)",
            format!("curl -sS --header 'Accept: text/html' {admin}/ | head -c 300; echo"),
            "html",
            1,
        ),
        step(
            "all of it in Consul's user interface (open the address in a browser)",
            format!("curl -sSL '{consul}/ui/' | head -c 300; echo"),
            "html",
            1,
        ),
    ])
}

/// The key of an IPv4 address's PTR record.
fn ptr_key(address: &str) -> Result<String> {
    let parsed: Ipv4Addr =
        address.parse().with_context(|| format!("the ClusterIP {address} is no IPv4 address"))?;
    let [a, b, c, _] = parsed.octets();
    Ok(format!("0.{c}.{b}.{a}.IN-ADDR.ARPA/{address}"))
}

/// As one word of a shell.
fn quoted(text: &str) -> String {
    let plain = |character: char| character.is_ascii_alphanumeric() || "/._-".contains(character);
    if text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

impl Step {
    /// Shows the command and what it is for.
    pub fn print(&self, screen: &Screen) {
        let missing = match self.needs {
            Some(program) if !is_installed(program) => format!(" ('{program}' is not installed)"),
            _ => String::new(),
        };
        println!("{}", screen.comment(format_args!("# {}{missing}", self.about)));
        println!("{}\n", screen.command(&self.command));
    }

    async fn check(&self) -> Result<()> {
        let options = ProgramOptions::new("/bin/sh").args(["-c", &self.command]);
        let shell = Program::start("check", options).await?;
        shell.wait_for_code(0, ANSWER_DEADLINE).await?;
        let (text, times) = &self.expected;
        let output = shell.stdout();
        let found = output.matches(text.as_str()).count();
        ensure!(
            found >= *times,
            "'{}' should print '{text}' {times} times, but printed: {output}",
            self.command
        );
        Ok(())
    }
}

/// Runs each command as it was printed, until it prints what it should.
pub async fn check(steps: &[Step]) -> Result<()> {
    for step in steps {
        if step.needs.is_some_and(|program| !is_installed(program)) {
            println!("skipped: {}", step.command);
            continue;
        }
        eventually(ANSWER_DEADLINE, || step.check()).await?;
        println!("works: {}", step.command);
    }
    Ok(())
}

fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}
