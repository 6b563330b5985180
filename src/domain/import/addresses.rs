//! Where an import may lead.
//!
//! Whoever may register in Consul chooses the addresses. What is sent to an endpoint comes from
//! pods, so an address that only the machine of a pod should reach must not become one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::IpNet;

/// Metadata services of clouds at addresses that are not link-local: they hand out the machine's
/// credentials.
const METADATA: [IpAddr; 4] = [
    // AWS: https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    // Google: https://cloud.google.com/compute/docs/metadata/querying-metadata
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
    // Azure: https://learn.microsoft.com/azure/virtual-network/what-is-ip-address-168-63-129-16
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    // Alibaba: https://www.alibabacloud.com/help/ecs/user-guide/view-instance-metadata
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
];

/// The prefix by which IPv6 reaches IPv4 (RFC 6052): its last 32 bits are the address.
const NAT64: [u16; 6] = [0x64, 0xff9b, 0, 0, 0, 0];

/// The addresses that an operator lets an import lead to: all, unless said otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// Only these; none: all.
    pub allowed: Vec<Cidr>,
    /// Not these, whatever is allowed.
    pub denied: Vec<Cidr>,
}

/// A range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr(IpNet);

/// A text that is no range of addresses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a range of addresses such as 10.0.0.0/8 or fd00::/8, or one address")]
pub struct InvalidCidr;

// === impl Addresses ===

impl Addresses {
    /// Whether an import may lead to it.
    pub fn permit(&self, address: IpAddr) -> bool {
        let is_in = |all: &[Cidr]| all.iter().any(|it| it.0.contains(&address));
        (self.allowed.is_empty() || is_in(&self.allowed)) && !is_in(&self.denied)
    }
}

// === impl Cidr ===

impl FromStr for Cidr {
    type Err = InvalidCidr;

    fn from_str(text: &str) -> Result<Self, InvalidCidr> {
        let net = match text.parse::<IpNet>() {
            Ok(net) => net.trunc(),
            Err(_) => text.parse::<IpAddr>().map_err(|_| InvalidCidr)?.into(),
        };
        // Endpoints have no such addresses: it would deny nothing.
        let is_mapped = matches!(net.addr(), IpAddr::V6(it) if it.to_ipv4_mapped().is_some());
        if is_mapped { Err(InvalidCidr) } else { Ok(Self(net)) }
    }
}

/// Whether an endpoint may have it: not one that the API refuses (unspecified, loopback, link-local
/// or multicast, by `ValidateNonSpecialIP` of the API server), nor a cloud's metadata service, nor
/// either of them behind a NAT64 gateway.
pub fn is_reachable(address: IpAddr) -> bool {
    let is_link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    let is_special = address.is_unspecified()
        || address.is_loopback()
        || is_link_local
        || address.is_multicast()
        || METADATA.contains(&address);
    !is_special && behind_nat64(address).is_none_or(is_reachable)
}

fn behind_nat64(address: IpAddr) -> Option<IpAddr> {
    let IpAddr::V6(address) = address else { return None };
    let [.., high, low] = address.segments();
    let is_nat64 = address.segments().starts_with(&NAT64);
    is_nat64.then(|| Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidrs(all: &[&str]) -> Vec<Cidr> {
        all.iter().map(|it| it.parse().unwrap()).collect()
    }

    #[test]
    fn what_no_endpoint_may_have() {
        for address in [
            "127.0.0.1",
            "::1",
            "0.0.0.0",
            "::",
            "169.254.169.254",
            "fe80::1",
            "224.0.0.5",
            "ff02::1",
            "fd00:ec2::254",
            "fd20:ce::254",
            "168.63.129.16",
            "100.100.100.200",
            "64:ff9b::169.254.169.254",
            "64:ff9b::127.0.0.1",
            "64:ff9b::100.100.100.200",
        ] {
            assert!(!is_reachable(address.parse().unwrap()), "{address}");
        }
        for address in ["10.0.0.1", "fd00:ec2::253", "168.63.129.17", "64:ff9b::10.0.0.1"] {
            assert!(is_reachable(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn an_operator_says_where_an_import_may_lead_and_deny_wins() {
        let all = Addresses::default();
        let some = Addresses {
            allowed: cidrs(&["10.0.0.0/8", "fd00::/8"]),
            denied: cidrs(&["10.96.0.0/12", "10.1.1.1"]),
        };
        let without = Addresses { denied: cidrs(&["10.96.5.7/12"]), ..Addresses::default() };
        for (address, in_some, in_rest) in [
            ("10.1.1.2", true, true),
            ("10.1.1.1", false, true),
            ("10.96.0.1", false, false),
            ("10.111.255.255", false, false),
            ("10.112.0.0", true, true),
            ("192.168.1.1", false, true),
            ("fd00::1", true, true),
            ("2001:db8::1", false, true),
        ] {
            let address = address.parse().unwrap();
            assert!(all.permit(address));
            assert_eq!(some.permit(address), in_some, "{address}");
            assert_eq!(without.permit(address), in_rest, "{address}");
        }
    }

    #[test]
    fn what_is_no_range_is_refused() {
        for text in ["", "10.0.0.0/33", "10.0.0/8", "db.example", "::ffff:10.0.0.0/104", "*"] {
            assert_eq!(text.parse::<Cidr>(), Err(InvalidCidr), "{text:?}");
        }
    }
}
