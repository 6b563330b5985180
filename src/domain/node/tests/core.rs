//! What is written when.

use std::time::Duration;

use super::agent::{Agent, list, many, web};
use super::*;
use crate::domain::kube::object::{Kind, WatchEvent};
use crate::domain::node::exchange::{Answer, Report};
use crate::domain::node::pod::GATES;
use crate::domain::node::wanted::CheckStatus;
use crate::domain::sidecar::SyncKind;

#[test]
fn heartbeats_are_one_request_each_half_ttl_and_evenly_spread() {
    let mut agent = Agent::new();
    list(&mut agent, &many(250));
    assert_eq!(agent.services.len(), 250);
    agent.pass(Duration::from_secs(6));
    let mut seconds = Vec::new();
    for _ in 0..11 {
        agent.log.clear();
        agent.pass(Duration::from_millis(500));
        seconds.push(agent.log.len());
    }
    let total: usize = seconds.iter().sum();
    assert!((249..=251).contains(&total), "{total} in half a TTL");
    // 250 in eleven parts: 23 each.
    assert!(seconds.iter().all(|count| (8..=45).contains(count)), "{seconds:?}");
    assert_eq!(agent.expired, 0);
}

#[test]
fn taking_over_writes_nothing_and_lets_nothing_expire() {
    let mut agent = Agent::new();
    let pods = many(20);
    list(&mut agent, &pods);
    agent.pass(Duration::from_secs(20));
    agent.restart();
    list(&mut agent, &pods);
    assert_eq!(agent.log, Vec::<String>::new());
    agent.pass(Duration::from_mins(1));
    assert_eq!(agent.expired, 0);
    assert!(!agent.log.iter().any(|it| it.starts_with("register")), "{:?}", agent.log);
}

#[test]
fn a_daemon_that_was_gone_makes_passing_again_what_ran_out() {
    let mut agent = Agent::new();
    list(&mut agent, &many(2));
    for (_, status, output, _) in agent.services.values_mut() {
        *status = CheckStatus::Critical;
        *output = "TTL expired (last output before timeout follows): {}".into();
    }
    agent.restart();
    list(&mut agent, &many(2));
    assert_eq!((agent.status("web-0"), agent.log.len()), (Some("passing"), 2));
}

#[test]
fn only_what_is_ours_and_was_seen_to_be_gone_is_removed() {
    let mut agent = Agent::new();
    let pods = many(10);
    list(&mut agent, &pods);
    agent.delete("web-0");
    assert_eq!(agent.status("web-0"), None);
    // A list that lost one of nine is believed, one that lost more than half is looked at again.
    list(&mut agent, &pods[2..]);
    assert_eq!(agent.services.len(), 8);
    list(&mut agent, &pods[9..]);
    assert_eq!(agent.services.len(), 8);
    assert!(agent.core.is_holding());
    agent.pass(Duration::from_secs(15));
    assert_eq!((agent.services.len(), agent.relists, agent.expired), (8, 1, 0));
    // All are there again.
    list(&mut agent, &pods[2..]);
    assert!(!agent.core.is_holding());
    assert_eq!(agent.services.len(), 8);
    // One of eight is left, and the second list agrees.
    for wait in [11, 0] {
        list(&mut agent, &pods[9..]);
        agent.pass(Duration::from_secs(wait));
    }
    assert_eq!(agent.services.len(), 1);
    agent.delete("web-9");
    assert_eq!(agent.services.len(), 0);
    // A list that broke off shows nothing.
    let mut agent = Agent::new();
    list(&mut agent, &pods);
    agent.watch(WatchEvent::ListStarted(Kind::Pod));
    agent.settle();
    assert_eq!(agent.services.len(), 10);
}

