//! What comes out of what goes in.

mod created;
mod marked;
mod old;

use std::collections::VecDeque;
use std::net::IpAddr;

use super::failures::RETRY;
use super::*;
use crate::domain::import::create::{CreateAs, Wanted};
use crate::domain::import::instance::Health;
use crate::domain::import::layout::{Slice, SlicePort};
use crate::domain::import::object::{Form, MANAGED_BY, Version};
use crate::domain::import::source::{
    CONSUL8S_NAME, CONSUL8S_SOURCE, CREATED, DATACENTERS, FAILOVER, IMPORT, KEEP, SERVICE_SYNC,
};

const DB: &str = "shop/db";

/// An import with an API server that takes what it is sent, and a Consul that answers what it is
/// told to.
struct Harness {
    import: Importer,
    now: Moment,
    followed: BTreeSet<Source>,
    followed_for: BTreeSet<(Source, Box<str>)>,
    /// What the API server has: the uid of the owner and the slice.
    slices: BTreeMap<Box<str>, (Box<str>, Slice)>,
    log: Vec<String>,
    /// Writes that are refused.
    refuse: usize,
    pending: VecDeque<Action>,
    hold: bool,
    /// Whether Endpoints are those that consul8s left.
    endpoints_are_old: bool,
    /// How many Services were made.
    uid: usize,
}

fn key(name: &str) -> ObjectKey {
    let (namespace, name) = name.split_once('/').unwrap();
    ObjectKey::new(namespace, name)
}

fn service(uid: &str, annotations: &[(&str, &str)]) -> Service {
    Service {
        uid: uid.into(),
        labels: BTreeMap::new(),
        annotations: annotations.iter().map(|&(key, value)| (key.into(), value.into())).collect(),
        ports: vec![("pg".into(), "TCP".into())],
        has_selector: false,
        form: Form::ClusterIp,
        is_going: false,
        port: Some(5432),
        version: Version::default(),
    }
}

fn instances(addresses: &[&str]) -> Vec<Instance> {
    let of = |address: &&str| {
        let (address, health) = match address.strip_prefix('!') {
            Some(address) => (address, Health::Critical),
            None => (*address, Health::Passing),
        };
        Instance {
            address: address.into(),
            node_address: "10.9.9.9".into(),
            port: 5432,
            health,
            cluster: None,
            protocol: crate::domain::kube::object::Protocol::Tcp,
            is_proxy: false,
            origin: None,
        }
    };
    addresses.iter().map(of).collect()
}

fn source(service: &str, datacenter: Option<&str>) -> Source {
    Source {
        service: service.into(),
        datacenter: datacenter.map(Into::into),
        tags: [].into(),
        filter: None,
    }
}

fn owned(service: &ObjectKey, owner: &str, manager: &str, slice: Slice) -> OwnedSlice {
    OwnedSlice {
        service: service.name.clone(),
        managed_by: manager.into(),
        owner: owner.into(),
        uid: "slice-uid".into(),
        slice,
        is_canonical: true,
        version: Version::default(),
    }
}

/// A Service as the API server makes it.
fn made(wanted: &Wanted, uid: &str) -> Service {
    Service {
        labels: [(CREATED.0.into(), CREATED.1.into())].into(),
        annotations: wanted.annotations.clone(),
        ports: wanted.ports(),
        port: wanted.port.as_ref().map(|(number, _)| *number),
        form: wanted.form.clone(),
        ..service(uid, &[])
    }
}

impl Harness {
    fn new() -> Self {
        Self::with(None)
    }

    fn with(create: Option<Create>) -> Self {
        let mut import = Importer::new(Some("here".parse().unwrap()), create);
        import.handle_services_list();
        import.handle_slices_list();
        import.handle_slices_listed();
        import.handle_services_listed();
        Self {
            import,
            now: Moment::ZERO,
            followed: BTreeSet::new(),
            followed_for: BTreeSet::new(),
            slices: BTreeMap::new(),
            log: Vec::new(),
            refuse: 0,
            pending: VecDeque::new(),
            hold: false,
            endpoints_are_old: true,
            uid: 0,
        }
    }

    fn service(&mut self, service: Service) -> &mut Self {
        self.import.handle_service(key(DB), service);
        self.run()
    }

