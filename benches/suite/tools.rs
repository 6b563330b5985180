//! What runs once and ends: the hook, `plan` and `purge`; and the size of the program.

use std::fs;
use std::io::Read as _;
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kube_consul_stack::{Consul, HttpRecorder, Program, ProgramOptions};

use super::bridge::Bridge;
use super::figure::{Figure, Goal, quantile};
use super::load::{AT_A_TIME, is_applied, list_both};
use super::replay::{Request, Sender};
use super::{Bench, SCOPE, Scenario, consul, in_turn};

/// Starts of the hook in a round; each takes a few milliseconds.
const STARTS: usize = 50;
/// Of a one-shot command: a minute on a busy machine.
const DEADLINE: Duration = Duration::from_mins(5);

/// Each of them.
pub fn scenarios() -> Vec<Scenario> {
    let hook = "from exec to the first request, which each start of a pod waits for; the floor is a \
                program that does nothing, from exec to its end";
    let once = "with everything in sync: plan beside a program that only reads both sides, then purge \
                beside a loader that sends the same removals";
    vec![
        Scenario::new("hook", hook, 2, |bench, figures| {
            Box::pin(async move { starts(bench, figures) })
        }),
        Scenario::new("plan and purge", once, 6, |bench, figures| {
            Box::pin(plan_and_purge(bench, figures))
        }),
        Scenario::new("program", "its size as it is released", 1, |bench, figures| {
            Box::pin(async move { size(bench, figures) })
        }),
    ]
}

fn size(bench: &Bench, figures: &mut Vec<Figure>) -> Result<()> {
    let bytes = u32::try_from(fs::metadata(&bench.scale.program)?.len())?;
    figures.push(Figure::new("size", "MB", [f64::from(bytes) / 1e6]).goal(Goal::Most(12.0)));
    Ok(())
}

fn starts(bench: &Bench, figures: &mut Vec<Figure>) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?.to_string();
    let api = format!("http://{address}");
    let cli = "register cli --service-name web --pod-ip 10.0.0.1 --container-port 80";
    let cli: Vec<&str> = cli.split(' ').collect();
    let k8s = ["register", "k8s", "--kube-url", &api];
    let mut medians = [const { Vec::new() }; 3];
    for _ in 0..bench.scale.rounds {
        let mut times = [const { Vec::new() }; 3];
        for _ in 0..bench.scale.or(STARTS, 2) {
            times[0].push(until_request(bench, &listener, &address, &cli)?);
            times[1].push(until_request(bench, &listener, &address, &k8s)?);
            let began = Instant::now();
            Command::new("true").status()?;
            times[2].push(began.elapsed().as_secs_f64() * 1e3);
        }
        for (all, of_round) in medians.iter_mut().zip(&times) {
            all.push(quantile(of_round, 0.5));
        }
    }
    let [cli, k8s, floor] = medians;
    for (name, ours) in [("register cli", cli), ("register k8s", k8s)] {
        let figure = Figure::new(format!("{name}: exec to first request"), "ms", ours);
        figures.push(figure.floor(floor.clone()).goal(Goal::Most(3.0)));
    }
    Ok(())
}

/// From exec to the first byte that the agent, or the API server, would read; in milliseconds.
fn until_request(
    bench: &Bench,
    listener: &TcpListener,
    address: &str,
    arguments: &[&str],
) -> Result<f64> {
    let began = Instant::now();
    let mut hook = Command::new(&bench.scale.program)
        .args(arguments)
        .env("CONSUL_HTTP_ADDR", address)
        .env("KUBERNETES_POD_NAME", "web")
        .env("KUBERNETES_POD_NAMESPACE", "shop")
        .stderr(Stdio::null())
        .spawn()?;
    let (mut connection, _) = listener.accept()?;
    connection.read_exact(&mut [0])?;
    let took = began.elapsed();
    hook.kill()?;
    hook.wait()?;
    Ok(took.as_secs_f64() * 1e3)
}

