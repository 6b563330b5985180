//! Consul: whether it answers and has a leader, what the token may do, whose the records are.

use std::time::{Duration, SystemTime};

use crate::consul::coordination::lock::lock_key;
use crate::consul::coordination::owner::{Owner, OwnerKey, owner_key};
use crate::consul::http::certificate::expiries;
use crate::consul::http::client::Client;
use crate::consul::http::config::{Address, Config};
use crate::consul::http::error::Error;
use crate::consul::read::agent::AgentInfo;
use crate::consul::read::permissions::{AclRule, Authorization};
use crate::domain::consul::node_names::NodeNames;
use crate::domain::services::settings::PtrScope;
use crate::domain::text::chain;
use crate::run::check::ask::Ask;
use crate::run::check::dns;
use crate::run::check::report::{Finding, Status, failed, ok, skipped, warning};
use crate::run::daemon::checks::{self, Agent};
use crate::run::daemon::options::{Common, SinkOptions, SyncOptions};

pub(super) const CONSUL: &str = "consul";
pub(super) const OWNER: &str = "owner key";
const LEADER: &str = "consul leader";
const DATACENTER: &str = "consul datacenter";
const ACL: &str = "acl";
const LIMITS: &str = "consul limits";
const DNS: &str = "consul dns";
const CERTIFICATE: &str = "certificate";
const ELECTION: &str = "election";

/// Connections that one process has at most at a time, and as much room for others behind the same
/// address.
const CONNECTIONS: u32 = 32;
/// Time in which somebody can still renew a certificate.
const RENEWAL: Duration = Duration::from_hours(14 * 24);

/// What was found of Consul by itself, and what its agent says of itself.
pub(super) async fn check(
    common: &Common,
    sync: &SyncOptions,
    client: &Client,
    ask: Ask,
) -> (Vec<Finding>, Option<AgentInfo>) {
    let agent = match ask.of_consul(checks::agent(client)).await {
        Ok(agent) => agent,
        Err(why) => {
            let remedy = "check --consul-addr or CONSUL_HTTP_ADDR, the token, and the TLS options";
            let mut findings = vec![failed(CONSUL, why, remedy)];
            let rest = [LEADER, DATACENTER, ACL, LIMITS, DNS];
            findings.extend(rest.map(|check| skipped(check, "Consul does not answer")));
            findings.extend(addresses(&common.consul, ask).await);
            findings.extend(certificates(&common.consul, ask).await);
            return (findings, None);
        }
    };
    let mut findings = vec![match &agent {
        Agent::Known(info) => ok(CONSUL, format!("{} at {}", info.version, client.url())),
        Agent::Hidden(_) => warning(
            CONSUL,
            format!("at {}; the token may not read the agent itself", client.url()),
            "give the token agent:read, or set --datacenter and --dns-domain",
        ),
    }];
    let info = agent.info();
    findings.push(leader(client, ask).await);
    findings.push(match sync.consul_domain(info.as_ref()) {
        Some(it) => ok(DATACENTER, format!("{}, DNS domain {}", it.datacenter, it.domain)),
        None => warning(
            DATACENTER,
            "unknown: no PTR record can be written",
            "set --datacenter and --dns-domain, or give the token agent:read",
        ),
    });
    findings.extend(acl(sync, client, info.as_ref(), ask).await);
    findings.push(limits(info.as_ref()));
    findings.push(resolves(&common.consul, info.as_ref()).await);
    findings.extend(addresses(&common.consul, ask).await);
    findings.extend(certificates(&common.consul, ask).await);
    (findings, info)
}

/// Of several addresses each by itself: a dead one is to be noticed before it is needed.
async fn addresses(config: &Config, ask: Ask) -> Vec<Finding> {
    let (mut findings, mut first) = (Vec::new(), None);
    for one in config.each().filter(|_| !config.further.is_empty()) {
        let check = format!("consul address {}", one.display_url());
        let remedy = "correct it or leave it out; the other addresses are asked meanwhile";
        let answer = match Client::new(&one) {
            Ok(client) => ask.of_consul(leader_and_agent(&client)).await,
            Err(error) => Err(chain(&error)),
        };
        findings.push(match answer {
            Err(why) => warning(check, why, remedy),
            Ok((None, _)) => warning(check, "answers, and knows no leader", remedy),
            Ok((Some(_), Agent::Hidden(_))) => {
                ok(check, "answers; of which datacenter it is the token may not ask")
            }
            // With --datacenter each sends requests where they belong.
            Ok((Some(_), Agent::Known(it))) if config.datacenter.is_some() => {
                ok(check, format!("answers, of datacenter {}", it.datacenter))
            }
            Ok((Some(_), Agent::Known(it))) => {
                let expected = first.get_or_insert_with(|| it.datacenter.clone());
                let found = format!("answers, of datacenter {}", it.datacenter);
                if *expected == it.datacenter {
                    ok(check, found)
                } else {
                    failed(check, found, format!("leave it out: the first is of {expected}"))
                }
            }
        });
    }
    findings
}

