//! Checks the published objects against Kubernetes' own types, and one object in full.

use super::*;
use crate::manifest::{ManifestContext, Mode, parse_pod};
use berth_core::{
    ids::{ContainerId, ContainerName, NodeName},
    status::{ConditionType, ContainerUser},
};

fn at(seconds: i64) -> Wall {
    Wall(seconds * 1_000_000_000 + 987_654_321)
}

fn node(ips: &[IpAddr]) -> NodeInfo {
    NodeInfo { ips: ips.to_vec(), recursive_read_only: true, ..NodeInfo::new(NodeName::new("n1").unwrap()) }
}

fn sample() -> (Value, Pod, PodStatus) {
    let ctx = ManifestContext {
        node: NodeName::new("n1").unwrap(),
        mode: Mode::Manifests,
        now: at(1_700_000_000),
        services: None,
    };
    let entry = parse_pod(
        "{apiVersion: v1, kind: Pod, metadata: {name: web, uid: u-1}, spec: {containers: [\
           {name: app, image: 'i:1', resources: {limits: {cpu: 1, memory: 64Mi}}, \
            volumeMounts: [{name: v, mountPath: /v, readOnly: true}]}, {name: side, image: 'i:1'}], \
          initContainers: [{name: init, image: 'i:1'}], volumes: [{name: v, emptyDir: {}}]}}",
        &ctx,
    )
    .unwrap();
    let id = |c: &str| ContainerId::new(c.repeat(64)).unwrap();
    let ended = |code, reason: &str, c: &str| Terminated {
        exit_code: code,
        reason: reason.into(),
        message: None,
        started_at: Some(at(1_700_000_001)),
        finished_at: Some(at(1_700_000_002)),
        id: Some(id(c)),
    };
    let status = |name: &str, state, ready, last_state, restarts| ContainerStatus {
        name: ContainerName::new(name).unwrap(),
        image: "i:1".into(),
        image_id: "sha256:00".into(),
        id: Some(id("a")),
        ready,
        started: Some(ready == Truth::True),
        restart_count: restarts,
        state,
        last_state,
        resources: None,
        user: Some(ContainerUser { uid: 1000, gid: 0, groups: vec![0, 1002] }),
    };
    let pod_status = PodStatus {
        observed_generation: Some(3),
        phase: Phase::Running,
        reason: None,
        message: None,
        start_time: Some(at(1_700_000_000)),
        pod_ips: vec!["10.0.0.9".parse().unwrap(), "fd00::9".parse().unwrap()],
        conditions: vec![Condition {
            kind: ConditionType::Ready,
            status: Truth::False,
            reason: Some("ContainersNotReady".into()),
            message: Some("containers with unready status: [side]".into()),
            since: at(1_700_000_003),
            generation: None,
        }],
        ephemeral_containers: Vec::new(),
        init_containers: vec![status(
            "init",
            ContainerState::Terminated(ended(0, "Completed", "b")),
            Truth::True,
            None,
            0,
        )],
        containers: vec![
            status("app", ContainerState::Running { started_at: at(1_700_000_004) }, Truth::True, None, 0),
            status(
                "side",
                ContainerState::Waiting {
                    reason: "CrashLoopBackOff".into(),
                    message: Some("back-off 10s".into()),
                },
                Truth::Unknown,
                Some(ended(137, "OOMKilled", "c")),
                3,
            ),
        ],
        qos: QosClass::Burstable,
        terminating: false,
        waiting_for: None,
        next_try: None,
    };
    (entry.raw, entry.pod, pod_status)
}

