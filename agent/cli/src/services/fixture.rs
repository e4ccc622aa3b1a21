//! Fixture of the tests: one set of tables, with names, pods and programs.

use super::{
    names::Names,
    ports::{self, Port},
    trace::QueryClient,
};
use berth_api::{
    services::{NamedPort, ServicesFile},
    view::PodView,
};
use berth_core::{ids::PodKey, time::Wall};
use berth_ebpf_abi::{
    Affinity, AffinityKey, Backend, Client, Config, LocalPod, NodeAddress, PodDevice, Prefix, ServiceKey, V4,
    V6, backend, config, frontend, local_pod,
};
use berth_ebpf_decide::flow::{TCP, UDP, memory::Flows};
use berth_ebpf_loader::{LinkReport, MapReport, ProgramReport, Report, SocketHook};
use berth_ebpf_tables::{Contents, Net, PublishedPort, address_value, serving_members};
use serde_json::json;
use std::net::{IpAddr, SocketAddr};

const LOCAL: u16 = backend::LOCAL;
const HOST: u16 = backend::LOCAL | backend::HOST_NETWORK;
const EXTERNAL: u32 = frontend::EXTERNAL;
const HAS: u32 = frontend::HAS_ENDPOINTS;

pub(super) fn addr<A: Net>(text: &str) -> A {
    A::of(text.parse::<IpAddr>().unwrap()).unwrap()
}

/// A Service port to be put into the tables: backends of both sets, and frontends with their flags.
struct ServicePort<'m> {
    id: u32,
    proto: u8,
    affinity_s: u32,
    cluster: &'m [(&'m str, u16, u16)],
    local: &'m [(&'m str, u16, u16)],
    frontends: &'m [(&'m str, u16, u32)],
}

impl ServicePort<'_> {
    fn put<A: Net>(&self, tables: &mut Contents<A>) {
        let of = |set: &[(&str, u16, u16)]| -> Vec<Backend<A>> {
            set.iter()
                .map(|(ip, port, flags)| Backend { addr: addr(ip), port: port.to_be(), flags: *flags })
                .collect()
        };
        let (cluster, local) = (of(self.cluster), of(self.local));
        let port = PublishedPort {
            id: self.id,
            generation: 2,
            has_endpoints: false,
            affinity_s: self.affinity_s,
            cluster: &cluster,
            local: &local,
        };
        tables.chunks.extend(port.chunks());
        tables.members.extend(port.affinity_members());
        if self.proto == UDP {
            tables.members.extend(serving_members(self.id, cluster.iter().chain(&local)));
        }
        for (ip, number, flags) in self.frontends {
            let key = ServiceKey { addr: addr(ip), port: number.to_be(), proto: self.proto, pad: 0 };
            tables.services.push((key, port.value(*flags)));
            if flags & EXTERNAL == 0 {
                let bare = ServiceKey { addr: key.addr, ..ServiceKey::default() };
                tables.services.push((bare, address_value()));
            }
        }
    }
}

pub(super) fn tables() -> (Contents<V4>, Contents<V6>) {
    let mut v4 = Contents::default();
    let web = [("10.244.0.5", 8080, LOCAL), ("10.244.1.7", 8080, 0)];
    let many: Vec<(String, u16, u16)> = (1..=20).map(|n| (format!("10.244.2.{n}"), 53, 0)).collect();
    let many: Vec<(&str, u16, u16)> =
        many.iter().map(|(ip, port, flags)| (ip.as_str(), *port, *flags)).collect();
    let no: &[(&str, u16, u16)] = &[];
    let service_ports = [
        ServicePort {
            id: 1,
            proto: TCP,
            affinity_s: 0,
            cluster: &web,
            local: &web[..1],
            frontends: &[
                ("10.96.0.10", 80, HAS),
                ("0.0.0.0", 30080, HAS | EXTERNAL | frontend::NODE_PORT | frontend::OUTSIDE_LOCAL),
                ("203.0.113.5", 80, HAS | EXTERNAL),
            ],
        },
        ServicePort {
            id: 2,
            proto: UDP,
            affinity_s: 0,
            cluster: &many,
            local: no,
            frontends: &[("10.96.0.2", 53, HAS)],
        },
        ServicePort {
            id: 3,
            proto: TCP,
            affinity_s: 10800,
            cluster: &web,
            local: &web[..1],
            frontends: &[("10.96.0.11", 443, HAS)],
        },
        ServicePort {
            id: 4,
            proto: TCP,
            affinity_s: 0,
            cluster: no,
            local: no,
            frontends: &[("10.96.0.12", 80, 0)],
        },
        ServicePort {
            id: 5,
            proto: TCP,
            affinity_s: 0,
            cluster: &[("10.244.1.9", 9000, 0)],
            local: no,
            frontends: &[("10.96.0.13", 80, HAS | frontend::INSIDE_LOCAL)],
        },
        ServicePort {
            id: 6,
            proto: TCP,
            affinity_s: 0,
            cluster: &[("192.0.2.1", 9100, HOST)],
            local: no,
            frontends: &[("10.96.0.14", 9100, HAS)],
        },
    ];
    service_ports.iter().for_each(|one| one.put(&mut v4));
    let mut v6 = Contents::default();
    let six = [("fd00:244::5", 8080, LOCAL)];
    ServicePort {
        id: 1,
        proto: TCP,
        affinity_s: 0,
        cluster: &six,
        local: &six,
        frontends: &[("fd00:96::10", 80, HAS)],
    }
    .put(&mut v6);
    // Two Services at one address share its bare entry.
    v4.services.dedup();
    (v4, v6)
}

pub(super) fn ports() -> Vec<Port> {
    let (v4, v6) = tables();
    let mut ports = ports::ports(&v4);
    ports.extend(ports::ports(&v6));
    ports
}

