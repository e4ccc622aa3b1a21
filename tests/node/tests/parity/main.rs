//! The pods that the real kubelet was recorded with, run by this node: what it tells about them must be what the
//! kubelet told (`tests/golden/status`, remade by `tests/peers`), but for the reviewed list
//! `tests/golden/status-differences.json`, whose every entry must be needed.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test: what is missing fails it")]

mod compare;
mod images;
mod shape;
#[path = "../support/mod.rs"]
mod support;

use anyhow::{Result, ensure};
use berth_harness::{
    node::{Node, TestNode},
    socket::{Change, Pod, Socket, Watch},
    tools::{self, Build},
    wait::PATIENCE,
};
use compare::{Differences, Leaves, Unlike};
use shape::Shape;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

/// Pods at once: what the machine can start without one waiting for its probes' time.
const AT_ONCE: usize = 12;
/// What may come a little after the rest: images are looked for while the sandbox is being made, so that a missing one
/// is told first.
const LAGGING: [&str; 1] = ["conditions.PodReadyToStartContainers.status"];
/// How long that may take.
const LAG: Duration = Duration::from_secs(10);
/// How long a shape may take to settle; the slowest waits for a back-off of ten seconds.
const SETTLES: Duration = Duration::from_secs(45);
const LEAST_SHAPES: usize = 100;

/// The listed differences that were met, or what is wrong.
type Verdict = Result<Vec<Unlike>, Vec<String>>;

/// A shape under way.
struct Running<'s> {
    shape: &'s Shape,
    recorded: Leaves,
    begun: Instant,
    /// Since when it is settled, and in what it differed last.
    settled: Option<(Instant, Vec<Unlike>)>,
    last: Option<Pod>,
}

/// What came of the shapes that ran.
#[derive(Default)]
struct Outcome {
    equal: BTreeSet<String>,
    wrong: BTreeMap<String, Vec<String>>,
    took: BTreeMap<Duration, String>,
}

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
    node.agent_args = flags.into_iter().map(String::from).chain([dir.display().to_string()]).collect();
    // A mount of its own that passes mounts on, which shapes with mount propagation need.
    let shapes = shape::all(&tests, &node.roots.runtime_state.join("shapes"))?;
    ensure!(shapes.len() >= LEAST_SHAPES, "{} shapes: some are missing", shapes.len());
    node.stop_agent()?;
    node.start_agent()?;

    let exist: BTreeSet<&str> = shapes.iter().map(|s| s.name.as_str()).collect();
    let chosen = chosen(&shapes);
    ensure!(!chosen.is_empty(), "no shape is named so");
    let ran: BTreeSet<&str> = chosen.iter().map(|s| s.name.as_str()).collect();
    let begun = Instant::now();
    let outcome = Run::new(node, dir.clone(), &mut differences)?.all(chosen);
    // Where the run was broken off, pods are left that the end of the node does not know of.
    for entry in fs::read_dir(&dir)? {
        fs::remove_file(entry?.path())?;
    }
    let outcome = outcome?;
    say(&format!("{} of {} shapes in {:.1?}", ran.len(), shapes.len(), begun.elapsed()));
    for (took, name) in outcome.took.iter().rev().take(8) {
        say(&format!("  {name} {took:.1?}"));
    }
    let wrong: Vec<String> =
        outcome.wrong.iter().map(|(name, why)| format!("{name}:\n    {}", why.join("\n    "))).collect();
    ensure!(
        wrong.is_empty(),
        "{} of {} shapes end otherwise than recorded\n  {}",
        wrong.len(),
        ran.len(),
        wrong.join("\n  ")
    );
    ensure!(
        outcome.equal.len() == ran.len(),
        "{} of {} shapes were compared",
        outcome.equal.len(),
        ran.len()
    );
    let unused = differences.unused(&ran, &exist);
    ensure!(unused.is_empty(), "differences on the list that there are none of: {unused:#?}");
    Ok(())
}

/// `BERTH_SHAPES` names some by comma; otherwise all of them.
fn chosen(shapes: &[Shape]) -> Vec<&Shape> {
    let Ok(only) = std::env::var("BERTH_SHAPES") else { return shapes.iter().collect() };
    shapes.iter().filter(|s| only.split(',').any(|name| name == s.name)).collect()
}

#[expect(clippy::print_stderr, reason = "shown where the test fails, or on request")]
fn say(text: &str) {
    eprintln!("{text}");
}

/// A run over many shapes, some at once.
struct Run<'r> {
    node: &'r Node,
    dir: PathBuf,
    differences: &'r mut Differences,
    watch: Watch,
    outcome: Outcome,
}

