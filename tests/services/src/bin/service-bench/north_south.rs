//! From outside to a NodePort: programs at the uplink and at the pod's device, against nftables with one rule
//! that translates and one that masquerades. Two nodes are built the same way; the client is outside both.

use crate::{
    Bench, Figure,
    east_west::{NODE_PORT, fill, own_config},
    rounds::{Arm, rotate},
    say,
};
use anyhow::Result;
use berth_ebpf_loader::{DeviceRole, attach_device};
use berth_harness::netns::{Netns, join};
use berth_tests_services::{load::Mode, objects, plane::Plane, plugin::Network};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

const OWN: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const PEER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

pub(crate) fn run(bench: &Bench) -> Result<Vec<Figure>> {
    let outside = Netns::router(&bench.name("out"))?;
    let (own_node, peer_node) = (Netns::router(&bench.name("tcx"))?, Netns::router(&bench.name("nft"))?);
    join((&outside, "tcx", &["192.0.2.2/24"]), (&own_node, "uplink", &["192.0.2.1/24"]))?;
    join((&outside, "nft", &["198.51.100.2/24"]), (&peer_node, "uplink", &["198.51.100.1/24"]))?;
    let network = |node, name, subnet| Network {
        node,
        plugins: bench.own_plugins.clone(),
        config: own_config(bench, name, subnet),
    };
    let own = network(&own_node, "tcx", "10.244.4.0/24");
    let peer = network(&peer_node, "nft", "10.244.5.0/24");
    let (pod, peer_pod) = (own.pod(&bench.name("tcx-s"))?, peer.pod(&bench.name("nft-s"))?);
    let _servers = [
        bench.load.serve(&pod.netns, &[SocketAddr::new(IpAddr::V4(pod.address), objects::TARGET)])?,
        bench
            .load
            .serve(&peer_pod.netns, &[SocketAddr::new(IpAddr::V4(peer_pod.address), objects::TARGET)])?,
    ];

    let mut plane = Plane::new(&bench.pins("ns"), &bench.object)?;
    plane.configure(OWN)?;
    fill(&mut plane, bench.services, pod.address)?;
    plane.pod(&pod, true)?;
    let (uplink, _) = own_node.device("uplink")?;
    own_node.enter(|| attach_device(&plane.pins, uplink, DeviceRole::Uplink))??;
    peer_node.nft(&format!(
        "table ip bench {{\n\
         chain in {{ type nat hook prerouting priority dstnat; iifname \"uplink\" tcp dport {NODE_PORT} dnat to {}:{}; }}\n\
         chain out {{ type nat hook postrouting priority srcnat; ip daddr {} tcp dport {} masquerade; }}\n}}\n",
        peer_pod.address,
        objects::TARGET,
        peer_pod.address,
        objects::TARGET,
    ))?;

    let mut figures = Vec::new();
    for (mode, figure, what) in [
        (Mode::New, Some("nodeport_new_conn_ratio"), "NodePort from outside, new connections a second"),
        (Mode::Keep, None, "NodePort from outside, requests a second, kept connections"),
    ] {
        let arm = |name, node: Ipv4Addr| {
            let (netns, target) = (outside.path(), SocketAddr::new(IpAddr::V4(node), NODE_PORT));
            Arm {
                name,
                run: Box::new(move || Ok(bench.load.count(&netns, None, target, mode, bench.time)?.rate)),
            }
        };
        let arms = [arm("nftables", PEER), arm("tcx", OWN)];
        let rates = rotate(what, &arms, bench.rounds)?;
        let ratio = rates.ratio("tcx", "nftables");
        say(&format!("{what}: tcx / nftables: {}", ratio.spread));
        figures.extend(figure.map(|name| Figure {
            name,
            value: ratio.median,
            unit: "ratio",
            n: ratio.n,
            against: format!(
                "nftables, one rule of DNAT and one of masquerade, {:.0} a second",
                rates.median("nftables")
            ),
        }));
    }
    Ok(figures)
}
