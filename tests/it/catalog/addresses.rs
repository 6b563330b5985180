//! `--consul-addr` with several addresses: another one is asked while nobody is at the first.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use kube_consul_stack::{Authority, Consul, ConsulCluster, ConsulOptions, Data, Port, eventually};

use super::support::{any_tag, leads, wait_for_registered, watch_names};
use crate::support::{
    Bridge, DEADLINE, Fixture, Objects, catalog_bridge, ends_with, numbered, says,
};

#[tokio::test]
async fn the_first_address_may_be_dead_at_the_start_and_each_has_its_certificate_checked()
-> Result<()> {
    let authority = Authority::new("addresses")?;
    let certificate = authority.issue(&["server.dc1.consul", "127.0.0.1"])?;
    let options = ConsulOptions::dev().tls_with(&authority, &certificate, false)?;
    let fixture = Fixture::with_consul("addresses", options).await?;
    let folder = tempfile::tempdir()?;
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, authority.pem())?;
    // Reserved, and nobody listens.
    let dead = Port::pick()?;
    let dead = format!("https://127.0.0.1:{}", dead.number());
    fixture.web("web", &[("http", 80)]).await?;
    let addresses = format!("{dead},{}", fixture.consul.url());
    for flags in [&[][..], &["--consul-tls-server-name", "server.dc1.consul"]] {
        let options =
            [&["--sink", "catalog", "--consul-addr", &addresses, "--consul-ca-file"], &[][..]];
        let command = fixture.command().await?.args(options.concat()).arg(&ca).args(flags);
        let bridge = Bridge::start(command).await?;
        bridge.wait_ready().await?;
        fixture.wait_for_instances("web", 1).await?;
        let log = bridge.program.stderr();
        ensure!(log.contains(&format!("going on at {}", fixture.consul.url())), "{log}");
        bridge.stop().await?;
    }
    // Before it is needed.
    let check = fixture.subcommand("check").await?.args(["--sink", "catalog"]);
    let check = check.args(["--consul-addr", &addresses, "--consul-ca-file"]).arg(&ca);
    let found = says(0, check).await?;
    let line = |url: &str| {
        let all = found.lines().filter(|line| line.contains(&format!("consul address {url}")));
        all.map(ToOwned::to_owned).collect::<Vec<_>>()
    };
    ensure!(matches!(&line(&dead)[..], [one] if one.contains("warning")), "{found}");
    let alive = line(fixture.consul.url());
    ensure!(matches!(&alive[..], [one] if one.contains("answers")), "{found}");
    Ok(())
}

#[tokio::test]
async fn an_address_that_dies_is_left_and_nothing_is_removed() -> Result<()> {
    let servers = Fixture::servers(ConsulOptions::server()).await?;
    let objects: Objects = servers.objects("addresses").await?;
    let name = objects.namespace.clone();
    let names = numbered("web", 20);
    objects.create_all(&names).await?;
    servers.consul.wait_until_one_may_fail().await?;
    // The one that leads: the others have to agree on another, too.
    let leader = servers.consul.wait_for_leader().await?;
    let others = (0..3).filter(|place| *place != leader).collect::<Vec<_>>();
    let all = &servers.consul.servers;
    let at = |place: usize| all[place].url().to_owned();
    let addresses = [at(leader), at(others[0]), at(others[1])].join(",");
    let command = catalog_bridge(&at(leader), &name, &name).await?;
    let command = command.args(["--leader-elect", "--consul-addr", &addresses]);
    let bridge = Bridge::start(command).await?;
    bridge.wait_ready().await?;
    let fixture = (name.as_str(), name.as_str());
    let watched = watch_names(all[others[0]].api(), fixture, &names).await?;

    all[leader].kill().await?;
    objects.create_all(&numbered("later", 3)).await?;
    objects.delete(&names[0]).await?;
    let mut wanted = any_tag(&[&names[1..], &numbered("later", 3)].concat());
    let watched_still = watch_names(all[others[1]].api(), fixture, &names[1..]).await?;
    wait_for_registered(all[others[0]].api(), fixture, &wanted, DEADLINE * 2).await?;
    watched_still.finish("the others' names").await?;
    // What was deleted is gone, so the first watch ends with that alone.
    let gone = watched.finish_with_gaps("all names").await.err().map(|it| it.to_string());
    let gone = gone.unwrap_or_default();
    ensure!(gone.contains(&format!("{} is missing", names[0])), "{gone}");
    ensure!(!names[1..].iter().any(|it| gone.contains(&format!("{it} is missing"))), "{gone}");
    ensure!(bridge.program.stderr().contains("going on at"), "{}", bridge.program.stderr());
    // The lock and its session are the cluster's: whoever is asked knows them.
    eventually(DEADLINE, || async {
        ensure!(leads(&bridge).await?, "{}", bridge.status().await?["leadership"]);
        Ok(())
    })
    .await?;
    objects.tag(&names[1], "after").await?;
    wanted.insert(names[1].clone(), "after".to_owned());
    wait_for_registered(all[others[0]].api(), fixture, &wanted, DEADLINE).await?;
    bridge.stop().await
}

