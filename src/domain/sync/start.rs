//! The first reconciliation of a term, and what it holds back.
use std::collections::{BTreeMap, BTreeSet};

use crate::domain::Moment;
use crate::domain::kube::names::ObjectKey;
use crate::domain::kube::object::Kind;
use crate::domain::map::{HashMap, HashSet};
use crate::domain::services::settings::{PtrScope, Settings};
use crate::domain::sync::cluster::Cluster;
use crate::domain::sync::config::Config;
use crate::domain::sync::hold::Cause;
use crate::domain::sync::ledger::{KnownRegistration, PtrState};
use crate::domain::sync::loss::{FEW, Loss, is_most, must_be_allowed};
use crate::domain::sync::report::Report;
use crate::domain::sync::term::{Stage, Term};
use crate::domain::sync::view::View;

/// What each Service would lose, and why.
type Losses = HashMap<ObjectKey, Loss>;

// === impl Term ===

impl Term {
    /// Makes the first reconciliation once everything is listed and Consul is read.
    pub(super) fn start_if_loaded(
        &mut self,
        config: &Config,
        cluster: &mut Cluster,
        now: Moment,
        reports: &mut Vec<Report>,
    ) {
        if self.stage != (Stage::Starting { resynced: true }) || !cluster.may_start() {
            return;
        }
        self.stage = Stage::Running;
        // Those that the resync made from IDs: it most often comes before the lists.
        self.known.share_keys(|key| cluster.cache.kept_key(key));
        let losses = self.claim_and_weigh(config, cluster);
        self.collect_orphans(config, cluster);
        cluster.report_selection(&config.settings, reports);
        let unweighed = std::mem::take(&mut cluster.unweighed).into_values().flatten().collect();
        if self.hold_first_losses(&config.settings, losses, &unweighed, reports) {
            cluster.suspects.confirm_later(now);
        }
        if !self.holds.is_empty() {
            // What is held keeps its names, and its PTR records: whoever wants those claims less.
            self.claim_and_weigh(config, cluster);
            self.collect_orphans(config, cluster);
        }
        // Whoever has what by now: all are planned.
        self.known.take_moved();
        self.mark_all(cluster);
        self.mark(ObjectKey::orphaned());
    }

    /// Notes what each Service claims; gives what each would lose.
    fn claim_and_weigh(&mut self, config: &Config, cluster: &Cluster) -> Losses {
        let mut losses = Losses::default();
        for (key, _) in cluster.cache.services_after(None) {
            let view = View::new(config, None, cluster, self);
            let desired = view.desired(key, &|_, _| false);
            if let Some(loss) = view.first_loss(key, &desired) {
                losses.insert(key.clone(), loss);
            }
            // What nobody claims is collected afterwards.
            self.ptr.claims.set(key, View::ptr_claims(&desired));
            for name in desired.unknown_names {
                self.names.ask(name.into());
            }
        }
        for (key, known) in self.known.services().filter(|_| !config.settings.never_removes()) {
            let unread = cluster.cache.undecodable(Kind::Service, key).is_some();
            if cluster.cache.service(key).is_none() && !unread {
                // Of a namespace that is not selected nothing is asked: its objects may still exist.
                let selected = config.settings.includes_namespace(&key.namespace);
                let cause = if selected { Cause::Absence } else { Cause::Selection };
                let loss = Loss { cause, records: known.len(), is_shown: false };
                losses.insert(key.clone(), loss);
            }
        }
        losses
    }

    /// PTR records that no Service claims and that are ours, or may be. One goes with its instance,
    /// if that goes, too.
    fn collect_orphans(&mut self, config: &Config, cluster: &Cluster) {
        let may_be_ours = |state: &PtrState| matches!(state, PtrState::Ours(_) | PtrState::Unknown);
        let unclaimed: Vec<(Box<str>, bool)> = self
            .known
            .ptr_keys()
            .filter(|(key, _)| self.ptr.claims.holder(key).is_none())
            .map(|(key, known)| (key.clone(), may_be_ours(&known.state)))
            .collect();
        let ours = unclaimed.iter().filter(|(_, is_ours)| *is_ours).map(|(key, _)| &**key);
        let mut released = self.leaving(config, cluster, &ours.collect());
        let leaving: HashSet<Box<str>> = released.values().flatten().cloned().collect();
        for (key, may_be_ours) in unclaimed {
            if !may_be_ours {
                self.known.forget_ptr(&key);
            } else if !leaving.contains(&key) {
                released.entry(ObjectKey::orphaned()).or_default().insert(key);
            }
        }
        self.ptr.released = released;
    }

