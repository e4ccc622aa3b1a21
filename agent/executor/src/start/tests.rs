//! Specs of containers as the executor assembles them.

use super::PreparedFiles;
use crate::testing::{ALL_OF_THE_HOST, Node};
use berth_core::{
    ids::{Attempt, ContainerId, SandboxAttempt},
    model::{Container, Pod},
};
use berth_runtime::{Image, ImageConfig, spec::UserFiles};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// The spec of the node's container after `change`, with an image that sets nothing.
fn spec_of(node: &Node, change: impl FnOnce(&mut Container)) -> Value {
    let mut pod = Pod::clone(&node.pod);
    change(&mut pod.containers[0]);
    let container = &pod.containers[0];
    let id = ContainerId::derive(&pod.uid, SandboxAttempt(0), &container.name, Attempt(0));
    let image = Image {
        name: "i".into(),
        image_id: "sha256:0".into(),
        config: ImageConfig { cmd: vec!["true".into()], ..Default::default() },
        chain_id: "sha256:0".into(),
        target_digest: "sha256:0".into(),
        config_digest: "sha256:1".into(),
    };
    let (prepared, files) = (PreparedFiles::default(), UserFiles { passwd: None, group: None });
    let spec = node.executor.spec(&pod, container, &id, &image, &prepared, files, None).unwrap();
    serde_json::to_value(spec).unwrap()
}

#[tokio::test]
async fn a_privileged_container_gets_the_devices_that_are_there_when_it_starts() {
    let node = Node::new(ALL_OF_THE_HOST);
    assert!(node.executor.config.host.devices.is_empty(), "none was there when the agent started");
    let devices = |spec: &Value| {
        let all = spec["linux"]["devices"].as_array().cloned().unwrap_or_default();
        all.iter().map(|d| d["path"].as_str().unwrap_or_default().to_owned()).collect::<BTreeSet<_>>()
    };
    let privileged = devices(&spec_of(&node, |c| c.security.privileged = true));
    assert!(privileged.contains("/dev/null") && privileged.contains("/dev/zero"), "{privileged:?}");
    assert_eq!(devices(&spec_of(&node, |_| {})), BTreeSet::new());
}

#[tokio::test]
async fn a_pod_of_the_hosts_network_has_the_hosts_name_and_not_the_nodes() {
    let node = Node::new(ALL_OF_THE_HOST);
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim().to_owned();
    assert_ne!(host, node.executor.config.roots.node_name.as_str());
    let spec = spec_of(&node, |_| {});
    let names = spec["process"]["env"].as_array().unwrap();
    let names: Vec<_> =
        names.iter().filter(|v| v.as_str().is_some_and(|v| v.starts_with("HOSTNAME="))).collect();
    assert_eq!(names, [&json!(format!("HOSTNAME={host}"))]);
}
