//! Answers of a zone with one Service of each kind.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that fails says so by a panic"
)]

mod common;

use berth_core::model::Protocol;
use berth_dns::{PodNames, index::Index, question::Transport};
use common::{ask, endpoint, line, name, query, service, slice, with_edns, zone};
use hickory_proto::{
    op::ResponseCode,
    rr::{RData, RecordType},
};
use std::{collections::BTreeSet, time::Instant};

const NODATA: &str = "NoError ; SOA";
const NO_NAME: &str = "NXDomain ; SOA";

fn index() -> Index {
    Index::new(zone(), &["10.96.0.10".parse().unwrap()]).unwrap()
}

fn answer(text: &str, kind: RecordType) -> String {
    ask(&index(), &query(text, kind), Transport::Tcp).map_or("forward".to_owned(), |m| line(&m))
}

#[test]
fn each_kind_of_name_has_its_records() {
    use RecordType::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
    let web = "web.default.svc.cluster.local.";
    let db = "db.default.svc.cluster.local.";
    let cases = [
        ("dns-version.cluster.local", TXT, "NoError | dns-version.cluster.local. TXT 1.1.0".to_owned()),
        (web, A, format!("NoError | {web} A 10.96.0.20")),
        (web, AAAA, format!("NoError | {web} AAAA fd00:96::20")),
        ("_http._tcp.web.default.svc.cluster.local", SRV, format!(
            "NoError | _http._tcp.{web} SRV 0 100 80 {web} + {web} A 10.96.0.20 + {web} AAAA fd00:96::20"
        )),
        // Every named port, asked for by the Service's bare name, as CoreDNS answers.
        (web, SRV, format!(
            "NoError | {web} SRV 0 100 80 {web} + {web} A 10.96.0.20 + {web} AAAA fd00:96::20"
        )),
        (db, SRV, format!(
            "NoError | {db} SRV 0 50 15432 10-0-0-2.{db} | {db} SRV 0 50 15432 db-0.{db} \
             + 10-0-0-2.{db} A 10.0.0.2 + db-0.{db} A 10.0.0.1 + db-0.{db} AAAA fd00::1"
        )),
        ("20.0.96.10.in-addr.arpa", PTR, format!("NoError | 20.0.96.10.in-addr.arpa. PTR {web}")),
        (
            "0.2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.0.d.f.ip6.arpa",
            PTR,
            format!("NoError | 0.2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.0.d.f.ip6.arpa. PTR {web}"),
        ),
        ("web-0.web.default.svc.cluster.local", A, format!("NoError | web-0.{web} A 10.0.0.4")),
        (db, A, format!("NoError | {db} A 10.0.0.1 | {db} A 10.0.0.2")),
        (db, AAAA, format!("NoError | {db} AAAA fd00::1")),
        ("db-0.db.default.svc.cluster.local", A, format!("NoError | db-0.{db} A 10.0.0.1")),
        ("db-0.db.default.svc.cluster.local", AAAA, format!("NoError | db-0.{db} AAAA fd00::1")),
        ("10-0-0-2.db.default.svc.cluster.local", A, format!("NoError | 10-0-0-2.{db} A 10.0.0.2")),
        ("_sql._tcp.db.default.svc.cluster.local", SRV, format!(
            "NoError | _sql._tcp.{db} SRV 0 50 15432 10-0-0-2.{db} | _sql._tcp.{db} SRV 0 50 15432 db-0.{db} \
             + 10-0-0-2.{db} A 10.0.0.2 + db-0.{db} A 10.0.0.1 + db-0.{db} AAAA fd00::1"
        )),
        ("1.0.0.10.in-addr.arpa", PTR, format!("NoError | 1.0.0.10.in-addr.arpa. PTR db-0.{db}")),
        ("early.default.svc.cluster.local", A, "NoError | early.default.svc.cluster.local. A 10.0.0.9".to_owned()),
        ("out.default.svc.cluster.local", CNAME,
            "NoError | out.default.svc.cluster.local. CNAME www.example.com.".to_owned()),
        ("alias.default.svc.cluster.local", A, format!(
            "NoError | alias.default.svc.cluster.local. CNAME {web} | {web} A 10.96.0.20"
        )),
        ("loop.default.svc.cluster.local", A, "ServFail".to_owned()),
        ("10-0-0-1.default.pod.cluster.local", A,
            "NoError | 10-0-0-1.default.pod.cluster.local. A 10.0.0.1".to_owned()),
        ("fd00--1.default.pod.cluster.local", AAAA,
            "NoError | fd00--1.default.pod.cluster.local. AAAA fd00::1".to_owned()),
        ("cluster.local", SOA, "NoError | cluster.local. SOA ns.dns.cluster.local. hostmaster.cluster.local. 0 7200 1800 86400 5".to_owned()),
        ("cluster.local", NS,
            "NoError | cluster.local. NS ns.dns.cluster.local. + ns.dns.cluster.local. A 10.96.0.10".to_owned()),
        ("ns.dns.cluster.local", A, "NoError | ns.dns.cluster.local. A 10.96.0.10".to_owned()),
    ];
    for (name, kind, expected) in cases {
        assert_eq!(answer(name, kind), expected, "{name} {kind}");
    }
}