/// Runs a command against a Consul until its end: how long it took, in seconds.
async fn run(bench: &Bench, consul: &str, arguments: &[&str]) -> Result<f64> {
    let kubeconfig = format!("--kubeconfig={}", bench.kubernetes.kubeconfig().display());
    let mut options =
        ProgramOptions::new(&bench.scale.program).args(arguments).env("CONSUL_HTTP_ADDR", consul);
    if arguments[0] == "plan" {
        options = options.arg(kubeconfig);
    }
    let began = Instant::now();
    let program = Program::start("kube-consul", options).await?;
    let status = program.wait(DEADLINE).await?;
    let took = began.elapsed().as_secs_f64();
    ensure!(status.success(), program.failure(&format!("{arguments:?} ended with {status}")));
    Ok(took)
}

/// What the three commands sent.
struct Record {
    /// All that a bridge writes into an empty Consul.
    writes: Vec<Request>,
    plan: Vec<Request>,
    purge: Vec<Request>,
}

async fn record(bench: &Bench, plan: &[&str], purge: &[&str]) -> Result<Record> {
    let consul = consul().await?;
    let recorder = HttpRecorder::start(consul.url()).await?;
    let bridge = Bridge::start(bench, &recorder.url(), &plan[1..]).await?;
    bridge.wait_in_sync(bench.scale.services).await?;
    bridge.stop().await?;
    let requests = |writes: bool| {
        let all = recorder.requests();
        let those = all.iter().filter(|it| it.is_write() == writes && is_applied(it));
        let those = those.map(Request::from);
        let those = those.filter(|it| !it.names("index=")).collect::<Vec<_>>();
        recorder.clear();
        those
    };
    let writes = requests(true);
    run(bench, &recorder.url(), plan).await?;
    let plan = requests(false);
    run(bench, &recorder.url(), purge).await?;
    let purge = requests(true);
    consul.stop().await?;
    Ok(Record { writes, plan, purge })
}

async fn plan_and_purge(bench: &Bench, figures: &mut Vec<Figure>) -> Result<()> {
    let plan = [&["plan"][..], &SCOPE, &["--sink", "catalog"]].concat();
    let purge = ["purge", "--cluster", "kubernetes", "--sink", "catalog", "--yes"];
    let record = record(bench, &plan, &purge).await?;
    let client = bench.kubernetes.client()?;
    let mut times = [const { Vec::new() }; 4];
    for round in 0..bench.scale.rounds {
        let floor = async {
            let (consul, sender) = filled(&record).await?;
            let began = Instant::now();
            tokio::try_join!(sender.send_all(&record.plan, AT_A_TIME), list_both(&client))?;
            let plan = began.elapsed().as_secs_f64();
            let began = Instant::now();
            sender.send_all(&record.purge, AT_A_TIME).await?;
            let purge = began.elapsed().as_secs_f64();
            consul.stop().await?;
            Ok([plan, purge])
        };
        let ours = async {
            let (consul, _) = filled(&record).await?;
            let plan = run(bench, consul.url(), &plan).await.context("nothing is to be changed")?;
            let purge = run(bench, consul.url(), &purge).await?;
            consul.stop().await?;
            Ok([plan, purge])
        };
        let (floor, ours) = in_turn(round, floor, ours).await?;
        for (all, one) in times.iter_mut().zip([ours, floor].concat()) {
            all.push(one);
        }
    }
    let [plan, purge, floor_of_plan, floor_of_purge] = times;
    let count = bench.scale.services;
    let row = format!("plan of {count} Services, no changes");
    figures.push(Figure::new(row, "s", plan).floor(floor_of_plan));
    let row = format!("purge of {count} Services");
    figures.push(Figure::new(row, "s", purge).floor(floor_of_purge));
    Ok(())
}

/// A Consul with all records.
async fn filled(record: &Record) -> Result<(Consul, Sender)> {
    let consul = consul().await?;
    let sender = Sender::new(consul.url())?;
    // In their order: the owner and the nodes come first.
    sender.send_all(&record.writes, 1).await?;
    Ok((consul, sender))
}
