//! Makes changes in a namespace, and looks when Consul shows them.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures::future::try_join_all;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube_consul_stack::{Consul, Kubernetes, eventually};
use tokio::net::UdpSocket;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::change::{Change, Probe, Sign};
use super::replay::blocking;

/// Of one change. A lost one must not pass for a slow one: it ends the scenario.
const DEADLINE: Duration = Duration::from_mins(1);
/// Between the first look at a Service and its change: that look takes a millisecond or two.
const LEAD: Duration = Duration::from_millis(40);
/// Between two questions to DNS, which cannot be asked to wait.
const DNS_POLL: Duration = Duration::from_micros(500);
/// Requests at once while something is prepared.
const AT_ONCE: usize = 8;

/// Where a change is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// A blocking query of `/v1/health/service`.
    Health,
    /// Questions to Consul's DNS.
    Dns,
}

/// How changes are made.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Changes a second.
    pub rate: u32,
    /// Changes in a round.
    pub changes: usize,
    /// Where they are looked for.
    pub via: Via,
}

/// Makes changes in one namespace, and looks for them in Consul.
pub struct Prober {
    namespace: &'static str,
    services: Api<Service>,
    slices: Api<EndpointSlice>,
    consul: String,
    dns: SocketAddr,
    client: reqwest::Client,
    /// Services that it has created.
    made: Mutex<HashMap<String, Made>>,
}

/// What is known of a Service.
#[derive(Clone, Debug)]
struct Made {
    cluster_ip: String,
    /// The address of its first endpoint.
    first: String,
}

// === impl Prober ===

impl Prober {
    /// Of a namespace.
    pub fn new(kubernetes: &Kubernetes, consul: &Consul, namespace: &'static str) -> Result<Self> {
        let client = kubernetes.client()?;
        Ok(Self {
            namespace,
            services: Api::namespaced(client.clone(), namespace),
            slices: Api::namespaced(client, namespace),
            consul: consul.url().to_owned(),
            dns: consul.dns_address(),
            client: reqwest::Client::builder().no_proxy().tls_certs_only([]).build()?,
            made: Mutex::default(),
        })
    }

    /// What a change of a round is made to.
    pub fn probe(&self, change: Change, round: usize, number: usize) -> Probe {
        Probe::new(self.namespace, change, round, number)
    }

    /// Removes what a scenario before has left.
    pub async fn clean(&self) -> Result<()> {
        let (delete, all) = (DeleteParams::default(), ListParams::default());
        // One after the other: a collection of Services may not be deleted everywhere.
        let services = self.services.list(&all).await?;
        stream::iter(services.items.into_iter().filter_map(|it| it.metadata.name))
            .map(async |name| self.services.delete(&name, &DeleteParams::default()).await)
            .buffer_unordered(AT_ONCE)
            .try_for_each(async |_| Ok(()))
            .await?;
        self.slices.delete_collection(&delete, &all).await?;
        eventually(DEADLINE, || async {
            let left = self.services.list(&all).await?.items.len();
            let left = left + self.slices.list(&all).await?.items.len();
            ensure!(left == 0, "{left} objects are left");
            Ok(())
        })
        .await
    }

    fn made(&self, service: &str) -> Option<Made> {
        let made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        made.get(service).cloned()
    }

    fn remember(&self, service: &str, made: Made) {
        let mut all = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(service.to_owned(), made);
    }

    /// The addresses that a change of a Service speaks of: the newest first.
    pub fn addresses(&self, change: Change, probe: &Probe) -> Result<Vec<String>> {
        let made = self.made(&probe.service);
        let made = made.with_context(|| format!("{} was not created", probe.service))?;
        Ok(match change {
            Change::Endpoint => vec![probe.address(), made.first],
            _ => vec![made.cluster_ip],
        })
    }

    /// A round of changes: how long each took, in milliseconds.
    pub async fn round(&self, change: Change, round: usize, pace: Pace) -> Result<Vec<f64>> {
        let probes: Vec<_> = (0..pace.changes).map(|it| self.probe(change, round, it)).collect();
        stream::iter(&probes)
            .map(|probe| self.prepare(change, probe))
            .buffer_unordered(AT_ONCE)
            .try_collect::<()>()
            .await?;
        let began = Instant::now() + LEAD;
        let at = |number: u32| began + Duration::from_secs(number.into()) / pace.rate;
        let all =
            (0..).zip(&probes).map(|(it, probe)| self.change(change, probe, at(it), pace.via));
        try_join_all(all).await
    }

    /// Removes what a round has left and no other needs.
    pub async fn tidy(&self, change: Change, round: usize, pace: Pace) -> Result<()> {
        let delete = DeleteParams::default();
        for number in 0..pace.changes {
            let name = self.probe(change, round, number).service;
            if change == Change::Unready {
                self.services.delete(&name, &delete).await?;
            }
            if matches!(change, Change::Unready | Change::Delete) {
                self.slices.delete(&name, &delete).await?;
            }
        }
        if change == Change::Unready && pace.changes > 0 {
            let last = self.probe(change, round, pace.changes - 1).service;
            timeout(DEADLINE, self.seen(&last, &Sign::Lacks(last.clone()), 1)).await??;
        }
        Ok(())
    }

