//! Runs shapes on the node, several at once, and collects their differences.

use crate::{
    compare::{self, Leaves, Unlike},
    course::Course,
    differences::Differences,
    events::{self, Event},
    shape::Shape,
    text::{self, Plain},
};
use anyhow::{Result, ensure};
use berth_core::roots::Roots;
use berth_harness::{
    node::Node,
    socket::{Change, Pod, Socket, Watch},
    wait::PATIENCE,
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

/// Number of pods at once: as many as the machine starts without delaying another pod's probes.
const AT_ONCE: usize = 12;
/// Paths whose values may arrive after the others. The executor looks up images while the sandbox is being
/// created, so a missing image may be published before the sandbox.
const LAGGING: [&str; 2] = ["conditions.PodReadyToStartContainers.status", "podIP"];
/// Time limit for the values of [`LAGGING`], and for missing events and output.
const LAG: Duration = Duration::from_secs(10);
/// Time limit for a shape to settle. The slowest shape waits for a back-off of ten seconds.
const SETTLES: Duration = Duration::from_secs(45);
/// Time limit for the removal of a pod.
const ENDS: Duration = Duration::from_secs(45);
/// Wait after a shape's event until the comparison, because the status that goes with the event follows a
/// moment later.
const TOLD_WITHIN: Duration = Duration::from_millis(500);
/// Minimum time between two requests for the events of one pod.
const EVENTS_EVERY: Duration = Duration::from_millis(200);

/// Results of the shapes that ran.
#[derive(Default)]
pub(crate) struct Outcome {
    /// Differences of each shape from its recording.
    pub(crate) found: BTreeMap<String, Vec<Unlike>>,
    pub(crate) took: BTreeMap<Duration, String>,
}

/// Progress of a shape.
enum Stage {
    /// The status does not yet satisfy the settle line.
    Begun,
    /// The settle line holds since this time; values of [`LAGGING`] may still be missing.
    Settled(Instant),
    /// The status is compared since this time; events and output are still to be compared.
    Compared(Instant),
    /// The manifest was removed at this time, when each event had occurred so often.
    Ending(Instant, BTreeMap<String, u64>),
}

/// A shape whose pod is on the node.
struct Running<'s> {
    shape: &'s Shape,
    begun: Instant,
    /// Since when the settle line holds.
    holds: Option<Instant>,
    stage: Stage,
    last: Option<Pod>,
    /// All addresses that the pod has had.
    addresses: BTreeSet<String>,
    course: Course,
    /// The last list of the pod's events, requested at `asked`.
    told: Vec<Value>,
    asked: Option<Instant>,
    found: Vec<Unlike>,
}

pub(crate) struct Run<'r> {
    node: &'r Node,
    dir: PathBuf,
    differences: &'r Differences,
    watch: Watch,
    socket: Socket,
    outcome: Outcome,
}