#[test]
fn a_name_without_records_differs_from_a_missing_name() {
    use RecordType::{A, AAAA, MX, PTR, SRV, TXT};
    let exists = [
        ("cluster.local", A),
        ("svc.cluster.local", A),
        ("default.svc.cluster.local", A),
        ("pod.cluster.local", TXT),
        ("default.pod.cluster.local", A),
        ("dns.cluster.local", A),
        ("dns-version.cluster.local", A),
        ("web.default.svc.cluster.local", MX),
        ("v4.default.svc.cluster.local", SRV),
        ("v4.default.svc.cluster.local", AAAA),
        ("_tcp.web.default.svc.cluster.local", SRV),
        ("_http._tcp.web.default.svc.cluster.local", A),
        ("_tcp.db.default.svc.cluster.local", A),
        ("_sql._tcp.db.default.svc.cluster.local", A),
        ("early.default.svc.cluster.local", AAAA),
        ("10-0-0-2.db.default.svc.cluster.local", AAAA),
        ("10-0-0-1.default.pod.cluster.local", AAAA),
        ("literal.default.svc.cluster.local", A),
        ("1.0.0.10.in-addr.arpa", A),
    ];
    for (name, kind) in exists {
        assert_eq!(answer(name, kind), NODATA, "{name} {kind}");
    }
    let missing = [
        "nothing.cluster.local",
        "a.b.cluster.local",
        "missing.svc.cluster.local",
        "missing.default.svc.cluster.local",
        "web.missing.svc.cluster.local",
        "none.default.svc.cluster.local",
        "n-0.none.default.svc.cluster.local",
        "db-2.db.default.svc.cluster.local",
        "10-0-0-1.db.default.svc.cluster.local",
        "10-0-0-5.web.default.svc.cluster.local",
        "_udp.web.default.svc.cluster.local",
        "_udp.db.default.svc.cluster.local",
        "_http._udp.web.default.svc.cluster.local",
        "http._tcp.web.default.svc.cluster.local",
        "__tcp.web.default.svc.cluster.local",
        "_sqlx._tcp.db.default.svc.cluster.local",
        "x._sql._tcp.db.default.svc.cluster.local",
        "x.out.default.svc.cluster.local",
        "10-0-0-2.default.pod.cluster.local",
        "10-0-0-1.other.pod.cluster.local",
        "x.10-0-0-1.default.pod.cluster.local",
        "nonsense.default.pod.cluster.local",
        "fd00-0--1.default.pod.cluster.local",
        "other.pod.cluster.local",
        "www.example.com.default.svc.cluster.local",
    ];
    for name in missing {
        for kind in [A, AAAA, SRV, TXT] {
            assert_eq!(answer(name, kind), NO_NAME, "{name} {kind}");
        }
    }
    for name in [
        "example.com",
        "local",
        "notcluster.local",
        "svc.cluster.local.example.com",
        "3.0.0.10.in-addr.arpa",
        "0.10.in-addr.arpa",
        "300.0.0.10.in-addr.arpa",
        ".",
    ] {
        assert_eq!(answer(name, PTR), "forward", "{name}");
    }
}

