//! Output of the commands about Services for one set of tables, against `tests/golden`, and
//! findings of the check.

use super::{
    bpf, check,
    fixture::{addr, client, file, flows, names, ports, report, tables},
    list,
    names::Names,
    trace::{self, End, Page, Query, QueryClient},
};
use crate::golden::{check as golden, check_json as golden_json};
use berth_api::services::NamedPort;
use berth_ebpf_abi::{Chunk, ChunkKey, Client, MemberKey, V4, client::HOST, local_pod, tag};
use berth_ebpf_tables::Contents;

#[test]
fn services_and_backends_have_the_golden_output() {
    let (ports, names) = (ports(), names());
    golden("services.txt", &list::services(&ports, &names).take());
    golden_json("services.json", &list::services_json(&ports, &names));
    golden("backends.txt", &list::backends(&ports, &names).take());
    golden_json("backends.json", &list::backends_json(&ports, &names));
    golden("services-unnamed.txt", &list::services(&ports, &Names::default()).take());
}

#[test]
fn a_name_selects_its_services() {
    let left = |name: &str| match names().select(ports(), Some(name)) {
        Ok(ports) => ports.iter().map(|p| p.id.to_string()).collect::<Vec<_>>().join(" "),
        Err(e) => format!("{}: {e}", e.code()),
    };
    for (name, what) in [
        ("web", "1 1"),
        ("default/web", "1 1"),
        ("st", "3"),
        ("10.96.0.2", "2"),
        ("10.96.0.2:53", "2"),
        ("[fd00:96::10]:80", "1"),
        ("e", "2: \"e\" fits several: default/empty, default/exporter"),
        (
            "10.96.0.2:54",
            "4: no Service in the tables is named \"10.96.0.2:54\"; headless and ExternalName Services are in none: they answer by their names alone",
        ),
        (
            "other/web",
            "4: no Service in the tables is named \"other/web\"; headless and ExternalName Services are in none: they answer by their names alone",
        ),
        ("a/b/c", "2: \"a/b/c\" is not of the form namespace/service"),
        ("", "2: \"\" is not of the form namespace/service"),
    ] {
        assert_eq!(left(name), what, "{name}");
    }
    let unnamed = Names::default().select(ports(), Some("web")).unwrap_err();
    assert!(unnamed.to_string().contains("the agent has not named any"), "{unnamed}");
}

#[test]
fn traces_have_the_golden_output_and_write_nothing() {
    let pod = client("10.244.0.8", 0);
    let host = Client { flags: HOST, ..Client::default() };
    let node = QueryClient::Socket { addr: 0, client: Some((1, host)) };
    let outside = QueryClient::Outside { addr: addr("198.51.100.9"), port: None };
    let cases = [
        (pod, "10.96.0.10", 80, false, true),
        (pod, "10.96.0.2", 53, true, true),
        (pod, "10.96.0.11", 443, false, true),
        (pod, "10.96.0.12", 80, false, false),
        (pod, "10.96.0.10", 81, false, false),
        (pod, "10.96.0.13", 80, false, false),
        (pod, "10.96.0.99", 80, false, false),
        (pod, "192.0.2.1", 30080, false, true),
        (pod, "198.51.100.1", 443, false, true),
        (node, "10.96.0.14", 9100, false, true),
        (node, "127.0.0.1", 30080, false, true),
        (node, "10.96.0.99", 80, false, false),
        (QueryClient::Socket { addr: addr("10.244.0.77"), client: None }, "10.96.0.12", 80, false, false),
        (client("10.244.0.9", local_pod::NO_SOCKET_HOOKS), "10.96.0.11", 443, false, true),
        (client("10.244.0.9", local_pod::NO_SOCKET_HOOKS), "10.244.0.5", 8080, false, true),
        (outside, "192.0.2.1", 30080, false, true),
        (outside, "203.0.113.5", 80, false, true),
        (outside, "10.96.0.12", 80, false, false),
        (outside, "10.96.0.99", 80, true, false),
        (outside, "192.0.2.1", 22, false, true),
    ];
    let (names, mut text) = (names(), String::new());
    for (client, dst, dst_port, udp, passes) in cases {
        // These maps' random number is always 0: the first backend and the first masqueraded port
        // are chosen.
        let maps = flows();
        let before = maps.tables.affinity.borrow().clone();
        let query = Query { client, dst: addr(dst), dst_port, udp };
        let traced = trace::run(&maps, &query);
        assert_eq!(traced.end.passes(), passes, "{dst}:{dst_port}");
        assert!(maps.flows.borrow().is_empty(), "a trace writes nothing");
        assert_eq!(*maps.tables.affinity.borrow(), before);
        let page = Page { names: &names, query: &query, traced: &traced };
        text.push_str(&page.text());
        text.push_str("\n---\n\n");
        if dst_port == 30080 && matches!(traced.end, End::Packet { .. }) {
            golden_json("trace.json", &page.json());
        }
    }
    golden("trace.txt", &text);
}

