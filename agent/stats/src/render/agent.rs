//! `/metrics` and `/metrics/probes`: what the agent counts about itself, and the pods as it knows them.

use crate::{
    disk::Capacity,
    process::{self, ProcessUse},
    text::{Exposition, Value, labels},
};
use berth_core::{
    metrics::{FamilyType::Gauge, ReadFamily},
    time::Wall,
};
use std::collections::BTreeMap;

/// The pods as the agent knows them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodCounts {
    /// Pods with a running container.
    pub running: u64,
    /// Containers by state: `created`, `running`, `exited`, `unknown`.
    pub containers: BTreeMap<&'static str, u64>,
    /// Wanted pods: static ones, and all others.
    pub desired: (u64, u64),
    /// Pods that have not ended: static ones, and all others.
    pub active: (u64, u64),
    /// Volumes by plugin: wanted ones, and those that are set up.
    pub volumes: BTreeMap<&'static str, (u64, u64)>,
    /// Ephemeral containers of wanted pods.
    pub ephemeral: u64,
}

/// Facts of the agent for `/metrics`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AgentFacts {
    /// The node's name.
    pub node: String,
    /// The version that the node reports as the kubelet's.
    pub version: String,
    /// Go's name of the architecture.
    pub architecture: &'static str,
    /// Whether the node has cgroup version 2 alone.
    pub cgroup_v2: bool,
    /// When the machine booted.
    pub booted: Wall,
    /// What the agent's process uses.
    pub process: Option<ProcessUse>,
    /// Seconds until the client certificate expires; `None` without a certificate.
    pub client_ttl: Option<f64>,
    /// Seconds until the serving certificate expires.
    pub server_ttl: Option<f64>,
    /// The tasks of the agent.
    pub tasks: u64,
    /// The helper processes by name, with their resident memory in bytes.
    pub helpers: Vec<(&'static str, u64)>,
    /// The pods.
    pub pods: PodCounts,
    /// The claims of running pods by namespace and name, with what is known of their volumes.
    pub claims: BTreeMap<(String, String), ClaimUse>,
}

/// Use of the volume that is bound to a claim.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClaimUse {
    /// Its file system.
    pub capacity: Capacity,
    /// Whether its driver says that something is wrong with it.
    pub abnormal: Option<bool>,
}

/// Renders `/metrics`. `families`: what the parts of the agent count.
pub fn render(facts: &AgentFacts, families: &[&dyn ReadFamily]) -> Vec<u8> {
    let mut text = Exposition::with_capacity(64 << 10);
    node(&mut text, facts);
    pods(&mut text, &facts.pods);
    claims(&mut text, &facts.claims);
    text.read_families(families);
    if let Some(usage) = &facts.process {
        process::render(&mut text, usage, facts.booted);
    }
    text.family("berth_tasks", "Tasks of the agent.", Gauge);
    text.sample("", &[], facts.tasks.into(), None);
    text.family("berth_helper_resident_memory_bytes", "Resident memory of the agent's helpers.", Gauge);
    for (name, bytes) in &facts.helpers {
        text.sample("", &[("helper", name)], (*bytes).into(), None);
    }
    text.finish()
}

/// Renders `/metrics/probes`.
pub fn render_probes(process: Option<&ProcessUse>, booted: Wall, families: &[&dyn ReadFamily]) -> Vec<u8> {
    let mut text = Exposition::default();
    text.read_families(families);
    if let Some(usage) = process {
        process::start_time(&mut text, usage, booted);
    }
    text.finish()
}

/// Renders `/metrics` of a part of the agent: its families, and the process.
pub fn render_process(process: Option<&ProcessUse>, booted: Wall, families: &[&dyn ReadFamily]) -> Vec<u8> {
    let mut text = Exposition::default();
    text.read_families(families);
    if let Some(usage) = process {
        process::render(&mut text, usage, booted);
    }
    text.finish()
}

fn node(text: &mut Exposition, facts: &AgentFacts) {
    text.family("kubelet_node_name", "1, with the node's name as a label.", Gauge);
    text.sample("", &[("node", &facts.node)], 1.into(), None);
    text.family("kubelet_cgroup_version", "Version of the node's cgroups; a hybrid node has 1.", Gauge);
    text.sample("", &[], (1 + u64::from(facts.cgroup_v2)).into(), None);
    text.family("kubernetes_build_info", "1, with the version that the node reports as labels.", Gauge);
    let mut numbers = facts.version.trim_start_matches('v').split('.');
    let (major, minor) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    let build = labels(&[
        ("build_date", ""),
        ("compiler", "rustc"),
        ("git_commit", ""),
        ("git_tree_state", ""),
        ("git_version", &facts.version),
        ("go_version", ""),
        ("major", major),
        ("minor", minor),
        ("platform", &format!("linux/{}", facts.architecture)),
    ]);
    text.sample(&build, &[], 1.into(), None);
    for (name, help, ttl) in [
        (
            "kubelet_certificate_manager_client_ttl_seconds",
            "Time until the client certificate expires; negative after that.",
            facts.client_ttl,
        ),
        (
            "kubelet_certificate_manager_server_ttl_seconds",
            "Time until the serving certificate expires; negative after that.",
            facts.server_ttl,
        ),
    ] {
        text.family(name, help, Gauge);
        // The kubelet gives +Inf where it manages no certificate.
        text.sample("", &[], ttl.unwrap_or(f64::INFINITY).into(), None);
    }
}

