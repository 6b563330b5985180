//! Restarts, losses and scaling.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kube_consul_stack::{Pod, Program, eventually, program_path};
use tokio::time::sleep;

use super::scenarios;
use super::support::{
    Load, REFUSED_DEADLINE, START_DEADLINE, Servers, nothing_is_lost, shared_secrets,
};

/// An election takes 1 to 3 s with the shipped timing, and a client asks another server after 2 s;
/// a busy machine makes that longer.
const ELECTION: Duration = Duration::from_secs(10);
/// Gossip has found a dead server out by then.
const KNOWN_DEAD: Duration = Duration::from_secs(15);

#[tokio::test]
async fn s1_restarts_under_other_addresses_lose_no_write_and_s2_neither_does_a_loss_of_all()
-> Result<()> {
    scenarios::run("restarts").await
}

pub async fn restarts() -> Result<()> {
    let mut servers = Servers::started(3).await?;
    let (writes, reads) = (Load::writes(&servers)?, Load::reads(&servers)?);
    for ordinal in [2, 1, 0] {
        let before = servers.member(ordinal)?.pod.address();
        let began = Instant::now();
        let said = servers.delete_pod(ordinal).await?;
        ensure!(said.contains("Graceful leave complete"), "the hook has not left: {said}");
        let left = began.elapsed();
        servers.boot(ordinal).await?;
        ensure!(servers.member(ordinal)?.pod.address() != before, "the address is the same");
        let started = servers.wait_started(ordinal, START_DEADLINE).await?;
        println!("consul-server-{ordinal}: left in {left:.1?}, started again in {started:.1?}");
    }
    let (writes, reads) = (writes.finish("writes").await?, reads.finish("reads").await?);
    ensure!(writes.count > 100 && reads.count > 100, "hardly any: {writes:?} {reads:?}");
    nothing_is_lost(&servers.api(0)?, writes.count).await?;
    ensure!(writes.longest_gap < ELECTION, "no write for {:?}", writes.longest_gap);
    ensure!(reads.longest_gap < ELECTION, "no read for {:?}", reads.longest_gap);

    // S2: everything loses power at once, and one node takes longer to come back.
    for ordinal in 0..3 {
        servers.lose(ordinal).await?;
    }
    let began = Instant::now();
    servers.boot_all([0, 1]).await?;
    eventually(Duration::from_secs(30), || servers.leader_seen_by(0)).await?;
    println!("all lost, two are back: a leader after {:.1?}", began.elapsed());
    // It knows its tokens once it has read its log.
    let api = servers.api(0)?;
    eventually(Duration::from_secs(30), || nothing_is_lost(&api, writes.count)).await?;
    sleep(KNOWN_DEAD).await;
    servers.boot(2).await?;
    for ordinal in 0..3 {
        servers.wait_started(ordinal, REFUSED_DEADLINE).await?;
    }
    println!("all are back after {:.1?}", began.elapsed());
    let peers = servers.peers(0).await?;
    ensure!(peers.len() == 3 && peers.values().all(|votes| *votes), "{peers:?}");
    nothing_is_lost(&servers.api(2)?, writes.count).await
}

