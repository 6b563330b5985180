//! Lists and watches that are refused, end, stop, or show an older state.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_healthy_watch_lists_once_and_is_silent() {
    let pages = vec![service("a"), format!("{},{}", service("b"), service("c"))];
    let server =
        Server::new(Lists::Pages(pages), Watches::Healthy(vec![event("DELETED", &service("b"))]));
    let mut stream = start(&server);
    let first = collect(&mut stream, 1).await;
    assert_eq!(events(&first), ["started", "+a", "+b", "+c", "completed", "-b"]);
    server.set_version(11);
    server.set(one_page(), Watches::Healthy(Vec::new()));
    let later = collect(&mut stream, 3600).await;
    assert!(later.iter().all(|notice| *notice == Notice::Heard(Kind::Service)), "{later:?}");
    assert_eq!(server.count(Asked::List), 2);
    assert_within("questions for the version", server.count(Asked::Newest), 18..=20);
    assert_within("watches in an hour", server.count(Asked::Watch), 18..=20);
}

#[tokio::test(start_paused = true)]
async fn a_list_that_is_never_answered() {
    let server = Server::new(Lists::NeverAnswered, Watches::Healthy(Vec::new()));
    let mut stream = start(&server);
    let notices = collect(&mut stream, 120).await;
    assert_within("lists in 120 s", server.count(Asked::List), 5..=8);
    assert_eq!(completed(&notices), 0);
    let first = troubles(&notices)[0];
    assert_eq!(
        first.error.to_string(),
        "cannot list services: expected an answer within 10s, found none; is the Kubernetes API reachable and well?"
    );
    recovers(&server, &mut stream, 55).await;
}

#[tokio::test(start_paused = true)]
async fn a_list_whose_body_stops() {
    let server = Server::new(Lists::Stalled, Watches::Healthy(Vec::new()));
    let mut stream = start(&server);
    let notices = collect(&mut stream, 120).await;
    assert_within("lists in 120 s", server.count(Asked::List), 3..=5);
    let first = troubles(&notices)[0].error.to_string();
    assert!(first.contains("found it stopped after 8 bytes"), "{first}");
    recovers(&server, &mut stream, 75).await;
}