/// No node is without pods: it is another node's name, or a kubelet that has not begun.
#[test]
fn p12_lists_without_any_pod_remove_nothing() {
    let mut agent = Agent::new();
    let pods = many(10);
    list(&mut agent, &pods);
    for restarts in [false, true] {
        if restarts {
            agent.restart();
        }
        for _ in 0..30 {
            list(&mut agent, &[]);
            agent.pass(Duration::from_secs(1));
        }
        assert_eq!((agent.services.len(), agent.status("web-3")), (10, Some("critical")));
        assert!(agent.log.iter().filter(|it| it.starts_with("critical")).count() == 10);
        let told = |it: &Report| *it == Report::Empty;
        assert_eq!(agent.reports().iter().filter(|it| told(it)).count(), 1);
        list(&mut agent, &pods);
        assert_eq!(agent.status("web-3"), Some("passing"));
        agent.log.clear();
    }
    // All but some are there again: the others go.
    for _ in 0..30 {
        list(&mut agent, &[]);
        agent.pass(Duration::from_secs(1));
    }
    list(&mut agent, &pods[..7]);
    agent.settle();
    assert_eq!(agent.services.len(), 7);
}

#[test]
fn what_is_in_the_way_and_not_ours_is_left() {
    let mut agent = Agent::new();
    list(&mut agent, &[("web-0".to_owned(), web())]);
    let id: Box<str> = "katalog-sync_web_shop_web-0".into();
    agent.services.get_mut(&id).unwrap().0.meta = std::sync::Arc::default();
    agent.restart();
    list(&mut agent, &[("web-0".to_owned(), web())]);
    assert_eq!(agent.log, Vec::<String>::new());
    let problem =
        |it: &Report| matches!(it, Report::Problem(_, it) if it.message.contains("is not ours"));
    assert!(agent.reports().iter().any(problem));
}

#[test]
fn p6_what_a_sidecar_deregistered_stays_critical_over_a_restart() {
    let mut agent = Agent::new();
    let mut pod = pod(&[("service-names", "web"), ("sidecar", "sync")]);
    pod.containers.push(container("sync", Some(true)));
    agent.list(&[("web-0", pod.clone())]);
    // Its container is ready: it registered with whoever was here before.
    assert_eq!(agent.status("web-0"), Some("passing"));
    agent.services.values_mut().next().unwrap().2 = "deregistered by its sidecar, restart 0".into();
    agent.services.values_mut().next().unwrap().1 = CheckStatus::Critical;
    agent.restart();
    agent.list(&[("web-0", pod.clone())]);
    agent.pass(Duration::from_secs(30));
    assert_eq!((agent.status("web-0"), agent.log.len()), (Some("critical"), 0));
    // Consul quotes it when the TTL has run out.
    agent.services.values_mut().next().unwrap().2 =
        "TTL expired (last output before timeout follows): deregistered by its sidecar, restart 0"
            .into();
    agent.restart();
    agent.list(&[("web-0", pod.clone())]);
    assert_eq!(agent.status("web-0"), Some("critical"));
    // A terminal phase deregisters, whatever the statuses still say.
    agent.change("web-0", &Pod { phase: Phase::Ended, ..pod });
    assert_eq!(agent.status("web-0"), None);
}

#[test]
fn p7_a_pod_of_the_same_name_begins_anew_without_a_gap() {
    let sidecar = |uid: &str, ip: &str, ready| {
        let mut pod = pod(&[("service-names", "web"), ("sidecar", "sync")]);
        pod.containers.push(container("sync", Some(ready)));
        Pod { uid: uid.into(), ip: Some(ip.into()), ..pod }
    };
    let mut agent = Agent::new();
    agent.list(&[("db-0", sidecar("1", "10.1.0.1", true))]);
    assert_eq!(agent.status("db-0"), Some("passing"));
    agent.log.clear();
    // By a relist: the old one was never seen to go.
    agent.list(&[("db-0", sidecar("2", "10.1.0.2", false))]);
    assert_eq!(agent.status("db-0"), Some("critical"));
    assert_eq!(&*agent.services.values().next().unwrap().0.address, "10.1.0.2");
    assert!(!agent.log.iter().any(|it| it.starts_with("deregister")), "{:?}", agent.log);
}

#[test]
fn p8_an_address_that_goes_for_a_moment_removes_nothing() {
    let mut agent = Agent::new();
    agent.list(&[("web-0", web())]);
    let gone = Pod { ip: None, containers: vec![container("app", Some(false))], ..web() };
    agent.change("web-0", &gone);
    assert_eq!(agent.status("web-0"), Some("critical"));
    agent.change("web-0", &Pod { ip: Some("10.1.0.9".into()), ..web() });
    assert_eq!(agent.status("web-0"), Some("passing"));
    assert_eq!(&*agent.services.values().next().unwrap().0.address, "10.1.0.9");
}