impl<'r> Run<'r> {
    fn new(node: &'r Node, dir: PathBuf, differences: &'r mut Differences) -> Result<Run<'r>> {
        let watch = node.socket().and_then(Socket::watch)?;
        Ok(Run { node, dir, differences, watch, outcome: Outcome::default() })
    }

    fn all(mut self, mut waiting: Vec<&Shape>) -> Result<Outcome> {
        // The slow ones first; they are taken from the end.
        waiting.sort_by_key(|s| s.is_slow());
        let mut running: BTreeMap<String, Running<'_>> = BTreeMap::new();
        let mut ending: BTreeSet<String> = BTreeSet::new();
        let mut quiet = Instant::now();
        while !(waiting.is_empty() && running.is_empty() && ending.is_empty()) {
            while running.len() + ending.len() < AT_ONCE
                && let Some(shape) = waiting.pop()
            {
                let key = format!("default/{}-{}", shape.name, self.node.roots.node_name);
                self.begin(shape)?;
                running.insert(key, Running::new(shape));
                quiet = Instant::now();
            }
            match self.watch.next(Instant::now() + Duration::from_millis(100))? {
                Some(Change::Pod(pod)) => {
                    let name = pod.name();
                    if let Some(r) = running.get_mut(&name) {
                        r.last = Some(*pod);
                    }
                    quiet = Instant::now();
                }
                Some(Change::Removed(name)) => {
                    ending.remove(&name);
                    quiet = Instant::now();
                }
                _ => {}
            }
            let judged: Vec<(String, Verdict)> = running
                .iter_mut()
                .filter_map(|(name, r)| Some((name.clone(), r.judge(self.differences)?)))
                .collect();
            for (name, verdict) in judged {
                if let Some(r) = running.remove(&name) {
                    self.note(&r, verdict);
                    fs::remove_file(self.manifest(r.shape))?;
                    ending.insert(name);
                }
            }
            ensure!(quiet.elapsed() < PATIENCE * 2, "nothing moves; left: {:?} {ending:?}", running.keys());
        }
        Ok(self.outcome)
    }

    fn manifest(&self, shape: &Shape) -> PathBuf {
        self.dir.join(format!("{}.yaml", shape.name))
    }

    fn begin(&self, shape: &Shape) -> Result<()> {
        let new = self.dir.join(format!(".{}.new", shape.name));
        fs::write(&new, &shape.manifest)?;
        fs::rename(&new, self.manifest(shape))?;
        Ok(())
    }

    fn note(&mut self, running: &Running<'_>, verdict: Verdict) {
        let name = running.shape.name.clone();
        self.outcome.took.insert(running.begun.elapsed(), name.clone());
        match verdict {
            Ok(met) => {
                self.differences.meet(&name, &met);
                self.outcome.equal.insert(name);
            }
            Err(why) => {
                self.outcome.wrong.insert(name, why);
            }
        }
    }
}

impl<'s> Running<'s> {
    fn new(shape: &'s Shape) -> Running<'s> {
        let recorded = compare::leaves(&shape.recorded, false);
        Running { shape, recorded, begun: Instant::now(), settled: None, last: None }
    }

    /// Compares the newest status once; `None` while there is more to wait for.
    fn judge(&mut self, differences: &Differences) -> Option<Verdict> {
        if let Some(pod) = self.last.take() {
            match self.shape.settled(pod.status()) {
                Ok(true) => {
                    let found = compare::unlike(&self.recorded, &self.leaves(&pod));
                    let wrong = differences.unknown(&self.shape.name, &found);
                    if wrong.is_empty() {
                        return Some(Ok(found));
                    }
                    if wrong.iter().any(|u| !LAGGING.contains(&u.path.as_str())) {
                        return Some(Err(wrong.iter().map(ToString::to_string).collect()));
                    }
                    let since = self.settled.as_ref().map_or_else(Instant::now, |(since, _)| *since);
                    self.settled = Some((since, wrong));
                }
                Ok(false) => {
                    if self.settled.is_none() && self.begun.elapsed() > SETTLES {
                        return Some(Err(vec![format!("not settled: {}", pod.status())]));
                    }
                }
                Err(error) => return Some(Err(vec![format!("{error:#}")])),
            }
        }
        match &self.settled {
            Some((since, wrong)) if since.elapsed() > LAG => {
                Some(Err(wrong.iter().map(ToString::to_string).collect()))
            }
            None if self.begun.elapsed() > SETTLES => Some(Err(vec!["not settled".to_owned()])),
            _ => None,
        }
    }

    fn leaves(&self, pod: &Pod) -> Leaves {
        let mut leaves = compare::leaves(pod.status(), self.shape.backs_off());
        let uid = pod.uid();
        for value in leaves.values_mut() {
            if let Some(text) = value.as_str().filter(|t| t.contains(&uid)) {
                *value = text.replace(&uid, "$UID").into();
            }
        }
        leaves
    }
}