    fn answer(&mut self, source: &Source, addresses: &[&str]) -> &mut Self {
        self.import.handle_instances(source, instances(addresses), self.now);
        self.run()
    }

    fn run(&mut self) -> &mut Self {
        loop {
            while let Some(action) = self.import.poll_action(self.now) {
                self.pending.push_back(action);
            }
            if self.hold {
                return self;
            }
            let Some(action) = self.pending.pop_front() else { return self };
            self.act(action);
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Follow(source, namespace) => {
                self.followed.insert(source.clone());
                assert!(self.followed_for.insert((source, namespace)), "followed twice");
            }
            Action::Unfollow(source, namespace) => {
                assert!(self.followed_for.remove(&(source.clone(), namespace)));
                if self.followed_for.iter().all(|(other, _)| *other != source) {
                    self.followed.remove(&source);
                }
            }
            Action::Write(Write::Put { service, uid, name, slice }) => {
                if self.refuse > 0 {
                    self.refuse -= 1;
                    let problem = Problem::new(Reason::Refused, "no");
                    self.log.push("refused".to_owned());
                    let refused = Err(Failure { problem, retry_after: Duration::ZERO });
                    let now = self.now;
                    return self.import.handle_slice_written(&service, &uid, &name, refused, now);
                }
                self.log.push(format!("write {}", slice.endpoints.len()));
                self.slices.insert(name.clone(), ((*uid).into(), slice.clone()));
                let written = owned(&service, &uid, MANAGED_BY, slice);
                self.import.handle_slice_written(
                    &service,
                    &uid,
                    &name,
                    Ok(Some(written)),
                    self.now,
                );
            }
            Action::Write(Write::Delete { service, owner, name, .. }) => {
                if self.refuse > 0 {
                    self.refuse -= 1;
                    let problem = Problem::new(Reason::Denied, "no");
                    self.log.push("refused".to_owned());
                    let refused = Err(Failure { problem, retry_after: Duration::ZERO });
                    let now = self.now;
                    return self.import.handle_slice_written(&service, &owner, &name, refused, now);
                }
                self.log.push("delete".to_owned());
                self.slices.remove(&name);
                self.import.handle_slice_written(&service, &owner, &name, Ok(None), self.now);
            }
            Action::Write(Write::DeleteEndpoints { service, uid }) => {
                self.log.push("delete endpoints".to_owned());
                let answer = Ok(self.endpoints_are_old);
                self.import.handle_endpoints_deleted(&service, &uid, answer, self.now);
            }
            Action::Confirm(source) => self.log.push(format!("confirm {}", source.service)),
            Action::Write(Write::CreateService { service, wanted }) => {
                self.uid += 1;
                self.log.push(format!("create {service} {:?}", wanted.form));
                let made = made(&wanted, &format!("made-{}", self.uid));
                self.import.handle_service_written(&service, Ok(Some(made)), self.now);
            }
            Action::Write(Write::UpdateService { service, uid, wanted, .. }) => {
                self.log.push(format!("update {service} {:?}", wanted.form));
                let made = made(&wanted, &uid);
                self.import.handle_service_written(&service, Ok(Some(made)), self.now);
            }
            Action::Write(Write::DeleteService { service, .. }) => {
                self.log.push(format!("delete {service}"));
                self.import.handle_service_written(&service, Ok(None), self.now);
            }
        }
    }

    fn show(&mut self, service: &ObjectKey, name: &str, owner: &str, manager: &str, slice: Slice) {
        let slice = owned(service, owner, manager, slice);
        self.import.handle_slice(ObjectKey::new(service.namespace.clone(), name), slice);
    }

    fn later(&mut self, seconds: u64) -> &mut Self {
        self.now += Duration::from_secs(seconds);
        self.import.handle_timeout(self.now);
        self.run()
    }

    /// The addresses in all slices; those that are not ready with a mark.
    fn endpoints(&self) -> Vec<String> {
        let all = self.slices.values().flat_map(|(_, slice)| &slice.endpoints);
        all.map(|(address, ready)| format!("{}{address}", if *ready { "" } else { "!" })).collect()
    }

    fn log(&mut self) -> Vec<String> {
        std::mem::take(&mut self.log)
    }

    fn problems(&self) -> String {
        let all = self.import.problems().map(|(_, problem)| problem.message.clone());
        all.collect::<Vec<_>>().join("\n")
    }
}
