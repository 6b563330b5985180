//! What the bridge keeps in memory for the cluster that its budget speaks of: 10,000 Services with
//! ten endpoints each. Everything but the network is the real thing: lists and watches
//! against an API server within the process, the reconciler, an answer to each write, a read-back.
//!
//! Each mode runs in a process of its own, so that none sees what another one left. The floor is
//! that process before the first object.

use std::convert::Infallible;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures::StreamExt as _;
use futures::stream::select;
use http::{Request, Response};
use kube::Client;
use kube::client::Body;
use kube_consul::domain::consul::names::ForeignNames;
use kube_consul::domain::consul::ptr::ConsulDomain;
use kube_consul::domain::consul::record::{
    Answer, ObservedPtr, ObservedRegistration, PtrOwner, PtrRecord,
};
use kube_consul::domain::kube::names::ObjectKey;
use kube_consul::domain::kube::object::{EndpointSlice, Node, Service, WatchEvent};
use kube_consul::domain::services::desired::{Neighbours, Permit, desired};
use kube_consul::domain::services::settings::{AddressMode, Settings};
use kube_consul::domain::sync::{Action, Moment, Reconciler};
use kube_consul::kubernetes::client::EndpointSource;
use kube_consul::kubernetes::slim::{Content, EndpointSlices, Services, Watched as _};
use kube_consul::kubernetes::watch::{Notice, Relist, Watcher};
use serde_json::{Value, json};

mod objects;

use objects::{ENDPOINTS, Memory, SERVICES, TARGET_MIB};

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
    let floor = Memory::of("self")?;
    let mut bridge = Bridge::new(settings);
    let listed = bridge.list().await?;
    println!("{mode}: floor {floor}, listed {listed}");
    bridge.read_back(false)?;
    let written = bridge.write()?;
    println!("{mode}: {written} writes answered {}", Memory::of("self")?);
    bridge.read_back(true)?;
    println!("{mode}: read back {}", Memory::of("self")?);
    let expected = if mode == AddressMode::Endpoints { SERVICES * ENDPOINTS } else { SERVICES };
    let known = bridge.state.ledger().registration_count();
    ensure!(known == expected, "expected {expected} registrations, found {known}");
    ensure!(bridge.write()? == 0, "what is as it should be was written again");
    ensure!(bridge.state.problems().count() == 0, "expected no problems");
    Ok(())
}

struct Bridge {
    settings: Settings,
    zone: ConsulDomain,
    state: Reconciler,
    now: Moment,
}

impl Bridge {
    fn new(settings: Settings) -> Self {
        let mut state = Reconciler::new(settings.clone());
        let zone = ConsulDomain { datacenter: "dc1".into(), domain: "consul".into() };
        state.set_ptr_zone(Some(zone.clone()));
        state.set_foreign_names(ForeignNames::new());
        Self { settings, zone, state, now: Duration::from_secs(1) }
    }

    /// Takes both lists, as the bridge does. The watches end here: what they keep is measured
    /// before.
    async fn list(&mut self) -> Result<Memory> {
        let watcher = Watcher::new(Client::new(tower::service_fn(answer), "default"));
        let mut notices = select(
            watcher.services(Relist::default()),
            watcher.endpoints(EndpointSource::EndpointSlices, Relist::default()),
        );
        let mut complete = 0;
        while complete < 2 {
            match notices.next().await.context("the watches ended")? {
                Notice::Event(event) => {
                    complete += usize::from(matches!(event, WatchEvent::ListCompleted(_)));
                    self.state.watch(event, self.now);
                }
                Notice::Heard(_) => {}
                other => anyhow::bail!("expected an event, found {other:?}"),
            }
        }
        Memory::of("self")
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
            let permit = |_: &str, _| Permit::Granted(Neighbours::default());
            let slices = std::iter::once(&slice);
            let nodes = None::<std::iter::Empty<(&str, &Node)>>;
            let wanted = desired(&self.settings, &key, &service, slices, nodes, &permit);
            for registration in wanted.registrations.into_values() {
                self.state.observed_registration(&ObservedRegistration { registration, index: 7 });
            }
            for (key, ptr) in wanted.reverse {
                let value = self.zone.name_of(&ptr.service).into();
                let record = PtrRecord { key, value };
                let flags = PtrOwner::flags(&self.settings.cluster);
                self.state.observed_ptr(&ObservedPtr { record, flags, index: 7 });
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
    let (identity, found) = Services::decode(&service(number).to_string())?;
    let (_, slice) = EndpointSlices::decode(&slice(number).to_string())?;
    match (found, slice) {
        (Content::Object(service), Content::Object(slice)) => Ok((identity.key, service, slice)),
        other => anyhow::bail!("expected a Service and its slice, found {other:?}"),
    }
}

/// An object as the API server gives it.
fn served(mut object: Value, number: usize) -> Value {
    let metadata = &mut object["metadata"];
    metadata["uid"] = format!("8c1f5a52-6a3e-4a55-9d0b-{number:012x}").into();
    metadata["resourceVersion"] = "123456789".into();
    metadata["creationTimestamp"] = "2026-01-02T03:04:05Z".into();
    metadata["managedFields"] =
        json!([{ "manager": "helm", "fieldsV1": { "f:spec": { "f:ports": {} } } }]);
    object
}

fn service(number: usize) -> Value {
    let mut service = served(objects::service(number), number);
    let ip = format!("10.96.{}.{}", number / 256, number % 256);
    service["spec"]["type"] = "ClusterIP".into();
    service["spec"]["clusterIPs"] = json!([ip]);
    service["spec"]["clusterIP"] = ip.into();
    service["status"] = json!({ "loadBalancer": {} });
    service
}

fn slice(number: usize) -> Value {
    served(objects::slice(number), number)
}
