//! When the API server was last heard of on each watch: silence is not health.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::domain::kube::object::Kind;

/// A watch that was not heard of for so long goes nowhere. Healthy ones are heard of about every
/// minute, by a bookmark, and each is ended and begun again after 190 s; then headers may take 10 s, and
/// a failed try is repeated after 30 s.
pub(in crate::run) const SILENCE: Duration = Duration::from_mins(5);

/// When the API server was last heard of, by what is watched.
#[derive(Debug, Default)]
pub(in crate::run) struct Heard(BTreeMap<Kind, Instant>);

// === impl Heard ===

impl Heard {
    /// It was heard of on the watch of this kind.
    pub(in crate::run) fn on(&mut self, kind: Kind, now: Instant) {
        self.0.insert(kind, now);
    }

    /// This kind is watched no longer.
    pub(in crate::run) fn forget(&mut self, kind: Kind) {
        self.0.remove(&kind);
    }

    /// Each watch that was ever heard of, and when it was last.
    pub(in crate::run) fn iter(&self) -> impl Iterator<Item = (Kind, Instant)> {
        self.0.iter().map(|(kind, heard)| (*kind, *heard))
    }

    /// The watch that has been silent for longest, if that is too long.
    pub(in crate::run) fn silent(&self, now: Instant) -> Option<Kind> {
        let (kind, heard) = self.iter().min_by_key(|(_, heard)| *heard)?;
        (now.duration_since(heard) > SILENCE).then_some(kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn l1_a_watch_that_goes_nowhere_is_told_until_it_is_heard_of() {
        let mut heard = Heard::default();
        assert_eq!(heard.silent(Instant::now()), None, "nothing is watched yet");
        heard.on(Kind::Service, Instant::now());
        for _ in 0..6 {
            heard.on(Kind::EndpointSlice, Instant::now());
            assert_eq!(heard.silent(Instant::now()), None);
            tokio::time::advance(Duration::from_secs(50)).await;
        }
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(heard.silent(Instant::now()), Some(Kind::Service));
        heard.on(Kind::Service, Instant::now());
        assert_eq!(heard.silent(Instant::now()), None);
        tokio::time::advance(SILENCE * 2).await;
        heard.forget(Kind::EndpointSlice);
        heard.forget(Kind::Service);
        assert_eq!(heard.silent(Instant::now()), None, "what is not watched is not silent");
    }
}