#[test]
fn p9_a_check_that_was_not_answered_is_tried_again_in_time() {
    let mut agent = Agent::new();
    list(&mut agent, &many(50));
    agent.pass(Duration::from_secs(20));
    for _ in 0..5 {
        agent.is_away = true;
        agent.pass(Duration::from_secs(4));
        agent.is_away = false;
        agent.pass(Duration::from_secs(8));
    }
    assert_eq!(agent.expired, 0);
}

#[test]
fn p10_a_check_that_the_agent_does_not_know_is_registered_again() {
    let mut agent = Agent::new();
    agent.list(&[("web-0", web())]);
    agent.services.clear();
    agent.reports();
    agent.pass(Duration::from_secs(6));
    assert_eq!(agent.status("web-0"), Some("passing"));
    assert!(agent.reports().iter().any(|it| matches!(it, Report::Drifted(..))));
}

#[test]
fn p11_an_agent_that_answers_again_is_filled_within_two_seconds() {
    let mut agent = Agent::new();
    list(&mut agent, &many(60));
    agent.is_away = true;
    agent.pass(Duration::from_secs(40));
    agent.services.clear();
    agent.is_away = false;
    agent.core.handle_agent_changed(agent.now);
    agent.pass(Duration::from_secs(2));
    assert_eq!(agent.services.len(), 60);
    assert_eq!(agent.status("web-59"), Some("passing"));
}

#[test]
fn p12_another_agent_removes_nothing_and_gets_nothing() {
    let mut agent = Agent::new();
    list(&mut agent, &many(2));
    agent.log.clear();
    agent.core.handle_agent(Ok((vec![], Some("n2".into()))), agent.now);
    agent.delete("web-0");
    assert_eq!((agent.log.len(), agent.services.len()), (0, 2));
    assert!(agent.core.agent().1.unwrap().contains("several agents answer"));
    agent.pass(Duration::from_mins(2));
    assert_eq!((agent.status("web-0"), agent.status("web-1")), (None, Some("passing")));
}

#[test]
fn a_refusal_waits_for_another_content_and_harms_nobody_else() {
    let mut agent = Agent::new();
    agent.list(&[]);
    agent.see("web-0", &web());
    let action = agent.core.poll_action(agent.now).unwrap();
    let refused = Answer::Refused("Invalid Service Meta".to_owned());
    agent.core.handle_answer("katalog-sync_web_shop_web-0", &action, refused, agent.now);
    agent.change("web-1", &web());
    assert_eq!((agent.status("web-0"), agent.status("web-1")), (None, Some("passing")));
    assert!(agent.reports().iter().any(|it| matches!(it, Report::Problem(..))));
    agent.change("web-0", &pod(&[("service-names", "web"), ("service-port", "81")]));
    assert_eq!(agent.status("web-0"), Some("passing"));
}

#[test]
fn p4_p5_gates_are_set_at_most_twice_and_stay() {
    let gated = |ready, condition| Pod {
        gates: vec![(GATES[0], condition)],
        containers: vec![container("app", Some(ready))],
        ..web()
    };
    let mut agent = Agent::new();
    let patches = |agent: &mut Agent| {
        let all = std::mem::take(&mut agent.log).into_iter();
        all.filter(|it| it.starts_with("gate")).collect::<Vec<_>>()
    };
    agent.list(&[("web-0", gated(false, None))]);
    assert_eq!(patches(&mut agent), ["gate false ContainersNotReady"]);
    agent.change("web-0", &gated(true, Some(false)));
    assert_eq!(patches(&mut agent), ["gate true Done"]);
    assert!(agent.followed.is_empty(), "nobody waits for the catalog any more");
    // What is seen may be older than what was set.
    agent.change("web-0", &gated(false, Some(false)));
    agent.change("web-0", &gated(true, Some(true)));
    agent.pass(Duration::from_mins(2));
    assert!(patches(&mut agent).is_empty());
    agent.restart();
    agent.list(&[("web-0", gated(false, Some(true)))]);
    agent.change("web-0", &gated(true, Some(true)));
    assert!(patches(&mut agent).is_empty());
    // Another pod of that name begins anew.
    agent.change("web-0", &Pod { uid: "2".into(), ..gated(true, None) });
    assert_eq!(patches(&mut agent).last().map(String::as_str), Some("gate true Done"));
}

