//! Pulls from a registry on loopback beside `ctr images pull` on the same containerd, in turns; and twenty images at once
//! beside the real kubelet, which pulls one after the other.

use super::{Figure, cluster, on_a_node};
use crate::out;
use anyhow::{Context, Result, ensure};
use berth_harness::{
    node::Node,
    oci::{Entry, Image},
    registry::{Encoding, Registry},
    stats::median,
};
use std::{
    fs,
    time::{Duration, Instant},
};

/// Layers of each image.
const LAYERS: usize = 5;

/// Bytes of a layer of a single pull.
const LAYER: usize = 16 << 20;

/// Bytes of each layer of the pull whose memory is measured: 1 GiB together.
const LARGE_LAYER: usize = (1 << 30) / (LAYERS - 1);

/// Time between two readings of the agent's memory.
const READING: Duration = Duration::from_millis(50);

/// Measures the parts.
pub(super) fn run(rounds: usize, only: &[String]) -> Result<Vec<Figure>> {
    let has = |part: &str| only.is_empty() || only.iter().any(|name| name == part);
    let load = fs::read_to_string("/proc/loadavg").context("read the machine's load")?;
    let load = format!("load {}", load.split(' ').next().unwrap_or_default());
    let mut figures = Vec::new();
    if has("one") || has("memory") {
        figures.extend(on_a_node(|node| {
            let mut figures = Vec::new();
            if has("one") {
                figures.push(one(node, rounds, &load)?);
            }
            if has("memory") {
                figures.push(memory(node)?);
            }
            Ok(figures)
        })?);
    }
    if has("twenty") {
        figures.push(cluster::pulls::run(&load)?);
    }
    Ok(figures)
}

/// Busybox in [`LAYERS`] layers, all but the first of so many bytes. No layer is one of another seed.
pub(super) fn image(seed: u64, layer: usize) -> Result<Image> {
    let mut image = Image::busybox("x")?;
    if let Some(first) = image.layers.first_mut() {
        first.push(Entry::file("seed", 0o644, seed.to_string()));
    }
    let layers = (1..LAYERS as u64).map(|n| vec![Entry::noise(&format!("f{n}"), seed * 1000 + n + 1, layer)]);
    image.layers.extend(layers);
    Ok(image)
}

/// Pulls images of one shape by `ctr` and by Berth in turns.
fn one(node: &Node, rounds: usize, load: &str) -> Result<Figure> {
    let registry = Registry::start()?;
    let (mut theirs, mut ours) = (Vec::new(), Vec::new());
    // The first round warms up both and is not counted.
    for round in 0..=rounds {
        let names = ["ctr", "berth"].map(|side| (side, registry.image(side, &round.to_string())));
        for (n, (side, _)) in names.iter().enumerate() {
            let seed = (round * 2 + n) as u64;
            registry.push(side, &round.to_string(), &image(seed, LAYER)?, Encoding::Gzip)?;
        }
        for (side, name) in names {
            let begun = Instant::now();
            if side == "ctr" {
                node.containerd.ctr(&["images", "pull", "--plain-http", &name])?;
            } else {
                by_hand(node, &name)?;
            }
            let took = super::millis(begun.elapsed());
            if round > 0 {
                if side == "ctr" { theirs.push(took) } else { ours.push(took) }
            }
            // The disk stays as it is for the next round.
            node.containerd.ctr(&["images", "rm", "--sync", &name])?;
        }
    }
    out::line(&format!("ctr   {}", super::spread(&theirs)));
    out::line(&format!("berth {}", super::spread(&ours)));
    Ok(Figure {
        name: "pull_one_ratio",
        value: median(&ours) / median(&theirs),
        unit: "ratio",
        n: ours.len(),
        against: format!(
            "`ctr images pull`, {LAYERS} layers of {} MiB, p50 {:.0} ms; ours {:.0} ms; {load}",
            LAYER >> 20,
            median(&theirs),
            median(&ours)
        ),
    })
}

fn by_hand(node: &Node, name: &str) -> Result<()> {
    let out = node.berth(&["image", "pull", name])?;
    ensure!(out.status.success(), "cannot pull: {}", String::from_utf8_lossy(&out.stderr).trim());
    Ok(())
}

/// How much the agent's memory grows at most while 1 GiB is pulled: what is its own, without the pages of the program.
fn memory(node: &Node) -> Result<Figure> {
    let registry = Registry::start()?;
    registry.push("warm", "1", &image(500, 1 << 20)?, Encoding::Tar)?;
    by_hand(node, &registry.image("warm", "1"))?;
    registry.push("large", "1", &image(501, LARGE_LAYER)?, Encoding::Tar)?;
    let agent = node.agent().context("the agent does not run")?;
    let before = agent.rss_anon();
    let mut most = before;
    std::thread::scope(|scope| -> Result<()> {
        let name = registry.image("large", "1");
        let pulling = scope.spawn(move || by_hand(node, &name));
        while !pulling.is_finished() {
            most = most.max(agent.rss_anon());
            std::thread::sleep(READING);
        }
        pulling.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    let mb = |bytes: u64| Ok::<_, anyhow::Error>(f64::from(u32::try_from(bytes >> 10)?) / 1024.0);
    Ok(Figure {
        name: "pull_memory_mb",
        value: mb(most.saturating_sub(before))?,
        unit: "MB",
        n: 1,
        against: format!("{:.1} MB before 1 GiB was pulled", mb(before)?),
    })
}