#[test]
fn a_pod_has_the_shape_that_the_api_type_reads() {
    let (raw, pod, status) = sample();
    let object = pod_object(&raw, &pod, &status, &node(&["192.0.2.1".parse().unwrap()]));
    let typed: k8s_openapi::api::core::v1::Pod = serde_json::from_value(object.clone()).unwrap();
    let again = serde_json::to_value(&typed).unwrap();
    // The type leaves out null and empty values. All other values must survive the round trip.
    fn covered(at: String, given: &Value, kept: &Value) {
        match (given, kept) {
            (Value::Object(given), Value::Object(kept)) => {
                for (key, value) in given.iter().filter(|(_, v)| !v.is_null()) {
                    let kept = kept.get(key).unwrap_or_else(|| panic!("{at}.{key} is unknown to the type"));
                    covered(format!("{at}.{key}"), value, kept);
                }
            }
            (Value::Array(given), Value::Array(kept)) => {
                assert_eq!(given.len(), kept.len(), "{at}");
                for (index, (given, kept)) in given.iter().zip(kept).enumerate() {
                    covered(format!("{at}[{index}]"), given, kept);
                }
            }
            _ => assert_eq!(given, kept, "{at}"),
        }
    }
    covered(String::new(), &object, &again);
    let s = &object["status"];
    assert_eq!(s["phase"], "Running");
    assert_eq!(s["startTime"], "2023-11-14T22:13:20Z");
    assert_eq!((&s["observedGeneration"], &s["conditions"][0]["observedGeneration"]), (&json!(3), &json!(3)));
    assert_eq!(s["hostIP"], "192.0.2.1");
    assert_eq!(s["podIPs"], json!([{"ip": "10.0.0.9"}, {"ip": "fd00::9"}]));
    assert_eq!(s["conditions"][0]["lastTransitionTime"], "2023-11-14T22:13:23Z");
    assert_eq!(s["containerStatuses"][0]["containerID"], format!("containerd://{}", "a".repeat(64)));
    assert_eq!(s["containerStatuses"][0]["allocatedResources"], json!({"cpu": "1", "memory": "64Mi"}));
    assert_eq!(s["containerStatuses"][0]["user"]["linux"]["supplementalGroups"], json!([0, 1002]));
    assert_eq!(s["allocatedResources"], json!({"cpu": "1", "memory": "64Mi"}));
    assert_eq!(s["resources"]["limits"], s["resources"]["requests"]);
    assert_eq!(s["containerStatuses"][1]["ready"], false);
    assert_eq!(s["containerStatuses"][1]["lastState"]["terminated"]["exitCode"], 137);
    assert_eq!(s["containerStatuses"][1]["state"]["waiting"]["reason"], "CrashLoopBackOff");
    assert_eq!(object["metadata"]["uid"], "u-1");
    assert_eq!(object["spec"]["nodeName"], "n1");
}

#[test]
fn a_host_network_pod_has_the_nodes_addresses() {
    let (raw, mut pod, mut status) = sample();
    pod.namespaces.host_network = true;
    status.pod_ips.clear();
    let object = pod_object(&raw, &pod, &status, &node(&["192.0.2.1".parse().unwrap()]));
    assert_eq!(object["status"]["podIP"], "192.0.2.1");
    let (raw, pod, _) = sample();
    let object = pod_object(&raw, &pod, &status, &node(&[]));
    assert!(object["status"].get("podIP").is_none());
    assert!(object["status"].get("hostIP").is_none());
}

/// The status shows Enabled or Disabled in place of `IfPossible` (`recursiveReadOnly` of
/// `v1.VolumeMountStatus`).
#[test]
fn a_read_only_mount_says_what_came_of_it() {
    let (raw, mut pod, status) = sample();
    for (asked, node_can, told) in [
        (RecursiveReadOnly::Disabled, true, "Disabled"),
        (RecursiveReadOnly::IfPossible, true, "Enabled"),
        (RecursiveReadOnly::IfPossible, false, "Disabled"),
        (RecursiveReadOnly::Enabled, true, "Enabled"),
    ] {
        pod.containers[0].mounts[0].recursive_read_only = asked;
        let node = NodeInfo { recursive_read_only: node_can, ..node(&[]) };
        let object = pod_object(&raw, &pod, &status, &node);
        let mount = &object["status"]["containerStatuses"][0]["volumeMounts"][0];
        assert_eq!(mount["recursiveReadOnly"], told, "{asked:?} {node_can}");
    }
}
