//! What the bridge keeps in memory for the cluster that its budget speaks of: 10,000 Services with
//! ten endpoints each. Everything but the network is the real thing: kube's lists and watches
//! against an API server within the process, the reconciler, an answer to each write, a read-back.
//!
//! Each mode runs in a process of its own, so that none sees what another one left. The floor is
//! that process before the first object.

use std::convert::Infallible;
use std::fmt;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures::StreamExt as _;
use futures::stream::select;
use http::{Request, Response};
use kube::Client;
use kube::client::Body;
use kube_consul::domain::desired::{Permit, desired};
use kube_consul::domain::names::{ForeignNames, ObjectKey};
use kube_consul::domain::object::{EndpointSlice, Node, Service, WatchEvent};
use kube_consul::domain::reconciler::{Action, Moment, Reconciler};
use kube_consul::domain::record::{
    Answer, ObservedRegistration, ObservedReverse, ReverseOwner, ReverseRecord,
};
use kube_consul::domain::reverse_dns::ReverseZone;
use kube_consul::domain::settings::{AddressMode, Settings};
use kube_consul::kubernetes::client::EndpointSource;
use kube_consul::kubernetes::slim::{EndpointSlices, Projected, Services, View};
use kube_consul::kubernetes::watch::{Notice, Relist, endpoints, services};
use serde_json::{Value, json};

const SERVICES: usize = 10_000;
const ENDPOINTS: usize = 10;
const NAMESPACES: usize = 100;
/// At 50 pods a node.
const NODES: usize = SERVICES * ENDPOINTS / 50;
/// What the whole bridge may have, its own program included.
const TARGET_MIB: f64 = 50.0;
/// As many as the bridge has in flight.
const SLOTS: usize = 16;

fn main() -> Result<ExitCode> {
    // Cargo passes `--bench`.
    if let Some(mode) = std::env::args().nth(1).filter(|mode| !mode.starts_with('-')) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(measure(mode.parse()?))?;
        return Ok(ExitCode::SUCCESS);
    }
    println!("{SERVICES} Services, {} endpoints; target {TARGET_MIB} MiB", SERVICES * ENDPOINTS);
    for mode in [AddressMode::ClusterIp, AddressMode::Endpoints] {
        let status = Command::new(std::env::current_exe()?).arg(mode.to_string()).status()?;
        ensure!(status.success(), "{mode} ended with {status}");
    }
    Ok(ExitCode::SUCCESS)
}

async fn measure(mode: AddressMode) -> Result<()> {
    let mut settings = Settings::new("kubernetes".parse()?);
    settings.address = mode;
    let floor = Memory::now()?;
    let mut bridge = Bridge::new(settings);
    let listed = bridge.list().await?;
    println!("{mode}: floor {floor}, listed {listed}");
    bridge.read_back(false)?;
    let written = bridge.write()?;
    println!("{mode}: {written} writes answered {}", Memory::now()?);
    bridge.read_back(true)?;
    println!("{mode}: read back {}", Memory::now()?);
    let expected = if mode == AddressMode::Endpoints { SERVICES * ENDPOINTS } else { SERVICES };
    let known = bridge.state.ledger().registration_count();
    ensure!(known == expected, "expected {expected} registrations, found {known}");
    ensure!(bridge.write()? == 0, "what is as it should be was written again");
    ensure!(bridge.state.problems().count() == 0, "expected no problems");
    Ok(())
}

struct Bridge {
    settings: Settings,
    zone: ReverseZone,
    state: Reconciler,
    now: Moment,
}

impl Bridge {
    fn new(settings: Settings) -> Self {
        let mut state = Reconciler::new(settings.clone());
        let zone = ReverseZone { datacenter: "dc1".into(), domain: "consul".into() };
        state.set_reverse_zone(Some(zone.clone()));
        state.set_foreign_names(ForeignNames::new());
        Self { settings, zone, state, now: Duration::from_secs(1) }
    }

    /// Takes both lists, as the bridge does. The watches end here: what they keep is measured
    /// before.
    async fn list(&mut self) -> Result<Memory> {
        let client = Client::new(tower::service_fn(answer), "default");
        let mut notices = select(
            services(client.clone(), Relist::default()),
            endpoints(client, EndpointSource::EndpointSlices, Relist::default()),
        );
        let mut complete = 0;
        while complete < 2 {
            match notices.next().await.context("the watches ended")? {
                Notice::Event(event) => {
                    complete += usize::from(matches!(event, WatchEvent::ListCompleted(_)));
                    self.state.watch(event, self.now);
                }
                other => anyhow::bail!("expected an event, found {other:?}"),
            }
        }
        Memory::now()
    }

    /// Answers every write that is due; returns how many there were.
    fn write(&mut self) -> Result<usize> {
        let mut written = 0;
        loop {
            let actions = self.state.next_actions(self.now, SLOTS);
            if actions.is_empty() {
                ensure!(self.state.is_settled(), "something is left to do");
                self.state.take_reports();
                return Ok(written);
            }
            for action in actions {
                let Action::Write(writes) = action else { anyhow::bail!("a reading: {action:?}") };
                for write in writes {
                    written += 1;
                    self.state.answered(&write.key(), Answer::Applied { index: 7 }, self.now);
                }
            }
            self.state.take_reports();
        }
    }

