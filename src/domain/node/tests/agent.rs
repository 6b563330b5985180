//! An agent, and what Kubernetes shows, in the core's own time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::{defaults, key, pod};
use crate::domain::Moment;
use crate::domain::kube::object::{Kind, WatchEvent};
use crate::domain::node::core::Core;
use crate::domain::node::exchange::{Action, Answer, Entry, Found, GatePatch, PatchError, Report};
use crate::domain::node::pod::{Pod, Seen};
use crate::domain::node::wanted::{CheckStatus, Registration};

/// What is answered to a write in the place of doing it.
pub(super) type Fault = Box<dyn Fn(&Action) -> Option<Answer>>;

/// An agent that keeps what it is told, and lets checks run out.
#[expect(clippy::struct_excessive_bools, reason = "each is a fault of its own")]
pub(super) struct Agent {
    pub(super) services: BTreeMap<Box<str>, (Registration, CheckStatus, Box<str>, Moment)>,
    pub(super) core: Core,
    pub(super) now: Moment,
    /// Requests by kind.
    pub(super) log: Vec<String>,
    pub(super) followed: BTreeSet<Box<str>>,
    pub(super) shown: BTreeMap<Box<str>, Vec<Entry>>,
    pub(super) is_away: bool,
    /// What it answers to a write in the place of doing it.
    pub(super) fault: Option<Fault>,
    /// Registrations are asked for and never answered.
    pub(super) hangs: bool,
    /// Whether it shows TTLs, as it does of our registrations.
    pub(super) shows_ttl: bool,
    /// How the next patches of gates end.
    pub(super) refused_patches: VecDeque<PatchError>,
    /// Whether patches are not answered but kept.
    pub(super) holds_patches: bool,
    pub(super) held_patches: Vec<GatePatch>,
    /// Whether a reading is not answered but kept.
    pub(super) holds_reading: bool,
    pub(super) held_reading: Option<Vec<Found>>,
    pub(super) reads: usize,
    pub(super) relists: usize,
    pub(super) expired: usize,
}

impl Agent {
    pub(super) fn new() -> Self {
        Self {
            services: BTreeMap::new(),
            core: Core::new(defaults()),
            now: Moment::ZERO,
            log: Vec::new(),
            followed: BTreeSet::new(),
            shown: BTreeMap::new(),
            is_away: false,
            fault: None,
            hangs: false,
            shows_ttl: true,
            refused_patches: VecDeque::new(),
            holds_patches: false,
            held_patches: Vec::new(),
            holds_reading: false,
            held_reading: None,
            reads: 0,
            relists: 0,
            expired: 0,
        }
    }

    /// A new daemon beside the same agent.
    pub(super) fn restart(&mut self) {
        self.core = Core::new(defaults());
        self.followed.clear();
        self.shown.clear();
        self.log.clear();
    }

    pub(super) fn watch(&mut self, event: WatchEvent<Seen>) {
        // The core's time does not begin at nought.
        self.core.handle_watch(event, self.now);
    }

    pub(super) fn list(&mut self, pods: &[(&str, Pod)]) {
        self.watch(WatchEvent::ListStarted(Kind::Pod));
        for (name, pod) in pods {
            self.see(name, pod);
        }
        self.watch(WatchEvent::ListCompleted(Kind::Pod));
        self.settle();
    }

    pub(super) fn see(&mut self, name: &str, pod: &Pod) {
        self.watch(WatchEvent::Seen(Seen::Pod(key(name), pod.clone())));
    }

    pub(super) fn change(&mut self, name: &str, pod: &Pod) {
        self.see(name, pod);
        self.settle();
    }

    pub(super) fn delete(&mut self, name: &str) {
        self.watch(WatchEvent::Deleted(Kind::Pod, key(name)));
        self.settle();
    }

    /// Does all that is to be done now.
    pub(super) fn settle(&mut self) {
        loop {
            while let Some(action) = self.core.poll_action(self.now) {
                self.answer(&action);
            }
            if !self.show_catalog() {
                return;
            }
        }
    }

    /// Shows what is followed, as the agent has it. Whether that was news.
    pub(super) fn show_catalog(&mut self) -> bool {
        let mut is_new = false;
        for name in &self.followed {
            let of = self.services.values().filter(|(it, ..)| it.name == *name);
            let entries: Vec<_> = of
                .map(|(it, status, ..)| Entry {
                    id: it.id.clone(),
                    address: it.address.clone(),
                    port: it.port,
                    status: Some(*status),
                })
                .collect();
            is_new |= self.shown.get(name) != Some(&entries);
            self.shown.insert(name.clone(), entries.clone());
            self.core.handle_catalog(name, entries);
        }
        self.shown.retain(|name, _| self.followed.contains(name));
        is_new
    }