#[tokio::test(start_paused = true)]
async fn a_list_without_end() {
    let server = Server::new(Lists::Endless(Duration::from_secs(9)), Watches::Healthy(Vec::new()));
    let mut stream = start(&server);
    assert_eq!(troubles(&collect(&mut stream, 299).await).len(), 0);
    let notices = collect(&mut stream, 5).await;
    assert_eq!(
        troubles(&notices)[0].error,
        Error::ListTimeout(Target { resource: "services", namespace: None })
    );
    recovers(&server, &mut stream, 45).await;
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_sends_no_headers() {
    let server = Server::new(one_page(), Watches::NoHeaders);
    let mut stream = start(&server);
    let notices = collect(&mut stream, 120).await;
    assert_within("watches in 120 s", server.count(Asked::Watch), 5..=8);
    // A server that was away may have been set back.
    assert_within("lists in 120 s", server.count(Asked::List), 5..=8);
    let first = troubles(&notices)[0].error.to_string();
    assert!(first.starts_with("cannot watch services: expected an answer within 10s"), "{first}");
    recovers(&server, &mut stream, 55).await;
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_goes_silent() {
    let server = Server::new(one_page(), Watches::Silent(Vec::new()));
    let mut stream = start(&server);
    let notices = collect(&mut stream, 600).await;
    assert_within("watches in 600 s", server.count(Asked::Watch), 4..=4);
    assert_eq!(server.count(Asked::List), 1);
    assert_eq!(
        troubles(&notices)[0].error.to_string(),
        "the watch of services broke off: the watch was silent for \
         194s and was not ended in time: its connection is broken"
    );
    recovers(&server, &mut stream, 200).await;
}

#[tokio::test(start_paused = true)]
async fn a_watch_refused_as_too_old_is_listed_anew() {
    let server = Server::new(one_page(), Watches::Status(410));
    let mut stream = start(&server);
    let notices = collect(&mut stream, 60).await;
    assert_within("watches in 60 s", server.count(Asked::Watch), 5..=8);
    assert_within("lists in 60 s", server.count(Asked::List), 5..=8);
    assert!(completed(&notices) >= 5, "{notices:?}");
    assert!(server.gaps(Asked::List).windows(2).all(|gap| gap[0] < gap[1] || gap[0] >= 30));
    recovers(&server, &mut stream, 45).await;
}

#[tokio::test(start_paused = true)]
async fn a_watch_told_again_and_again_that_it_is_too_old() {
    let server = Server::new(one_page(), Watches::Ended(vec![gone()]));
    let mut stream = start(&server);
    let notices = collect(&mut stream, 60).await;
    assert_within("lists in 60 s", server.count(Asked::List), 5..=8);
    assert_within("watches in 60 s", server.count(Asked::Watch), 5..=8);
    assert!(completed(&notices) >= 5, "{notices:?}");
    recovers(&server, &mut stream, 45).await;
}

#[tokio::test(start_paused = true)]
async fn a_list_that_is_always_refused_as_too_many() {
    let server = Server::new(Lists::Status(429), Watches::Healthy(Vec::new()));
    let mut stream = start(&server);
    let notices = collect(&mut stream, 60).await;
    assert_within("lists in 60 s", server.count(Asked::List), 5..=8);
    let first = troubles(&notices)[0];
    assert_eq!(first.error.to_string(), "cannot list services: HTTP 429 Scripted: scripted 429");
    assert_eq!(first.failures, 1);
    assert!(first.retry_in <= BACKOFF.first, "{:?}", first.retry_in);
    recovers(&server, &mut stream, 45).await;
}

#[tokio::test(start_paused = true)]
async fn l2_a_server_that_ends_each_watch_at_once_is_reported_and_relisted() {
    let server = Server::new(one_page(), Watches::Ended(Vec::new()));
    let mut stream = start(&server);
    let notices = collect(&mut stream, 20).await;
    let first = troubles(&notices)[0];
    assert_eq!(
        first.error.to_string(),
        "expected watches of services that last, found 5 in a row that ended at once without an \
         event; is a proxy in between that cuts long responses?"
    );
    assert!(completed(&notices) >= 2, "{notices:?}");
    collect(&mut stream, 580).await;
    assert_within("lists in ten minutes", server.count(Asked::List), 15..=25);
    assert_within("watches in ten minutes", server.count(Asked::Watch), 75..=125);
    recovers(&server, &mut stream, 45).await;
}

#[tokio::test(start_paused = true)]
async fn l2_a_few_short_watches_are_no_fault() {
    let server = Server::new(one_page(), Watches::Ended(Vec::new()));
    let mut stream = start(&server);
    let notices = collect(&mut stream, 3).await;
    server.set(one_page(), Watches::Healthy(Vec::new()));
    let later = collect(&mut stream, 600).await;
    assert_eq!((troubles(&notices).len(), troubles(&later).len()), (0, 0));
    assert_eq!(server.count(Asked::List), 1);
}

#[tokio::test(start_paused = true)]
async fn l1_a_storage_that_was_set_back_is_relisted() {
    let server = Server::new(one_page(), Watches::Healthy(vec![event("ADDED", &service("new"))]));
    let mut stream = start(&server);
    assert!(sees(&collect(&mut stream, 100).await, "new"));
    // The watch is at version 11: to list at 10 again is to have lost what came after.
    server.set(one_page(), Watches::Healthy(Vec::new()));
    let notices = collect(&mut stream, 100).await;
    let error = troubles(&notices)[0].error.to_string();
    assert!(
        error.starts_with("expected services at version 11 or newer, found 10: the storage"),
        "{error}"
    );
    assert_eq!(events(&notices), ["started", "+web", "completed"]);
    // From then on the version is that of the list.
    let later = collect(&mut stream, 600).await;
    assert_eq!((events(&later).len(), troubles(&later).len()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn l1_servers_at_different_versions_cause_a_bounded_number_of_relists() {
    let server = Server::new(one_page(), Watches::Ended(vec![event("ADDED", &service("new"))]));
    let mut stream = start(&server);
    let end = Instant::now() + Duration::from_mins(10);
    let mut versions = [10, 9, 12].into_iter().cycle();
    while Instant::now() < end {
        server.set_version(versions.next().unwrap());
        collect(&mut stream, 1).await;
    }
    assert_within("lists in ten minutes", server.count(Asked::List), 10..=30);
}

#[tokio::test(start_paused = true)]
async fn l1_a_server_that_was_away_is_relisted_whatever_its_version() {
    for fault in [Watches::Status(503), Watches::NoHeaders] {
        let server = Server::new(one_page(), Watches::Ended(vec![event("ADDED", &service("new"))]));
        let mut stream = start(&server);
        collect(&mut stream, 1).await;
        server.set_version(1_000);
        server.set(one_page(), fault);
        collect(&mut stream, 12).await;
        let lists = server.count(Asked::List);
        server.set(one_page(), Watches::Healthy(Vec::new()));
        let notices = collect(&mut stream, 20).await;
        assert_eq!(completed(&notices), 1, "{notices:?}");
        assert_eq!(server.count(Asked::List), lists + 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_ends_in_time_is_resumed() {
    let server = Server::new(one_page(), Watches::Healthy(Vec::new()));
    let mut stream = start(&server);
    collect(&mut stream, 100).await;
    server.set(one_page(), Watches::Healthy(vec![event("DELETED", &service("web"))]));
    server.set_version(11);
    assert_eq!(events(&collect(&mut stream, 100).await), ["-web"]);
    assert_eq!(server.count(Asked::List), 1);
}

#[tokio::test(start_paused = true)]
async fn a_list_that_breaks_off_is_not_completed() {
    let server = Server::new(Lists::BrokenOff(service("web")), Watches::Healthy(Vec::new()));
    let mut stream = start(&server);
    let notices = collect(&mut stream, 20).await;
    assert_eq!(events(&notices)[..4], ["started", "+web", "started", "+web"]);
    assert_eq!(completed(&notices), 0);
    assert_within("lists in 20 s", server.count(Asked::List), 8..=12);
    server.set(Lists::Pages(vec![service("a"), service("b")]), Watches::Healthy(Vec::new()));
    let notices = collect(&mut stream, 31).await;
    assert_eq!(events(&notices), ["started", "+a", "+b", "completed"]);
}

#[tokio::test(start_paused = true)]
async fn a_right_that_is_missing_is_named() {
    let server = Server::new(Lists::Status(403), Watches::Healthy(Vec::new()));
    let mut stream = start(&server);
    let notices = collect(&mut stream, 1).await;
    assert_eq!(
        troubles(&notices)[0].error.to_string(),
        "expected the right to list and watch services, found none (HTTP 403 Scripted: scripted \
         403); manifests/base/rbac.yaml grants it"
    );
    recovers(&server, &mut stream, 45).await;
}

#[tokio::test(start_paused = true)]
async fn trouble_is_told_at_a_bounded_rate_and_its_end_once() {
    let server = Server::new(Lists::Status(500), Watches::Healthy(Vec::new()));
    let mut stream = start(&server);
    let notices = collect(&mut stream, 600).await;
    // Delays of 22 to 30 s after the first minute, each failure reported but for the first few.
    assert_within("reported in 600 s", troubles(&notices).len(), 15..=27);
    let failures: Vec<_> = troubles(&notices).iter().map(|it| it.failures).collect();
    assert!(failures[0] == 1 && failures[1] > 3, "{failures:?}");
    server.set(one_page(), Watches::Healthy(Vec::new()));
    let notices = collect(&mut stream, 600).await;
    let mut reports = notices.iter().filter(|notice| !matches!(notice, Notice::Heard(_)));
    assert_eq!(reports.next_back(), Some(&Notice::Recovered(Kind::Service)));
    assert_eq!(notices.iter().filter(|it| matches!(it, Notice::Recovered(_))).count(), 1);
    // Healed: the next fault is reported at once and tried again within a second.
    server.set(one_page(), Watches::Status(500));
    let notices = collect(&mut stream, 200).await;
    let first = troubles(&notices)[0];
    assert_eq!(first.failures, 1);
    assert!(first.retry_in <= BACKOFF.first, "{:?}", first.retry_in);
}

#[tokio::test(start_paused = true)]
async fn a_list_that_is_asked_for_begins_after_that() {
    let server = Server::new(one_page(), Watches::Healthy(Vec::new()));
    let relist = Relist::default();
    let mut stream = Watcher::new(server.client()).services(relist.clone());
    collect(&mut stream, 20).await;
    relist.request();
    relist.request();
    assert_eq!(events(&collect(&mut stream, 20).await), ["started", "+web", "completed"]);
    assert_eq!(server.count(Asked::List), 2);

    // In the middle of a list: what is left of it is not reported.
    relist.request();
    assert_eq!(events(&[stream.next().await.unwrap()]), ["started"]);
    assert_eq!(events(&[stream.next().await.unwrap()]), ["+web"]);
    relist.request();
    assert_eq!(events(&collect(&mut stream, 20).await), ["started", "+web", "completed"]);
    assert_eq!(server.count(Asked::List), 4);
}

#[tokio::test(start_paused = true)]
async fn asking_for_a_list_does_not_pass_the_back_off() {
    let server = Server::new(Lists::Status(500), Watches::Healthy(Vec::new()));
    let relist = Relist::default();
    let mut stream = Watcher::new(server.client()).services(relist.clone());
    for _ in 0..600 {
        relist.request();
        let wait = async { while stream.next().await.is_some() {} };
        let _ = timeout(Duration::from_millis(100), wait).await;
    }
    assert_within("lists in 60 s", server.count(Asked::List), 5..=8);
}
