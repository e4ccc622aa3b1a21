//! Pod to pod on one node: Berth's plugin with programs at the pods' devices, against the reference bridge
//! plugin.

use crate::{
    Bench, Figure,
    east_west::{fill, own_config},
    rounds::{Arm, rotate},
    say,
};
use anyhow::Result;
use berth_harness::netns::Netns;
use berth_tests_services::{
    load::Mode,
    objects,
    plane::Plane,
    plugin::{Network, Pod},
};
use serde_json::json;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

pub(crate) fn run(bench: &Bench) -> Result<Vec<Figure>> {
    let nodes = [Netns::router(&bench.name("own"))?, Netns::router(&bench.name("ref"))?];
    let [own_node, reference_node] = &nodes;
    let own = Network {
        node: own_node,
        plugins: bench.own_plugins.clone(),
        config: own_config(bench, "own", "10.244.2.0/24"),
    };
    let reference = Network {
        node: reference_node,
        plugins: bench.reference.clone(),
        config: json!({
            "cniVersion": "1.0.0", "name": bench.name("ref"), "type": "bridge", "bridge": "cni0",
            "isGateway": true, "ipMasq": false,
            "ipam": {
                "type": "host-local", "dataDir": bench.dir,
                "ranges": [[{"subnet": "10.244.3.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}],
            },
        }),
    };
    let pods = [own.pod(&bench.name("own-c"))?, own.pod(&bench.name("own-s"))?];
    let peers = [reference.pod(&bench.name("ref-c"))?, reference.pod(&bench.name("ref-s"))?];
    let mut plane = Plane::new(&bench.pins("cni"), &bench.object)?;
    plane.configure(Ipv4Addr::new(192, 0, 2, 1))?;
    let [_, server] = &pods;
    fill(&mut plane, bench.services, server.address)?;
    for pod in &pods {
        plane.pod(pod, true)?;
    }
    let group = bench.group.child("cni")?;

    let mut figures = Vec::new();
    let mut servers = Vec::new();
    for pair in [&pods, &peers] {
        let [_, server] = pair;
        servers.push(bench.load.serve(&server.netns, &[target(server)])?);
    }
    for (mode, figure, what) in [
        (Mode::New, Some("cni_new_conn_ratio"), "pod to pod, new connections a second"),
        (Mode::Keep, None, "pod to pod, requests a second, kept connections"),
    ] {
        let arm = |name, pair: &'_ [Pod<'_>; 2]| {
            let [client, server] = pair;
            let (netns, target) = (client.netns.path(), target(server));
            let group = group.path().to_owned();
            Arm {
                name,
                run: Box::new(move || {
                    Ok(bench.load.count(&netns, Some(&group), target, mode, bench.time)?.rate)
                }),
            }
        };
        let arms = [arm("bridge plugin", &peers), arm("berth-cni", &pods)];
        let rates = rotate(what, &arms, bench.rounds)?;
        let ratio = rates.ratio("berth-cni", "bridge plugin");
        say(&format!("{what}: berth-cni / bridge: {}", ratio.spread));
        figures.extend(figure.map(|name| Figure {
            name,
            value: ratio.median,
            unit: "ratio",
            n: ratio.n,
            against: format!(
                "the reference bridge plugin, {:.0} a second; ours with redirect_peer",
                rates.median("bridge plugin")
            ),
        }));
    }
    Ok(figures)
}

fn target(server: &Pod<'_>) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(server.address), objects::TARGET)
}
