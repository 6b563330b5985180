//! `--consul-addr` with several addresses: another one is asked while nobody is at the first.

use anyhow::{Result, ensure};
use kube_consul_stack::{Authority, Consul, ConsulOptions, Port, eventually};

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