/// Waits until the startup probe fails with this text; it must not pass before.
async fn wait_not_started(servers: &Servers, ordinal: u8, text: &str) -> Result<()> {
    eventually(START_DEADLINE, || async {
        let (passed, said) = servers.startup_probe(ordinal).await?;
        ensure!(!passed && said.contains(text), "passed: {passed}, want '{text}': {said}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn s4_a_lost_server_leaves_the_others_in_service_and_s5_a_new_one_starts_only_as_a_voter()
-> Result<()> {
    scenarios::run("losses").await
}

pub async fn losses() -> Result<()> {
    let mut servers = Servers::new("consul-servers", shared_secrets().await?).await?;
    servers.boot_all(0..3).await?;
    eventually(START_DEADLINE, || servers.leader_seen_by(0)).await?;
    // S5: a 403 is no answer, and a server without a token is not ready.
    wait_not_started(&servers, 0, "has the job consul-acl run?").await?;
    servers.run_acl_job().await?;
    for ordinal in 0..3 {
        servers.wait_started(ordinal, START_DEADLINE).await?;
    }

    s5_autopilots_answers(&servers).await?;

    // The leader's node is gone, and its pod comes back elsewhere once another one leads (before,
    // it may be elected again: it is a voter by its ID) and before autopilot has noticed, which
    // still says that one of three may fail.
    let lost = servers.leader_seen_by(0).await?;
    let [one, other] = [(lost + 1) % 3, (lost + 2) % 3];
    let began = Instant::now();
    servers.lose(lost).await?;
    eventually(START_DEADLINE, || async {
        let leader = servers.leader_seen_by(one).await?;
        ensure!(leader != lost, "still the lost one");
        Ok(())
    })
    .await?;
    servers.boot(lost).await?;
    println!("the leader is lost: another one after {:.1?}", began.elapsed());
    // Refused under its new address, it knows no leader.
    wait_not_started(&servers, lost, "No cluster leader").await?;

    // S4: the two that are left stay in service, though none of them may fail. One of them that
    // had just started would not be called started: the StatefulSet may not go on.
    wait_not_started(&servers, one, "none of the servers may fail").await?;
    for ordinal in [one, other] {
        let status = servers.http_probe(ordinal, "readinessProbe").await?;
        ensure!(status == 200, "consul-server-{ordinal} is taken out of service: {status}");
    }
    // Nor does one of them leave: what is left would have no quorum, for good.
    let hook = servers.spec["containers"][0]["lifecycle"]["preStop"].clone();
    let said = servers.member(other)?.pod.exec("consul", &hook).await?.stdout();
    ensure!(said.contains("not leaving: 1 of 2 other voting servers answer"), "{said}");
    ensure!(servers.peers(one).await?.len() == 3, "one has left");

    // A second loss: no leader, so neither started nor ready, but alive.
    servers.lose(other).await?;
    wait_not_started(&servers, one, "no state of the servers").await?;
    // An answer that no leader gives takes 7 s.
    eventually(START_DEADLINE, || async {
        let ready = servers.http_probe(one, "readinessProbe").await?;
        let alive = servers.http_probe(one, "livenessProbe").await?;
        ensure!(ready == 500 && alive == 200, "ready: {ready}, alive: {alive}");
        Ok(())
    })
    .await?;
    servers.boot(other).await?;
    for ordinal in 0..3 {
        servers.wait_started(ordinal, REFUSED_DEADLINE).await?;
    }
    println!("two lost without a leave, all back after {:.1?}", began.elapsed());
    Ok(())
}

/// What autopilot may say beside what it says of three healthy servers, and what becomes of it: a
/// text to find, another to put there, and what the probe then says, if it fails.
const ANSWERS: [(&str, &str, Option<&str>); 6] = [
    ("Failure Tolerance:            1", "Failure Tolerance:            2", None),
    (
        "Failure Tolerance:            1",
        "Failure Tolerance:            0",
        Some("none of the servers"),
    ),
    ("@OWN@:8300", "192.0.2.1:8300", Some("still know this server at 192.0.2.1:8300")),
    ("@STATUS@", "non-voter", Some("does not vote yet: non-voter")),
    ("@HEALTHY@", "false", Some("is not healthy")),
    ("@ID@", "00000000-0000-4000-8000-000000000000", Some("is not among the servers yet")),
];

/// Puts a stand-in in the place of the consul that probes run, which prints a text.
fn stand_in(pod: &Pod, text: &str) -> Result<()> {
    let consul = pod.bin().join("consul");
    fs::remove_file(&consul)?;
    fs::write(pod.bin().join("answer"), text)?;
    fs::write(&consul, "#!/bin/sh\ncat \"${0%/*}/answer\"\n")?;
    Ok(fs::set_permissions(&consul, fs::Permissions::from_mode(0o755))?)
}

/// S5: what the startup probe makes of each answer.
async fn s5_autopilots_answers(servers: &Servers) -> Result<()> {
    let pod = &servers.member(1)?.pod;
    let command = pod.command_in("consul", &["consul", "operator", "autopilot", "state"])?;
    let at = format!("https://{}:8501", pod.address());
    let program = Program::start("state", command.env("CONSUL_HTTP_ADDR", at)).await?;
    program.wait_for_code(0, START_DEADLINE).await?;
    let state = program.stdout();
    let id = fs::read_to_string(pod.volume("data")?.join("node-id"))?;
    // The part about this server, after the list of those that vote.
    let own = state.rfind(&format!("   {id}\n")).context("it is not in the state")?;
    for (from, to, wanted) in ANSWERS {
        let own_address = format!("{}:8300", pod.address());
        let mut own_lines = state[own..].lines();
        let of_status = own_lines.find(|it| it.trim().starts_with("Status:"));
        let of_status = of_status.context("it has no status")?.to_owned();
        let (from, to) = match from {
            "@OWN@:8300" => (own_address, to.to_owned()),
            "@STATUS@" => (of_status, format!("      Status:          {to}")),
            "@HEALTHY@" => ("Healthy:         true".into(), format!("Healthy:         {to}")),
            "@ID@" => (id.clone(), to.to_owned()),
            other => (other.to_owned(), to.to_owned()),
        };
        let (begin, end) = state.split_at(own);
        let answer = if begin.contains("Failure") && from.starts_with("Failure") {
            state.replacen(&from, &to, 1)
        } else {
            ensure!(end.contains(&from), "'{from}' is not in {end}");
            format!("{begin}{}", end.replacen(&from, &to, 1))
        };
        ensure!(answer != state, "nothing is replaced for {from}");
        stand_in(pod, &answer)?;
        let (passed, said) = servers.startup_probe(1).await?;
        fs::remove_file(pod.bin().join("consul"))?;
        symlink(program_path("consul")?, pod.bin().join("consul"))?;
        let right = wanted.map_or(passed, |text| !passed && said.contains(text));
        ensure!(right, "{from} -> {to}: passed: {passed}, want {wanted:?}: {said}");
    }
    Ok(())
}

#[tokio::test]
async fn s3_servers_come_and_go_with_their_volumes_and_s8_have_their_tokens_at_once() -> Result<()>
{
    scenarios::run("scaling").await
}

/// S8: the token was there before the server asked for anything. One that has no log yet knows no token,
/// its own neither, and asks again.
async fn had_its_token(servers: &Servers, ordinal: u8) -> Result<()> {
    eventually(START_DEADLINE, || async {
        let log = servers.member(ordinal)?.program.stdout();
        ensure!(!log.contains("ermission denied"), "{log}");
        ensure!(log.rfind("Synced node info") >= log.rfind("ACL not found"), "{log}");
        Ok(())
    })
    .await
}

pub async fn scaling() -> Result<()> {
    let mut servers = Servers::started(3).await?;
    let writes = Load::writes(&servers)?;
    servers.boot_all([3, 4]).await?;
    for ordinal in [3, 4] {
        let took = servers.wait_started(ordinal, START_DEADLINE).await?;
        let votes = servers.peers(0).await?.get(&format!("consul-server-{ordinal}")) == Some(&true);
        ensure!(votes, "it has started and does not vote");
        println!("consul-server-{ordinal} is new: started after {took:.1?}");
        had_its_token(&servers, ordinal).await?;
    }

    // One leaves as a pod that is deleted, the other is lost: the leader removes it.
    let began = Instant::now();
    servers.lose(4).await?;
    servers.delete_pod(3).await?;
    eventually(START_DEADLINE, || async {
        let peers = servers.peers(0).await?;
        ensure!(peers.len() == 3, "{peers:?}");
        Ok(())
    })
    .await?;
    println!("5 -> 3: the pruned are gone after {:.1?}", began.elapsed());

    // Back with the volumes that they had.
    servers.boot_all([3, 4]).await?;
    for ordinal in [3, 4] {
        let took = servers.wait_started(ordinal, REFUSED_DEADLINE).await?;
        let votes = servers.peers(0).await?.get(&format!("consul-server-{ordinal}")) == Some(&true);
        ensure!(votes, "it has started and does not vote");
        println!("consul-server-{ordinal} is back with its volume: started after {took:.1?}");
    }

    // S8: back without its volume.
    servers.delete_pod(4).await?;
    servers.wipe(4)?;
    servers.boot(4).await?;
    servers.wait_started(4, START_DEADLINE).await?;
    had_its_token(&servers, 4).await?;
    let writes = writes.finish("writes").await?;
    ensure!(writes.longest_gap < ELECTION, "no quorum for {:?}", writes.longest_gap);
    nothing_is_lost(&servers.api(4)?, writes.count).await
}
