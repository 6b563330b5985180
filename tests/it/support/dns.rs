//! What clients find.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ProtocolConfig, ResolveHosts, ResolverConfig,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{RData, RecordType};
use kube_consul_stack::eventually;

use super::DEADLINE;

/// What a resolver library finds in Consul's DNS.
#[derive(Clone)]
pub struct Dns(TokioResolver);

impl Dns {
    /// A resolver that asks the Consul at this address.
    pub fn new(server: SocketAddr) -> Result<Self> {
        let connections = [ProtocolConfig::Udp, ProtocolConfig::Tcp].map(|protocol| {
            let mut connection = ConnectionConfig::new(protocol);
            connection.port = server.port();
            connection
        });
        let server = NameServerConfig::new(server.ip(), true, connections.into());
        let config = ResolverConfig::from_name_servers(vec![server]);
        let mut builder =
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        let options = builder.options_mut();
        options.cache_size = 0;
        options.use_hosts_file = ResolveHosts::Never;
        Ok(Self(builder.build()?))
    }

    /// The answers, sorted: addresses, and ports with their weights of SRV records. Empty for a
    /// name that does not exist or has no such record.
    pub async fn ask(&self, name: &str, kind: RecordType) -> Result<Vec<String>> {
        let lookup = match self.0.lookup(format!("{name}."), kind).await {
            Ok(lookup) => lookup,
            Err(error) if error.is_nx_domain() || error.is_no_records_found() => return Ok(vec![]),
            Err(error) => return Err(error).with_context(|| format!("{kind} {name}")),
        };
        let texts = lookup.answers().iter().map(|record| match &record.data {
            RData::A(address) => address.to_string(),
            RData::AAAA(address) => address.to_string(),
            RData::CNAME(name) => name.to_string(),
            RData::SRV(srv) => format!("port {} weight {}", srv.port, srv.weight),
            other => format!("{other:?}"),
        });
        let mut texts: Vec<String> = texts.collect();
        texts.sort();
        Ok(texts)
    }

    /// Waits until the answers are these.
    pub async fn wait_for(&self, name: &str, kind: RecordType, wanted: &[&str]) -> Result<()> {
        eventually(DEADLINE, || async {
            let found = self.ask(name, kind).await?;
            ensure!(found == wanted, "{kind} {name}: {found:?}, want {wanted:?}");
            Ok(())
        })
        .await
    }
}
