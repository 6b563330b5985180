//! What belongs together is written together: seen by a reader that takes a service, its check
//! and its PTR record at one moment.

use std::sync::Arc;

use anyhow::{Result, ensure};
use kube_consul_stack::{ConsulApi, ConsulOptions, eventually};
use serde_json::{Value, json};

use super::support::{any_tag, wait_for_registered};
use crate::support::{Addresses, Bridge, DEADLINE, Fixture, InvariantMonitor, Objects};

const CLUSTER: &str = "atomic";
/// With three reads each, one transaction of at most 64 operations reads them all.
const SERVICES: usize = 20;
/// Those from here on are never ready.
const UNREADY: usize = 14;
/// Rounds of changes: with the Services and the changes of each, 500.
const ROUNDS: usize = 8;

/// A Service of the test and where its records are.
struct Subject {
    name: String,
    address: String,
    is_ever_ready: bool,
}

// === impl Subject ===

impl Subject {
    /// Reads of its service, its check and its PTR record.
    fn reads(&self, namespace: &str) -> [Value; 3] {
        let node = format!("k8s-{CLUSTER}.{namespace}");
        let id = format!("{CLUSTER}_{namespace}_{}_http_{}", self.name, self.address);
        let parts: Vec<&str> = self.address.split('.').collect();
        let [a, b, c, _] = parts[..] else { return Default::default() };
        let key = format!("0.{c}.{b}.{a}.IN-ADDR.ARPA/{}", self.address);
        [
            json!({"Service": {"Verb": "get", "Node": node, "Service": {"ID": id}}}),
            json!({"Check": {"Verb": "get",
                "Check": {"Node": node, "CheckID": format!("{id}:readiness")}}}),
            json!({"KV": {"Verb": "get", "Key": key}}),
        ]
    }

    /// What must not be so.
    fn violation(&self, found: &[bool]) -> Option<String> {
        let [service, check, reverse] = found[..] else { return Some("no answer".to_owned()) };
        let name = &self.name;
        if service != reverse {
            return Some(format!("{name}: service {service}, PTR record {reverse}"));
        }
        if check && !service {
            return Some(format!("{name}: a check without its service"));
        }
        if service && !check && !self.is_ever_ready {
            return Some(format!("{name}: it is not ready and has no check"));
        }
        None
    }
}

async fn look(
    api: ConsulApi,
    subjects: Arc<Vec<Subject>>,
    namespace: String,
) -> Result<Vec<String>> {
    let reads: Vec<Value> = subjects.iter().flat_map(|it| it.reads(&namespace)).collect();
    let found = api.found(&reads).await?;
    let each = subjects.iter().zip(found.chunks(3));
    Ok(each.filter_map(|(subject, found)| subject.violation(found)).collect())
}

/// Changes one Service again and again. Gives how often.
async fn change(objects: &Objects, subject: &Subject, number: usize) -> Result<usize> {
    let ready: Addresses = (vec![format!("10.2.0.{number}")], true);
    let unready = (ready.0.clone(), false);
    let name = &subject.name;
    for round in 0..ROUNDS {
        if subject.is_ever_ready {
            objects.set_ready(name, &unready).await?;
        } else {
            objects.tag(name, &format!("round-{round}")).await?;
        }
        let renamed = json!({"kube-consul.io/service-name": format!("other-{name}-{round}")});
        objects.annotate(name, renamed).await?;
        if subject.is_ever_ready && round % 2 == 0 {
            objects.set_ready(name, &ready).await?;
        }
        // The slice stays: a Service that comes back is seen with its endpoints.
        objects.delete(name).await?;
        objects.create_at(name, &subject.address).await?;
        if subject.is_ever_ready {
            objects.set_ready(name, &ready).await?;
        }
    }
    Ok(ROUNDS * if subject.is_ever_ready { 5 } else { 4 })
}

#[tokio::test]
async fn what_belongs_together_is_never_seen_apart() -> Result<()> {
    let servers = Fixture::servers(ConsulOptions::server()).await?;
    let objects = servers.objects("atomic").await?;
    let mut subjects = Vec::new();
    for number in 0..SERVICES {
        let (name, is_ever_ready) = (format!("svc-{number:03}"), number < UNREADY);
        let addresses = (vec![format!("10.2.0.{number}")], is_ever_ready);
        // Of the part of the range that is given out only when the rest is exhausted: no other
        // test gets it while the Service is away.
        let address = format!("10.96.0.{}", 100 + number);
        objects.create(&name, &addresses, json!({"clusterIP": address})).await?;
        subjects.push(Subject { name, address, is_ever_ready });
    }
    let subjects = Arc::new(subjects);
    let watched = (servers.api().clone(), Arc::clone(&subjects), objects.namespace.clone());
    let monitor = InvariantMonitor::start(move || {
        look(watched.0.clone(), watched.1.clone(), watched.2.clone())
    });
    let bridge = Bridge::start(servers.command(CLUSTER, &objects.namespace).await?).await?;
    bridge.wait_ready().await?;
    let changes = subjects.iter().enumerate().map(|(number, it)| change(&objects, it, number));
    let changes: usize = futures::future::try_join_all(changes).await?.into_iter().sum();
    println!("{changes} changes");
    ensure!(changes >= 500, "{changes} changes");
    let names: Vec<String> = subjects.iter().map(|it| it.name.clone()).collect();
    let fixture = (CLUSTER, objects.namespace.as_str());
    wait_for_registered(servers.api(), fixture, &any_tag(&names), DEADLINE).await?;
    // Each is there with its PTR record, and those that are not ready with their check.
    let reads: Vec<Value> = subjects.iter().flat_map(|it| it.reads(&objects.namespace)).collect();
    let expected: Vec<bool> =
        subjects.iter().flat_map(|it| [true, !it.is_ever_ready, true]).collect();
    eventually(DEADLINE, || async {
        let found = servers.api().found(&reads).await?;
        ensure!(found == expected, "{found:?}");
        Ok(())
    })
    .await?;
    monitor.finish_with_gaps("service, check and PTR record").await?;
    bridge.stop().await
}