#[test]
fn pod_names_of_any_address_where_so_configured() {
    let zone = berth_dns::build([], [], PodNames::Any, "c.d");
    let index = Index::new(zone, &[]).unwrap();
    let ask = |text: &str, kind| line(&ask(&index, &query(text, kind), Transport::Udp).unwrap());
    assert_eq!(ask("1-2-3-4.x.pod.c.d", RecordType::A), "NoError | 1-2-3-4.x.pod.c.d. A 1.2.3.4");
    assert_eq!(ask("1-2-3-4.x.pod.c.d", RecordType::AAAA), NODATA);
    assert_eq!(ask("1-2-3-400.x.pod.c.d", RecordType::A), NO_NAME);
}

#[test]
fn names_match_in_any_case_and_keep_the_case_of_the_question() {
    let message =
        ask(&index(), &query("wEb.DeFault.svC.cLusTer.LOCAL", RecordType::A), Transport::Udp).unwrap();
    assert_eq!(message.queries[0].name().to_ascii(), "wEb.DeFault.svC.cLusTer.LOCAL.");
    assert_eq!(message.answers[0].name.to_ascii(), "wEb.DeFault.svC.cLusTer.LOCAL.");
    assert_eq!(message.answers[0].ttl, 5);
    assert!(message.metadata.authoritative && message.metadata.recursion_available);
    let srv =
        ask(&index(), &query("_SQL._Tcp.DB.default.SVC.cluster.local", RecordType::SRV), Transport::Tcp);
    assert_eq!(srv.unwrap().answers.len(), 2);
}

#[test]
fn any_queries_get_hinfo_and_transfers_and_other_classes_are_refused() {
    let all = answer("web.default.svc.cluster.local", RecordType::ANY);
    assert!(all.contains("HINFO") && all.contains("RFC8482"), "{all}");
    assert_eq!(answer("missing.default.svc.cluster.local", RecordType::ANY), NO_NAME);
    assert_eq!(answer("cluster.local", RecordType::AXFR), "Refused");
    let mut chaos = query("version.bind", RecordType::TXT);
    chaos.queries[0].set_query_class(hickory_proto::rr::DNSClass::CH);
    assert_eq!(ask(&index(), &chaos, Transport::Udp).unwrap().metadata.response_code, ResponseCode::Refused);
    let mut two = query("cluster.local", RecordType::SOA);
    two.queries.push(two.queries[0].clone());
    assert_eq!(ask(&index(), &two, Transport::Udp).unwrap().metadata.response_code, ResponseCode::FormErr);
    let mut newer = with_edns(query("cluster.local", RecordType::SOA), 1232);
    newer.edns.as_mut().unwrap().set_version(1);
    // BADVERS shares its number with another code.
    assert_eq!(u16::from(ask(&index(), &newer, Transport::Udp).unwrap().metadata.response_code), 16);
    let mut answer = query("cluster.local", RecordType::SOA);
    answer.metadata.message_type = hickory_proto::op::MessageType::Response;
    assert!(ask(&index(), &answer, Transport::Udp).is_none());
}

fn many(n: u32) -> Index {
    let endpoints = (0..n).map(|i| endpoint(&format!("10.1.{}.{}", i / 256, i % 256), None, true)).collect();
    let services = [service("default", "many", &[])];
    let slices = [slice("default", "many", &[("p", Protocol::Tcp, 1)], endpoints)];
    Index::new(berth_dns::build(&services, &slices, PodNames::Any, "cluster.local"), &[]).unwrap()
}

