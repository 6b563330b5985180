//! An agent that refuses, fails, hangs or forgets, an API server that does not take a patch, and what
//! others registered.

use std::time::Duration;

use super::agent::{Agent, list, many, web};
use super::*;
use crate::domain::kube::object::{Kind, WatchEvent};
use crate::domain::node::core::MAX_FLIGHTS;
use crate::domain::node::exchange::{Action, Answer, PatchError, Report};
use crate::domain::node::pod::{GATES, Seen};
use crate::domain::node::wanted::CheckStatus;

fn is_registration(action: &Action) -> bool {
    matches!(action, Action::Register(..))
}

fn requests(agent: &Agent, kind: &str) -> usize {
    agent.log.iter().filter(|it| it.starts_with(kind)).count()
}

#[test]
fn a_registration_that_is_refused_or_denied_lets_no_check_run_out() {
    for refusal in [Answer::Refused("no".into()), Answer::Denied("no".into())] {
        let mut agent = Agent::new();
        list(&mut agent, &many(3));
        agent.fault = Some(Box::new(move |it| is_registration(it).then(|| refusal.clone())));
        let changed = pod(&[("service-names", "web"), ("service-tags", "new")]);
        agent.change("web-0", &changed);
        agent.pass(Duration::from_mins(2));
        assert_eq!((agent.status("web-0"), agent.expired), (Some("passing"), 0));
        assert!(requests(&agent, "fault") <= 14, "{} tries", requests(&agent, "fault"));
        // What the agent has goes on saying whether the pod is ready.
        let unready = Pod { containers: vec![container("app", Some(false))], ..changed };
        agent.change("web-0", &unready);
        assert_eq!(agent.status("web-0"), Some("critical"));
        let problem = |it: &Report| matches!(it, Report::Problem(pod, _) if *pod == key("web-0"));
        assert_eq!(agent.reports().iter().filter(|it| problem(it)).count(), 1);
        agent.fault = None;
        agent.pass(Duration::from_hours(1));
        assert_eq!(&*agent.services["katalog-sync_web_shop_web-0"].0.tags, ["new".to_owned()]);
    }
}

#[test]
fn p10_an_agent_with_a_full_disk_is_asked_again_and_not_flooded() {
    let mut agent = Agent::new();
    list(&mut agent, &many(50));
    agent.pass(Duration::from_secs(20));
    let full = || Answer::Failed("no space left on device".to_owned());
    agent.fault = Some(Box::new(move |it| matches!(it, Action::Update { .. }).then(full)));
    (agent.log, agent.reads) = (Vec::new(), 0);
    agent.pass(Duration::from_mins(1));
    // Each check is tried again each second or two, which is the longest delay with its jitter.
    let tries = requests(&agent, "fault");
    assert!((50 * 20..=50 * 70).contains(&tries), "{tries} tries in a minute");
    assert!(agent.reads <= 2, "{} readings in a minute", agent.reads);
    agent.fault = None;
    agent.pass(Duration::from_secs(4));
    assert!(agent.services.values().all(|(_, status, ..)| *status == CheckStatus::Passing));
}

#[test]
fn p9_registrations_that_hang_keep_no_heartbeat_waiting() {
    let mut agent = Agent::new();
    let pods = many(250);
    list(&mut agent, &pods[..100]);
    agent.hangs = true;
    list(&mut agent, &pods);
    agent.pass(Duration::from_mins(1));
    assert_eq!((agent.services.len(), agent.expired), (100, 0));
    // As many hang as there may be.
    const { assert!(MAX_FLIGHTS < 150) };
}

/// A reading that began before a removal shows what is gone.
#[test]
fn what_was_removed_during_a_reading_is_not_removed_twice() {
    let mut agent = Agent::new();
    list(&mut agent, &many(5));
    agent.holds_reading = true;
    agent.core.handle_agent_changed(agent.now);
    agent.settle();
    agent.delete("web-0");
    agent.holds_reading = false;
    let reading = agent.held_reading.take().expect("it is read");
    agent.core.handle_agent(Ok((reading, Some("n1".into()))), agent.now);
    agent.settle();
    agent.pass(Duration::from_mins(2));
    assert_eq!((requests(&agent, "deregister"), agent.services.len()), (1, 4));
}

#[test]
fn a_ttl_that_changed_while_the_daemon_was_away_is_registered_once() {
    let long = |ttl| pod(&[("service-names", "web"), ("service-check-ttl", ttl)]);
    let mut agent = Agent::new();
    agent.list(&[("web-0", long("20s"))]);
    for ttl in ["2m", "15s"] {
        agent.restart();
        agent.list(&[("web-0", long(ttl))]);
        agent.pass(Duration::from_mins(5));
        assert_eq!((requests(&agent, "register"), agent.expired), (1, 0), "{ttl}");
    }
}

