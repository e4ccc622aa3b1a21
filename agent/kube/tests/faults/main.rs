//! The client under faults of servers, proxies, networks and files. Time is tokio's, paused: it advances when
//! all tasks wait, so a minute of silence takes no minute.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod identity;
mod support;

use berth_kube::{
    Error,
    pool::Pool,
    reflector::{ListWatch, Options},
    request::{Preconditions, Request},
};
use std::time::Duration;
use support::{Cluster, consumer::Consumer, proxy::Mode, until};
use tokio::time::Instant;

const SECOND: Duration = Duration::from_secs(1);

/// A consumer of a server with five widgets, which has all of them.
async fn following(cluster: &Cluster) -> (Pool, Consumer) {
    for n in 0..5 {
        cluster.server.put(&format!("w{n}"), n);
    }
    let pool = cluster.pool().await;
    let consumer = Consumer::start(&pool, "");
    until("the first list", || consumer.is_equal(&cluster.server) && consumer.is_ok()).await;
    (pool, consumer)
}

fn lists(requests: &[String]) -> usize {
    requests.iter().filter(|r| !r.contains("watch=1") || r.contains("sendInitialEvents")).count()
}

#[tokio::test(start_paused = true)]
async fn a_streaming_list_is_followed_by_news() {
    let cluster = Cluster::new().await;
    let (pool, consumer) = following(&cluster).await;
    cluster.server.put("w1", 11);
    cluster.server.remove("w2");
    cluster.server.put("w9", 9);
    until("the news", || consumer.is_equal(&cluster.server)).await;
    assert_eq!((consumer.lists(), consumer.removed()), (1, vec!["w2".to_owned()]));
    let requests = cluster.server.requests();
    assert_eq!(requests.len(), 1, "{requests:?}");
    let view = pool.view();
    assert_eq!((view.connections, view.streams, view.problem), (1, 1, None));
    assert_eq!(view.common_name.as_deref(), Some("system:node:a"));
    assert!(view.last_contact.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_server_without_streaming_lists_is_asked_for_one_once() {
    let cluster = Cluster::new().await;
    cluster.server.refuse_streaming();
    let (pool, consumer) = following(&cluster).await;
    let requests = cluster.server.requests();
    assert!(requests[0].contains("sendInitialEvents=true"), "{requests:?}");
    assert_eq!(requests[1..3], ["GET /api/v1/widgets?limit=500", "GET /api/v1/widgets?limit=500&continue=3"]);
    assert!(requests[3].contains("resourceVersion=105"));
    let second = Consumer::start(&pool, "name=w1");
    until("the second list", || second.listed() && second.is_ok()).await;
    let requests = cluster.server.requests();
    assert_eq!(requests[0], "GET /api/v1/widgets?name=w1&limit=500");
    cluster.server.put("w1", 5);
    until("the news", || consumer.is_equal(&cluster.server) && second.seen() == [("w1".into(), 5)].into())
        .await;
}

#[tokio::test(start_paused = true)]
async fn cut_connections_are_made_anew_and_watches_go_on_where_they_were() {
    let cluster = Cluster::new().await;
    let (_pool, consumer) = following(&cluster).await;
    cluster.server.requests();
    for n in 0..20 {
        cluster.proxy.cut();
        cluster.server.put("w1", 100 + n);
        let took =
            until("the news after a cut", || consumer.is_equal(&cluster.server) && consumer.is_ok()).await;
        assert!(took < 6 * SECOND, "{took:?}");
    }
    let requests = cluster.server.requests();
    assert_eq!(lists(&requests), 0, "{requests:?}");
    assert_eq!((consumer.lists(), consumer.removed()), (1, vec![]));
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_half_a_minute_costs_few_dials_and_is_over_soon() {
    let cluster = Cluster::new().await;
    for n in 0..120 {
        cluster.server.put(&format!("w{n}"), n);
    }
    let pool = cluster.pool().await;
    let consumers: Vec<_> = (0..120).map(|n| Consumer::start(&pool, &format!("name=w{n}"))).collect();
    until("the lists", || consumers.iter().all(|c| c.listed() && c.is_ok())).await;
    cluster.proxy.dials();
    cluster.server.requests();
    cluster.proxy.set(Mode::Refuse);
    cluster.proxy.cut();
    tokio::time::sleep(30 * SECOND).await;
    let dials = cluster.proxy.dials();
    assert!((5..=25).contains(&dials), "{dials} dials for 120 watches");
    assert!(consumers.iter().all(|c| c.listed() && c.seen().len() == 1), "silence removes nothing");
    assert!(consumers[0].why().contains("cannot reach https://127.0.0.1:"), "{}", consumers[0].why());
    assert!(pool.view().problem.is_some());
    cluster.server.put("w7", 1000);
    cluster.proxy.set(Mode::Pass);
    let took = until("the end of the outage", || {
        consumers.iter().all(Consumer::is_ok) && consumers[7].seen()["w7"] == 1000
    })
    .await;
    assert!(took < 7 * SECOND, "{took:?}");
    assert_eq!((lists(&cluster.server.requests()), pool.view().problem), (0, None));
}

/// No FIN arrives; a ping finds the fault.
#[tokio::test(start_paused = true)]
async fn a_stalled_connection_is_noticed_within_a_ping_and_its_answer() {
    let cluster = Cluster::new().await;
    let (pool, consumer) = following(&cluster).await;
    cluster.proxy.set(Mode::Stall);
    let took = until("the stall is noticed", || !consumer.is_ok()).await;
    assert!(took <= 46 * SECOND, "{took:?}");
    cluster.server.put("w1", 77);
    cluster.proxy.set(Mode::Pass);
    let took = until("news after the stall", || consumer.is_equal(&cluster.server) && consumer.is_ok()).await;
    assert!(took < 16 * SECOND, "{took:?}");
    assert_eq!(consumer.lists(), 1);
    let view = pool.view();
    assert_eq!((view.connections, view.streams), (1, 1), "the stalled one is gone");
}

#[tokio::test(start_paused = true)]
async fn two_failed_leases_make_all_connections_anew() {
    let cluster = Cluster::new().await;
    let (pool, consumer) = following(&cluster).await;
    cluster.proxy.dials();
    cluster.proxy.set(Mode::Stall);
    let begun = Instant::now();
    for n in 0..2 {
        let lease = Request::put("/leases/a", "{}").of_lease().within(10 * SECOND);
        assert!(pool.send(&lease).await.is_err(), "{n}");
        pool.lease_renewed(false);
    }
    assert!(begun.elapsed() <= 20 * SECOND);
    until("the watch ends before its ping", || !consumer.is_ok()).await;
    assert!(begun.elapsed() < 25 * SECOND, "{:?}", begun.elapsed());
    cluster.proxy.set(Mode::Pass);
    until("all is well", || consumer.is_ok()).await;
    pool.lease_renewed(true);
    pool.lease_renewed(false);
    assert_eq!(pool.view().streams, 1, "one failure alone cuts nothing");
}

#[tokio::test(start_paused = true)]
async fn goaway_lets_watches_drain_and_loses_no_request() {
    let cluster = Cluster::new().await;
    let (pool, consumer) = following(&cluster).await;
    cluster.server.requests();
    cluster.server.go_away();
    tokio::time::sleep(SECOND).await;
    cluster.server.put("w1", 50);
    until("news on the connection that drains", || consumer.is_equal(&cluster.server)).await;
    assert!(cluster.server.requests().is_empty(), "the watch was not opened anew");
    let second = Consumer::start(&pool, "name=w2");
    until("a second watch", || second.is_ok()).await;
    assert_eq!(pool.view().connections, 2, "the old one drains, the new one is another");
    cluster.server.end_watches();
    until("both watches on the new connection", || {
        pool.view().connections == 1 && pool.view().streams == 2 && consumer.is_ok()
    })
    .await;

    cluster.server.requests();
    cluster.server.bodies();
    cluster.server.go_away_each(10);
    let begun = Instant::now();
    for n in 0..200 {
        let body = format!("request {n}");
        pool.send(&Request::create("/api/v1/widgets", body)).await.unwrap();
    }
    let bodies = cluster.server.bodies();
    let expected: Vec<String> = (0..200).map(|n| format!("request {n}")).collect();
    assert_eq!(bodies, expected, "each once and in order");
    let many: Vec<_> = (0..200)
        .map(|n| {
            let pool = pool.clone();
            tokio::spawn(async move {
                pool.send(&Request::create("/api/v1/widgets", format!("{n:03}"))).await.map(drop)
            })
        })
        .collect();
    for request in many {
        request.await.unwrap().unwrap();
    }
    let mut bodies = cluster.server.bodies();
    bodies.sort();
    assert_eq!(bodies, (0..200).map(|n| format!("{n:03}")).collect::<Vec<_>>(), "each once");
    assert!(begun.elapsed() < SECOND, "GOAWAY is no failure that dials wait for: {:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_forgotten_version_is_listed_anew_in_both_forms() {
    for by_status in [false, true] {
        for streaming in [true, false] {
            let cluster = Cluster::new().await;
            if !streaming {
                cluster.server.refuse_streaming();
            }
            let (_pool, consumer) = following(&cluster).await;
            cluster.proxy.set(Mode::Refuse);
            cluster.proxy.cut();
            until("the cut", || !consumer.is_ok()).await;
            cluster.server.remove("w3");
            cluster.server.put("w8", 8);
            if by_status {
                cluster.server.answer_next(410, None);
            } else {
                cluster.server.compact();
            }
            cluster.proxy.set(Mode::Pass);
            until("the new list", || consumer.is_equal(&cluster.server) && consumer.is_ok()).await;
            assert_eq!(
                (consumer.lists(), consumer.removed()),
                (2, vec!["w3".to_owned()]),
                "{by_status} {streaming}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_consumer_begins_at_a_version_that_it_knows() {
    let cluster = Cluster::new().await;
    let (pool, first) = following(&cluster).await;
    cluster.server.put("w1", 21);
    until("the news", || first.is_equal(&cluster.server)).await;
    let version = berth_kube::reflector::ResourceVersion::new("105").unwrap();
    let second = Consumer::with(&pool, "", ListWatch::resume(Options::set(), version));
    until("the news since then", || second.seen() == [("w1".to_owned(), 21)].into()).await;
    assert_eq!(second.lists(), 0);
}

/// The API server allows 100 streams; a stream beyond that limit would wait for ever.
#[tokio::test(start_paused = true)]
async fn no_connection_has_more_than_ninety_watches_and_requests_have_their_own() {
    let cluster = Cluster::new().await;
    for n in 0..250 {
        cluster.server.put(&format!("w{n}"), n);
    }
    let pool = cluster.pool().await;
    let consumers: Vec<_> = (0..250).map(|n| Consumer::start(&pool, &format!("name=w{n}"))).collect();
    until("all lists", || consumers.iter().all(|c| c.listed() && c.is_ok())).await;
    assert_eq!(cluster.server.watches(), 250);
    pool.send(&Request::get("/api/v1/widgets")).await.unwrap();
    let mut watches = cluster.server.connections(|c| c.watches);
    watches.sort_unstable();
    assert_eq!(watches, [0, 70, 90, 90]);
    assert!(cluster.server.all_connections(|c| c.most).iter().all(|most| *most <= 90));
    drop(consumers);
    until("the streams end", || pool.view().streams == 0 && cluster.server.watches() == 0).await;
}

#[tokio::test(start_paused = true)]
async fn a_consumer_that_does_not_read_holds_up_no_request() {
    let cluster = Cluster::new().await;
    let (pool, _consumer) = following(&cluster).await;
    let stuck = pool.watch("/api/v1/widgets?watch=1&resourceVersion=105").await.unwrap();
    until("the watch is there", || cluster.server.watches() == 2).await;
    let long = format!("{}\n", "x".repeat(200_000));
    for _ in 0..20 {
        cluster.server.say(&long);
    }
    let begun = Instant::now();
    for _ in 0..20 {
        pool.send(&Request::get("/api/v1/widgets").within(SECOND)).await.unwrap();
    }
    assert!(begun.elapsed() < SECOND);
    drop(stuck);
}

#[tokio::test(start_paused = true)]
async fn without_http2_each_request_has_a_connection() {
    let cluster = Cluster::with(&[b"http/1.1"]).await;
    let (pool, consumer) = following(&cluster).await;
    for _ in 0..5 {
        pool.send(&Request::get("/api/v1/widgets")).await.unwrap();
    }
    cluster.server.put("w1", 41);
    until("the news", || consumer.is_equal(&cluster.server)).await;
    cluster.proxy.cut();
    cluster.server.put("w1", 42);
    until("news after a cut", || consumer.is_equal(&cluster.server) && consumer.is_ok()).await;
    assert!(cluster.server.all_connections(|c| c.http2).iter().all(|http2| !http2));
    assert!(cluster.server.all_connections(|c| c.requests).iter().all(|n| *n == 1));
    until("only the watch is left", || cluster.server.connections(|_| ()).len() == 1).await;
}

#[tokio::test(start_paused = true)]
async fn refusals_and_waits_come_through() {
    let cluster = Cluster::new().await;
    let pool = cluster.pool().await;
    cluster.server.answer_next(429, Some("7"));
    let refused = pool.send(&Request::get("/api/v1/widgets/a?x=y")).await.unwrap_err();
    let refusal = refused.refusal().unwrap();
    assert_eq!((refusal.code, refusal.retry_after), (429, Some(7 * SECOND)));
    assert_eq!(
        refused.to_string(),
        "cannot GET /api/v1/widgets/a: the API server answers 429 Some: as the test wants"
    );
    cluster.server.answer_next(429, None);
    let consumer = Consumer::start(&pool, "");
    until("the refusal", || consumer.why().contains("429")).await;
    until("the next try", || consumer.is_ok()).await;
    let deletion = Request::delete("/api/v1/widgets/a", Some(0), &Preconditions::default());
    assert_eq!(pool.send(&deletion).await.unwrap().code, 200);
    cluster.server.bodies();
    cluster.server.put("big", 0);
    let small = pool.send(&Request::get("/api/v1/widgets").at_most(10)).await.unwrap_err();
    assert!(matches!(small, Error::TooLarge { limit: 10, .. }), "{small}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_answer_meets_the_deadline() {
    let cluster = Cluster::new().await;
    let pool = cluster.pool().await;
    cluster.server.be_silent(true);
    let begun = Instant::now();
    let late = pool.send(&Request::get("/api/v1/widgets").within(5 * SECOND)).await.unwrap_err();
    assert!(matches!(late, Error::Deadline { .. }), "{late}");
    assert!(begun.elapsed() < 6 * SECOND);
    until("the stream is given back", || pool.view().streams == 0).await;
    cluster.server.be_silent(false);
    pool.send(&Request::get("/api/v1/widgets").within(5 * SECOND)).await.unwrap();
}
