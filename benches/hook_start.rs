//! How long the registration hook takes from exec to its first request, which every pod start
//! waits for. The floor is the start of a program that does nothing, measured in the same run.

use std::io::Read as _;
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Enough for a steady median; each start takes a few milliseconds.
const RUNS: usize = 100;
/// What the hook has to keep within.
const TARGET: Duration = Duration::from_millis(10);

fn main() -> std::io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?.to_string();
    let api = format!("http://{address}");
    let cli = "register cli --service-name web --pod-ip 10.0.0.1 --container-port 80";
    let cli: Vec<&str> = cli.split(' ').collect();
    let k8s = ["register", "k8s", "--kube-url", &api];
    let (mut cli_times, mut k8s_times, mut floor) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..RUNS {
        cli_times.push(until_request(&listener, &address, &cli)?);
        k8s_times.push(until_request(&listener, &address, &k8s)?);
        floor.push(until_end()?);
    }
    let floor = median(floor);
    for (name, times) in [("cli", cli_times), ("k8s", k8s_times)] {
        let hook = median(times);
        let ratio = hook.as_secs_f64() / floor.as_secs_f64();
        println!(
            "register {name}, exec to first request: median {hook:.2?} (target {TARGET:?}), \
             {ratio:.1} times the floor"
        );
    }
    println!("a program that does nothing, exec to end: median {floor:.2?}");
    Ok(())
}

/// From exec to the first byte that the agent, or the API server, would read.
fn until_request(
    listener: &TcpListener,
    address: &str,
    arguments: &[&str],
) -> std::io::Result<Duration> {
    let began = Instant::now();
    let mut hook = Command::new(env!("CARGO_BIN_EXE_kube-consul"))
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
    Ok(took)
}

/// From exec to the end of a program that does nothing.
fn until_end() -> std::io::Result<Duration> {
    let began = Instant::now();
    Command::new("true").status()?;
    Ok(began.elapsed())
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
