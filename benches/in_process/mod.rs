//! A bridge without its network: the watches against an API server within the process, the core, an
//! answer to each write, a read-back.

use std::convert::Infallible;
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
    Answer, Observation, ObservedPtr, ObservedRegistration, PtrOwner, PtrRecord,
};
use kube_consul::domain::kube::names::ObjectKey;
use kube_consul::domain::kube::object::{EndpointSlice, Node, Service, WatchEvent};
use kube_consul::domain::services::desired::{Neighbours, Permit, desired};
use kube_consul::domain::services::settings::Settings;
use kube_consul::domain::sync::{Action, Config, Core, Moment, Peer, Target};
use kube_consul::kubernetes::client::EndpointSource;
use kube_consul::kubernetes::slim::{Content, EndpointSlices, Services, Watched as _};
use kube_consul::kubernetes::watch::{Notice, Relist, Watcher};
use serde_json::json;

use crate::objects::{self, Memory};

pub struct Bridge {
    pub settings: Settings,
    domain: ConsulDomain,
    pub core: Core,
    pub now: Moment,
    /// How many Services the API server has.
    services: usize,
}

impl Bridge {
    /// Beside an API server with so many Services.
    pub fn new(settings: Settings, services: usize) -> Self {
        let now = Duration::from_secs(1);
        let mut core = Core::new(Config::new(settings.clone(), Target::Agent));
        let domain = ConsulDomain { datacenter: "dc1".into(), domain: "consul".into() };
        let peer = Peer { domain: Some(domain.clone()), shows_catalog: false };
        core.handle_connected(peer, now);
        core.handle_acquired(now);
        Self { settings, domain, core, now, services }
    }

    /// Takes both lists, as the bridge does. The watches end here: what they keep is measured
    /// before.
    pub async fn list(&mut self) -> Result<Memory> {
        let services = self.services;
        let watcher = Watcher::new(Client::new(
            tower::service_fn(move |request| answer(request, services)),
            "default",
        ));
        let mut notices = select(
            watcher.services(Relist::default()),
            watcher.endpoints(EndpointSource::EndpointSlices, Relist::default()),
        );
        let mut complete = 0;
        while complete < 2 {
            match notices.next().await.context("the watches ended")? {
                Notice::Event(event) => {
                    complete += usize::from(matches!(event, WatchEvent::ListCompleted(_)));
                    self.core.handle_watch(event, self.now);
                }
                Notice::Heard(_) => {}
                other => anyhow::bail!("expected an event, found {other:?}"),
            }
        }
        Memory::of("self")
    }

    /// Answers every write that is due; returns how many there were.
    pub fn write(&mut self) -> Result<usize> {
        let mut written = 0;
        while let Some(action) = self.core.poll_action(self.now) {
            let (flight, groups) = match action {
                Action::Write { flight, groups } => (flight, groups),
                Action::ReadNames => {
                    self.core.handle_names(Ok(ForeignNames::new()), self.now);
                    continue;
                }
                Action::ReadName(name) => {
                    self.core.handle_name(&name, Ok(None), self.now);
                    continue;
                }
                other => anyhow::bail!("expected a write, found {other:?}"),
            };
            let writes = groups.into_iter().flat_map(|group| group.writes);
            let answers: Vec<_> =
                writes.map(|write| (write.key(), Answer::Applied { index: 7 })).collect();
            written += answers.len();
            self.core.handle_answers(flight, answers, self.now);
            self.core.take_reports();
        }
        ensure!(self.core.is_settled(), "something is left to do");
        Ok(written)
    }

    /// Shows the core what Consul has: nothing, or all that ought to be there.
    pub fn resync(&mut self, full: bool) -> Result<()> {
        // The next one is due by then.
        self.now += Duration::from_mins(2);
        while !matches!(self.core.poll_action(self.now), Some(Action::Resync { .. })) {}
        for number in (0..self.services).filter(|_| full) {
            let (key, service, slice) = projected(number)?;
            let permit = |_: &str, _| Permit::Granted(Neighbours::default());
            let slices = std::iter::once(&slice);
            let nodes = None::<std::iter::Empty<(&str, &Node)>>;
            let wanted = desired(&self.settings, &key, &service, slices, nodes, &[], &permit);
            for registration in wanted.registrations.into_values() {
                let observed = ObservedRegistration { registration, index: 7 };
                self.core.handle_observation(Observation::Registration(observed));
            }
            for (key, ptr) in wanted.reverse {
                let value = self.domain.name_of(&ptr.service).into();
                let record = PtrRecord { key, value };
                let flags = PtrOwner::flags(&self.settings.cluster);
                self.core.handle_observation(Observation::Ptr(ObservedPtr {
                    record,
                    flags,
                    index: 7,
                }));
            }
        }
        self.core.handle_resync(Ok(()), self.now);
        Ok(())
    }
}

/// A page of a list. A watch is never answered: nothing changes.
async fn answer(request: Request<Body>, services: usize) -> Result<Response<Body>, Infallible> {
    let query = request.uri().query().unwrap_or_default();
    if query.contains("watch=true") {
        std::future::pending::<()>().await;
    }
    let parameter = |name: &str| {
        query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
    };
    let object = if request.uri().path().ends_with("/services") {
        objects::served_service
    } else {
        objects::served_slice
    };
    let first = parameter("continue").unwrap_or(0);
    let last = services.min(first + parameter("limit").unwrap_or(services));
    let mut metadata = json!({ "resourceVersion": "1" });
    if last < services {
        metadata["continue"] = last.to_string().into();
    }
    let items: Vec<_> = (first..last).map(|number| object(number).to_string()).collect();
    let page = format!("{{\"metadata\":{metadata},\"items\":[{}]}}", items.join(","));
    Ok(Response::new(Body::from(page.into_bytes())))
}

/// The objects of one Service, as the edge projects them.
fn projected(number: usize) -> Result<(ObjectKey, Service, EndpointSlice)> {
    let (identity, found) = Services::decode(&objects::served_service(number).to_string())?;
    let (_, slice) = EndpointSlices::decode(&objects::served_slice(number).to_string())?;
    match (found, slice) {
        (Content::Object(service), Content::Object(slice)) => Ok((identity.key, service, slice)),
        other => anyhow::bail!("expected a Service and its slice, found {other:?}"),
    }
}
