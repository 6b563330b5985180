//! How the watches of a daemon do: when the API server, or the kubelet, was last heard of on each, and
//! why those that fail do. Silence is not health.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::admin::metrics::DaemonMetrics;
use crate::admin::status::WatchStatus;
use crate::domain::kube::object::Kind;
use crate::kubernetes::watch::Trouble;

/// A watch that was not heard of for so long goes nowhere. Healthy ones are heard of about every
/// minute, by a bookmark, and each is ended and begun again after 190 s; then headers may take 10 s, and
/// a failed try is repeated after 30 s.
pub(in crate::run) const SILENCE: Duration = Duration::from_mins(5);

/// How each watch does, by what is watched.
pub(in crate::run) struct WatchHealth {
    metrics: DaemonMetrics,
    heard: BTreeMap<Kind, Instant>,
    /// The newest failure of each that fails.
    failing: BTreeMap<Kind, String>,
    /// How many failures are counted of each since it was last without trouble.
    counted: BTreeMap<Kind, u32>,
}

// === impl WatchHealth ===

impl WatchHealth {
    /// Nothing is watched yet.
    pub(in crate::run) fn new(metrics: DaemonMetrics) -> Self {
        Self { metrics, heard: BTreeMap::new(), failing: BTreeMap::new(), counted: BTreeMap::new() }
    }

    /// Something, or a sign of life, came by the watch of this kind.
    pub(in crate::run) fn heard(&mut self, kind: Kind) {
        self.metrics.heard(kind);
        self.heard.insert(kind, Instant::now());
    }

    /// A watch fails.
    pub(in crate::run) fn failed(&mut self, trouble: &Trouble) {
        // Not every failure is reported, but each is counted.
        let counted = self.counted.insert(trouble.kind, trouble.failures).unwrap_or_default();
        let new = trouble.failures.checked_sub(counted).unwrap_or(trouble.failures);
        self.metrics.watch_failed(trouble.kind, new.into());
        self.failing.insert(trouble.kind, trouble.error.to_string());
    }

    /// All of this kind was listed. Gives whether its watch failed until then.
    pub(in crate::run) fn listed(&mut self, kind: Kind) -> bool {
        self.heard(kind);
        self.failing.remove(&kind).is_some()
    }

    /// The watch of this kind is without trouble. Gives whether it failed until then.
    pub(in crate::run) fn recovered(&mut self, kind: Kind) -> bool {
        self.counted.remove(&kind);
        self.failing.remove(&kind).is_some()
    }

    /// This kind is watched no longer: then its watch neither fails nor is silent.
    pub(in crate::run) fn ended(&mut self, kind: Kind) {
        self.recovered(kind);
        self.heard.remove(&kind);
        self.metrics.unwatched(kind);
    }

    /// A watch that fails, with the newest failure.
    pub(in crate::run) fn failure(&self) -> Option<(Kind, &str)> {
        self.failing.iter().next().map(|(kind, why)| (*kind, &**why))
    }

    /// Which watch has been silent for too long, in words: the one that has been for longest.
    pub(in crate::run) fn silence(&self) -> Option<String> {
        let (kind, heard) = self.heard.iter().min_by_key(|(_, heard)| **heard)?;
        if heard.elapsed() <= SILENCE {
            return None;
        }
        let why = self.failing.get(kind).map(|why| format!(" ({why})")).unwrap_or_default();
        let (kind, minutes) = (kind.as_str(), SILENCE.as_secs() / 60);
        Some(format!(
            "nothing was heard on the watch of {kind} for more than {minutes} minutes{why}"
        ))
    }

    /// Each watch that was ever heard of, for `/status`.
    pub(in crate::run) fn status(&self) -> Vec<WatchStatus> {
        let status = |(kind, heard): (&Kind, &Instant)| WatchStatus {
            kind: kind.as_str(),
            seconds_since_heard: heard.elapsed().as_secs(),
            trouble: self.failing.get(kind).cloned(),
        };
        self.heard.iter().map(status).collect()
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;
    use prometheus_client::registry::Registry;

    use super::*;
    use crate::kubernetes::watch::{Error, Target};

    #[tokio::test(start_paused = true)]
    async fn l1_a_watch_that_goes_nowhere_is_told_until_it_is_heard_of() {
        let mut watches = WatchHealth::new(DaemonMetrics::new(&[], &[]));
        let is_silent = |watches: &WatchHealth, kind: Kind| {
            watches
                .silence()
                .is_some_and(|why| why.contains(&format!("watch of {} ", kind.as_str())))
        };
        assert_eq!(watches.silence(), None, "nothing is watched yet");
        watches.heard(Kind::Service);
        for _ in 0..6 {
            watches.heard(Kind::EndpointSlice);
            assert_eq!(watches.silence(), None);
            tokio::time::advance(Duration::from_secs(50)).await;
        }
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(is_silent(&watches, Kind::Service), "{:?}", watches.silence());
        watches.heard(Kind::Service);
        assert_eq!(watches.silence(), None);
        tokio::time::advance(SILENCE * 2).await;
        watches.ended(Kind::EndpointSlice);
        watches.ended(Kind::Service);
        assert_eq!(watches.silence(), None, "what is not watched is not silent");
    }

    #[tokio::test]
    async fn each_failure_is_counted_once_though_not_each_is_told() {
        let metrics = DaemonMetrics::new(&[], &[]);
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let mut watches = WatchHealth::new(metrics);
        let kind = Kind::Service;
        let told = |failures: u32| {
            let target = Target { resource: "services", namespace: None };
            let error = Error::EndedAtOnce { target, count: failures };
            Trouble { kind, error, failures, retry_in: Duration::ZERO }
        };
        watches.failed(&told(1));
        watches.failed(&told(7));
        assert!(watches.failure().is_some_and(|(of, why)| of == kind && why.contains("found 7")));
        assert!(watches.listed(kind));
        assert_eq!(watches.failure(), None);
        assert_eq!(watches.status()[0].trouble, None);
        watches.failed(&told(9));
        assert!(watches.recovered(kind));
        assert!(!watches.recovered(kind));
        watches.failed(&told(10));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        assert!(text.contains("\nwatch_failures_total{kind=\"Service\"} 19\n"), "{text}");
    }
}
