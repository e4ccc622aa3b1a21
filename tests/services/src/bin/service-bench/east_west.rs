//! Pod to pod by plain routing: through a ClusterIP and the socket hook, against the pod's address without
//! hooks.
//!
//! Both arms use the same devices, which have no programs; only the hook differs. The client of the hooked
//! arms runs in a cgroup with the hooks attached, the client of the other arm in a cgroup beside it.

use crate::{
    Bench, Figure,
    rounds::{Arm, rotate},
    say,
};
use anyhow::{Context, Result, ensure};
use berth_core::time::Boottime;
use berth_ebpf_loader::{enable_stats, report};
use berth_harness::netns::Netns;
use berth_services::{NodeFacts, TableReconciler};
use berth_sys::clock;
use berth_tests_services::{
    load::Mode,
    objects::{self, Pair},
    plane::Plane,
    plugin::Network,
};
use serde_json::json;
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
};

/// ClusterIP of the measured Service, which stands in the tables beside the others.
pub(crate) const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 255, 1);
/// NodePort of the measured Service.
pub(crate) const NODE_PORT: u16 = 30_080;

/// Configuration of Berth's own plugin.
pub(crate) fn own_config(bench: &Bench, name: &str, subnet: &str) -> serde_json::Value {
    json!({
        "cniVersion": "1.1.0", "name": bench.name(name), "type": "berth-cni",
        "subnets": [subnet], "dataDir": bench.dir, "quarantineSeconds": 0, "mtu": 1500,
    })
}

/// Fills a plane's tables with `others` Services of one endpoint and the measured Service.
pub(crate) fn fill(plane: &mut Plane, others: u32, backend: Ipv4Addr) -> Result<()> {
    let mut all: Vec<Pair> = objects::many(others, 1)?;
    all.push(objects::pair("measured", VIP, Some(NODE_PORT), &[backend])?);
    let mut reconciler = TableReconciler::new(NodeFacts::default(), 1);
    objects::put(&mut reconciler, &all);
    reconciler.listed();
    let done = reconciler.sync(&mut plane.maps, clock::boottime).context("fill the tables")?;
    ensure!(done.put > all.len(), "{} entries for {} Services", done.put, all.len());
    let differences = reconciler.check(&mut plane.maps)?;
    ensure!(differences.is_empty(), "the tables differ from what was put in: {differences:?}");
    Ok(())
}

pub(crate) fn run(bench: &Bench) -> Result<Vec<Figure>> {
    let node = Netns::router(&bench.name("ew"))?;
    let network = Network {
        node: &node,
        plugins: bench.own_plugins.clone(),
        config: own_config(bench, "ew", "10.244.1.0/24"),
    };
    let (client, server) = (network.pod(&bench.name("ew-c"))?, network.pod(&bench.name("ew-s"))?);
    let direct = SocketAddr::new(IpAddr::V4(server.address), objects::TARGET);
    let vip = SocketAddr::new(IpAddr::V4(VIP), objects::PORT);
    let _server = bench.load.serve(&server.netns, &[direct])?;

    let plain = bench.group.child("plain")?;
    let groups = [bench.group.child("few")?, bench.group.child("many")?];
    let mut planes = Vec::new();
    for (services, (group, pins)) in [10, bench.services].into_iter().zip(groups.iter().zip(["few", "many"]))
    {
        let mut plane = Plane::new(&bench.pins(pins), &bench.object)?;
        plane.configure(Ipv4Addr::new(192, 0, 2, 1))?;
        fill(&mut plane, services, server.address)?;
        plane.pod(&client, false)?;
        plane.hook(group.path())?;
        planes.push(plane);
    }

    let mut figures = Vec::new();
    for (mode, figure, what) in [
        (Mode::New, "service_new_conn_ratio", "new connections a second"),
        (Mode::Keep, "service_keepalive_ratio", "requests a second, kept connections"),
    ] {
        let arm = |name, group: &Path, target| {
            let (netns, group) = (client.netns.path(), group.to_owned());
            Arm {
                name,
                run: Box::new(move || {
                    Ok(bench.load.count(&netns, Some(&group), target, mode, bench.time)?.rate)
                }),
            }
        };
        let [few, many] = &groups;
        let arms = [
            arm("pod address, no hook", plain.path(), direct),
            arm("ClusterIP of 10", few.path(), vip),
            arm("ClusterIP of many", many.path(), vip),
        ];
        let rates = rotate(what, &arms, bench.rounds)?;
        let few = rates.ratio("ClusterIP of 10", "pod address, no hook");
        let many = rates.ratio("ClusterIP of many", "pod address, no hook");
        say(&format!("{what}: of 10 Services / pod's address: {}", few.spread));
        say(&format!("{what}: of {} Services / pod's address: {}", bench.services, many.spread));
        figures.push(Figure {
            name: figure,
            value: many.median,
            unit: "ratio",
            n: many.n,
            against: format!(
                "the pod's address without hooks, {:.0} a second; {} Services, with 10: {:.3}",
                rates.median("pod address, no hook"),
                bench.services,
                few.median
            ),
        });
    }
    if let [_, many] = planes.as_slice() {
        let runs = || -> Result<u64> {
            let programs = report(&many.pins, false)?.programs;
            Ok(programs.iter().map(|p| p.runs).sum())
        };
        let _stats = enable_stats()?;
        let before = runs()?;
        let [_, group] = &groups;
        let counted =
            bench.load.count(&client.netns.path(), Some(group.path()), vip, Mode::Keep, bench.time)?;
        let ran = runs()?.checked_sub(before).context("runs were taken back")?;
        // One connection for the first try, and two that stay open; each one connects once.
        let connects = 3;
        say(&format!(
            "{} requests over kept connections: {ran} program runs, {connects} of them connects",
            counted.n
        ));
        ensure!(ran >= connects, "{ran} runs for {connects} connections: the hooks are not asked");
        let beyond = u32::try_from(ran - connects).unwrap_or(u32::MAX);
        figures.push(Figure {
            name: "service_keepalive_runs",
            value: f64::from(beyond) / f64::from(counted.n),
            unit: "runs a request",
            n: usize::try_from(counted.n)?,
            against: format!("{connects} connects left out; no program at the pods' devices"),
        });
    }
    Ok(figures)
}

/// Clock of the TableReconciler.
pub(crate) fn now() -> Boottime {
    clock::boottime()
}