impl<'r> Run<'r> {
    pub(crate) fn new(node: &'r Node, dir: PathBuf, differences: &'r Differences) -> Result<Run<'r>> {
        let watch = node.socket().and_then(Socket::watch)?;
        let socket = node.socket()?;
        Ok(Run { node, dir, differences, watch, socket, outcome: Outcome::default() })
    }

    pub(crate) fn all(mut self, mut waiting: Vec<&Shape>) -> Result<Outcome> {
        // Slow shapes start first. The loop takes shapes from the end of the list.
        waiting.sort_by_key(|s| s.is_slow());
        let mut running: BTreeMap<String, Running<'_>> = BTreeMap::new();
        let mut quiet = Instant::now();
        while !(waiting.is_empty() && running.is_empty()) {
            while running.len() < AT_ONCE
                && let Some(shape) = waiting.pop()
            {
                let key = format!("default/{}-{}", shape.pod, self.node.roots.node_name);
                self.begin(shape)?;
                running.insert(key, Running::new(shape));
                quiet = Instant::now();
            }
            let mut gone = Vec::new();
            match self.watch.next(Instant::now() + Duration::from_millis(100))? {
                Some(Change::Pod(pod)) => {
                    if let Some(r) = running.get_mut(&pod.name()) {
                        r.course.see(pod.status());
                        r.addresses.extend(text::addresses(&pod));
                        r.last = Some(*pod);
                    }
                    quiet = Instant::now();
                }
                Some(Change::Removed(name)) => {
                    gone.extend(running.remove(&name));
                    quiet = Instant::now();
                }
                _ => {}
            }
            let mut stuck = Vec::new();
            for (name, r) in &mut running {
                if r.needs_events() {
                    r.ask(&mut self.socket)?;
                }
                if r.step(&self.node.roots, self.differences)? {
                    fs::remove_file(self.dir.join(format!("{}.yaml", r.shape.name)))?;
                    // A pod that never appeared has no removal to wait for.
                    if r.last.is_none() {
                        stuck.push(name.clone());
                    }
                }
                if matches!(r.stage, Stage::Ending(since, _) if since.elapsed() > ENDS) {
                    r.found.push(Unlike {
                        path: "gone".to_owned(),
                        kubelet: json!(true),
                        berth: json!(false),
                    });
                    stuck.push(name.clone());
                }
            }
            gone.extend(stuck.iter().filter_map(|name| running.remove(name)));
            for r in gone {
                self.finish(r)?;
            }
            ensure!(quiet.elapsed() < PATIENCE * 2, "nothing moves; left: {:?}", running.keys());
        }
        Ok(self.outcome)
    }

    fn begin(&self, shape: &Shape) -> Result<()> {
        let new = self.dir.join(format!(".{}.new", shape.name));
        fs::write(&new, &shape.manifest)?;
        fs::rename(&new, self.dir.join(format!("{}.yaml", shape.name)))?;
        Ok(())
    }

    /// Compares the events of the pod's end and stores the result of the shape, after the pod is gone.
    fn finish(&mut self, mut running: Running<'_>) -> Result<()> {
        let name = running.shape.name.clone();
        self.outcome.took.insert(running.begun.elapsed(), name.clone());
        if !matches!(running.stage, Stage::Ending(..)) {
            running.found.push(unsettled("the pod went away by itself"));
        }
        if let Some(pod) = running.last.as_ref().filter(|_| !running.shape.ends_by_chance())
            && let Stage::Ending(_, before) = &running.stage
        {
            let all = self.socket.events(&pod.uid())?;
            let new = all.iter().filter(|e| before.get(&id(e)).is_none_or(|n| *n < count(e))).cloned();
            let ours = events::shown(
                &new.collect::<Vec<_>>(),
                &Plain::of(pod, &self.node.roots, &running.addresses),
            );
            let theirs = events::recorded(&running.shape.events["end"]);
            let (theirs, ours) = (events::of_the_end(&theirs), events::of_the_end(&ours));
            running.found.extend(events::unlike("end", &theirs, &ours));
        }
        for wrong in running.course.wrong {
            running.found.push(Unlike {
                path: format!("course.{wrong}"),
                kubelet: Value::Null,
                berth: json!(true),
            });
        }
        self.outcome.found.insert(name, running.found);
        Ok(())
    }
}

/// Difference of a shape whose status never reached the recorded one.
fn unsettled(why: &str) -> Unlike {
    Unlike { path: "settled".to_owned(), kubelet: json!(true), berth: json!(why) }
}

/// Identity of an event among those of its pod: everything but the count.
fn id(event: &Value) -> String {
    event["event"].to_string()
}

fn count(event: &Value) -> u64 {
    event["count"].as_u64().unwrap_or(0)
}