#[test]
fn consistent_tables_have_no_findings() {
    let (v4, v6) = tables();
    assert_eq!(check::tables(&v4, &names()), check::Findings::new());
    assert_eq!(check::tables(&v6, &names()), check::Findings::new());
    assert_eq!(check::tables(&v4, &Names::default()), check::Findings::new());
}

#[test]
fn entries_of_a_service_whose_frontends_are_all_taken_are_no_finding() {
    let (mut v4, _) = tables();
    let mut file = file();
    let web = file.ports.first().unwrap().clone();
    file.ports.push(NamedPort { id: 8, frontends: vec!["203.0.113.5:80".parse().unwrap()], ..web });
    v4.chunks.insert(ChunkKey { id: 8, ..ChunkKey::default() }, Chunk::default());
    v4.members.insert(MemberKey { id: 8, ..MemberKey::default() });
    assert_eq!(check::tables(&v4, &Names::new(Some(file), &[])), check::Findings::new());
}

#[test]
fn each_inconsistency_of_the_tables_is_a_finding() {
    fn at(tables: &mut Contents<V4>, ip: &str) -> usize {
        tables.services.iter().position(|(k, _)| k.addr == addr::<V4>(ip) && k.port != 0).unwrap()
    }
    type Spoil = fn(&mut Contents<V4>);
    let chunk = ChunkKey { id: 2, generation: 2, set: 0, index: 1 };
    assert_eq!(tables().0.chunks.get(&chunk).unwrap().len, 4);
    let cases: [(Spoil, &[&str]); 14] = [
        (
            |t| {
                let _was = t.chunks.remove(&ChunkKey { id: 2, generation: 2, set: 0, index: 1 });
            },
            &["CHUNK4 id 2 generation 2 cluster 1: default/dns: missing"],
        ),
        (
            |t| t.chunks.values_mut().for_each(|c| c.tag = 1),
            &[
                "CHUNK4 id 2 generation 2 cluster 0: default/dns: the tag does not fit",
                "CHUNK4 id 2 generation 2 cluster 1: default/dns: the tag does not fit",
            ],
        ),
        (
            |t| t.chunks.get_mut(&ChunkKey { id: 2, generation: 2, set: 0, index: 1 }).unwrap().len = 3,
            &["CHUNK4 id 2 generation 2 cluster 1: default/dns: has 3 backends, the value says 4"],
        ),
        (
            |t| {
                t.chunks.get_mut(&ChunkKey { id: 2, generation: 2, set: 0, index: 1 }).unwrap().backends[3]
                    .port = 0
            },
            &["CHUNK4 id 2 generation 2 cluster 1: default/dns: a backend without a port"],
        ),
        (
            |t| {
                let _was =
                    t.chunks.insert(ChunkKey { id: 2, generation: 1, set: 1, index: 0 }, Chunk::default());
            },
            &["CHUNK4 id 2 generation 1 local 0: no value names it"],
        ),
        (
            |t| {
                let n = at(t, "10.96.0.11");
                t.services[n].1.tag = 1;
            },
            &["SERVICE4 10.96.0.11:443/TCP: the tag does not fit id 3 generation 2"],
        ),
        (
            |t| {
                let n = at(t, "203.0.113.5");
                t.services[n].1.generation = 3;
                t.services[n].1.tag = tag(1, 3);
            },
            &["SERVICE4 default/web:http: its frontends have generations {2, 3}"],
        ),
        (
            |t| {
                let n = at(t, "10.96.0.14");
                t.services[n].1.inline[0].port = 0;
            },
            &["SERVICE4 10.96.0.14:9100/TCP: a backend without a port"],
        ),
        (
            |t| t.services.retain(|(k, _)| k.addr != addr::<V4>("10.96.0.13") || k.port != 0),
            &["SERVICE4 10.96.0.13:80/TCP: no entry of the bare address, so other ports are not refused"],
        ),
        (
            |t| t.services.retain(|(k, _)| k.addr != addr::<V4>("10.96.0.13") || k.port == 0),
            &[
                "SERVICE4 10.96.0.13: an address without any Service port",
                "services.json default/near: no entry 10.96.0.13:80/TCP in SERVICE4",
                "services.json default/near: no value in SERVICE4 has its id 5",
            ],
        ),
        (
            |t| {
                t.services.iter_mut().for_each(|(_, v)| {
                    if v.id == 4 {
                        v.id = 44;
                        v.tag = tag(44, 2)
                    }
                })
            },
            &[
                "SERVICE4 (id 44): not named in services.json",
                "services.json default/empty: no value in SERVICE4 has its id 4",
            ],
        ),
        (
            |t| t.members.retain(|m| m.addr != addr::<V4>("10.244.1.7")),
            &["MEMBER4 id 3 10.244.1.7:8080 cluster: default/sticky: missing, so no client stays there"],
        ),
        (
            |t| {
                let _was = t.members.insert(MemberKey { id: 77, addr: addr("10.244.0.1"), port: 5, set: 1 });
            },
            &["MEMBER4 id 77 10.244.0.1:1280 local: no Service has this id"],
        ),
        (
            |t| {
                let _was = t.members.insert(MemberKey { id: 3, addr: addr("10.244.0.1"), port: 5, set: 0 });
            },
            &["MEMBER4 id 3 10.244.0.1:1280 cluster: default/sticky: not one of its backends"],
        ),
    ];
    for (spoil, what) in cases {
        let (mut v4, _) = tables();
        spoil(&mut v4);
        let found: Vec<String> = check::tables(&v4, &names()).into_iter().collect();
        assert_eq!(found, what);
    }
}

