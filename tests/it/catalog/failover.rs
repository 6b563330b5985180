//! One of several bridges writes, whatever becomes of it.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use http::StatusCode;
use kube_consul_stack::{ConsulCluster, ConsulOptions, Fault, HttpRecorder, eventually};
use tokio::sync::watch;
use tokio::time::sleep;

use super::support::{Changes, any_tag, leads, wait_for_registered, watch_names};
use crate::support::{Bridge, DEADLINE, Fixture, Objects, catalog_bridge, numbered};

/// A session of 10 s runs out within 20 s; the rest is for a machine with other work.
const TAKE_OVER: Duration = Duration::from_secs(45);
/// Changes a second while a leader is killed.
const RATE: u32 = 50;

async fn wait_for_lead(bridge: &Bridge) -> Result<()> {
    eventually(TAKE_OVER, || async {
        ensure!(leads(bridge).await?, "it does not lead: {}", bridge.status().await?["leadership"]);
        Ok(())
    })
    .await
}

/// A leader at this URL, and a standby at the second server.
async fn pair(
    servers: &Fixture<ConsulCluster>,
    url: &str,
    objects: &Objects,
) -> Result<(Bridge, Bridge)> {
    let name = &objects.namespace;
    let start = async |url: &str| {
        let bridge =
            Bridge::start(catalog_bridge(url, name, name).await?.arg("--leader-elect")).await?;
        bridge.wait_ready().await?;
        anyhow::Ok(bridge)
    };
    let first = start(url).await?;
    wait_for_lead(&first).await?;
    let second = start(servers.consul.servers[1].url()).await?;
    ensure!(!leads(&second).await?, "two lead");
    Ok((first, second))
}

#[tokio::test]
async fn there_is_always_one_that_writes_and_never_two() -> Result<()> {
    let servers = Fixture::servers(ConsulOptions::server()).await?;
    // Each waits for sessions to run out: at the same time.
    tokio::try_join!(killed(&servers), stopped(&servers), stood_still(&servers)).map(drop)
}

/// SIGKILL under load: the standby writes once the session ran out, and no change is lost.
async fn killed(servers: &Fixture<ConsulCluster>) -> Result<()> {
    let objects = servers.objects("killed").await?;
    let name = objects.namespace.clone();
    let names = numbered("killed", 100);
    objects.create_all(&names).await?;
    let (first, second) = pair(servers, servers.consul.servers[0].url(), &objects).await?;
    let fixture = (name.as_str(), name.as_str());
    wait_for_registered(servers.api(), fixture, &any_tag(&names), DEADLINE).await?;

    let monitor = watch_names(servers.api(), fixture, &names[..90]).await?;
    let changes = Changes::start(&objects, &names[..90], RATE);
    sleep(Duration::from_secs(2)).await;
    first.program.kill().await?;
    let killed = Instant::now();
    for name in &names[90..95] {
        objects.delete(name).await?;
    }
    objects.create_all(&numbered("killed-later", 5)).await?;
    wait_for_lead(&second).await?;
    println!("the standby leads {:?} after the leader was killed", killed.elapsed());
    sleep(Duration::from_secs(2)).await;
    let mut wanted = changes.finish().await?;
    let rest = [&names[95..], &numbered("killed-later", 5)].concat();
    wanted.append(&mut any_tag(&rest));
    ensure!(wanted.len() == 100, "not each was changed: {}", wanted.len());
    let began = Instant::now();
    wait_for_registered(servers.api(), fixture, &wanted, TAKE_OVER).await?;
    println!("the last of the changes is there after {:?}", began.elapsed());
    monitor.finish_with_gaps("a leader killed").await?;
    second.stop().await
}

/// SIGTERM: nobody waits for the session.
async fn stopped(servers: &Fixture<ConsulCluster>) -> Result<()> {
    let objects = servers.objects("stopped").await?;
    let name = objects.namespace.clone();
    objects.create_all(&["stopped-1".to_owned()]).await?;
    let (first, second) = pair(servers, servers.consul.servers[0].url(), &objects).await?;
    let fixture = (name.as_str(), name.as_str());
    first.stop().await?;
    let stopped = Instant::now();
    objects.create_all(&["stopped-2".to_owned()]).await?;
    let names = ["stopped-1".to_owned(), "stopped-2".to_owned()];
    wait_for_registered(servers.api(), fixture, &any_tag(&names), TAKE_OVER).await?;
    println!("the standby has written {:?} after SIGTERM ended the leader", stopped.elapsed());
    // Without the lock given back it would take the session's time, 10 s at least.
    ensure!(stopped.elapsed() < Duration::from_secs(8), "{:?}", stopped.elapsed());
    ensure!(leads(&second).await?, "nobody leads");
    second.stop().await
}

/// SIGSTOP and SIGCONT: neither what was on its way nor what comes after gets in.
async fn stood_still(servers: &Fixture<ConsulCluster>) -> Result<()> {
    let objects = servers.objects("still").await?;
    let name = objects.namespace.clone();
    let names = numbered("still", 2);
    objects.create_all(&names).await?;
    let recorder = HttpRecorder::start(servers.consul.servers[0].url()).await?;
    let (first, second) = pair(servers, &recorder.url(), &objects).await?;
    let fixture = (name.as_str(), name.as_str());
    wait_for_registered(servers.api(), fixture, &any_tag(&names), DEADLINE).await?;

    recorder.clear();
    // A write that a leader sent before it stood still gets in once the standby leads: the leader
    // does not notice how long it waits.
    let (release, released) = watch::channel(false);
    recorder.fault_times(1, Fault::Hold(released), |it| it.path.starts_with("/v1/txn"));
    objects.tag(&names[0], "old").await?;
    eventually(DEADLINE, || async {
        ensure!(recorder.writes().len() == 1, "nothing is on its way");
        Ok(())
    })
    .await?;
    first.program.pause().await;
    let paused = Instant::now();
    objects.tag(&names[0], "new").await?;
    objects.tag(&names[1], "new").await?;
    wait_for_lead(&second).await?;
    let new = names.iter().map(|name| (name.clone(), "new".to_owned())).collect();
    wait_for_registered(servers.api(), fixture, &new, DEADLINE).await?;
    println!("the standby has written {:?} after the leader stood still", paused.elapsed());

    release.send_replace(true);
    eventually(DEADLINE, || async {
        let late = recorder.writes();
        ensure!(late.len() == 1 && late[0].status.is_some(), "{late:#?}");
        Ok(())
    })
    .await?;
    let late = recorder.writes();
    ensure!(late[0].status == Some(StatusCode::CONFLICT), "it got in: {:?}", late[0].status);
    first.program.resume().await;
    eventually(DEADLINE, || async {
        ensure!(!leads(&first).await?, "it still takes itself for the leader");
        Ok(())
    })
    .await?;
    // It knows by now what has changed meanwhile, and leaves it to the other one.
    objects.tag(&names[1], "newer").await?;
    let newer = [(names[0].clone(), "new".to_owned()), (names[1].clone(), "newer".to_owned())];
    wait_for_registered(servers.api(), fixture, &newer.into(), DEADLINE).await?;
    let changing = |it: &&kube_consul_stack::Recorded| it.path.starts_with("/v1/txn");
    let got_in: Vec<_> = recorder
        .writes()
        .into_iter()
        .filter(|it| changing(&it) && it.status != Some(StatusCode::CONFLICT))
        .collect();
    ensure!(got_in.is_empty(), "{got_in:#?}");
    first.stop().await?;
    ensure!(leads(&second).await?, "a standby that stops takes the lock along");
    second.stop().await
}