impl<'s> Running<'s> {
    fn new(shape: &'s Shape) -> Running<'s> {
        Running {
            shape,
            begun: Instant::now(),
            holds: None,
            stage: Stage::Begun,
            last: None,
            addresses: BTreeSet::new(),
            course: Course::default(),
            told: Vec::new(),
            asked: None,
            found: Vec::new(),
        }
    }

    fn needs_events(&self) -> bool {
        match self.stage {
            Stage::Begun => self.shape.needs_events(),
            Stage::Compared(_) => true,
            Stage::Settled(_) | Stage::Ending(..) => false,
        }
    }

    /// Requests the pod's events, unless the last request was less than [`EVENTS_EVERY`] ago.
    fn ask(&mut self, socket: &mut Socket) -> Result<()> {
        if let Some(pod) = &self.last
            && self.asked.is_none_or(|asked| asked.elapsed() > EVENTS_EVERY)
        {
            self.asked = Some(Instant::now());
            self.told = socket.events(&pod.uid())?;
        }
        Ok(())
    }

    /// Count of each event so far.
    fn counts(&self) -> BTreeMap<String, u64> {
        self.told.iter().map(|e| (id(e), count(e))).collect()
    }

    /// Takes the shape to its next stage where possible. Returns true when the manifest must be removed now.
    fn step(&mut self, roots: &Roots, known: &Differences) -> Result<bool> {
        let age = self.begun.elapsed();
        let Some(pod) = &self.last else {
            if age > SETTLES {
                self.found.push(unsettled("nothing is told about the pod"));
            }
            return Ok(age > SETTLES);
        };
        let plain = Plain::of(pod, roots, &self.addresses);
        match self.stage {
            Stage::Begun => {
                let reasons: Vec<&str> =
                    self.told.iter().filter_map(|e| e["event"]["reason"].as_str()).collect();
                let holds = self.shape.settled(pod.status(), &reasons, age)?;
                self.holds = holds.then(|| self.holds.unwrap_or_else(Instant::now));
                let told = if self.shape.needs_events() { TOLD_WITHIN } else { Duration::ZERO };
                if self.holds.is_some_and(|since| since.elapsed() >= told) {
                    self.stage = Stage::Settled(Instant::now());
                    return self.step(roots, known);
                }
                if age > SETTLES {
                    self.found.push(unsettled(&pod.status().to_string()));
                    self.stage = Stage::Ending(Instant::now(), self.counts());
                    return Ok(true);
                }
            }
            Stage::Settled(since) => {
                let recorded = compare::leaves(&self.shape.status, self.shape.backs_off());
                self.found = compare::unlike(&recorded, &self.leaves(pod, &plain)?);
                let unknown = known.unknown(&self.shape.name, &self.found);
                let lagging = |u: &Unlike| LAGGING.contains(&u.path.as_str());
                if unknown.is_empty() || unknown.iter().any(|u| !lagging(u)) || since.elapsed() > LAG {
                    self.stage = Stage::Compared(Instant::now());
                }
            }
            Stage::Compared(since) => {
                // The events must have been requested after the status was compared.
                if self.asked.is_none_or(|asked| asked < since) {
                    return Ok(false);
                }
                let ours = events::shown(&self.told, &plain);
                let mut found = events::unlike("events", &self.recorded_events(), &ours);
                found.extend(self.output(roots, &plain));
                let unknown = known.unknown(&self.shape.name, &found);
                let may_come = |u: &Unlike| u.berth.is_null() || u.path.starts_with("output.");
                if unknown.iter().any(may_come) && since.elapsed() < LAG {
                    return Ok(false);
                }
                self.found.extend(found);
                self.stage = Stage::Ending(Instant::now(), self.counts());
                return Ok(true);
            }
            Stage::Ending(..) => {}
        }
        Ok(false)
    }

    fn recorded_events(&self) -> Vec<Event> {
        events::recorded(&self.shape.events["life"])
    }

    fn leaves(&self, pod: &Pod, plain: &Plain) -> Result<Leaves> {
        let text = plain.text(&serde_json::to_string(pod.status())?);
        Ok(compare::leaves(&serde_json::from_str(&text)?, self.shape.backs_off()))
    }

    /// Differences in the output of the first run of each container, line by line, with standard error first.
    fn output(&self, roots: &Roots, plain: &Plain) -> Vec<Unlike> {
        let (mut theirs, mut ours) = (Leaves::new(), Leaves::new());
        let name = |pod: &Pod| pod.name().replace('/', "_");
        for container in &self.shape.output {
            let recorded = self.shape.written[container].as_array().cloned().unwrap_or_default();
            let dir = self.last.as_ref().map(|p| roots.pod_logs.join(format!("{}_{}", name(p), p.uid())));
            let file = dir.unwrap_or_default().join(container).join("0.log");
            let text = String::from_utf8_lossy(&fs::read(file).unwrap_or_default()).into_owned();
            let lines = |stream: &str| -> Vec<String> {
                let all = text.split_terminator('\n').filter_map(|l| l.split_once(' ')).map(|(_, l)| l);
                all.filter(|l| l.starts_with(stream)).map(|l| plain.text(l)).collect()
            };
            let written = [lines("stderr "), lines("stdout ")].concat();
            for (i, line) in recorded.into_iter().enumerate() {
                theirs.insert(format!("output.{container}.{i}"), line);
            }
            for (i, line) in written.into_iter().enumerate() {
                ours.insert(format!("output.{container}.{i}"), json!(line));
            }
        }
        compare::unlike(&theirs, &ours)
    }
}

/// Names of the shapes that were compared.
pub(crate) fn names(outcome: &Outcome) -> BTreeSet<&str> {
    outcome.found.keys().map(String::as_str).collect()
}