async fn leader_and_agent(client: &Client) -> Result<(Option<String>, Agent), Error> {
    Ok((client.leader().await?, checks::agent(client).await?))
}

async fn leader(client: &Client, ask: Ask) -> Finding {
    let remedy = "look at the Consul servers: most of them have to be there and to know each other";
    match ask.of_consul(client.leader()).await {
        Ok(Some(leader)) => ok(LEADER, leader),
        Ok(None) => failed(LEADER, "none", remedy),
        Err(why) => failed(LEADER, why, remedy),
    }
}

/// The rules of the shipped policies that these options need.
fn rules(sync: &SyncOptions, agent: Option<&AgentInfo>) -> Vec<AclRule> {
    let cluster = &sync.settings.cluster;
    let rule = |resource, segment: String, access| AclRule { resource, segment, access };
    let mut rules = vec![
        // Any name stands for all of them.
        rule("service", "kube-consul-check".to_owned(), "write"),
        rule("node", "kube-consul-check".to_owned(), "read"),
        rule("key", owner_key(cluster), "write"),
    ];
    if sync.settings.reverse != PtrScope::Off {
        rules.push(rule("key", "0.".to_owned(), "write"));
    }
    match &sync.sink {
        SinkOptions::Agent => {
            if let Some(agent) = agent {
                rules.push(rule("agent", agent.node.clone(), "read"));
            }
        }
        SinkOptions::Catalog { node_name, leader_elect } => {
            let base = NodeNames::new(cluster, node_name.as_deref()).base().to_owned();
            rules.push(rule("node", base.clone(), "write"));
            rules.push(rule("node", format!("{base}.kube-consul-check"), "write"));
            if *leader_elect {
                rules.push(rule("key", lock_key(cluster), "write"));
                rules.push(rule("session", base, "write"));
            }
        }
    }
    rules
}

async fn acl(
    sync: &SyncOptions,
    client: &Client,
    agent: Option<&AgentInfo>,
    ask: Ask,
) -> Vec<Finding> {
    let rules = rules(sync, agent);
    let answers = match ask.of_consul(client.authorize(&rules)).await {
        Ok(Authorization::NoAcls) => return vec![ok(ACL, "ACLs are off")],
        Ok(Authorization::Rules(answers)) => answers,
        Err(why) => {
            let remedy = "compare the token's policy with docs/acls.md";
            return vec![warning(ACL, format!("cannot be asked for: {why}"), remedy)];
        }
    };
    let of_rule = |(rule, is_allowed): (AclRule, bool)| {
        let AclRule { resource, segment, access } = rule;
        let check = format!("{ACL} {resource}:{access} {segment}");
        if is_allowed {
            return ok(check, "granted");
        }
        failed(check, "not granted", "give the token the policy of docs/acls.md")
    };
    // One that is not answered is not granted.
    let answers = answers.into_iter().chain(std::iter::repeat(false));
    rules.into_iter().zip(answers).map(of_rule).collect()
}

fn limits(agent: Option<&AgentInfo>) -> Finding {
    let Some(AgentInfo { max_connections, .. }) = agent else {
        return skipped(LIMITS, "the agent may not be read");
    };
    let found = format!("{max_connections} connections a client (http_max_conns_per_client)");
    if (1..CONNECTIONS).contains(max_connections) {
        let remedy = format!("set limits.http_max_conns_per_client to {CONNECTIONS} or more");
        return warning(LIMITS, found, remedy);
    }
    ok(LIMITS, found)
}