pub(super) fn names() -> Names {
    Names::new(Some(file()), &pods())
}

pub(super) fn file() -> ServicesFile {
    let ports = ports();
    let frontends = |id, v6| -> Vec<SocketAddr> {
        let port = ports.iter().find(|p| (p.id, p.v6) == (id, v6));
        port.into_iter().flat_map(|p| &p.frontends).map(|f| f.at).collect()
    };
    let named = |id, v6, service: &str, port: &str| NamedPort {
        id,
        v6,
        service: PodKey { namespace: "default".parse().unwrap(), name: service.parse().unwrap() },
        port: port.to_owned(),
        protocol: if service == "dns" { "UDP" } else { "TCP" }.to_owned(),
        frontends: frontends(id, v6),
    };
    ServicesFile {
        as_of: Wall(0),
        ports: vec![
            named(1, false, "web", "http"),
            named(1, true, "web", "http"),
            named(2, false, "dns", ""),
            named(3, false, "sticky", ""),
            named(4, false, "empty", ""),
            named(5, false, "near", ""),
            named(6, false, "exporter", "metrics"),
        ],
        notices: vec!["default/web-old: 203.0.113.5:80/TCP is default/web's".to_owned()],
        next_id: 9,
    }
}

pub(super) fn pods() -> Vec<PodView> {
    let pod = |name: &str, ips: &[&str], host: bool| -> PodView {
        serde_json::from_value(json!({
            "uid": name, "key": {"namespace": "default", "name": name},
            "object": {
                "spec": {"hostNetwork": host, "containers": [{"name": "app", "ports": [{"containerPort": 9100}]}]},
                "status": {"phase": "Running", "podIPs": ips.iter().map(|ip| json!({"ip": ip})).collect::<Vec<_>>()},
            },
        }))
        .unwrap()
    };
    vec![
        pod("web-0", &["10.244.0.5", "fd00:244::5"], false),
        pod("client", &["10.244.0.8"], false),
        pod("meshed", &["10.244.0.9"], false),
        pod("exporter", &["192.0.2.1"], true),
    ]
}

/// The same tables in the decision core's in-memory form.
pub(super) fn flows() -> Flows<V4> {
    let (v4, _) = tables();
    let mut flows = Flows::default();
    flows.tables.services = v4.services.into_iter().collect();
    flows.tables.chunks = v4.chunks;
    flows.tables.members = v4.members;
    flows.tables.nodes.insert(addr("192.0.2.1"), NodeAddress { node_ports: 1 });
    let net =
        |ip: &str, mask: &str| Prefix { net: [addr::<V4>(ip), 0, 0, 0], mask: [addr::<V4>(mask), 0, 0, 0] };
    flows.tables.ranges = [net("10.96.0.0", "255.255.0.0"), Prefix::default()];
    flows.tables.now_s.set(1000);
    let stays = Affinity {
        backend: Backend { addr: addr("10.244.1.7"), port: 8080_u16.to_be(), flags: 0 },
        seen_s: 900,
    };
    let client = AffinityKey { id: 3, client: addr("10.244.0.8") };
    flows.tables.affinity.borrow_mut().insert(client, stays);
    flows.pods.insert(
        addr("10.244.0.5"),
        LocalPod { ifindex: 12, flags: local_pod::DIRECT, ..LocalPod::default() },
    );
    // A pod of the golden traces whose sockets have no hooks.
    let own = LocalPod { ifindex: 13, flags: local_pod::DIRECT, ..LocalPod::default() };
    flows.pods.insert(addr("10.244.0.9"), own);
    flows
        .devices
        .insert(13, PodDevice { v4: addr("10.244.0.9"), flags: local_pod::DIRECT, ..PodDevice::default() });
    flows.config =
        Config { flags: config::REDIRECT, masquerade_ports: [61_000, 65_535], ..Config::default() };
    flows.masquerade = addr("192.0.2.1");
    flows
}

pub(super) fn client(ip: &str, flags: u32) -> QueryClient<V4> {
    let entry = Client { v4: addr(ip), flags, ..Client::default() };
    QueryClient::Socket { addr: entry.v4, client: Some((4711, entry)) }
}

pub(super) fn report() -> Report {
    let names = SocketHook::ALL.iter().map(|h| h.name()).chain(["tc_gc", "tc_out", "tc_pod", "tc_uplink"]);
    let programs: Vec<ProgramReport> = (100_u32..)
        .zip(names)
        .map(|(id, name)| ProgramReport {
            name: name.to_owned(),
            id,
            instructions: id.saturating_mul(3),
            machine_code: id.saturating_mul(17),
            verified: 5000,
            runs: if name == "connect4" { 7 } else { 0 },
            run_ns: if name == "connect4" { 1400 } else { 0 },
            memory: 8192,
        })
        .collect();
    let id = |name: &str| programs.iter().find(|p| p.name == name).unwrap().id;
    let link = |(n, name): (u32, String), program: &str| LinkReport {
        program: id(program),
        name,
        id: n,
        live: true,
    };
    let mut links: Vec<LinkReport> = (200_u32..)
        .zip(SocketHook::ALL)
        .map(|(n, hook)| link((n, hook.name().to_owned()), hook.name()))
        .collect();
    links.push(link((300, "tcx-12-pod".to_owned()), "tc_pod"));
    links.push(link((301, "tcx-12-out".to_owned()), "tc_out"));
    let map = |name: &str, entries, max_entries| MapReport {
        name: name.to_owned(),
        id: 400,
        kind: 1,
        max_entries,
        key_size: 8,
        value_size: 56,
        memory: 2_345_678,
        entries,
    };
    let maps = vec![map("COUNT", None, 32), map("SERVICE4", Some(6789), 131_072)];
    Report { programs, links, maps }
}
