//! Which addresses may stand in a registration or an endpoint, whoever wrote them.
//!
//! Consul and Kubernetes take more than is good for those who connect: a tenant's address must not
//! lead them to themselves or to their machine, and one host name that no DNS message can carry
//! keeps Consul from answering for all instances of that name.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Longest name that DNS can carry, without the final dot (RFC 1035, section 2.3.4).
const MAX_HOST_NAME: usize = 253;
/// Longest label of one.
const MAX_LABEL: usize = 63;

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

/// Names that lead whoever looks them up to itself, by the hosts files of Debian and Fedora (`localhost`
/// does as a top-level domain, RFC 6761, section 6.3), or to its cloud's metadata service.
const LOCAL_NAMES: [&str; 8] = [
    "ip6-localhost",
    "ip6-loopback",
    "localhost4",
    "localhost4.localdomain4",
    "localhost6",
    "localhost6.localdomain6",
    "localhost.localdomain",
    "metadata.google.internal",
];

/// What is wrong with a text that ought to be an address, in words; none: it is an IP address that
/// [`is_reachable`], or a host name.
pub fn fault_of(text: &str) -> Option<&'static str> {
    match text.parse::<IpAddr>() {
        Ok(address) if is_reachable(address) => None,
        Ok(_) => Some(
            "an IP address that is not loopback, link-local, unspecified, multicast, broadcast or \
             a cloud's metadata service",
        ),
        Err(_) if is_local_name(text) => Some(
            "a host name that leads everybody to the same place, unlike localhost or a cloud's \
             metadata service",
        ),
        Err(_) if is_host_name(text) => None,
        Err(_) => Some(
            "a host name of at most 253 characters, its labels of 1 to 63 of A-Z, a-z, 0-9, '-' \
             and '_' without '-' at either end, the last one no number",
        ),
    }
}

/// Whether others may be led to it: it is none that the API server refuses for an endpoint
/// (unspecified, loopback, link-local or multicast, by `ValidateNonSpecialIP`), nor broadcast, nor a
/// cloud's metadata service, nor one of those mapped into IPv6 or behind a NAT64 gateway.
pub fn is_reachable(address: IpAddr) -> bool {
    let address = address.to_canonical();
    let is_of_the_link = match address {
        IpAddr::V4(address) => address.is_link_local() || address.is_broadcast(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    let is_special = address.is_unspecified()
        || address.is_loopback()
        || is_of_the_link
        || address.is_multicast()
        || METADATA.contains(&address);
    !is_special && behind_nat64(address).is_none_or(is_reachable)
}

/// Whether it is a host name that Consul can put into an answer. One whose last label is a number
/// is an IPv4 address to many programs (`1`, `2130706433` and `0x7f.1` lead to 127.0.0.1), which is
/// why URLs have no such host names either.
fn is_host_name(text: &str) -> bool {
    let is_label = |label: &str| {
        (1..=MAX_LABEL).contains(&label.len())
            && label.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.len() <= MAX_HOST_NAME
        && text.split('.').all(is_label)
        && !text.rsplit('.').next().is_some_and(is_number)
}

fn is_local_name(text: &str) -> bool {
    let last = text.rsplit('.').next().unwrap_or_default();
    last.eq_ignore_ascii_case("localhost")
        || LOCAL_NAMES.iter().any(|name| text.eq_ignore_ascii_case(name))
}

fn is_number(label: &str) -> bool {
    let is_hexadecimal = label
        .strip_prefix("0x")
        .or_else(|| label.strip_prefix("0X"))
        .is_some_and(|digits| digits.bytes().all(|c| c.is_ascii_hexdigit()));
    is_hexadecimal || label.bytes().all(|c| c.is_ascii_digit())
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

    #[test]
    fn no_address_leads_to_whoever_connects_or_to_its_machine() {
        for address in [
            "127.0.0.1",
            "::1",
            "::ffff:127.0.0.1",
            "0.0.0.0",
            "::",
            "169.254.169.254",
            "::ffff:169.254.169.254",
            "fe80::1",
            "224.0.0.5",
            "ff02::1",
            "255.255.255.255",
            "fd00:ec2::254",
            "fd20:ce::254",
            "168.63.129.16",
            "100.100.100.200",
            "64:ff9b::169.254.169.254",
            "64:ff9b::127.0.0.1",
            "64:ff9b::100.100.100.200",
        ] {
            assert!(fault_of(address).is_some_and(|it| it.contains("loopback")), "{address}");
        }
        for address in
            ["10.0.0.1", "::ffff:10.0.0.1", "fd00:ec2::253", "168.63.129.17", "64:ff9b::10.0.0.1"]
        {
            assert_eq!(fault_of(address), None, "{address}");
        }
    }

    #[test]
    fn a_host_name_is_one_that_a_dns_message_can_carry_and_no_number() {
        let longest =
            [&*"a".repeat(63), &*"b".repeat(63), &*"c".repeat(63), &*"d".repeat(61)].join(".");
        for name in [
            "db",
            "localhost.example",
            "API.example.org",
            "_x.a-b.example",
            "1.example",
            "0xg",
            "1a",
            &longest,
        ] {
            assert_eq!(fault_of(name), None, "{name}");
        }
        for name in
            ["localhost", "LocalHost", "db.localhost", "ip6-loopback", "Metadata.google.internal"]
        {
            assert!(fault_of(name).is_some_and(|it| it.contains("localhost")), "{name}");
        }
        let long_label = format!("{}.example", "x".repeat(64));
        let too_long = format!("{longest}d");
        for name in [
            "",
            ".",
            "a.",
            ".a",
            "a..b",
            "-",
            "-a",
            "a-.b",
            "a b",
            "a\\b",
            "a;b",
            "(",
            "\"",
            "é.example",
            "1",
            "2130706433",
            "0x7f.1",
            "0x7f000001",
            "a.0X7f",
            "127.1",
            "1.2.3.4.5",
            "0x",
            &long_label,
            &too_long,
        ] {
            assert!(fault_of(name).is_some_and(|it| it.contains("host name")), "{name}");
        }
    }
}
