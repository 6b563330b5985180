//! Reverse-DNS records in the KV store.
//!
//! Consul answers PTR for service addresses by itself and never reads these records: they are
//! for other resolvers and tools, in the form that the users of kube2consul set by hand.

use std::fmt::Write as _;
use std::net::IpAddr;

/// What the names in PTR records end with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsulDomain {
    /// The Consul datacenter, for example `dc1`.
    pub datacenter: Box<str>,
    /// The DNS domain without dots around it, for example `consul`.
    pub domain: Box<str>,
}

// === impl ConsulDomain ===

impl ConsulDomain {
    /// The record's value: the name of a service in this zone.
    pub fn name_of(&self, service: &str) -> String {
        format!("{service}.service.{}.{}", self.datacenter, self.domain)
    }

    /// Whether Consul answers for this host name by itself.
    pub fn contains(&self, host: &str) -> bool {
        let host = host.strip_suffix('.').unwrap_or(host);
        let (host, domain) = (host.to_ascii_lowercase(), self.domain.to_ascii_lowercase());
        host.strip_suffix(&*domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    }
}

/// The KV key of an address: the reverse zone of its network (a /24 of IPv4, a /64 of IPv6)
/// with the host's part zero, then the address.
pub fn ptr_key(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            format!("0.{c}.{b}.{a}.IN-ADDR.ARPA/{v4}")
        }
        IpAddr::V6(v6) => {
            let mut key = "0.".repeat(16);
            for byte in v6.octets()[..8].iter().rev() {
                // Writing to a String cannot fail.
                let _ = write!(key, "{:x}.{:x}.", byte & 0xf, byte >> 4);
            }
            key.push_str("IP6.ARPA/");
            key.push_str(&v6.to_string());
            key
        }
    }
}

/// The address that a key of [`ptr_key`] is for.
pub fn ptr_address(key: &str) -> Option<IpAddr> {
    key.rsplit('/').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_those_that_users_know() {
        for (address, expected) in [
            ("10.254.70.176", "0.70.254.10.IN-ADDR.ARPA/10.254.70.176"),
            ("192.0.2.1", "0.2.0.192.IN-ADDR.ARPA/192.0.2.1"),
            (
                "2001:db8:1:2:3:4:5:6",
                "0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.2.0.0.0.1.0.0.0.8.b.d.0.1.0.0.2.IP6.ARPA/2001:db8:1:2:3:4:5:6",
            ),
        ] {
            assert_eq!(ptr_key(address.parse().unwrap()), expected);
            assert_eq!(ptr_address(expected), address.parse().ok());
        }
    }

    #[test]
    fn the_value_is_the_name_of_the_service_in_its_datacenter() {
        let zone = ConsulDomain { datacenter: "dc1".into(), domain: "consul".into() };
        assert_eq!(zone.name_of("monitoring-heapster"), "monitoring-heapster.service.dc1.consul");
    }

    #[test]
    fn a_name_within_the_domain_is_consuls() {
        let zone = ConsulDomain { datacenter: "dc1".into(), domain: "corp.internal".into() };
        for (name, wanted) in [
            ("web.service.CORP.internal", true),
            ("corp.internal.", true),
            ("web.service.consul", false),
            ("xcorp.internal", false),
            ("internal", false),
            ("10.0.0.1", false),
        ] {
            assert_eq!(zone.contains(name), wanted, "{name}");
        }
    }
}