/// One name that every Consul answers.
async fn resolves(config: &Config, agent: Option<&AgentInfo>) -> Finding {
    let Some(agent) = agent else { return skipped(DNS, "the agent may not be read") };
    let Address::Tcp { authority, .. } = &config.address else {
        return skipped(DNS, "the agent is reached by a socket");
    };
    if agent.dns_port <= 0 {
        return skipped(DNS, "the agent serves no DNS");
    }
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if is_port(port) => host,
        _ => authority,
    };
    let (server, name) =
        (format!("{host}:{}", agent.dns_port), format!("consul.service.{}", agent.dns_domain));
    match dns::ask(&server, &name).await {
        Ok(dns::Answer { code: 0, records: 1.. }) => ok(DNS, format!("{server} answers {name}")),
        Ok(dns::Answer { code, records }) => warning(
            DNS,
            format!("{server} answers {name} with code {code} and {records} records"),
            "with ACLs the agent needs a DNS token (acl.tokens.dns) that may read nodes and services",
        ),
        Err(why) => warning(
            DNS,
            format!("{server}, {name}: {why}"),
            "let clients reach the agent's DNS port (ports.dns, client_addr)",
        ),
    }
}

async fn certificates(config: &Config, ask: Ask) -> Vec<Finding> {
    if !config.uses_tls() {
        return vec![skipped(CERTIFICATE, "Consul is reached without TLS")];
    }
    let renew = "renew it; files that change on disk are taken up without a restart";
    let (mut findings, has_others) = (Vec::new(), !config.further.is_empty());
    for one in config.each() {
        let found = certificates_at(&one, ask, renew).await;
        // Of several one may be away: the others are asked.
        findings.extend(found.into_iter().map(|finding| match finding {
            Finding { check, status: Status::Failed, found, remedy } if has_others => {
                Finding { check, status: Status::Warning, found, remedy }
            }
            finding => finding,
        }));
    }
    findings.dedup();
    findings
}

/// Those of one address.
async fn certificates_at(config: &Config, ask: Ask, renew: &'static str) -> Vec<Finding> {
    match ask.of_text(expiries(config)).await {
        Err(why) => vec![failed(CERTIFICATE, why, "check the TLS options and the files they name")],
        Ok(all) => {
            let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
            let now = i64::try_from(now).unwrap_or(i64::MAX);
            let of_one = |expiry: crate::consul::http::certificate::Expiry| {
                let left = expiry.at.saturating_sub(now);
                let check = format!("{CERTIFICATE}: {}", expiry.of);
                match u64::try_from(left) {
                    Err(_) => failed(check, format!("expired {} h ago", -left / 3600), renew),
                    Ok(left) if left < RENEWAL.as_secs() => {
                        warning(check, format!("expires in {} h", left / 3600), renew)
                    }
                    Ok(left) => ok(check, format!("expires in {} days", left / 86_400)),
                }
            };
            all.into_iter().map(of_one).collect()
        }
    }
}

/// Whose the records are, and who leads.
pub(super) async fn records(
    common: &Common,
    sync: &SyncOptions,
    client: &Client,
    uid: Option<&str>,
    ask: Ask,
) -> Vec<Finding> {
    let cluster = &sync.settings.cluster;
    let key = OwnerKey::new(client.clone(), cluster);
    let remedy = "check that the token may read the KV, and that Consul has a leader";
    let owner = match uid {
        None => skipped(OWNER, "the cluster's identity is not known"),
        Some(uid) => match ask.of(key.check(uid)).await {
            Err(why) => failed(OWNER, why, remedy),
            Ok(None) => ok(OWNER, format!("{} is free", key.key())),
            Ok(Some(Owner::Ours)) => ok(OWNER, format!("{} is this cluster's", key.key())),
            Ok(Some(Owner::Other(other))) if common.adopt.as_ref() == Some(&other) => {
                ok(OWNER, format!("{} is that of {other}, which --adopt names", key.key()))
            }
            Ok(Some(Owner::Other(other))) => failed(
                OWNER,
                format!("{} is that of the cluster with uid {other}", key.key()),
                format!("choose another --cluster, or take the records over with --adopt {other}"),
            ),
        },
    };
    let mut findings = vec![owner];
    if sync.is_elected() {
        findings.push(match ask.of(client.lock_of(cluster)).await {
            Err(why) => failed(ELECTION, why, remedy),
            Ok(Some(lock)) => match lock.holder {
                Some(holder) => ok(ELECTION, format!("{holder} leads")),
                None => ok(ELECTION, "nobody leads"),
            },
            Ok(None) => ok(ELECTION, "nobody leads yet"),
        });
    }
    findings
}
