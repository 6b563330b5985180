//! Free ports, without the usual race between two tests that both found the
//! same one: a port is held by a locked file for as long as it is wanted.

use std::fs::{self, File};
use std::hash::{BuildHasher as _, RandomState};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};

use anyhow::{Context as _, bail};

use crate::folder;

/// Below the range that the kernel gives to outgoing connections (32768 on
/// Linux), so that none of those can take a port between the check and its use.
const FIRST: u16 = 20_000;
const COUNT: u16 = 12_000;

/// A free TCP and UDP port on every loopback address, reserved among all
/// processes that pick their ports here until it is dropped.
#[derive(Debug)]
pub struct Port {
    number: u16,
    _lock: File,
}

impl Port {
    /// Finds a port, beginning at a random one.
    pub fn pick() -> anyhow::Result<Self> {
        let folder = folder::base().join("ports");
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        let start = RandomState::new().hash_one(std::process::id()) % u64::from(COUNT);
        let start = u16::try_from(start).unwrap_or_default();
        for offset in 0..COUNT {
            let number = FIRST + (start + offset) % COUNT;
            let path = folder.join(number.to_string());
            let lock = File::create(&path).with_context(|| format!("create {}", path.display()))?;
            if lock.try_lock().is_ok() && is_free(number) {
                return Ok(Self { number, _lock: lock });
            }
        }
        bail!(
            "no free port from {FIRST} to {}: end some of the programs that listen there",
            FIRST + COUNT - 1
        )
    }

    /// The port's number.
    pub fn number(&self) -> u16 {
        self.number
    }
}

fn is_free(port: u16) -> bool {
    let any = (Ipv4Addr::UNSPECIFIED, port);
    TcpListener::bind(any).is_ok() && UdpSocket::bind(any).is_ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn ports_held_at_once_differ() {
        let ports: Vec<_> = (0..50).map(|_| Port::pick().unwrap()).collect();
        let numbers: BTreeSet<_> = ports.iter().map(Port::number).collect();
        assert_eq!(numbers.len(), ports.len());
    }

    #[test]
    fn a_port_that_something_listens_on_is_not_free() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        assert!(!is_free(listener.local_addr().unwrap().port()));
    }
}