    pub(super) fn answer(&mut self, action: &Action) {
        let now = self.now;
        let id = match action {
            Action::Register(registration, _) => Some(&registration.id),
            Action::Update { id, .. } | Action::RemoveCheck(id) | Action::Deregister(id) => {
                Some(id)
            }
            _ => None,
        };
        if let Some(id) = id {
            if let Some(answer) = self.fault.as_ref().and_then(|fault| fault(action)) {
                self.log.push(format!("fault {id}"));
                return self.core.handle_answer(id, action, answer, now);
            }
            if self.hangs && !matches!(action, Action::Update { .. }) {
                return;
            }
        }
        let failed = || Answer::Unanswered("nobody there".to_owned());
        match action {
            Action::ReadAgent if self.is_away => {
                self.core.handle_agent(Err("nobody there".to_owned()), now);
            }
            Action::ReadAgent => {
                self.reads += 1;
                let found = self.services.values().map(|(registration, status, output, _)| Found {
                    registration: Registration {
                        deregister_critical_after: None,
                        ttl: registration.ttl.filter(|_| self.shows_ttl),
                        ..registration.clone()
                    },
                    check: Some((*status, output.clone())),
                });
                let found = found.collect();
                if self.holds_reading {
                    self.held_reading = Some(found);
                    return;
                }
                self.core.handle_agent(Ok((found, Some("n1".into()))), now);
            }
            Action::Relist => self.relists += 1,
            Action::Follow(name) => drop(self.followed.insert(name.clone())),
            Action::Unfollow(name) => drop(self.followed.remove(name)),
            Action::Reply(number, result) => {
                let shown =
                    result.as_ref().map_or_else(|error| format!("{error:?}"), |()| "ok".into());
                self.log.push(format!("{number} {shown}"));
            }
            Action::Patch(patch) if self.holds_patches => {
                self.held_patches.push((**patch).clone());
            }
            Action::Patch(patch) => {
                self.log.push(format!("gate {} {}", patch.status, patch.reason));
                let answer = self.refused_patches.pop_front().map_or(Ok(()), Err);
                self.core.handle_patched(patch, answer, now);
            }
            Action::Register(registration, state) => {
                self.log.push(format!("register {}", registration.id));
                if self.is_away {
                    return self.core.handle_answer(&registration.id, action, failed(), now);
                }
                let ttl = now + registration.ttl.unwrap();
                let before = self.services.get(&registration.id);
                let (status, output) =
                    before.map_or((state.status, "".into()), |it| (it.1, it.2.clone()));
                let kept = ((**registration).clone(), status, output, ttl);
                self.services.insert(registration.id.clone(), kept);
                self.core.handle_answer(&registration.id, action, Answer::Done, now);
            }
            Action::Update { id, state, .. } => {
                self.log.push(format!("{} {id}", state.status.as_str()));
                let answer = match self.services.get_mut(id) {
                    _ if self.is_away => failed(),
                    None => Answer::UnknownCheck("Unknown check ID".to_owned()),
                    Some((registration, status, output, ttl)) => {
                        *status = state.status;
                        *output = (&*state.output).into();
                        *ttl = now + registration.ttl.unwrap();
                        Answer::Done
                    }
                };
                self.core.handle_answer(id, action, answer, now);
            }
            Action::RemoveCheck(id) => {
                self.log.push(format!("remove check {id}"));
                self.core.handle_answer(id, action, Answer::Done, now);
            }
            Action::Deregister(id) => {
                self.log.push(format!("deregister {id}"));
                self.services.remove(id);
                self.core.handle_answer(id, action, Answer::Done, now);
            }
        }
    }

    /// Lets time pass.
    pub(super) fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            let next = self.core.next_timeout().unwrap_or(end);
            self.now = next.max(self.now + Duration::from_millis(1)).min(end);
            for (_, status, output, ttl) in self.services.values_mut() {
                if *ttl <= self.now && *status != CheckStatus::Critical {
                    self.expired += 1;
                    *status = CheckStatus::Critical;
                    *output = format!("TTL expired (last output before timeout follows): {output}")
                        .into();
                }
            }
            self.settle();
        }
    }

    pub(super) fn status(&self, pod: &str) -> Option<&'static str> {
        let id = format!("katalog-sync_web_shop_{pod}");
        self.services.get(&*id).map(|(_, status, ..)| status.as_str())
    }

    pub(super) fn reports(&mut self) -> Vec<Report> {
        std::iter::from_fn(|| self.core.poll_report()).collect()
    }
}

pub(super) fn web() -> Pod {
    pod(&[("service-names", "web")])
}

pub(super) fn many(count: usize) -> Vec<(String, Pod)> {
    (0..count).map(|n| (format!("web-{n}"), web())).collect()
}

pub(super) fn list(agent: &mut Agent, pods: &[(String, Pod)]) {
    let pods: Vec<_> = pods.iter().map(|(name, pod)| (name.as_str(), pod.clone())).collect();
    agent.list(&pods);
}
