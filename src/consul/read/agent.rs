//! What the agent and the servers say of themselves.

use serde::Deserialize;

use crate::consul::http::client::Client;
use crate::consul::http::error::Error;
use crate::consul::http::request::Request;

/// What an agent says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentInfo {
    /// Consul's version, for example `1.20.1`.
    pub version: String,
    /// Its datacenter.
    pub datacenter: String,
    /// Its node's name.
    pub node: String,
    /// The domain that its DNS answers for, without the dot at the end.
    pub dns_domain: String,
    /// The port of its DNS; -1 without.
    pub dns_port: i32,
    /// Connections that one address may have to it at a time; 0: as many as it likes.
    pub max_connections: u32,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct AgentSelf {
    config: AgentConfig,
    debug_config: AgentDebugConfig,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct AgentConfig {
    version: String,
    datacenter: String,
    node_name: String,
}

#[derive(Deserialize)]
struct AgentDebugConfig {
    #[serde(rename = "DNSDomain")]
    dns_domain: String,
    #[serde(rename = "DNSPort", default)]
    dns_port: i32,
    #[serde(rename = "HTTPMaxConnsPerClient", default)]
    max_connections: u32,
}

// === impl Client ===

impl Client {
    /// What the agent says of itself. Needs the right `agent:read`.
    pub async fn agent_self(&self) -> Result<AgentInfo, Error> {
        let reply = self.send(&Request::get("/v1/agent/self")).await?.into_found().await?;
        let AgentSelf { config, debug_config } = reply.json().await?;
        Ok(AgentInfo {
            version: config.version,
            datacenter: config.datacenter,
            node: config.node_name,
            dns_domain: debug_config.dns_domain.trim_end_matches('.').to_owned(),
            dns_port: debug_config.dns_port,
            max_connections: debug_config.max_connections,
        })
    }

    /// Address of the servers' leader; none while there is none. Needs no right.
    pub async fn leader(&self) -> Result<Option<String>, Error> {
        let reply = self.send(&Request::get("/v1/status/leader")).await?.into_found().await?;
        let leader: String = reply.json().await?;
        Ok(Some(leader).filter(|leader| !leader.is_empty()))
    }
}
