//! Twenty images at once: Berth's pulls beside the kubelet's, which are one after the other.

use super::{
    NODES,
    api::Api,
    pods::{PODS, follow, is_ready, manifest},
    with_cluster,
};
use crate::{
    bench::{Figure, pull},
    cluster::{Audit, JoinedNode},
    out,
};
use anyhow::{Context, Result};
use berth_harness::registry::{Encoding, Registry};
use std::{collections::BTreeSet, time::Instant};

/// Images of a burst.
const IMAGES: usize = 20;

/// Bytes of a layer.
const LAYER: usize = 1 << 20;

/// Measures on a cluster of this run's own.
pub(in crate::bench) fn run(load: &str) -> Result<Figure> {
    with_cluster("bench-pull", Audit::OfNodes, NODES, |cluster, nodes| {
        let api = Api::start(cluster)?;
        let mut took = Vec::new();
        for (n, node) in nodes.iter().enumerate() {
            took.push(burst(&api, node, (n * IMAGES) as u64)?);
        }
        let (theirs, ours) = took.first().zip(took.get(1)).context("two nodes were measured")?;
        out::line(&format!("{}: {theirs:.2} s, {}: {ours:.2} s", NODES[0].0, NODES[1].0));
        Ok(vec![Figure {
            name: "pull_20_ratio",
            value: ours / theirs,
            unit: "ratio",
            n: 1,
            against: format!(
                "the kubelet's {theirs:.2} s for {IMAGES} images of 5 layers, ours {ours:.2} s; {load}"
            ),
        }])
    })?
    .pop()
    .context("a figure was measured")
}

/// Seconds from the first request until all pods are Ready.
fn burst(api: &Api, node: &JoinedNode, seed: u64) -> Result<f64> {
    let registry = node.in_its_network(Registry::start)??;
    let took = burst_from(&registry, api, node, seed);
    // A registry is ended by a connection to it.
    node.in_its_network(move || drop(registry))?;
    took
}

fn burst_from(registry: &Registry, api: &Api, node: &JoinedNode, seed: u64) -> Result<f64> {
    for n in 0..IMAGES {
        registry.push(&format!("i{n}"), "1", &pull::image(1000 + seed + n as u64, LAYER)?, Encoding::Gzip)?;
    }
    let events = api.watch(PODS)?;
    let begun = Instant::now();
    for n in 0..IMAGES {
        let mut pod = manifest(&format!("pull-{}-{n}", node.name()), node.name(), "pull");
        pod["spec"]["containers"][0]["image"] = registry.image(&format!("i{n}"), "1").into();
        pod["spec"]["containers"][0]["imagePullPolicy"] = "IfNotPresent".into();
        api.request("POST", PODS, &pod.to_string())?;
    }
    let mut ready = BTreeSet::new();
    let last = follow(&events, "all pods are Ready", |event| {
        if is_ready(&event.object) {
            ready.insert(event.object["metadata"]["name"].as_str().unwrap_or_default().to_owned());
        }
        ready.len() == IMAGES
    })?;
    api.request("DELETE", &format!("{PODS}?labelSelector=part%3Dpull&gracePeriodSeconds=0"), "")?;
    Ok((last - begun).as_secs_f64())
}
