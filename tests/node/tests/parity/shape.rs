//! The shapes: one pod manifest each, with the conditions under which the kubelet's status was recorded.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::{collections::BTreeMap, fs, path::Path, time::Duration};

/// Directory of the recording node that manifests name.
const HOST_DIR: &str = "/run/berth-shapes";

/// Delay of a probe after which the server of a shape listens, also on a busy machine.
const SERVER_LISTENS: &str = "initialDelaySeconds: 3";

/// A recorded shape.
#[derive(Debug)]
pub(crate) struct Shape {
    /// Name of the manifest file without its ending.
    pub(crate) name: String,
    /// Name of the pod. Differs from `name` only where the name is too long for a file.
    pub(crate) pod: String,
    /// The manifest, with host paths moved below the test's own directory.
    pub(crate) manifest: String,
    /// Conditions that must all hold when the status is compared; `tests/peers/cmd/record/shapes.go` defines
    /// the words.
    settle: BTreeMap<String, String>,
    /// Containers whose output was recorded.
    pub(crate) output: Vec<String>,
    /// Status of the kubelet.
    pub(crate) status: Value,
    /// Events of the kubelet.
    pub(crate) events: Value,
    /// Output of the containers.
    pub(crate) written: Value,
}

/// All shapes that have a recording, sorted by name. `host_dir` replaces the recording node's directory.
pub(crate) fn all(tests: &Path, host_dir: &Path) -> Result<Vec<Shape>> {
    let mut shapes = Vec::new();
    let dir = tests.join("shapes");
    for entry in fs::read_dir(&dir).with_context(|| format!("list {}", dir.display()))? {
        let path = entry?.path();
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        if text.lines().any(|l| l.starts_with("# kubelet: skip ")) {
            continue;
        }
        let name = path.file_stem().and_then(|n| n.to_str()).context("a file without a name")?.to_owned();
        let recorded = |kind: &str| -> Result<Value> {
            let path = tests.join("golden").join(kind).join(format!("{name}.json"));
            let text = fs::read(&path).with_context(|| format!("shape {name}: read {}", path.display()))?;
            serde_json::from_slice(&text).with_context(|| format!("shape {name}: {}", path.display()))
        };
        let output = text.lines().find_map(|l| l.strip_prefix("# output: ")).unwrap_or_default();
        let output: Vec<String> = output.split_whitespace().map(str::to_owned).collect();
        let pod = text.lines().find_map(|l| l.strip_prefix("  name: ")).unwrap_or(&name).to_owned();
        let settle =
            text.lines().filter_map(|l| l.strip_prefix("# settle: ")).flat_map(str::split_whitespace);
        let settle: BTreeMap<String, String> = settle
            .map(|word| word.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned())))
            .collect::<Option<_>>()
            .with_context(|| format!("shape {name}: the settle line"))?;
        ensure!(!settle.is_empty(), "shape {name} has no settle line");
        let events = recorded("events")?;
        ensure!(
            !races_its_server(&text, &events.to_string()),
            "shape {name}: its probe may come before its server listens; give the probe {SERVER_LISTENS}"
        );
        shapes.push(Shape {
            manifest: text.replace(HOST_DIR, &host_dir.to_string_lossy()),
            settle,
            status: recorded("status")?,
            events,
            written: if output.is_empty() { Value::Null } else { recorded("output")? },
            output,
            pod,
            name,
        });
    }
    shapes.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(shapes)
}

/// Whether a slow start of the shape's server adds a failed probe that the recording lacks.
fn races_its_server(manifest: &str, events: &str) -> bool {
    let asks_a_server =
        |line: &str| line.contains("Probe:") && (line.contains("httpGet") || line.contains("tcpSocket"));
    let no_server = events.contains("connection refused") || events.contains("strconv.Atoi");
    !no_server && manifest.lines().any(|l| asks_a_server(l) && !l.contains(SERVER_LISTENS))
}

impl Shape {
    /// Whether ended containers that will restart count as backing off.
    pub(crate) fn backs_off(&self) -> bool {
        self.settle.contains_key("backoff")
    }

    /// Whether the shape waits for a back-off, a restart, a failure's reason or a fixed time.
    pub(crate) fn is_slow(&self) -> bool {
        self.backs_off()
            || self.settle.contains_key("restarts")
            || self.settle.contains_key("reason")
            || self.settle.contains_key("after")
    }

    /// Whether chance decides which actions are under way when the manifest is removed.
    pub(crate) fn ends_by_chance(&self) -> bool {
        ["backoff", "restarts", "waiting"].iter().any(|key| self.settle.contains_key(*key))
    }

    /// Whether the settle line names an event.
    pub(crate) fn needs_events(&self) -> bool {
        self.settle.contains_key("event")
    }

    /// Whether the settle line holds for this status, these reasons of events and this age of the pod.
    pub(crate) fn settled(&self, status: &Value, told: &[&str], age: Duration) -> Result<bool> {
        for (key, value) in &self.settle {
            let holds = match key.as_str() {
                "event" => told.contains(&value.as_str()),
                "after" => age.as_secs() >= value.parse().with_context(|| format!("settle {key}={value}"))?,
                _ => holds(status, key, value).with_context(|| format!("shape {}", self.name))?,
            };
            if !holds {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

fn holds(status: &Value, key: &str, value: &str) -> Result<bool> {
    let lists = ["initContainerStatuses", "containerStatuses"];
    let containers: Vec<&Value> = lists.iter().filter_map(|l| status[*l].as_array()).flatten().collect();
    let number = || value.parse::<u64>().with_context(|| format!("settle {key}={value}"));
    let restarts = |c: &Value| c["restartCount"].as_u64().unwrap_or(0);
    Ok(match key {
        "phase" => status["phase"] == value,
        "reason" => status["reason"] == value,
        "ready" => {
            let wanted = if value == "true" { "True" } else { "False" };
            let conditions = status["conditions"].as_array();
            conditions.is_some_and(|all| all.iter().any(|c| c["type"] == "Ready" && c["status"] == wanted))
        }
        "restarts" => {
            let least = number()?;
            containers.iter().any(|c| restarts(c) >= least)
        }
        "backoff" => {
            let least = number()?;
            containers.iter().any(|c| restarts(c) >= least && c["state"]["running"].is_null())
        }
        "waiting" => containers.iter().any(|c| c["state"]["waiting"]["reason"] == value),
        "exited" => {
            let code = number()?;
            containers.iter().any(|c| c["state"]["terminated"]["exitCode"].as_u64() == Some(code))
        }
        other => bail!("a settle line knows no {other:?}"),
    })
}
