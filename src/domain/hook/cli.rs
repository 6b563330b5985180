//! Registration from flags.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use crate::domain::hook::{
    HookCheck, HookRegistration, Invalid, Target, id, quoted, required, together, url,
};

/// Interval and timeout of the check, as consul-registration-hook has them.
const CHECK_PERIOD: Duration = Duration::from_secs(30);

/// What the flags hold, unchecked.
#[derive(Clone, Copy, Debug, Default)]
pub struct Flags<'a> {
    /// `--service-name`.
    pub name: Option<&'a str>,
    /// `--pod-ip`.
    pub address: Option<&'a str>,
    /// `--container-port`.
    pub port: Option<&'a str>,
    /// `--service-tags`, separated by commas.
    pub tags: Option<&'a str>,
    /// `--check-path`.
    pub check_path: Option<&'a str>,
}

/// The registration that the flags ask for. Without a path the check asks for `/`.
pub fn registration(flags: &Flags<'_>) -> Result<HookRegistration, Invalid> {
    const ADDRESS: &str = "--pod-ip (KUBERNETES_POD_IP)";
    const ADDRESS_EXPECTED: &str = "an IP address or a host's name, without a port";
    const PORT: &str = "--container-port (KUBERNETES_CONTAINER_PORT)";
    const PORT_EXPECTED: &str = "a port from 1 to 65535";
    let [name, address, text] = together([
        required("--service-name (KUBERNETES_SERVICE_NAME)", "a service name", flags.name),
        required(ADDRESS, ADDRESS_EXPECTED, flags.address),
        required(PORT, PORT_EXPECTED, flags.port),
    ])?;
    let host = host(&address).ok_or_else(|| Invalid::Variable {
        variable: ADDRESS,
        expected: ADDRESS_EXPECTED,
        found: quoted(&address),
    })?;
    let port = text.parse().ok().filter(|port: &u16| *port > 0).ok_or_else(|| {
        Invalid::Variable { variable: PORT, expected: PORT_EXPECTED, found: quoted(&text) }
    })?;
    let target = Target::Http {
        url: url("http", host, port, flags.check_path.unwrap_or_default().trim()),
        headers: Vec::new(),
    };
    Ok(HookRegistration {
        id: id(&address, port),
        name,
        port,
        tags: tags(flags.tags.unwrap_or_default()),
        check: Some(HookCheck {
            target,
            interval: CHECK_PERIOD,
            timeout: CHECK_PERIOD,
            begins_passing: false,
        }),
        address: host.to_owned(),
    })
}

/// The IP address, an IPv6 one without its brackets, or what may be a host's name: `host:port`
/// would be registered as a host of that name.
fn host(text: &str) -> Option<&str> {
    let inner = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    if let Some(inner) = inner.filter(|inner| inner.parse::<Ipv6Addr>().is_ok()) {
        return Some(inner);
    }
    let is_host = text.parse::<IpAddr>().is_ok()
        || text.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c));
    is_host.then_some(text)
}

/// The ID that `deregister cli` was given.
pub fn service_id(flag: Option<&str>) -> Result<String, Invalid> {
    required("--service-id (KUBERNETES_SERVICE_ID)", "the ID of a registration", flag)
}

/// Split at commas, each as it was written. Empty ones, which were sent there, are dropped: no tag
/// is empty.
fn tags(text: &str) -> Vec<String> {
    text.split(',').filter(|tag| !tag.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags() -> Flags<'static> {
        Flags { name: Some("web"), address: Some("10.0.0.1"), port: Some("80"), ..Flags::default() }
    }

    #[test]
    fn flags_make_a_registration() {
        for (tags, path, expected_tags, expected_url) in [
            (None, None, vec![], "http://10.0.0.1:80/"),
            (Some("a,b"), Some("/ping"), vec!["a", "b"], "http://10.0.0.1:80/ping"),
            (
                Some("a , b:1,,"),
                Some("ping?x=1"),
                vec!["a ", " b:1"],
                "http://10.0.0.1:80/ping?x=1",
            ),
            (Some(""), Some(""), vec![], "http://10.0.0.1:80/"),
        ] {
            let made = registration(&Flags { tags, check_path: path, ..flags() }).unwrap();
            assert_eq!(made.tags, expected_tags);
            let check = made.check.unwrap();
            let target = Target::Http { url: expected_url.to_owned(), headers: Vec::new() };
            assert_eq!(check.target, target);
            assert_eq!((check.interval, check.timeout), (CHECK_PERIOD, CHECK_PERIOD));
            assert_eq!((made.id.as_str(), made.name.as_str()), ("10.0.0.1_80", "web"));
            assert_eq!((made.address.as_str(), made.port), ("10.0.0.1", 80));
        }
    }

    #[test]
    fn any_address_family_has_an_id_and_a_url() {
        for (address, id, url) in [
            ("fd00::1", "fd00::1_80", "http://[fd00::1]:80/"),
            ("node.example", "node.example_80", "http://node.example:80/"),
            // The ID as it was written: `deregister cli` has it from elsewhere.
            ("[fd00::1]", "[fd00::1]_80", "http://[fd00::1]:80/"),
        ] {
            let made = registration(&Flags { address: Some(address), ..flags() }).unwrap();
            assert_eq!(made.id, id);
            let Target::Http { url: made, .. } = made.check.unwrap().target else { panic!() };
            assert_eq!(made, url);
        }
    }

    #[test]
    fn what_is_missing_or_wrong_names_its_flag_and_variable() {
        for (flags, expected) in [
            (Flags { name: None, ..flags() }, "--service-name (KUBERNETES_SERVICE_NAME): expected"),
            (Flags { name: Some(" "), ..flags() }, "KUBERNETES_SERVICE_NAME): expected a service"),
            (Flags { address: None, ..flags() }, "--pod-ip (KUBERNETES_POD_IP): expected"),
            (Flags { address: Some("a b"), ..flags() }, "KUBERNETES_POD_IP): expected an IP"),
            (Flags { address: Some("10.0.0.1:80"), ..flags() }, "found \"10.0.0.1:80\""),
            (Flags { address: Some("[10.0.0.1]"), ..flags() }, "found \"[10.0.0.1]\""),
            (Flags { address: Some("a/b"), ..flags() }, "found \"a/b\""),
            (Flags { port: None, ..flags() }, "KUBERNETES_CONTAINER_PORT): expected a port"),
            (Flags { port: Some("0"), ..flags() }, "KUBERNETES_CONTAINER_PORT): expected a port"),
            (Flags { port: Some("65536"), ..flags() }, "found \"65536\""),
            (Flags { port: Some("http"), ..flags() }, "found \"http\""),
        ] {
            let error = registration(&flags).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        assert_eq!(service_id(Some("10.0.0.1_80")), Ok("10.0.0.1_80".to_owned()));
        let error = service_id(None).unwrap_err().to_string();
        assert!(error.starts_with("--service-id (KUBERNETES_SERVICE_ID): expected"), "{error}");
    }
}
