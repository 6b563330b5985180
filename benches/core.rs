//! The core without I/O, step by step: an object decoded, a changed endpoint from the event to its
//! write, a registration encoded, a page of `/status` made. An event is measured with 100, 1,000 and
//! 10,000 Services resident: it costs the same.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use kube_consul::admin::Selection;
use kube_consul::admin::status::{Peer, Readiness};
use kube_consul::consul::write::registration::ServiceBody;
use kube_consul::consul::write::txn::Operation;
use kube_consul::domain::consul::record::{CLUSTER_META, Check, Registration};
use kube_consul::domain::kube::object::{SeenObject, WatchEvent};
use kube_consul::domain::services::settings::{AddressMode, Settings};
use kube_consul::kubernetes::slim::{Content, EndpointSlices, Services, Watched as _};

use kube_consul::run::bridge::status::{Surroundings, page};
use serde::de::IgnoredAny;

mod in_process;
#[allow(dead_code, reason = "others measure memory, and make the cluster")]
mod objects;

use in_process::Bridge;
use objects::SERVICES;

fn decode(c: &mut Criterion) {
    let (service, slice) = (objects::service(1).to_string(), objects::slice(1).to_string());
    let mut group = c.benchmark_group("decode");
    // The floor: the same text read as JSON of which nothing is kept.
    group.bench_function("EndpointSlice of ten (floor)", |b| {
        b.iter(|| serde_json::from_str::<IgnoredAny>(black_box(&slice)).is_ok());
    });
    group.bench_function("Service", |b| b.iter(|| Services::decode(black_box(&service))));
    group.bench_function("EndpointSlice of ten", |b| {
        b.iter(|| EndpointSlices::decode(black_box(&slice)));
    });
}

/// With so many Services, all written.
fn settled(resident: usize) -> Bridge {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    let mut settings = Settings::new("kubernetes".parse().expect("a name"));
    settings.address = AddressMode::Endpoints;
    let mut bridge = Bridge::new(settings, resident);
    runtime.block_on(bridge.list()).expect("both lists");
    bridge.resync(false).expect("a resync");
    bridge.write().expect("writes");
    bridge
}

/// `cargo test` asks only whether it runs.
fn sizes() -> &'static [usize] {
    let is_measured = std::env::args().any(|argument| argument == "--bench");
    if is_measured { &[100, 1_000, SERVICES] } else { &[100] }
}

fn event(c: &mut Criterion) {
    let mut group = c.benchmark_group("event to write, one endpoint of ten");
    for resident in sizes() {
        let mut bridge = settled(*resident);
        let turns = [false, true].map(changed);
        let mut turn = 0;
        group.bench_function(BenchmarkId::new("resident", resident), |b| {
            b.iter(|| {
                bridge.core.handle_watch(turns[turn % 2].clone(), bridge.now);
                turn += 1;
                assert_eq!(bridge.write().expect("a write"), 1);
            });
        });
    }
}

/// While it is made, the loop handles no event.
fn status(c: &mut Criterion) {
    let mut group = c.benchmark_group("a page of /status");
    for resident in sizes() {
        let bridge = settled(*resident);
        group.bench_function(BenchmarkId::new("resident", resident), |b| {
            b.iter(|| page(&bridge.core, &bridge.settings, &Selection::default(), around(&bridge)));
        });
        let search = Selection { matching: "nothing".to_owned(), ..Selection::default() };
        group.bench_function(BenchmarkId::new("search, resident", resident), |b| {
            b.iter(|| page(&bridge.core, &bridge.settings, &search, around(&bridge)));
        });
    }
}

fn around(bridge: &Bridge) -> Surroundings {
    let peer = || Peer { url: String::new(), version: None, datacenter: None, trouble: None };
    Surroundings {
        cluster_uid: None,
        leadership: None,
        readiness: Readiness::Ready,
        history: Vec::new(),
        kubernetes: peer(),
        consul: peer(),
        watches: Vec::new(),
        now: bridge.now,
    }
}

/// The slice of a Service with its first endpoint ready or not.
fn changed(ready: bool) -> WatchEvent {
    let mut slice = objects::slice(7);
    slice["endpoints"][0]["conditions"]["ready"] = ready.into();
    match EndpointSlices::decode(&slice.to_string()) {
        Ok((identity, Content::Object(slice))) => {
            WatchEvent::Seen(SeenObject::EndpointSlice(identity.key, slice))
        }
        other => panic!("expected a slice, found {other:?}"),
    }
}

fn encode(c: &mut Criterion) {
    let meta = [
        (CLUSTER_META, "kubernetes"),
        ("external-source", "kubernetes"),
        ("external-k8s-ns", "team-1"),
        ("external-k8s-service", "checkout-api-1"),
        ("external-k8s-ref-name", "checkout-api-1-7d4b9c6f5d-00001"),
        ("port-http", "80"),
    ];
    let registration = Registration {
        id: "kubernetes_team-1_checkout-api-1_http_8080_10.128.0.11".into(),
        service: "checkout-api-1".into(),
        namespace: "team-1".into(),
        address: "10.128.0.11".into(),
        port: 8080,
        tags: vec!["team-1".to_owned(), "http".to_owned()].into(),
        meta: meta.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        weight: 1,
        check: Check::None,
    };
    c.bench_function("encode a registration", |b| {
        b.iter(|| {
            let service = ServiceBody::new(black_box(&registration));
            Operation::SetService { node: "k8s-kubernetes.team-1".into(), service }.encode()
        });
    });
}

criterion_group!(benches, decode, event, encode, status);
criterion_main!(benches);
