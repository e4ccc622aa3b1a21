//! Measures what one changed EndpointSlice costs among ten thousand Services, from the rename of its file to
//! the entry in the kernel's table. Run it as root: `cargo run -p berth-tests-services --example change`.
//! `BERTH_BIN` names the directory of the programs to measure.

#[path = "../tests/support/mod.rs"]
mod support;

use anyhow::{Context, Result};
use berth_ebpf_abi::ServiceKey;
use berth_ebpf_loader::{Access, Datapath, Pins};
use berth_harness::wait;
use berth_services::Net as _;
use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};
use support::{Guest, plain, service, slice, tell};

const SERVICES: usize = 10_000;
/// Objects of one kind in a file.
const A_FILE: usize = 500;
const CHANGES: usize = 100;
const PORT: u16 = 80;
/// Time limit for the start: an unoptimised agent takes long to read ten thousand Services.
const START: Duration = Duration::from_secs(180);

fn vip(n: usize) -> Ipv4Addr {
    let [.., high, low] = u32::try_from(n).unwrap_or(0).to_be_bytes();
    Ipv4Addr::new(10, 96, high + 1, low)
}

fn backend(round: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 200, 0, u8::try_from(round % 250).unwrap_or(0) + 1)
}

/// Nanoseconds of CPU time by thread name.
fn spent(pid: u32) -> Result<BTreeMap<String, u64>> {
    let mut spent: BTreeMap<String, u64> = BTreeMap::new();
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?.path();
        // A thread may end while the threads are listed.
        let (Ok(name), Ok(stat)) =
            (fs::read_to_string(task.join("comm")), fs::read_to_string(task.join("schedstat")))
        else {
            continue;
        };
        let ns: u64 = stat.split(' ').next().context("a time")?.parse()?;
        *spent.entry(name.trim().to_owned()).or_default() += ns;
    }
    Ok(spent)
}

fn main() -> Result<()> {
    let guest = Guest::new("change", plain()?)?;
    for first in (0..SERVICES).step_by(A_FILE) {
        let all = first..first + A_FILE;
        let services: Vec<String> = all.clone().map(|n| service(&format!("s{n}"), vip(n), PORT)).collect();
        guest.node.apply(&format!("services-{first:05}.yaml"), &services.join("---\n"))?;
        // The first Service's slice has a file of its own, which the measurement changes.
        let slices: Vec<String> =
            all.skip(1).map(|n| slice(&format!("s{n}"), None, PORT, &[backend(0), backend(1)])).collect();
        guest.node.apply(&format!("slices-{first:05}.yaml"), &slices.join("---\n"))?;
    }
    let own: Vec<usize> = (0..SERVICES).step_by(A_FILE).collect();
    for n in &own {
        guest.node.apply(&format!("slice-{n}.yaml"), &slice(&format!("s{n}"), None, PORT, &[backend(0)]))?;
    }
    guest.agent()?;
    let agent = guest.node.agent().context("an agent")?;
    let pins = Pins::new(&guest.node.roots.bpf_pins);
    let first = |maps: &Datapath, n: usize| -> Result<Option<IpAddr>> {
        let addr = berth_ebpf_abi::V4::of(vip(n).into()).context("an address")?;
        let key = ServiceKey { addr, port: PORT.to_be(), proto: 6, pad: 0 };
        Ok(maps.service4.get(&key)?.filter(|s| s.counts[0] > 0).map(|s| s.inline[0].addr.ip()))
    };
    let maps = wait::ok("the tables are there", START, || {
        let maps = Datapath::open(&pins, Access::Read)?;
        anyhow::ensure!(first(&maps, *own.last().context("one")?)?.is_some(), "not full");
        Ok(maps)
    })?;
    // Work that the start causes (the zone, the file of names) must be finished first.
    wait::ok("the agent rests", START, || {
        let before: u64 = spent(agent.pid)?.values().sum();
        std::thread::park_timeout(Duration::from_secs(2));
        let now: u64 = spent(agent.pid)?.values().sum();
        anyhow::ensure!(now - before < 20_000_000, "it does not rest yet");
        Ok(())
    })?;
    let before = spent(agent.pid)?;
    let mut times = Vec::new();
    for round in 1..=CHANGES {
        let n = own[round % own.len()];
        let text = slice(&format!("s{n}"), None, PORT, &[backend(round)]);
        let begun = Instant::now();
        guest.node.apply(&format!("slice-{n}.yaml"), &text)?;
        let deadline = begun + Duration::from_secs(20);
        while first(&maps, n)? != Some(backend(round).into()) {
            anyhow::ensure!(Instant::now() < deadline, "change {round} does not arrive");
            std::thread::park_timeout(Duration::from_micros(100));
        }
        times.push(begun.elapsed());
        // The pause lets the source and the publisher settle, so that the next change is one of its own.
        std::thread::park_timeout(Duration::from_millis(150));
    }
    let after = spent(agent.pid)?;
    times.sort_unstable();
    tell(&format!("rename to table: p50 {:?}, p99 {:?}", times[CHANGES / 2], times[CHANGES * 99 / 100]));
    for (thread, ns) in &after {
        let spent = ns - before.get(thread).copied().unwrap_or(0);
        tell(&format!("{thread}: {} us a change", spent / 1000 / u64::try_from(CHANGES)?));
    }
    guest.end()
}