#[test]
fn p1_a_sidecar_is_answered_when_the_catalog_shows_what_it_asked_for() {
    let sidecar = |app, sync, restarts| {
        let mut pod = pod(&[("service-names", "web"), ("sidecar", "sync")]);
        pod.containers = vec![container("app", Some(app)), container("sync", Some(sync))];
        pod.containers[1].status.as_mut().unwrap().restarts = restarts;
        pod
    };
    let mut agent = Agent::new();
    let ask = |agent: &mut Agent, number, kind, name: &str| {
        agent.log.clear();
        agent.core.handle_request(number, kind, &key(name), agent.now);
        agent.settle();
        agent.log.join("; ")
    };
    let early = ask(&mut agent, 1, SyncKind::Register, "web-0");
    assert!(early.contains("Unavailable"), "{early}");
    agent.list(&[("web-0", sidecar(false, false, 0)), ("plain", web())]);
    assert!(ask(&mut agent, 2, SyncKind::Register, "nope").contains("UnknownPod"));
    assert!(ask(&mut agent, 3, SyncKind::Register, "plain").contains("NoSidecar"));
    assert!(ask(&mut agent, 4, SyncKind::Register, "web-0").contains("NotReady"));
    agent.change("web-0", &sidecar(true, false, 0));
    assert_eq!(agent.status("web-0"), Some("passing"));
    assert_eq!(ask(&mut agent, 5, SyncKind::Register, "web-0"), "5 ok");
    let gone = ask(&mut agent, 6, SyncKind::Deregister, "web-0");
    assert_eq!(gone, "critical katalog-sync_web_shop_web-0; 6 ok");
    // Another status event, and a restart of the daemon.
    agent.change("web-0", &sidecar(true, true, 0));
    assert_eq!(agent.status("web-0"), Some("critical"));
    agent.restart();
    agent.list(&[("web-0", sidecar(true, true, 0))]);
    assert_eq!(agent.status("web-0"), Some("critical"));
    // Its container has started again: it has to register.
    agent.change("web-0", &sidecar(true, true, 1));
    assert_eq!(agent.status("web-0"), Some("critical"));
    assert!(ask(&mut agent, 7, SyncKind::Register, "web-0").ends_with("7 ok"));
    assert_eq!(agent.status("web-0"), Some("passing"));
}

/// From the change to the agent's answer, whatever failed in between; heartbeats are none.
#[test]
fn propagation_is_told_once_for_each_change_that_is_written() {
    let mut agent = Agent::new();
    let told = |agent: &mut Agent| {
        let times = agent.reports().into_iter().filter_map(|it| match it {
            Report::Propagated(took) => Some(took),
            _ => None,
        });
        times.collect::<Vec<_>>()
    };
    agent.list(&[("web-0", web())]);
    agent.change("web-1", &web());
    assert_eq!(told(&mut agent).len(), 1, "what stood at the start changed before");
    let ready = |is_ready| Pod { containers: vec![container("app", Some(is_ready))], ..web() };
    agent.change("web-1", &ready(false));
    agent.change("web-1", &Pod { is_terminating: true, ..ready(false) });
    assert_eq!(told(&mut agent).len(), 2, "its status, and then its output");
    agent.pass(Duration::from_mins(1));
    assert!(told(&mut agent).is_empty(), "heartbeats follow from no change");

    agent.fault = Some(Box::new(|_| Some(Answer::Failed("disk full".into()))));
    agent.change("web-0", &ready(false));
    agent.pass(Duration::from_secs(3));
    agent.fault = None;
    agent.pass(Duration::from_secs(3));
    let took = told(&mut agent);
    assert!(took.len() == 1 && took[0] >= Duration::from_secs(3), "{took:?}");
    agent.delete("web-1");
    assert_eq!(told(&mut agent).len(), 1, "its removal");
}
