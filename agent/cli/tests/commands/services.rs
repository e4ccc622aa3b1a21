//! The commands about Services over real pinned maps, with the agent dead.

use crate::agent::Node;
use berth_ebpf_abi::{
    Backend, CHUNK, Chunk, ChunkKey, Client, Config, INLINE, LocalPod, MemberKey, NodeAddress, Prefix,
    SERVING, Service, ServiceKey, V4, backend, client::HOST, config, frontend, local_pod, tag,
};
use berth_ebpf_loader::{Access, Datapath, OBJECT, Pins, attach, detach, load};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
};

pub(crate) const ALL: &[(&str, fn())] = &[
    ("without_pins_nothing_is_told_but_why", without_pins),
    ("the_kernel_s_tables_are_shown_checked_and_traced", kernel),
];

/// Pins and a cgroup of this process, removed on drop.
struct Kernel {
    pins: Pins,
    cgroup: PathBuf,
}

impl Kernel {
    fn new() -> Kernel {
        let name = format!("berth-cli-{}", std::process::id());
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let mut fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let root = fields.find(|fields| fields.get(2) == Some(&"cgroup2")).unwrap();
        let cgroup = Path::new(root[1]).join(&name);
        fs::create_dir(&cgroup).unwrap();
        Kernel { pins: Pins::new(Path::new("/sys/fs/bpf").join(name)), cgroup }
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        let detached = detach(&self.pins);
        fs::remove_dir(&self.cgroup).unwrap();
        detached.unwrap();
    }
}

fn addr(a: [u8; 4]) -> V4 {
    u32::from_ne_bytes(a)
}

const fn key(a: [u8; 4], port: u16, proto: u8) -> ServiceKey<V4> {
    ServiceKey { addr: u32::from_ne_bytes(a), port: port.to_be(), proto, pad: 0 }
}

const WEB: ServiceKey<V4> = key([10, 96, 0, 1], 80, 6);
const BARE: ServiceKey<V4> = key([10, 96, 0, 1], 0, 0);
const DNS: ServiceKey<V4> = key([10, 96, 0, 1], 53, 17);
const NODE_PORT: ServiceKey<V4> = key([0, 0, 0, 0], 30080, 6);
const CHUNK_1: ChunkKey = ChunkKey { id: 2, generation: 5, set: 0, index: 1 };

fn fill(datapath: &Datapath) {
    let one = Backend { addr: addr([10, 244, 0, 5]), port: 8080_u16.to_be(), flags: backend::LOCAL };
    let mut inline = [Backend::default(); INLINE];
    inline[0] = one;
    inline[1] = one;
    let web = Service {
        tag: tag(1, 1),
        id: 1,
        generation: 1,
        frontend: frontend::HAS_ENDPOINTS,
        affinity_s: 60,
        counts: [1, 1],
        inline,
    };
    let outside =
        frontend::HAS_ENDPOINTS | frontend::EXTERNAL | frontend::NODE_PORT | frontend::OUTSIDE_LOCAL;
    let bare = Service { tag: tag(0, 0), frontend: frontend::ADDRESS, ..Service::default() };
    let mut chunk = Chunk { tag: tag(2, 5), len: 16, backends: [one; CHUNK] };
    datapath.chunk4.put(&ChunkKey { index: 0, ..CHUNK_1 }, &chunk).unwrap();
    chunk.len = 4;
    datapath.chunk4.put(&CHUNK_1, &chunk).unwrap();
    datapath.member4.put(&MemberKey { id: 2, addr: one.addr, port: one.port, set: SERVING }, &1).unwrap();
    for set in [0, 1] {
        datapath.member4.put(&MemberKey { id: 1, addr: one.addr, port: one.port, set }, &1).unwrap();
    }
    let dns = Service {
        tag: tag(2, 5),
        id: 2,
        generation: 5,
        frontend: frontend::HAS_ENDPOINTS,
        counts: [20, 0],
        ..Service::default()
    };
    let all = [(WEB, web), (BARE, bare), (DNS, dns), (NODE_PORT, Service { frontend: outside, ..web })];
    datapath.service4.put_all(&all).unwrap();
    let client = |last, flags| Client { v4: addr([10, 244, 0, last]), flags, ..Client::default() };
    datapath.client.put(&1, &Client { flags: HOST, ..Client::default() }).unwrap();
    datapath.client.put(&101, &client(5, 0)).unwrap();
    datapath.client.put(&102, &client(9, local_pod::NO_SOCKET_HOOKS)).unwrap();
    datapath
        .pod4
        .put(&one.addr, &LocalPod { ifindex: 12, flags: local_pod::DIRECT, ..LocalPod::default() })
        .unwrap();
    datapath.node4.put(&addr([192, 0, 2, 1]), &NodeAddress { node_ports: 1 }).unwrap();
    let range = Prefix { net: [addr([10, 96, 0, 0]), 0, 0, 0], mask: [addr([255, 255, 0, 0]), 0, 0, 0] };
    let service4 = [range, Prefix::default()];
    let known = Config {
        flags: config::REDIRECT,
        masquerade_ports: [61_000, 65_535],
        masquerade4: addr([192, 0, 2, 1]),
        service4,
        ..Config::default()
    };
    datapath.config.put(&0, &known).unwrap();
}

