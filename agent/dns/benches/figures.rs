//! Figures of an optimised `berth dns` with 10,000 Services: the delay until a new zone is
//! answered, and the helper's memory.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a figure that cannot be taken is told by a panic"
)]

#[path = "../tests/common/mod.rs"]
mod common;

use berth_core::{
    ids::NodeName,
    model::{Protocol, Service},
    roots::Roots,
};
use berth_dns::{Client, PodNames, Publisher, Status};
use berth_harness::{
    tools::{Build, programs},
    wait,
};
use common::{endpoint, line, port, query, service, slice};
use hickory_proto::{op::Message, rr::RecordType};
use std::{
    net::UdpSocket,
    path::Path,
    process::{Child, Command},
    time::{Duration, Instant},
};

const ADDRESS: &str = "10.96.0.10";
const SERVICES: usize = 10_000;
const ROUNDS: u8 = 20;
const PATIENCE: Duration = Duration::from_secs(20);
const RELOAD: Duration = Duration::from_millis(200);

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Services with two ports each. Every `nth` one is headless with ten named endpoints, the others
/// have a ClusterIP.
fn zone(changed: u8, nth: usize) -> berth_dns::Zone {
    let tcp = Protocol::Tcp;
    let (mut services, mut slices) = (Vec::with_capacity(SERVICES), Vec::new());
    for i in 0..SERVICES {
        let (ns, name) = (format!("team-{}", i % 100), format!("service-{i}"));
        let ip = format!("10.{}.{}.{}", 100 + i / 40_000, i / 200 % 200, 1 + i % 200);
        let headless = i % nth == nth - 1;
        let ips: &[&str] = if headless { &[] } else { &[&ip] };
        let ports = vec![port("http", tcp, 80), port("metrics", tcp, 9090)];
        services.push(Service { ports, ..service(&ns, &name, ips) });
        if headless {
            let endpoints = (0..10_usize)
                .map(|e| {
                    endpoint(&format!("10.200.{}.{}", i % 250, 1 + e), Some(&format!("{name}-{e}")), true)
                })
                .collect();
            slices.push(slice(&ns, &name, &[("http", tcp, 8080), ("metrics", tcp, 9090)], endpoints));
        }
    }
    services.push(service("default", "probe", &[&format!("10.96.1.{changed}")]));
    berth_dns::build(&services, &slices, PodNames::Any, "cluster.local")
}

fn ask(socket: &UdpSocket, message: &Message) -> String {
    socket.send(&message.to_vec().unwrap()).unwrap();
    let mut buffer = [0; 4096];
    let n = socket.recv(&mut buffer).unwrap();
    line(&Message::from_vec(&buffer[..n]).unwrap())
}

fn status(roots: &Roots) -> Option<Status> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(Client::new(roots.dns_socket()).status()).ok()
}

/// `VmHWM`, `VmRSS`, `RssAnon`, `RssFile` in kB.
fn memory(pid: u32) -> [u64; 4] {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    ["VmHWM:", "VmRSS:", "RssAnon:", "RssFile:"].map(|field| {
        let line = text.lines().find(|line| line.starts_with(field)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    })
}

fn start(dir: &Path, roots: &Roots) -> Running {
    let file = dir.join("roots.json");
    std::fs::write(&file, serde_json::to_vec(roots).unwrap()).unwrap();
    let berth = programs(Build::Release).unwrap().join("berth");
    let child = Command::new(berth).args(["dns", "--address", ADDRESS, "--roots"]).arg(file).spawn().unwrap();
    let running = Running(child);
    wait::until("berth dns answers", PATIENCE, || status(roots).is_some()).unwrap();
    running
}

fn main() {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
    assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
    measure("10,000 Services with an address", SERVICES + 1);
    measure("a tenth of them headless, with ten named endpoints each", 10);
}

fn measure(what: &str, nth: usize) {
    let dir = tempfile::tempdir().unwrap();
    let roots = Roots {
        resolv_conf: dir.path().join("resolv.conf"),
        ..Roots::below(dir.path(), NodeName::new("n").unwrap(), "berth-dns-figures")
    };
    std::fs::write(&roots.resolv_conf, "").unwrap();
    let running = start(dir.path(), &roots);
    let pid = running.0.id();
    println!("{what}\n  kB of [VmHWM, VmRSS, RssAnon, RssFile] before: {:?}", memory(pid));
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect((ADDRESS, 53)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let question = query("probe.default.svc.cluster.local", RecordType::A);
    let mut publisher = Publisher::open(&roots).unwrap();
    let (mut reloads, mut slowest) = (Vec::new(), Duration::ZERO);
    for round in 1..=ROUNDS {
        let zone = zone(round, nth);
        let begun = Instant::now();
        assert!(publisher.publish(zone).unwrap());
        let published = begun.elapsed();
        let expected = format!("NoError | probe.default.svc.cluster.local. A 10.96.1.{round}");
        wait::until("the new zone is answered", PATIENCE, || {
            let asked = Instant::now();
            let answer = ask(&socket, &question);
            slowest = slowest.max(asked.elapsed());
            answer == expected
        })
        .unwrap();
        reloads.push(begun.elapsed().saturating_sub(published));
    }
    reloads.sort();
    let (p50, worst) = (reloads[reloads.len() / 2], reloads[reloads.len() - 1]);
    let length = std::fs::metadata(roots.zone_file()).unwrap().len();
    println!("  zone of {length} bytes, from its rename to its first answer: p50 {p50:?}, worst {worst:?}");
    println!("  slowest answer meanwhile: {slowest:?}");
    let loaded = memory(pid);
    println!("  after {ROUNDS} reloads: {loaded:?}");
    let given_back = wait::until("memory is given back", PATIENCE, || memory(pid)[1] < loaded[1] * 3 / 4);
    println!("  at rest: {:?}", memory(pid));
    given_back.unwrap();
    assert!(worst < RELOAD, "a reload took {worst:?}");
}
