//! Loopback addresses of one test's own, on which every program has the ports of its manifest.

use std::fs::{self, File};
use std::hash::{BuildHasher as _, RandomState};
use std::net::Ipv4Addr;

use anyhow::{Context as _, Result, bail};

use crate::folder;

/// From 127.64.0.0 to 127.127.255.0: no system puts a resolver or a proxy there.
const COUNT: u16 = 64 * 256;

/// The addresses 127.x.y.1 to 127.x.y.254, reserved among all processes that pick theirs here
/// until it is dropped.
#[derive(Debug)]
pub struct Network {
    prefix: [u8; 3],
    _lock: File,
}

impl Network {
    /// Finds a network, beginning at a random one.
    pub fn pick() -> Result<Self> {
        let folder = folder::base().join("networks");
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        let start = RandomState::new().hash_one(std::process::id()) % u64::from(COUNT);
        let start = u16::try_from(start).unwrap_or_default();
        for offset in 0..COUNT {
            let [high, low] = ((start + offset) % COUNT).to_be_bytes();
            let path = folder.join(format!("{high}-{low}"));
            let lock = File::create(&path).with_context(|| format!("create {}", path.display()))?;
            if lock.try_lock().is_ok() {
                return Ok(Self { prefix: [127, 64 + high, low], _lock: lock });
            }
        }
        bail!("all {COUNT} networks are taken: end some of the tests that run")
    }

    /// One of its addresses.
    pub fn address(&self, host: u8) -> Ipv4Addr {
        let [a, b, c] = self.prefix;
        Ipv4Addr::new(a, b, c, host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_held_at_once_differ() {
        let (one, other) = (Network::pick().unwrap(), Network::pick().unwrap());
        assert_ne!(one.address(1), other.address(1));
        assert!(one.address(1).is_loopback());
    }
}