    /// Shows the reconciler what Consul has: nothing, or all that ought to be there.
    fn read_back(&mut self, full: bool) -> Result<()> {
        self.state.begin_read_back(self.now);
        for number in (0..SERVICES).filter(|_| full) {
            let (key, service, slice) = projected(number)?;
            let permit = |_: &str, _| Permit::Granted;
            let slices = std::iter::once(&slice);
            let nodes = None::<std::iter::Empty<(&str, &Node)>>;
            let wanted = desired(&self.settings, &key, &service, slices, nodes, &permit);
            for registration in wanted.registrations.into_values() {
                self.state.observed_registration(&ObservedRegistration { registration, index: 7 });
            }
            for (key, name) in wanted.reverse {
                let value = self.zone.name_of(&name).into();
                let record = ReverseRecord { key, value };
                let flags = ReverseOwner::flags(&self.settings.cluster);
                self.state.observed_reverse(&ObservedReverse { record, flags, index: 7 });
            }
        }
        self.state.finish_read_back(self.now);
        Ok(())
    }
}

/// A page of a list. A watch is never answered: nothing changes.
async fn answer(request: Request<Body>) -> Result<Response<Body>, Infallible> {
    let query = request.uri().query().unwrap_or_default();
    if query.contains("watch=true") {
        std::future::pending::<()>().await;
    }
    let parameter = |name: &str| {
        query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
    };
    let object = if request.uri().path().ends_with("/services") { service } else { slice };
    let first = parameter("continue").unwrap_or(0);
    let last = SERVICES.min(first + parameter("limit").unwrap_or(SERVICES));
    let mut metadata = json!({ "resourceVersion": "1" });
    if last < SERVICES {
        metadata["continue"] = last.to_string().into();
    }
    let items: Vec<_> = (first..last).map(|number| object(number).to_string()).collect();
    let page = format!("{{\"metadata\":{metadata},\"items\":[{}]}}", items.join(","));
    Ok(Response::new(Body::from(page.into_bytes())))
}

/// The objects of one Service, as the edge projects them.
fn projected(number: usize) -> Result<(ObjectKey, Service, EndpointSlice)> {
    let (identity, view) = Services::decode(&service(number).to_string())?;
    let (_, slice) = EndpointSlices::decode(&slice(number).to_string())?;
    match (view, slice) {
        (View::Service(service), View::Slice(Some(slice))) => Ok((identity.key, service, slice)),
        other => anyhow::bail!("expected a Service and its slice, found {other:?}"),
    }
}

fn name(number: usize) -> String {
    format!("checkout-api-{number}")
}

fn metadata(number: usize, name: &str) -> Value {
    json!({
        "name": name,
        "namespace": format!("team-{}", number % NAMESPACES),
        "uid": format!("8c1f5a52-6a3e-4a55-9d0b-{number:012x}"),
        "resourceVersion": "123456789",
        "creationTimestamp": "2026-01-02T03:04:05Z",
        "labels": {
            "app.kubernetes.io/name": self::name(number),
            "app.kubernetes.io/managed-by": "Helm",
            "kubernetes.io/service-name": self::name(number),
        },
        "annotations": { "meta.helm.sh/release-name": self::name(number) },
        "managedFields": [{ "manager": "helm", "fieldsV1": { "f:spec": { "f:ports": {} } } }],
    })
}

fn service(number: usize) -> Value {
    let ip = format!("10.96.{}.{}", number / 256, number % 256);
    json!({
        "metadata": metadata(number, &name(number)),
        "spec": {
            "type": "ClusterIP",
            "clusterIP": ip,
            "clusterIPs": [ip],
            "ports": [{ "name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP" }],
            "selector": { "app.kubernetes.io/name": name(number) },
        },
        "status": { "loadBalancer": {} },
    })
}

fn slice(number: usize) -> Value {
    let endpoints: Vec<Value> = (0..ENDPOINTS).map(|pod| endpoint(number, pod)).collect();
    json!({
        "metadata": metadata(number, &format!("{}-x7k2p", name(number))),
        "addressType": "IPv4",
        "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
        "endpoints": endpoints,
    })
}

fn endpoint(number: usize, pod: usize) -> Value {
    let all = number * ENDPOINTS + pod;
    let node = all % NODES;
    json!({
        "addresses": [format!("10.{}.{}.{}", 128 + all / 65536, all / 256 % 256, all % 256)],
        "conditions": { "ready": true, "serving": true, "terminating": false },
        "targetRef": {
            "kind": "Pod",
            "name": format!("{}-7d4b9c6f5d-{pod:05}", name(number)),
            "namespace": format!("team-{}", number % NAMESPACES),
            "uid": format!("0b7c9d1e-6a3e-4a55-9d0b-{all:012x}"),
        },
        "nodeName": format!("ip-10-0-{}-{}.eu-central-1.compute.internal", node / 256, node % 256),
        "zone": format!("eu-central-1{}", ["a", "b", "c"][node % 3]),
    })
}

/// What this process has resident, in MiB: now, and at the most so far.
struct Memory {
    now: f64,
    most: f64,
}

impl Memory {
    fn now() -> Result<Self> {
        let status = std::fs::read_to_string("/proc/self/status")?;
        let mebibytes = |field: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(field));
            let number =
                line.and_then(|line| line.trim_start_matches(':').split_whitespace().next());
            let kibibytes: f64 = number.with_context(|| format!("no {field}"))?.parse()?;
            Ok::<_, anyhow::Error>(kibibytes / 1024.0)
        };
        Ok(Self { now: mebibytes("VmRSS")?, most: mebibytes("VmHWM")? })
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} MiB (at most {:.1})", self.now, self.most)
    }
}
