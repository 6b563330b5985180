//! What happened in the last minutes, for the charts of the page. It is noted with what happens, so
//! that nothing has to wake up for it.

use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

/// What one bar of a chart stands for.
const SLOT: Duration = Duration::from_secs(10);
/// Bars of a chart: 15 minutes.
const SLOTS: usize = 90;

/// What is noted, in the order in which it is shown.
const SERIES: [(&str, &str); 5] = [
    ("Changes", ""),
    ("Writes", ""),
    ("Errors", ""),
    ("Slowest write", "ms"),
    ("Slowest propagation", "ms"),
];

/// What happened in the last minutes, in slots of ten seconds.
#[derive(Debug)]
pub struct History {
    began: Instant,
    /// Number of the newest slot since the beginning.
    newest: u64,
    /// The slots as a ring.
    slots: [[u64; SERIES.len()]; SLOTS],
    /// How many of the series are noted.
    shown: usize,
}

/// One chart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Series {
    /// What it counts.
    pub name: &'static str,
    /// In which unit; empty: a number.
    pub unit: &'static str,
    /// One value for each ten seconds of the last 15 minutes, oldest first.
    pub values: Vec<u64>,
}

// === impl History ===

impl Default for History {
    fn default() -> Self {
        let slots = [[0; SERIES.len()]; SLOTS];
        Self { began: Instant::now(), newest: 0, slots, shown: SERIES.len() - 1 }
    }
}

impl History {
    /// One that notes propagation too.
    pub fn with_propagation() -> Self {
        Self { shown: SERIES.len(), ..Self::default() }
    }

    /// Kubernetes showed a change.
    pub fn changed(&mut self) {
        self.slot()[0] += 1;
    }

    /// A write was answered: well or not, after this time.
    pub fn wrote(&mut self, well: bool, took: Duration) {
        let slot = self.slot();
        slot[if well { 1 } else { 2 }] += 1;
        slot[3] = slot[3].max(millis(took));
    }

    /// So long after a change all that follows from it was written.
    pub fn propagated(&mut self, took: Duration) {
        let slot = self.slot();
        slot[4] = slot[4].max(millis(took));
    }

    /// The charts of the last 15 minutes.
    pub fn series(&mut self) -> Vec<Series> {
        self.slot();
        let slots = (1..=SLOTS as u64).map(|back| place(self.newest + back));
        let values = |series: usize| slots.clone().map(|place| self.slots[place][series]).collect();
        SERIES
            .iter()
            .take(self.shown)
            .enumerate()
            .map(|(series, &(name, unit))| Series { name, unit, values: values(series) })
            .collect()
    }

    /// The slot of now. Those in which nothing happened since the last time are emptied.
    fn slot(&mut self) -> &mut [u64; SERIES.len()] {
        let now = self.began.elapsed().as_secs() / SLOT.as_secs();
        for passed in (self.newest + 1..=now).rev().take(SLOTS) {
            self.slots[place(passed)] = Default::default();
        }
        self.newest = now;
        &mut self.slots[place(now)]
    }
}

fn millis(took: Duration) -> u64 {
    u64::try_from(took.as_millis()).unwrap_or(u64::MAX)
}

fn place(slot: u64) -> usize {
    usize::try_from(slot % SLOTS as u64).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_happened_is_in_its_slot_for_fifteen_minutes() {
        let mut history = History::default();
        let sum = |history: &mut History, series: usize| -> u64 {
            history.series()[series].values.iter().sum()
        };
        history.changed();
        history.wrote(true, Duration::from_millis(3));
        tokio::time::advance(SLOT).await;
        history.wrote(false, Duration::from_millis(7));
        let series = history.series();
        assert!(series.iter().all(|it| it.values.len() == SLOTS));
        assert_eq!(series[1].values[SLOTS - 2..], [1, 0], "writes");
        assert_eq!(series[2].values[SLOTS - 2..], [0, 1], "errors");
        assert_eq!(series[3].values[SLOTS - 2..], [3, 7], "the slowest");
        assert_eq!(series.len(), 4, "nobody notes propagation");
        let mut propagating = History::with_propagation();
        propagating.propagated(Duration::from_millis(9));
        propagating.propagated(Duration::from_millis(2));
        assert_eq!(propagating.series()[4].values[SLOTS - 1], 9, "the slowest");

        tokio::time::advance(SLOT * 88).await;
        assert_eq!(sum(&mut history, 0), 1, "still there");
        tokio::time::advance(SLOT).await;
        assert_eq!((sum(&mut history, 0), sum(&mut history, 2)), (0, 1), "the older slot is over");
        tokio::time::advance(SLOT * 1_000).await;
        assert_eq!(sum(&mut history, 2), 0, "all is over");
    }
}
