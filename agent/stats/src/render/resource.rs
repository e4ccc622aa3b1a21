//! `/metrics/resource`: CPU and memory of node, pods and containers, for metrics-server.
//!
//! Families, labels and the timestamp of each sample are stable in Kubernetes
//! (`pkg/kubelet/metrics/collectors/resource_metrics.go`): readers compute rates from the timestamps.

use crate::{
    cgroup::MemoryUse,
    reading::{Group, NodeReading},
    text::{Exposition, Value, labels},
};
use berth_core::{metrics::FamilyType, time::Wall};

/// Whom a family is about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum About {
    Node,
    Container,
    Pod,
}

/// A family of the endpoint.
struct ResourceFamily {
    about: About,
    name: &'static str,
    help: &'static str,
    kind: FamilyType,
    value: fn(&Group) -> Option<Value>,
    /// Whether the sample has the time of the reading.
    timed: bool,
}

fn cpu(group: &Group) -> Option<Value> {
    group.usage.cpu.map(|cpu| Value::Nanos(cpu.total))
}

fn working_set(group: &Group) -> Option<Value> {
    group.usage.memory.as_ref().map(|memory| Value::Whole(MemoryUse::working_set(memory)))
}

fn swap(group: &Group) -> Option<Value> {
    group.usage.memory.map(|memory| Value::Whole(memory.swap))
}

fn started(group: &Group) -> Option<Value> {
    group.started.map(|at| Value::Nanos(u64::try_from(at.0).unwrap_or(0)))
}

const fn counter(about: About, name: &'static str, help: &'static str) -> ResourceFamily {
    ResourceFamily { about, name, help, kind: FamilyType::Counter, value: cpu, timed: true }
}

const fn gauge(
    about: About,
    name: &'static str,
    help: &'static str,
    value: fn(&Group) -> Option<Value>,
) -> ResourceFamily {
    ResourceFamily { about, name, help, kind: FamilyType::Gauge, value, timed: true }
}

const FAMILIES: &[ResourceFamily] = &[
    counter(About::Node, "node_cpu_usage_seconds_total", "CPU time that the node has used, in seconds."),
    gauge(About::Node, "node_memory_working_set_bytes", "Working set of the node.", working_set),
    gauge(About::Node, "node_swap_usage_bytes", "Swapped out memory of the node.", swap),
    ResourceFamily {
        timed: false,
        ..gauge(
            About::Container,
            "container_start_time_seconds",
            "Start of the container, in seconds since 1970.",
            started,
        )
    },
    counter(
        About::Container,
        "container_cpu_usage_seconds_total",
        "CPU time that the container has used, in seconds.",
    ),
    gauge(
        About::Container,
        "container_memory_working_set_bytes",
        "Working set of the container.",
        working_set,
    ),
    gauge(About::Container, "container_swap_usage_bytes", "Swapped out memory of the container.", swap),
    counter(About::Pod, "pod_cpu_usage_seconds_total", "CPU time that the pod has used, in seconds."),
    gauge(About::Pod, "pod_memory_working_set_bytes", "Working set of the pod.", working_set),
    gauge(About::Pod, "pod_swap_usage_bytes", "Swapped out memory of the pod.", swap),
];

/// Bytes of text for each container and pod, by experience.
const BYTES_PER_POD: usize = 2048;

/// Renders the endpoint. A reading without the root's usage counts as an error of the scrape.
pub fn render(reading: &NodeReading) -> Vec<u8> {
    let mut text = Exposition::with_capacity(4096 + reading.pods.len() * BYTES_PER_POD);
    let named = |about| -> Vec<(String, &Group)> {
        let pods = reading.pods.iter();
        match about {
            About::Node => vec![(String::new(), &reading.root)],
            About::Container => pods
                .flat_map(|pod| pod.containers.iter().map(move |c| (pod, c)))
                .map(|(pod, c)| {
                    let (namespace, name) = (pod.key.namespace.as_str(), pod.key.name.as_str());
                    let of = [("container", c.name.as_str()), ("namespace", namespace), ("pod", name)];
                    (labels(&of), &c.group)
                })
                .collect(),
            About::Pod => pods
                .map(|pod| {
                    let of = [("namespace", pod.key.namespace.as_str()), ("pod", pod.key.name.as_str())];
                    (labels(&of), &pod.group)
                })
                .collect(),
        }
    };
    let (node, containers, pods) = (named(About::Node), named(About::Container), named(About::Pod));
    for family in FAMILIES {
        let groups = match family.about {
            About::Node => &node,
            About::Container => &containers,
            About::Pod => &pods,
        };
        text.family(family.name, family.help, family.kind);
        let at: Option<Wall> = family.timed.then_some(reading.at.wall);
        for (labels, group) in groups {
            if let Some(value) = (family.value)(group) {
                text.sample(labels, &[], value, at);
            }
        }
    }
    let error = u64::from(reading.root.usage.cpu.is_none() || reading.root.usage.memory.is_none());
    for name in ["scrape_error", "resource_scrape_error"] {
        text.family(name, "1 where the node could not be read, 0 otherwise.", FamilyType::Gauge);
        text.sample("", &[], error.into(), None);
    }
    text.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::testing::{golden, node, parsed};

    #[test]
    fn the_text_of_a_small_node() {
        let text = String::from_utf8(render(&node())).unwrap();
        golden("resource.txt", &text);
        parsed(&text);
    }

    #[test]
    fn a_node_that_cannot_be_read_is_an_error_of_the_scrape() {
        let text = String::from_utf8(render(&NodeReading::default())).unwrap();
        assert!(text.ends_with("resource_scrape_error gauge\nresource_scrape_error 1\n"), "{text}");
        assert_eq!(parsed(&text).len(), 2);
    }
}