#[test]
fn an_answer_too_long_for_udp_is_truncated_and_complete_by_tcp() {
    let index = many(1000);
    let question = query("many.default.svc.cluster.local", RecordType::A);
    for (asked, limit) in [
        (question.clone(), 512),
        (with_edns(question.clone(), 0), 512),
        (with_edns(question.clone(), 800), 800),
        (with_edns(question.clone(), 65535), 1232),
    ] {
        let cut = ask(&index, &asked, Transport::Udp).unwrap();
        let length = cut.to_vec().unwrap().len();
        assert!(cut.metadata.truncation && length <= limit && length > limit - 60, "{length} of {limit}");
        assert_eq!(cut.edns.is_some(), asked.edns.is_some());
        assert!(!cut.answers.is_empty());
    }
    let whole = ask(&index, &question, Transport::Tcp).unwrap();
    assert!(!whole.metadata.truncation);
    assert_eq!(whole.answers.len(), 1000);
    // Missing additional records alone do not set the truncation bit.
    let few = many(12);
    let srv = query("_p._tcp.many.default.svc.cluster.local", RecordType::SRV);
    let part = ask(&few, &with_edns(srv.clone(), 900), Transport::Udp).unwrap();
    assert_eq!((part.metadata.truncation, part.answers.len(), part.additionals.len()), (false, 12, 0));
    assert_eq!(ask(&few, &srv, Transport::Tcp).unwrap().additionals.len(), 12);
}

#[test]
fn addresses_of_headless_services_are_shuffled() {
    let index = many(8);
    let question = query("many.default.svc.cluster.local", RecordType::A);
    let firsts: BTreeSet<String> = (0..400)
        .map(|_| match &ask(&index, &question, Transport::Udp).unwrap().answers[0].data {
            RData::A(a) => a.to_string(),
            other => panic!("{other}"),
        })
        .collect();
    assert_eq!(firsts.len(), 8);
}

#[test]
fn a_big_zone_is_read_in_time() {
    let services: Vec<_> = (0..10_000u32)
        .map(|i| {
            let mut s = service("default", &format!("svc-{i}"), &[&format!("10.96.{}.{}", i / 256, i % 256)]);
            s.ports = vec![common::port("http", Protocol::Tcp, 80)];
            s
        })
        .collect();
    let begun = Instant::now();
    let zone = berth_dns::build(&services, [], PodNames::Any, "cluster.local");
    let built = begun.elapsed();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("zone.json");
    let text = serde_json::to_vec(&zone).unwrap();
    std::fs::write(&path, &text).unwrap();
    let begun = Instant::now();
    let index = Index::new(berth_dns::publish::read(&path).unwrap(), &[]).unwrap();
    let read = begun.elapsed();
    let begun = Instant::now();
    for i in 0..10_000 {
        let name = name(&format!("svc-{i}.default.svc.cluster.local"));
        let found = index.find(&name, RecordType::A);
        assert!(
            matches!(&found, berth_dns::index::Found::Records { answers, .. } if answers.len() == 1),
            "{i}"
        );
    }
    println!(
        "{} bytes, built in {built:?}, read in {read:?}, found in {:?} each",
        text.len(),
        begun.elapsed() / 10_000
    );
    // An optimised build is ten times faster.
    let limit = if cfg!(debug_assertions) { 2000 } else { 200 };
    assert!(read.as_millis() < limit, "{read:?}");
}

#[test]
fn the_publisher_writes_what_changed_and_counts() {
    let dir = tempfile::tempdir().unwrap();
    let node = berth_core::ids::NodeName::new("n").unwrap();
    let roots = berth_core::roots::Roots::below(dir.path(), node, "berth-x");
    let mut publisher = berth_dns::Publisher::open(&roots).unwrap();
    assert!(publisher.publish(zone()).unwrap());
    assert!(!publisher.publish(zone()).unwrap());
    let mut again = berth_dns::Publisher::open(&roots).unwrap();
    assert!(!again.publish(zone()).unwrap());
    let mut other = zone();
    other.services.pop();
    assert!(again.publish(other).unwrap());
    assert_eq!(berth_dns::publish::read(&roots.zone_file()).unwrap().serial, 2);
}