/// Katalog-sync's registrations do not say their TTL.
#[test]
fn what_others_registered_does_not_run_out_whatever_its_ttl_is() {
    let long = pod(&[("service-names", "web"), ("service-check-ttl", "2m")]);
    for (ttl, registrations) in [(11, 0), (120, 0), (3, 1)] {
        let mut agent = Agent::new();
        agent.list(&[("web-0", long.clone())]);
        let (registration, .., until) = agent.services.values_mut().next().unwrap();
        registration.ttl = Some(Duration::from_secs(ttl));
        *until = agent.now + Duration::from_secs(ttl);
        agent.restart();
        agent.shows_ttl = false;
        agent.list(&[("web-0", long.clone())]);
        agent.pass(Duration::from_mins(10));
        // The shorter one is noticed with the next reading, and then it has ours.
        assert_eq!(requests(&agent, "register"), registrations, "{ttl} s");
        assert!(agent.expired <= 60 / 3, "{} times", agent.expired);
        agent.expired = 0;
        agent.pass(Duration::from_mins(10));
        assert_eq!((agent.status("web-0"), agent.expired), (Some("passing"), 0), "{ttl} s");
    }
}

#[test]
fn p12_a_check_that_is_lost_again_and_again_is_registered_ever_less_often() {
    let mut agent = Agent::new();
    list(&mut agent, &many(1));
    agent.fault = Some(Box::new(|it| {
        let lost = || Answer::UnknownCheck("Unknown check ID".to_owned());
        matches!(it, Action::Update { .. }).then(lost)
    }));
    agent.pass(Duration::from_mins(1));
    let registered = requests(&agent, "register");
    assert!((10..=80).contains(&registered), "{registered} times in a minute");
}

#[test]
fn a_pod_that_cannot_be_read_keeps_what_it_has() {
    let unreadable = || WatchEvent::Seen(Seen::Undecodable(key("web-0"), "no pod".to_owned()));
    let mut agent = Agent::new();
    list(&mut agent, &many(4));
    agent.restart();
    agent.watch(WatchEvent::ListStarted(Kind::Pod));
    agent.watch(unreadable());
    for (name, pod) in &many(4)[1..] {
        agent.see(name, pod);
    }
    agent.watch(WatchEvent::ListCompleted(Kind::Pod));
    agent.settle();
    agent.pass(Duration::from_mins(1));
    assert_eq!((agent.status("web-0"), agent.expired), (Some("passing"), 0));
    let told = |it: &Report| matches!(it, Report::Problem(pod, _) if *pod == key("web-0"));
    assert!(agent.reports().iter().any(told), "nobody is told");
    // It can be read again, and does not want to be registered; or it goes.
    agent.change("web-0", &pod(&[]));
    assert_eq!(agent.status("web-0"), None);
    agent.watch(WatchEvent::Seen(Seen::Undecodable(key("web-1"), "no pod".to_owned())));
    agent.delete("web-1");
    assert_eq!(agent.status("web-1"), None);
}

#[test]
fn p5_a_patch_that_conflicts_or_finds_no_pod_is_tried_again_until_it_is_made() {
    for (error, limit) in [
        (PatchError::Failed("the object has been modified".to_owned()), Duration::from_secs(1)),
        (PatchError::Gone, Duration::from_secs(15)),
        (PatchError::Denied("no".to_owned()), Duration::from_secs(15)),
    ] {
        let mut agent = Agent::new();
        agent.refused_patches.push_back(error.clone());
        agent.list(&[("web-0", Pod { gates: vec![(GATES[0], Some(false))], ..web() })]);
        assert_eq!(requests(&agent, "gate"), 1, "{error:?}");
        agent.pass(limit);
        assert_eq!(requests(&agent, "gate true"), 2, "{error:?}: {:?}", agent.log);
        agent.pass(Duration::from_mins(2));
        assert_eq!(requests(&agent, "gate"), 2, "{error:?}: {:?}", agent.log);
    }
}

/// The patch of a pod that is gone is answered after the next pod of its name was seen.
#[test]
fn p7_a_late_answer_to_a_patch_says_nothing_of_the_next_pod() {
    let gated = |uid: &str, ready| Pod {
        uid: uid.into(),
        gates: vec![(GATES[0], None)],
        containers: vec![container("app", Some(ready))],
        ..web()
    };
    let mut agent = Agent::new();
    agent.holds_patches = true;
    agent.list(&[("web-0", gated("1", true))]);
    agent.change("web-0", &gated("2", false));
    agent.holds_patches = false;
    let late = std::mem::take(&mut agent.held_patches);
    assert_eq!(late.len(), 2, "{late:?}");
    for patch in late {
        let answer = if &*patch.uid == "1" { Err(PatchError::Gone) } else { Ok(()) };
        agent.core.handle_patched(&patch, answer, agent.now);
    }
    agent.change("web-0", &gated("2", true));
    assert_eq!(agent.log.last().map(String::as_str), Some("gate true Done"));
}