    /// Makes what the change needs.
    pub async fn prepare(&self, change: Change, probe: &Probe) -> Result<()> {
        match change {
            Change::Ready | Change::Unready => {
                let is_ready = change == Change::Ready;
                let slice = probe.slice(change, is_ready, &probe.endpoint(200), &[]);
                self.slices.create(&PostParams::default(), &serde_json::from_value(slice)?).await?;
            }
            Change::Endpoint if self.made(&probe.service).is_none() => {
                let slice = probe.slice(change, true, &probe.endpoint(200), &[]);
                self.slices.create(&PostParams::default(), &serde_json::from_value(slice)?).await?;
                self.create(change, probe).await?;
                for address in probe.addresses(&probe.endpoint(200)) {
                    let sign = Sign::Has(format!("\"{address}\""));
                    timeout(DEADLINE, self.seen(&probe.service, &sign, 1))
                        .await
                        .with_context(|| format!("{} is not registered", probe.service))??;
                }
            }
            _ => {}
        }
        Ok(())
    }

    async fn create(&self, change: Change, probe: &Probe) -> Result<()> {
        let object = serde_json::from_value(probe.object(change))?;
        let created = self.services.create(&PostParams::default(), &object).await?;
        let cluster_ip = created.spec.and_then(|spec| spec.cluster_ip).context("no cluster IP")?;
        self.remember(&probe.service, Made { cluster_ip, first: probe.endpoint(200) });
        Ok(())
    }

    async fn change(&self, change: Change, probe: &Probe, at: Instant, via: Via) -> Result<f64> {
        sleep_until(at - LEAD).await;
        let (index, _) = self.look(&probe.service, 0).await?;
        let sign = change.sign(probe);
        let seen = async {
            match via {
                Via::Health => self.seen(&probe.service, &sign, index.max(1)).await,
                Via::Dns => self.resolved(change, &probe.service, at).await,
            }
        };
        let made = async {
            sleep_until(at).await;
            let asked = Instant::now();
            self.make(change, probe).await?;
            // Watches show a deletion before its request is answered.
            anyhow::Ok(if change == Change::Delete { asked } else { Instant::now() })
        };
        let both = timeout(DEADLINE, async { tokio::try_join!(seen, made) });
        let what =
            || format!("{} of {} ({})", change.name(), probe.service, self.services.resource_url());
        let (seen, made) = both.await.with_context(what)?.with_context(what)?;
        // The answer may be in Consul before the API server's own has been read.
        let took = seen.saturating_duration_since(made).as_secs_f64();
        Ok((took - made.saturating_duration_since(seen).as_secs_f64()) * 1e3)
    }

    async fn make(&self, change: Change, probe: &Probe) -> Result<()> {
        let slice = match change {
            Change::Ready | Change::Unready => return self.create(change, probe).await,
            Change::Delete => {
                self.services.delete(&probe.service, &DeleteParams::default()).await?;
                return Ok(());
            }
            Change::Endpoint => {
                let told = self.addresses(change, probe)?;
                if let Some(made) = self.made(&probe.service) {
                    self.remember(&probe.service, Made { first: probe.address(), ..made });
                }
                probe.slice(change, true, &probe.address(), &told)
            }
            Change::TurnsReady | Change::TurnsUnready => {
                let told = self.addresses(change, probe)?;
                let is_ready = change == Change::TurnsReady;
                probe.slice(change, is_ready, &probe.endpoint(200), &told)
            }
        };
        let patch = Patch::Merge(slice);
        self.slices.patch(&probe.service, &PatchParams::default(), &patch).await?;
        Ok(())
    }

    /// When Consul shows the sign.
    async fn seen(&self, service: &str, sign: &Sign, mut index: u64) -> Result<Instant> {
        loop {
            let (next, text) = self.look(service, index).await?;
            if sign.is_in(&text) {
                return Ok(Instant::now());
            }
            index = next.max(1);
        }
    }

    /// What Consul has of a Service once it is newer than the index.
    async fn look(&self, service: &str, index: u64) -> Result<(u64, String)> {
        let url = format!("{}/v1/health/service/{service}", self.consul);
        blocking(&self.client, &url, index).await
    }

    /// When DNS answers for a Service, or no longer does.
    async fn resolved(&self, change: Change, service: &str, at: Instant) -> Result<Instant> {
        let wanted = change.resolves().context("DNS does not show that")?;
        let socket = UdpSocket::bind("127.0.0.1:0").await?;
        socket.connect(self.dns).await?;
        let question = question(service);
        let mut answer = [0; 1500];
        sleep_until(at).await;
        loop {
            socket.send(&question).await?;
            let length = socket.recv(&mut answer).await?;
            // The number of answers is in the seventh and eighth byte of the header.
            let answers = answer.get(6..8.min(length)).unwrap_or_default();
            if answers.iter().any(|byte| *byte != 0) == wanted {
                return Ok(Instant::now());
            }
            sleep(DNS_POLL).await;
        }
    }
}

/// For the A records of a service (RFC 1035, section 4).
fn question(service: &str) -> Vec<u8> {
    let mut question = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in [service, "service", "consul"] {
        question.push(u8::try_from(label.len()).unwrap_or(u8::MAX));
        question.extend(label.as_bytes());
    }
    question.extend([0, 0, 1, 0, 1]);
    question
}
