//! Where an import may lead.
//!
//! Whoever may register in Consul chooses the addresses. What is sent to an endpoint comes from
//! pods, so an address that only the machine of a pod should reach must not become one.

use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

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

#[cfg(test)]
mod tests {
    use super::*;

    fn cidrs(all: &[&str]) -> Vec<Cidr> {
        all.iter().map(|it| it.parse().unwrap()).collect()
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
