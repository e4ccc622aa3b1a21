//! `/metrics/cadvisor`: what every group of the node has used, by cAdvisor's names
//! (`github.com/google/cadvisor/metrics/prometheus.go`, `prometheus_machine.go`).
//!
//! Every sample of a group has the labels `container`, `id`, `image`, `name`, `namespace` and `pod`, empty where
//! they say nothing: groups above the pods have only `id`, a pod's group also `namespace` and `pod`, and the
//! sandbox, on which the network's samples sit, also `image` and `name`.

mod families;
mod machine;

pub use machine::Machine;

use crate::{
    network::Interface,
    reading::{Group, NodeReading},
    text::{Exposition, labels},
};
use families::{GROUP_FAMILIES, NETWORK_FAMILIES, Samples};

/// Image of a sandbox: pause is part of the agent, and queries select sandboxes by an image that is not empty.
const SANDBOX_IMAGE: &str = "berth.dev/pause";

/// Bytes of text for each group, by experience.
const BYTES_PER_GROUP: usize = 12 << 10;

/// A group with its written labels.
struct Row<'a> {
    labels: String,
    group: &'a Group,
    interfaces: &'a [Interface],
}

fn id(group: &Group) -> String {
    format!("/{}", group.path.display())
}

/// A group that belongs to no pod.
fn apart<'a>(group: &'a Group, interfaces: &'a [Interface]) -> Row<'a> {
    let names = ["container", "image", "name", "namespace", "pod"].map(|name| (name, ""));
    let [container, image, name, namespace, pod] = names;
    let labels = labels(&[container, ("id", &id(group)), image, name, namespace, pod]);
    Row { labels, group, interfaces }
}

fn rows(reading: &NodeReading) -> Vec<Row<'_>> {
    let mut rows = vec![apart(&reading.root, &reading.interfaces)];
    rows.extend(reading.above.iter().map(|group| apart(group, &[])));
    for pod in &reading.pods {
        let (namespace, name) = (pod.key.namespace.as_str(), pod.key.name.as_str());
        let row = |group, container, image, own, interfaces| Row {
            labels: labels(&[
                ("container", container),
                ("id", &id(group)),
                ("image", image),
                ("name", own),
                ("namespace", namespace),
                ("pod", name),
            ]),
            group,
            interfaces,
        };
        rows.push(row(&pod.group, "", "", "", &[]));
        if let Some(sandbox) = &pod.sandbox {
            rows.push(row(&sandbox.group, "", SANDBOX_IMAGE, &sandbox.id, &sandbox.interfaces));
        }
        for c in &pod.containers {
            rows.push(row(&c.group, c.name.as_str(), &c.image, c.id.as_str(), &[]));
        }
    }
    rows
}

/// Renders the endpoint.
pub fn render(reading: &NodeReading, machine: &Machine) -> Vec<u8> {
    let rows = rows(reading);
    let mut text = Exposition::with_capacity(4096 + rows.len() * BYTES_PER_GROUP);
    for family in GROUP_FAMILIES {
        text.family(family.name, family.help, family.kind);
        for row in &rows {
            let mut samples = Samples { text: &mut text, labels: &row.labels, reading, timed: family.timed };
            (family.write)(row.group, &mut samples);
        }
    }
    for family in NETWORK_FAMILIES {
        text.family(family.name, family.help, berth_core::metrics::FamilyType::Counter);
        for row in &rows {
            for interface in row.interfaces {
                let value = (family.value)(interface);
                text.sample(
                    &row.labels,
                    &[("interface", &interface.name)],
                    value.into(),
                    Some(reading.at.wall),
                );
            }
        }
    }
    machine.render(&mut text, reading);
    text.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::testing::{golden, machine, node, parsed};

    #[test]
    fn the_text_of_a_small_node() {
        let text = String::from_utf8(render(&node(), &machine())).unwrap();
        golden("cadvisor.txt", &text);
        parsed(&text);
    }
}