fn names() -> Value {
    let named = |id, name: &str, port: &str| {
        json!({
            "id": id, "v6": false, "service": {"namespace": "default", "name": name}, "port": port,
            "protocol": "TCP", "fronts": [],
        })
    };
    json!({ "as_of": 0, "ports": [named(1, "web", "http"), named(2, "dns", "")] })
}

fn node(pins: &Path) -> Node {
    let mut node = Node::new();
    node.roots.bpf_pins = pins.to_owned();
    fs::write(node.dir.path().join("roots.json"), serde_json::to_vec(&node.roots).unwrap()).unwrap();
    node
}

fn without_pins() {
    let node = node(Path::new("/proc/nowhere/berth"));
    for args in [
        &["services"][..],
        &["services", "--check"],
        &["backends"],
        &["bpf"],
        &["trace", "node", "10.96.0.1:80"],
    ] {
        node.run(args).is(1, "", "no Service tables in /proc/nowhere/berth: no such directory");
    }
    let dir = tempfile::tempdir().unwrap();
    self::node(&dir.path().join("berth")).run(&["bpf"]).is(1, "", "it is on no BPF file system");
    for args in [
        &["services", "--check", "web"][..],
        &["trace", "node"],
        &["trace", "node", "10.96.0.1"],
        &["bpf", "x"],
    ] {
        node.run(args).is(2, "", "error");
    }
}