fn pods(text: &mut Exposition, pods: &PodCounts) {
    text.family("kubelet_running_pods", "Pods with a running container.", Gauge);
    text.sample("", &[], pods.running.into(), None);
    text.family("kubelet_running_containers", "Containers by state.", Gauge);
    for (state, count) in &pods.containers {
        text.sample("", &[("container_state", state)], (*count).into(), None);
    }
    for (name, help, (of_files, others)) in [
        ("kubelet_desired_pods", "Wanted pods, by whether they are static.", pods.desired),
        ("kubelet_active_pods", "Pods that have not ended, by whether they are static.", pods.active),
    ] {
        text.family(name, help, Gauge);
        text.sample("", &[("static", "")], others.into(), None);
        text.sample("", &[("static", "true")], of_files.into(), None);
    }
    text.family("kubelet_managed_ephemeral_containers", "Ephemeral containers of wanted pods.", Gauge);
    text.sample("", &[], pods.ephemeral.into(), None);
    text.family("volume_manager_total_volumes", "Volumes by plugin: wanted ones, and those set up.", Gauge);
    for (plugin, (wanted, set_up)) in &pods.volumes {
        for (state, count) in [("actual_state_of_world", set_up), ("desired_state_of_world", wanted)] {
            text.sample("", &[("plugin_name", plugin), ("state", state)], Value::Whole(*count), None);
        }
    }
}

/// The kubelet's families of volumes. Like the kubelet's they are left out where there is no claim.
fn claims(text: &mut Exposition, claims: &BTreeMap<(String, String), ClaimUse>) {
    type Read = fn(&ClaimUse) -> Option<u64>;
    let families: [(&'static str, &'static str, Read); 7] = [
        ("kubelet_volume_stats_available_bytes", "Free bytes of a claim's volume.", |c| {
            Some(c.capacity.available)
        }),
        ("kubelet_volume_stats_capacity_bytes", "Bytes of a claim's volume.", |c| Some(c.capacity.bytes)),
        (
            "kubelet_volume_stats_health_status_abnormal",
            "1 if the driver of a claim's volume says that something is wrong with it.",
            |c| c.abnormal.map(u64::from),
        ),
        ("kubelet_volume_stats_inodes", "Inodes of a claim's volume.", |c| Some(c.capacity.inodes)),
        ("kubelet_volume_stats_inodes_free", "Free inodes of a claim's volume.", |c| {
            Some(c.capacity.inodes_free)
        }),
        ("kubelet_volume_stats_inodes_used", "Used inodes of a claim's volume.", |c| {
            Some(c.capacity.inodes.saturating_sub(c.capacity.inodes_free))
        }),
        ("kubelet_volume_stats_used_bytes", "Used bytes of a claim's volume.", |c| Some(c.capacity.used)),
    ];
    for (name, help, read) in families {
        text.family(name, help, Gauge);
        for ((namespace, claim), of) in claims {
            let labels = [("namespace", namespace.as_str()), ("persistentvolumeclaim", claim.as_str())];
            if let Some(value) = read(of) {
                text.sample("", &labels, Value::Whole(value), None);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::testing::{golden, parsed};
    use berth_core::metrics::Counter;

    #[test]
    fn the_text_of_a_small_agent() {
        let capacity = Capacity { bytes: 1000, available: 300, used: 600, inodes: 100, inodes_free: 40 };
        let claim = ClaimUse { capacity, abnormal: Some(false) };
        let facts = AgentFacts {
            node: "n1".to_owned(),
            version: "v1.36.3+berth-0.0.0".to_owned(),
            architecture: "amd64",
            client_ttl: Some(12.5),
            process: Some(ProcessUse {
                cpu: 1,
                started: 20_000_000,
                descriptors: Some((5, 100)),
                ..Default::default()
            }),
            booted: Wall(1_700_000_000_000_000_000),
            tasks: 7,
            helpers: vec![("logd", 4096)],
            pods: PodCounts {
                running: 1,
                containers: [("running", 2), ("exited", 1)].into(),
                desired: (1, 2),
                active: (0, 2),
                volumes: [("kubernetes.io/empty-dir", (2, 1))].into(),
                ephemeral: 1,
            },
            claims: [(("ns".to_owned(), "pvc".to_owned()), claim)].into(),
            ..AgentFacts::default()
        };
        let counter =
            Counter::counter("rest_client_requests_total", "Requests.", &["code", "host", "method"]);
        counter.inc(&["200", "h:1", "GET"]);
        let text = String::from_utf8(render(&facts, &[&counter])).unwrap();
        golden("agent.txt", &text);
        parsed(&text);
        let probes =
            String::from_utf8(render_probes(facts.process.as_ref(), facts.booted, &[&counter])).unwrap();
        assert_eq!(
            parsed(&probes).into_keys().collect::<Vec<_>>(),
            ["process_start_time_seconds", "rest_client_requests_total"]
        );
    }
}
