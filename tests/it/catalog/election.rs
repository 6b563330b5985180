//! The lock is lost while its session goes on.

use std::time::Duration;

use anyhow::{Result, ensure};
use kube_consul_stack::{Fault, HttpRecorder, eventually};
use serde_json::json;

use super::support::{bridge, command, leads};
use crate::support::{Bridge, DEADLINE, Fixture};

const PORTS: [(&str, u16); 1] = [("http", 80)];

/// A session of 10 s runs out within 20 s; the rest is for a machine with other work.
const TAKE_OVER: Duration = Duration::from_secs(40);

/// Longer than a bridge takes to end.
const ENDS: Duration = Duration::from_secs(8);

async fn wait_for_lead(bridge: &Bridge) -> Result<()> {
    eventually(TAKE_OVER, || async {
        ensure!(leads(bridge).await?, "it does not lead: {}", bridge.status().await?["leadership"]);
        Ok(())
    })
    .await
}

/// Numbers of registrations, PTR records and problems, by `/status` and by `/metrics`.
async fn told(bridge: &Bridge) -> Result<String> {
    let counts = &bridge.status().await?["counts"];
    let metric = async |series: &str| anyhow::Ok(bridge.metric(series).await?.unwrap_or_default());
    Ok(format!(
        "{} {} {}, {} {} {}",
        counts["registrations"],
        counts["ptr_records"],
        counts["problems"],
        metric("kube_consul_registrations{health=\"passing\"}").await?,
        metric("kube_consul_ptr_records").await?,
        metric("kube_consul_problems{reason=\"InvalidAnnotation\"}").await?,
    ))
}

/// Waits until a leader tells of two records of each kind and of the problem of one.
async fn tells_all(bridge: &Bridge) -> Result<()> {
    eventually(DEADLINE, || async {
        let told = told(bridge).await?;
        ensure!(told == "2 2 1, 2 2 1", "{told}: {}", bridge.status().await?);
        Ok(())
    })
    .await
}

async fn tells_nothing(standby: &Bridge) -> Result<()> {
    eventually(DEADLINE, || async {
        let told = told(standby).await?;
        ensure!(told == "0 0 0, 0 0 0", "{told}: {}", standby.status().await?);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_leader_whose_lock_is_taken_from_it_lets_go_without_a_write() -> Result<()> {
    let fixture = Fixture::new("lock").await?;
    fixture.web("web", &PORTS).await?;
    fixture.web("odd", &PORTS).await?;
    fixture.annotate("odd", json!({"kube-consul.io/service-weight": "heavy"})).await?;
    let first = bridge(&fixture, &["--leader-elect"]).await?;
    wait_for_lead(&first).await?;
    tells_all(&first).await?;
    let second = bridge(&fixture, &["--leader-elect"]).await?;
    let (consul, cluster) = (fixture.consul.api(), &fixture.namespace);
    // With the key goes the lock, but not the session; with the base node both.
    consul.delete(&format!("/v1/kv/kube-consul/{cluster}/leader")).await?;
    wait_for_lead(&second).await?;
    eventually(DEADLINE, || async {
        ensure!(!leads(&first).await?, "two lead");
        Ok(())
    })
    .await?;
    // What the one that leads tells, the other one must not tell once more.
    tells_all(&second).await?;
    tells_nothing(&first).await?;
    let base = json!({"Node": format!("k8s-{cluster}"), "Datacenter": "dc1"});
    consul.put("/v1/catalog/deregister", &base).await?;
    // It lets go; who is the next one is a race.
    eventually(TAKE_OVER, || async {
        ensure!(second.program.has_written("its session is over"), "it does not let go");
        ensure!(leads(&first).await? != leads(&second).await?, "not one of them leads");
        Ok(())
    })
    .await?;
    let (leader, standby) =
        if leads(&first).await? { (&first, &second) } else { (&second, &first) };
    tells_all(leader).await?;
    tells_nothing(standby).await?;
    fixture.web("later", &PORTS).await?;
    fixture.wait_for_instances("later", 1).await?;
    first.stop().await?;
    second.stop().await
}

#[tokio::test]
async fn a_candidate_that_ends_while_it_takes_the_lock_leaves_it_to_others() -> Result<()> {
    let fixture = Fixture::new("candidate").await?;
    let recorder = HttpRecorder::start(fixture.consul.url()).await?;
    let takes = |path: &str| path.contains("acquire=");
    recorder.fault_times(1, Fault::DropAfter, move |it| takes(&it.path));
    recorder.fault_times(1, Fault::Delay(ENDS), |it| it.path.contains("/v1/session/destroy"));
    let command = command(&fixture).await?.args(["--leader-elect"]);
    let candidate = Bridge::start(command.env("CONSUL_HTTP_ADDR", recorder.url())).await?;
    let lock = format!("/v1/kv/kube-consul/{}/leader", fixture.namespace);
    let is_held =
        || async { anyhow::Ok(!fixture.consul.api().get(&lock).await?[0]["Session"].is_null()) };
    let gives_back = || recorder.writes().iter().any(|it| it.path.contains("/v1/session/destroy"));
    // The lock is its own, and it does not know. Its first try to end the session is the one that
    // is held up: were it that of its end, that would have to wait.
    eventually(DEADLINE, || async {
        ensure!(is_held().await?, "it is not asked for yet");
        ensure!(gives_back(), "it does not yet try to end its session");
        Ok(())
    })
    .await?;
    candidate.stop().await?;
    ensure!(!is_held().await?, "whoever comes next has to wait");
    Ok(())
}

/// As late as answers are where Consul is slow: three take nearly the session's time.
const LATE: Duration = Duration::from_secs(3);

/// A7: the time of a renewal counts from when it is asked for, and its answer whenever it comes.
#[tokio::test]
async fn a7_a_slow_consul_costs_no_lead_and_changes_are_written() -> Result<()> {
    let fixture = Fixture::new("slow").await?;
    fixture.web("web", &PORTS).await?;
    let recorder = HttpRecorder::start(fixture.consul.url()).await?;
    let command = command(&fixture).await?.args(["--leader-elect"]);
    let bridge = Bridge::start(command.env("CONSUL_HTTP_ADDR", recorder.url())).await?;
    wait_for_lead(&bridge).await?;
    fixture.wait_for_instances("web", 1).await?;
    recorder.fault(Fault::Delay(LATE), |_| true);
    // It has to be acquired with late answers, too.
    let lock = format!("/v1/kv/kube-consul/{}/leader", fixture.namespace);
    fixture.consul.api().delete(&lock).await?;
    let tries = || recorder.requests().iter().filter(|it| it.path.contains("acquire=")).count();
    eventually(3 * TAKE_OVER, || async {
        ensure!(tries() > 1 && leads(&bridge).await?, "{} tries", tries());
        Ok(())
    })
    .await?;
    fixture.web("later", &PORTS).await?;
    eventually(3 * TAKE_OVER, || async {
        ensure!(fixture.instances("later").await?.len() == 1, "{}", bridge.status().await?);
        Ok(())
    })
    .await?;
    // Three times as long as a session lasts.
    let before = tries();
    tokio::time::sleep(Duration::from_secs(30)).await;
    ensure!(tries() == before && leads(&bridge).await?, "{} tries, {before} before", tries());
    recorder.mend();
    bridge.stop().await
}