    /// Those PTR keys at whose addresses Services have instances none of which is known to stay. Where
    /// several have some, the last one that goes takes the record along.
    fn leaving(
        &mut self,
        config: &Config,
        cluster: &Cluster,
        keys: &HashSet<&str>,
    ) -> HashMap<ObjectKey, BTreeSet<Box<str>>> {
        if keys.is_empty() {
            return HashMap::default();
        }
        let mut owners: BTreeMap<Box<str>, BTreeSet<ObjectKey>> = BTreeMap::new();
        let mut leaving: HashMap<ObjectKey, BTreeSet<Box<str>>> = HashMap::default();
        for (service, all) in self.known.services() {
            let ptr_keys = all.iter().filter_map(KnownRegistration::ptr_key);
            for key in ptr_keys.filter(|key| keys.contains(&**key)) {
                let key: Box<str> = key.into();
                owners.entry(key.clone()).or_default().insert(service.clone());
                leaving.entry(service.clone()).or_default().insert(key);
            }
        }
        owners.retain(|_, services| services.len() > 1);
        self.ptr.shared = owners;
        let view = View::new(config, None, cluster, self);
        for (service, keys) in &mut leaving {
            let desired = view.desired(service, &|_, _| false);
            if desired.is_unknown() {
                // Nothing of it is removed until it is known what stays.
                continue;
            }
            let all = self.known.of(service).iter();
            let staying = all.filter(|it| desired.keeps(&it.id(&config.settings.cluster, service)));
            for key in staying.filter_map(KnownRegistration::ptr_key) {
                keys.remove(&*key);
            }
        }
        leaving
    }

    /// Holds back what is too much; gives whether a second list may release something of it.
    fn hold_first_losses(
        &mut self,
        settings: &Settings,
        mut losses: Losses,
        unweighed: &BTreeSet<ObjectKey>,
        reports: &mut Vec<Report>,
    ) -> bool {
        let allowed = settings.allow_removals;
        losses.retain(|_, loss| !(allowed && loss.cause == Cause::Selection));
        let mut lost_by_cause: BTreeMap<Cause, usize> = BTreeMap::new();
        for loss in losses.values() {
            *lost_by_cause.entry(loss.cause).or_default() += loss.records;
        }
        let total = self.known.registration_count();
        let lost = lost_by_cause.values().sum();
        let silent: usize = losses.values().filter(|it| !it.is_shown).map(|it| it.records).sum();
        for (key, Loss { cause, is_shown, .. }) in losses {
            let is_held = match cause {
                Cause::Absence if unweighed.contains(&key) => true,
                _ if total >= FEW => is_most(lost, total),
                Cause::Absence => !is_shown && is_most(silent, total),
                Cause::Selection => must_be_allowed(lost, total),
                Cause::Policy => false,
            };
            if is_held {
                self.holds.hold(key, cause);
            }
        }
        let orphaned = ObjectKey::orphaned();
        let removable = self.ptr.released.get(&orphaned).filter(|_| !settings.never_removes());
        let orphans = removable.map_or(0, BTreeSet::len);
        let of_scope = settings.reverse == PtrScope::Off && !allowed;
        let worst = self.holds.causes().last().copied();
        let ptr_count = self.known.ptr_count();
        let too_many = if of_scope {
            ptr_count >= FEW && is_most(orphans, ptr_count)
        } else {
            is_most(orphans, ptr_count)
        };
        if worst.is_some() || too_many {
            let cause = if of_scope { Some(Cause::Selection) } else { worst };
            self.holds.release(&orphaned);
            self.holds.hold(orphaned, cause.unwrap_or(Cause::Absence));
        }
        let causes = self.holds.causes();
        for &cause in &causes {
            let lost = lost_by_cause.get(&cause).copied().unwrap_or(0);
            let (lost, total) =
                if lost > 0 { (lost, total) } else { (orphans, self.known.ptr_count()) };
            reports.push(Report::Held { cause, lost, total });
        }
        causes.contains(&Cause::Absence)
    }
}