#[tokio::test]
async fn an_agents_registrations_have_one_address() -> Result<()> {
    let fixture: Fixture<Consul> = Fixture::new("addresses").await?;
    let several = ["--consul-addr", "127.0.0.1:8500", "--consul-addr", "127.0.0.2:8500"];
    let said = ends_with(2, fixture.command().await?.args(several)).await?;
    ensure!(said.contains("--consul-addr: expected one address"), "{said}");
    Ok(())
}

#[tokio::test]
async fn a_server_that_knows_no_leader_is_left() -> Result<()> {
    let fixture: Fixture<Consul> = Fixture::new("addresses").await?;
    let servers = ConsulCluster::start().await?;
    let [lonely, others @ ..] = &*servers.servers else { bail!("three servers are expected") };
    for other in others {
        other.kill().await?;
    }
    fixture.web("web", &[("http", 80)]).await?;
    eventually(DEADLINE * 2, || async {
        let status = lonely.api().status("/v1/kv/any").await?;
        ensure!(status == 500, "{status}");
        Ok(())
    })
    .await?;
    let addresses = [lonely.url(), fixture.consul.url()].join(",");
    let command = fixture.command().await?;
    let bridge =
        Bridge::start(command.args(["--sink", "catalog", "--consul-addr", &addresses])).await?;
    // Without a leader Consul answers after 7 s.
    eventually(DEADLINE * 3, || async { bridge.wait_ready().await }).await?;
    fixture.wait_for_instances("web", 1).await?;
    let log = bridge.program.stderr();
    let told = |text: &str| log.lines().filter(|line| line.contains(text)).count();
    ensure!(told("cannot be used at this address") == 1, "{log}");
    ensure!(told(&format!("going on at {}", fixture.consul.url())) == 1, "{log}");
    bridge.stop().await
}

#[tokio::test]
async fn an_address_of_another_datacenter_is_passed_over() -> Result<()> {
    let mut fixture = Fixture::with_consul("addresses", ConsulOptions::server()).await?;
    let other = Consul::start(ConsulOptions::dev().datacenter("dc2")).await?;
    let addresses = [fixture.consul.url(), other.url()].join(",");
    let options = ["--sink", "catalog", "--consul-addr", &addresses];
    fixture.web("web", &[("http", 80)]).await?;
    let bridge = Bridge::start(fixture.command().await?.args(options)).await?;
    bridge.wait_ready().await?;
    fixture.wait_for_instances("web", 1).await?;
    let found = says(1, fixture.subcommand("check").await?.args(options)).await?;
    let line = found.lines().find(|it| it.contains(&format!("consul address {}", other.url())));
    ensure!(line.is_some_and(|it| it.contains("of datacenter dc2")), "{found}");
    ensure!(found.contains("the first is of dc1"), "{found}");

    fixture.consul.kill().await?;
    fixture.web("later", &[("http", 80)]).await?;
    eventually(DEADLINE, || async {
        let log = bridge.program.stderr();
        let told = log.matches("expected datacenter").count();
        ensure!(told > 0, "{log}");
        Ok(())
    })
    .await?;
    // Longer than a retry takes.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let keys = other.api().get("/v1/kv/?keys").await?;
    ensure!(keys.as_array().is_none_or(Vec::is_empty), "{keys}");
    let nodes = other.api().get("/v1/catalog/nodes").await?;
    ensure!(nodes.as_array().map_or(0, Vec::len) == 1, "its own alone: {nodes}");

    fixture.consul.restart(Data::Kept).await?;
    fixture.consul.wait_ready().await?;
    for name in ["web", "later"] {
        fixture.wait_for_instances(name, 1).await?;
    }
    let log = bridge.program.stderr();
    let told = log.lines().filter(|it| it.contains("the address is passed over")).count();
    ensure!(told == 1, "{told} times: {log}");
    bridge.stop().await
}

#[tokio::test]
async fn a_token_goes_over_tls_to_all_addresses_or_to_none() -> Result<()> {
    let fixture: Fixture<Consul> = Fixture::new("addresses").await?;
    let mixed = ["--sink", "catalog", "--consul-addr", "https://127.0.0.1:1,127.0.0.2:8500"];
    let said = ends_with(2, fixture.command().await?.args(mixed)).await?;
    ensure!(said.contains("expected https for all addresses or for none"), "{said}");
    Ok(())
}