#[test]
fn missing_and_replaced_programs_are_findings() {
    let wanted: Vec<String> = report().programs.into_iter().map(|p| p.name).collect();
    assert_eq!(check::programs(&report(), &wanted), check::Findings::new());
    let mut spoilt = report();
    spoilt.programs.retain(|p| p.name != "tc_gc");
    spoilt.links.retain(|l| l.name != "sendmsg6");
    for link in &mut spoilt.links {
        link.live = link.name != "tcx-12-pod";
        link.program = if link.name == "connect4" { 9 } else { link.program };
    }
    let found: Vec<String> = check::programs(&spoilt, &wanted).into_iter().collect();
    assert_eq!(
        found,
        [
            "link connect4: runs program 9, not the pinned one",
            "link sendmsg6: not pinned, so sockets are not served",
            "link tcx-12-pod: what it was attached to is gone",
            "program tc_gc: not pinned",
        ]
    );
}

#[test]
fn bpf_has_the_golden_output_and_names_problems() {
    let counters = (0..32).map(|n| if (1..8).contains(&n) || n > 20 { 0 } else { n }).collect();
    let mut page = bpf::Page {
        pins: "/sys/fs/bpf/berth".to_owned(),
        object: Some("0123abcd".to_owned()),
        report: report(),
        counters,
        unreadable: None,
    };
    assert_eq!(page.problems(), Vec::<String>::new());
    page.report.links.iter_mut().filter(|l| l.name == "tcx-12-pod").for_each(|l| l.live = false);
    golden("bpf.txt", &page.text());
    golden_json("bpf.json", &page.json());
    page.report.links.clear();
    page.object = None;
    page.unreadable = Some("the pinned map SERVICE4 has key size 9, the programs want 8".to_owned());
    assert_eq!(page.problems().len(), 3);
}
