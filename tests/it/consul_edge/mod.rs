//! The edge to Consul, against real agents.

mod connections;
mod reads;
mod writes;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use http::StatusCode;
use kube_consul::consul::coordination::election::Election;
use kube_consul::consul::coordination::marker::Marker;
use kube_consul::consul::coordination::owner::{Owner, OwnerKey};
use kube_consul::consul::coordination::resync::Reader;
use kube_consul::consul::coordination::sentinel::{Lost, Sentinel};
use kube_consul::consul::http::client::Client;
use kube_consul::consul::http::config::{Address, Config, Login, TokenSource};
use kube_consul::consul::http::error::{Error, OperationFailure, Reach};
use kube_consul::consul::read::evidence::{Consistency, Unknown};
use kube_consul::consul::read::instances::is_in_catalog;
use kube_consul::consul::read::marks::Mark;
use kube_consul::consul::read::registrations::Listing;
use kube_consul::consul::write::agent::AgentSink;
use kube_consul::consul::write::registration::{CheckBody, ServiceBody};
use kube_consul::consul::write::txn::{Encoded, NodeBody, Operation};
use kube_consul::domain::consul::names::{Holder, Holders};
use kube_consul::domain::consul::node_names::NodeNames;
use kube_consul::domain::consul::record::{
    Answer, CLUSTER_META, Check, ObservedPtr, ObservedRegistration, PtrOwner, PtrRecord,
    Registration, Write,
};
use kube_consul::domain::consul::registration_id::readiness_check_id;
use kube_consul::domain::kube::names::ClusterName;
use kube_consul_stack::{
    Authority, Consul, ConsulOptions, Data, Fault, HttpRecorder, Port, eventually, install_provider,
};
use serde_json::{Value, json};

const MANAGEMENT: &str = "11111111-1111-1111-1111-111111111111";
const LIMITED: &str = "22222222-2222-2222-2222-222222222222";
const SECOND: &str = "33333333-3333-3333-3333-333333333333";
const APPLIED: Answer = Answer::Applied { index: 0 };
const PATIENCE: Duration = Duration::from_secs(20);

fn cluster() -> ClusterName {
    "c".parse().unwrap()
}

fn config(url: &str, token: TokenSource) -> Config {
    install_provider();
    Config { address: url.parse().unwrap(), token, ..Config::default() }
}

fn client(url: &str) -> Client {
    Client::new(&config(url, TokenSource::Anonymous)).unwrap()
}

fn client_with(url: &str, token: &str) -> Client {
    Client::new(&config(url, TokenSource::Fixed(token.into()))).unwrap()
}

async fn consul() -> Consul {
    Consul::start(ConsulOptions::dev()).await.unwrap()
}

/// An agent that denies by default, with a token that may do this.
async fn consul_with_acl(rules: &str) -> Consul {
    let consul = Consul::start(ConsulOptions::dev().acl(MANAGEMENT)).await.unwrap();
    let policy = json!({ "Name": "limited", "Rules": rules });
    consul.api().put("/v1/acl/policy", &policy).await.unwrap();
    put_token(&consul, LIMITED).await;
    consul
}

async fn put_token(consul: &Consul, secret: &str) {
    let token = json!({
        "SecretID": secret, "AccessorID": secret, "Policies": [{ "Name": "limited" }]
    });
    consul.api().put("/v1/acl/token", &token).await.unwrap();
}

fn registration(id: &str, check: Check) -> Registration {
    let meta = [(CLUSTER_META, "c"), ("external-k8s-ns", "ns"), ("external-source", "kubernetes")];
    Registration {
        id: id.into(),
        service: "svc".into(),
        namespace: "ns".into(),
        address: "10.0.0.1".into(),
        port: 80,
        tags: vec!["ns".into(), "http".into()].into(),
        meta: meta.map(|(key, value)| (key.into(), value.into())).into(),
        weight: 3,
        check,
    }
}

async fn agent(client: &Client) -> Result<(Listing, Vec<ObservedRegistration>), Unknown> {
    let mut found = Vec::new();
    let listing = client.agent_registrations(&cluster(), |one| found.push(one)).await?;
    Ok((listing, found))
}

async fn reverse(client: &Client) -> Result<Vec<ObservedPtr>, Unknown> {
    let mut found = Vec::new();
    client.ptr_records(Consistency::Leader, |one| found.push(one)).await?;
    Ok(found)
}

fn encoded(operations: &[Operation]) -> Vec<Encoded> {
    operations.iter().map(Operation::encode).collect()
}

fn path_begins(path: &'static str) -> impl Fn(&kube_consul_stack::Recorded) -> bool {
    move |request| request.path.starts_with(path)
}