fn kernel() {
    let kernel = Kernel::new();
    let node = node(kernel.pins.root());
    load(&kernel.pins, OBJECT, |_| {}).unwrap();
    let elsewhere = self::node(&kernel.pins.root().with_file_name("berth-cli-none"));
    elsewhere.run(&["services"]).is(1, "", "nothing is pinned; no agent has loaded the programs");
    let unnamed = "Services are shown without names: the agent has left none";
    node.run(&["services"]).is(0, "", unnamed);
    node.run(&["services", "--check"]).is(1, "link connect4: not pinned, so sockets are not served", "");
    node.run(&["bpf"]).is(1, "Problem: nothing is attached", "");
    let datapath = Datapath::open(&kernel.pins, Access::Write).unwrap();
    fill(&datapath);
    attach(&kernel.pins, &kernel.cgroup).unwrap();
    node.run(&["services"]).is(0, "(id 1)", unnamed);

    let file = node.roots.services_file();
    fs::write(&file, names().to_string()).unwrap();
    node.run(&["services"]).is(
        0,
        "default/web   http   NodePort    *:30080/TCP        external=Local   60s",
        "",
    );
    node.run(&["services", "dns"]).is(0, "default/dns   -      ClusterIP   10.96.0.1:53/UDP   Cluster", "");
    node.run(&["services", "none"]).is(4, "", "no Service in the tables is named \"none\"");
    node.run(&["services", "--check"]).is(0, "4 entries, no problems.", "");
    node.run(&["services", "-o", "json"]).is(0, "\"kind\": \"ServicePortList\"", "");
    // A notice of a Service is a finding as long as the notice is listed.
    let mut noticed = names();
    noticed["notices"] = json!(["default/web: NotCarried: port 9: SCTP is not carried"]);
    fs::write(&file, noticed.to_string()).unwrap();
    node.run(&["services", "--check"]).is(1, "default/web: NotCarried: port 9: SCTP is not carried\n", "");
    node.run(&["services"]).is(
        0,
        "default/web",
        "berth: default/web: NotCarried: port 9: SCTP is not carried",
    );
    fs::write(&file, names().to_string()).unwrap();
    node.run(&["bpf"]).is(0, "SERVICE4", "");
    let page: Value = serde_json::from_str(&node.run(&["bpf", "-o", "json"]).out).unwrap();
    assert_eq!(page["links"].as_array().unwrap().len(), 8);
    let map = page["maps"].as_array().unwrap().iter().find(|m| m["name"] == "SERVICE4").unwrap().clone();
    assert_eq!(map["entries"], 4);

    // The dead agent's status files hold the pods.
    let status = node.roots.status_dir();
    fs::create_dir_all(&status).unwrap();
    let pod = json!({ "pod": {
        "uid": "u1", "key": {"namespace": "default", "name": "web-0"},
        "object": {"status": {"phase": "Running", "podIPs": [{"ip": "10.244.0.5"}]}},
    }});
    fs::write(status.join("pod-u1.json"), pod.to_string()).unwrap();
    let dead = "agent not running";
    node.run(&["backends", "web"]).is(
        0,
        "10.244.0.5:8080   default/web-0   this node   cluster,local   default/web:http",
        dead,
    );
    node.run(&["backends", "-o", "json"]).is(0, "\"pod\": \"default/web-0\"", dead);
    let to_web = "10.244.0.5:8080 (default/web-0)";
    node.run(&["trace", "web-0", "10.96.0.1:80"]).is(0, to_web, dead);
    node.run(&["trace", "10.244.0.5", "10.96.0.1:53", "--udp"]).is(0, "CHUNK4", dead);
    node.run(&["trace", "node", "127.0.0.1:30080"]).is(0, to_web, dead);
    node.run(&["trace", "node", "[::ffff:10.96.0.1]:80"]).is(0, to_web, dead);
    node.run(&["trace", "node", "[fd00::1]:80"]).is(0, "passes: no Service is meant", dead);
    node.run(&["trace", "node", "10.96.0.1:81"]).is(1, "refused: ECONNREFUSED", dead);
    let none = "refused: EHOSTUNREACH, for the address lies in a Service range and is no Service's";
    node.run(&["trace", "node", "10.96.0.2:80"]).is(1, none, dead);
    // The socket hook passes the connection. Its further path depends on the device, by the machine's own
    // routes.
    let gone = node.run(&["trace", "node", "192.0.2.77:80"]);
    assert!(gone.out.contains("no Service is meant"), "{gone:?}");
    let route = berth_sys::netlink::route_device("192.0.2.77".parse().unwrap()).unwrap();
    assert_eq!(gone.out.contains("it goes by device"), route.is_some(), "{gone:?}");
    // Packets to the node itself leave by the loopback device.
    node.run(&["trace", "node", "127.0.0.1:9"]).is(0, "it goes by device lo", dead);
    node.run(&["trace", "10.244.0.9", "10.96.0.1:80"]).is(0, "straight into the pod by device 12", dead);
    node.run(&["trace", "outside:198.51.100.9", "192.0.2.1:30080"]).is(0, "UNASSURED4", dead);
    node.run(&["trace", "outside:198.51.100.9", "10.96.0.1:80"]).is(0, "as from 192.0.2.1:", dead);
    node.run(&["trace", "outside:198.51.100.9", "10.96.0.1:81"]).is(1, "refused: port unreachable", dead);
    node.run(&["trace", "web-0", "[fd00::1]:80"]).is(2, "", "web-0 has no IPv6 address");
    node.run(&["trace", "10.9.9.9", "10.96.0.1:80"]).is(4, "", "write outside:10.9.9.9");
    // A trace leaves nothing behind.
    assert_eq!((datapath.unassured4.count().unwrap(), datapath.affinity4.count().unwrap()), (0, 0));

    // `--check` finds a removed entry.
    datapath.chunk4.delete(&CHUNK_1).unwrap();
    datapath.member4.put(&MemberKey { id: 9, addr: 1, port: 1, set: 0 }, &1).unwrap();
    fs::remove_file(kernel.pins.links().join("sendmsg6")).unwrap();
    let check = node.run(&["services", "--check"]);
    check.is(1, "CHUNK4 id 2 generation 5 cluster 1: default/dns: missing\n", "");
    check.is(1, "MEMBER4 id 9 ", "");
    check.is(1, "link sendmsg6: not pinned, so sockets are not served\n", "");
    fs::remove_file(kernel.pins.maps().join("UDP6")).unwrap();
    node.run(&["services", "--check"]).is(1, "UDP6", "");
    node.run(&["services"]).is(1, "", "cannot open the pin");
}
