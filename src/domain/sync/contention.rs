//! Records that somebody else keeps changing: each change is fixed, but less and less often.
//!
//! A wanted record never stays away for longer than [`MAX_PAUSE`], and only the content that was
//! changed waits: a newer one and a removal go through at once.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::domain::Moment;
use crate::domain::consul::record::{CLUSTER_META, ObservedRegistration, RecordKey};
use crate::domain::kube::names::ObjectKey;
use crate::domain::map::HashMap;
use crate::domain::problem::{Problem, Reason};
use crate::domain::text::excerpt;

/// So many fixes in a row are somebody's mistake; one more is a fight.
const FIXES: u32 = 3;
/// Fixes that are further apart than this are not in a row.
const WINDOW: Duration = Duration::from_mins(10);
/// The first pause of a fight. It doubles with each fix.
const MIN_PAUSE: Duration = Duration::from_secs(4);
/// The longest: clients do not miss a record for longer.
const MAX_PAUSE: Duration = Duration::from_mins(1);

/// Records that were found changed.
#[derive(Debug, Default)]
pub(super) struct Contention {
    records: HashMap<RecordKey, Changed>,
    /// The records of each Service that are fought about.
    fights: HashMap<ObjectKey, BTreeSet<RecordKey>>,
}

/// A record that was found changed.
#[derive(Debug)]
struct Changed {
    service: ObjectKey,
    /// How often in a row.
    times: u32,
    /// When it was fixed last, or will be.
    fixed: Moment,
    /// What it was found to be last.
    found: String,
}

// === impl Contention ===

impl Contention {
    /// Forgets what is too long ago to count. Gives the Services whose fights are over.
    pub(super) fn forget_old(&mut self, now: Moment) -> Vec<ObjectKey> {
        let mut over = Vec::new();
        self.records.retain(|record, changed| {
            let stays = changed.fixed + WINDOW > now;
            if !stays && let Some(fights) = self.fights.get_mut(&changed.service) {
                fights.remove(record);
                over.push(changed.service.clone());
            }
            stays
        });
        self.fights.retain(|_, records| !records.is_empty());
        over
    }

    /// A record was found changed at `now`. Until when the fix waits: not at all, unless it is a
    /// fight.
    pub(super) fn note(
        &mut self,
        service: &ObjectKey,
        record: &RecordKey,
        found: String,
        now: Moment,
    ) -> Option<Moment> {
        let changed = self.records.entry(record.clone()).or_insert_with(|| Changed {
            service: service.clone(),
            times: 0,
            fixed: now,
            found: String::new(),
        });
        if changed.service != *service {
            // The record changed hands: the fight is its new owner's.
            let before = std::mem::replace(&mut changed.service, service.clone());
            if let Some(fights) = self.fights.get_mut(&before) {
                fights.remove(record);
            }
        }
        changed.found = found;
        changed.times += 1;
        let Some(fights) = changed.times.checked_sub(FIXES + 1) else {
            changed.fixed = now;
            return None;
        };
        self.fights.entry(service.clone()).or_default().insert(record.clone());
        let pause = MAX_PAUSE.min(MIN_PAUSE * 2_u32.saturating_pow(fights.min(8)));
        if changed.fixed <= now {
            // Else the last fix is still to come: a write that was given up was applied late.
            changed.fixed = now.max(changed.fixed + pause);
        }
        Some(changed.fixed).filter(|until| *until > now)
    }

    /// The fights about records of the Service.
    pub(super) fn problems(
        &self,
        service: &ObjectKey,
    ) -> impl Iterator<Item = (&RecordKey, Problem)> {
        let fights = self.fights.get(service).into_iter().flatten();
        fights.filter_map(|record| {
            let found = &self.records.get(record)?.found;
            let why = format!(
                "{record}: fixed more than {FIXES} times, each time changed again by somebody else: \
                 {found}. It is fixed again after a minute at most; find the other writer",
            );
            Some((record, Problem::new(Reason::Contested, why)))
        })
    }
}

/// What the record's meta says beside ours, which tells who wrote it.
pub(super) fn as_found(observed: &ObservedRegistration) -> String {
    let ours =
        |key: &str| key.starts_with("external-") || key.starts_with("port-") || key == CLUSTER_META;
    let meta = observed.registration.meta.pairs().filter(|(key, _)| !ours(key));
    let meta: Vec<String> = meta.map(|(key, value)| format!("{key}={value}")).collect();
    if meta.is_empty() {
        return "its meta names no writer".to_owned();
    }
    format!("its meta now has {}", excerpt(&meta.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn n6_the_fight_about_a_ptr_record_is_its_holders() {
        let [former, holder] = ["former", "holder"].map(|name| ObjectKey::new("ns", name));
        let record = RecordKey::Ptr("0.0.0.10.IN-ADDR.ARPA/10.0.0.1".into());
        let mut contention = Contention::default();
        let mut now = Moment::ZERO;
        let mut change = |contention: &mut Contention, service: &ObjectKey| {
            now += Duration::from_secs(1);
            contention.note(service, &record, "it was removed".to_owned(), now)
        };
        for _ in 0..FIXES {
            assert_eq!(change(&mut contention, &former), None);
        }
        assert!(change(&mut contention, &former).is_some());
        assert_eq!(contention.problems(&former).count(), 1);
        // The key changes hands, and whoever fights goes on.
        assert!(change(&mut contention, &holder).is_some());
        assert_eq!(contention.problems(&former).count(), 0);
        let (_, problem) = contention.problems(&holder).next().unwrap();
        assert!(problem.message.contains("it was removed"), "{problem:?}");
        assert_eq!(contention.forget_old(now + WINDOW + MAX_PAUSE), std::slice::from_ref(&holder));
        assert_eq!(contention.problems(&holder).count(), 0);
    }
}
