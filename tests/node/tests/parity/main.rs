//! Runs the pods that were recorded with the real kubelet, and compares. Status and events must be those of
//! the kubelet (`tests/golden/status` and `events`, recorded by `tests/peers`), the containers' output must
//! be the recorded one (`output`), and no status may run backwards. Allowed differences stand in the reviewed
//! list `tests/golden/status-differences.json`; an entry that no run needs fails the suite.
//!
//! `BERTH_SHAPES=a,b` runs these shapes only. `BERTH_REPORT=FILE` writes all differences to a file, also
//! those on the list.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test: what is missing fails it")]

mod compare;
mod course;
mod differences;
mod events;
mod images;
mod run;
mod shape;
#[path = "../support/mod.rs"]
mod support;
mod text;

use anyhow::{Result, ensure};
use berth_core::ids::NodeName;
use berth_harness::{
    node::TestNode,
    tools::{self, Build},
};
use differences::Differences;
use run::{Outcome, Run};
use serde_json::json;
use shape::Shape;
use std::{collections::BTreeSet, fs, time::Instant};

const LEAST_SHAPES: usize = 370;

#[test]
fn the_shapes_end_as_the_kubelet_recorded_them() {
    support::on_a_node(Build::Plain, run);
}

fn run(node: &mut TestNode) -> Result<()> {
    let tests = tools::repository().join("tests");
    let mut differences = Differences::read(&tests.join("golden/status-differences.json"))?;
    images::import(node, &tests.join("golden/images.json"))?;
    let dir = node.dir.join("static");
    fs::create_dir_all(&dir)?;
    fs::create_dir_all(&node.roots.seccomp)?;
    fs::write(node.roots.seccomp.join("shape.json"), images::LOCALHOST_PROFILE)?;
    let flags = ["--cluster-dns", "10.96.0.10", "--cluster-domain", "cluster.local", "--static-pods"];
    // Resolver configuration of the recording node.
    node.roots.resolv_conf = node.dir.join("resolv.conf");
    fs::write(&node.roots.resolv_conf, "nameserver 192.0.2.53\nsearch example.test\n")?;
    // Static pods carry the node's name, which was this one on the recording node.
    node.roots.node_name = NodeName::new("berth-peer")?;
    node.write_roots()?;
    node.agent_args = flags.into_iter().map(String::from).chain([dir.display().to_string()]).collect();
    // Shapes with mount propagation need a shared mount, which the runtime state directory is.
    let shapes = shape::all(&tests, &node.roots.runtime_state.join("shapes"))?;
    ensure!(shapes.len() >= LEAST_SHAPES, "{} shapes: some are missing", shapes.len());
    node.stop_agent()?;
    node.start_agent()?;

    let exist: BTreeSet<&str> = shapes.iter().map(|s| s.name.as_str()).collect();
    let chosen = chosen(&shapes);
    ensure!(!chosen.is_empty(), "no shape is named so");
    let ran: BTreeSet<&str> = chosen.iter().map(|s| s.name.as_str()).collect();
    let begun = Instant::now();
    let outcome = Run::new(node, dir.clone(), &differences)?.all(chosen);
    // A run that failed leaves manifests behind, whose pods the end of the test node would not remove.
    for entry in fs::read_dir(&dir)? {
        fs::remove_file(entry?.path())?;
    }
    let outcome = outcome?;
    say(&format!("{} of {} shapes in {:.1?}", ran.len(), shapes.len(), begun.elapsed()));
    for (took, name) in outcome.took.iter().rev().take(8) {
        say(&format!("  {name} {took:.1?}"));
    }
    report(&outcome)?;
    let mut wrong = Vec::new();
    for (name, found) in &outcome.found {
        let unknown = differences.unknown(name, found);
        if !unknown.is_empty() {
            let lines: Vec<String> = unknown.iter().map(ToString::to_string).collect();
            wrong.push(format!("{name}:\n    {}", lines.join("\n    ")));
        }
        differences.meet(name, found);
    }
    ensure!(
        wrong.is_empty(),
        "{} of {} shapes are otherwise than recorded\n  {}",
        wrong.len(),
        ran.len(),
        wrong.join("\n  ")
    );
    let compared = run::names(&outcome);
    ensure!(compared == ran, "{} of {} shapes were compared", compared.len(), ran.len());
    let unused = differences.unused(&ran, &exist);
    ensure!(unused.is_empty(), "differences on the list that there are none of: {unused:#?}");
    Ok(())
}

fn report(outcome: &Outcome) -> Result<()> {
    let Some(path) = std::env::var_os("BERTH_REPORT") else { return Ok(()) };
    let mut all = serde_json::Map::new();
    for (name, found) in &outcome.found {
        let values = found.iter().map(|u| json!({"path": u.path, "kubelet": u.kubelet, "berth": u.berth}));
        all.insert(name.clone(), values.collect());
    }
    fs::write(path, format!("{:#}\n", serde_json::Value::Object(all)))?;
    Ok(())
}

/// The shapes named in `BERTH_SHAPES`, separated by commas, or all shapes.
fn chosen(shapes: &[Shape]) -> Vec<&Shape> {
    let Ok(only) = std::env::var("BERTH_SHAPES") else { return shapes.iter().collect() };
    shapes.iter().filter(|s| only.split(',').any(|name| name == s.name)).collect()
}

#[expect(clippy::print_stderr, reason = "shown where the test fails, or on request")]
fn say(text: &str) {
    eprintln!("{text}");
}
