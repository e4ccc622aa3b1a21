//! Tables: what is read how, and what is refused at which field.

use super::*;
use berth_core::model::*;

pub(crate) fn ctx() -> Context {
    Context {
        node: NodeName::new("node-1").unwrap(),
        mode: Mode::Manifests,
        now: Wall(1_700_000_000_000_000_000),
    }
}

fn statics() -> Context {
    Context { mode: Mode::StaticPods, ..ctx() }
}

const SMALL: &str =
    "{apiVersion: v1, kind: Pod, metadata: {name: web}, spec: {containers: [{name: c, image: i}]}}";

/// The small pod with values set at JSON pointers; a pointer's last part `-` appends, `null` takes away.
fn with(changes: &[(&str, &str)]) -> String {
    let mut pod: Value = serde_json::from_str(
        r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"web"},
            "spec":{"volumes":[{"name":"v","emptyDir":{}}],"containers":[{"name":"c","image":"i"}]}}"#,
    )
    .unwrap();
    for (pointer, text) in changes {
        let value: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{pointer} {text}: {e}"));
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        match pod.pointer_mut(parent).unwrap_or_else(|| panic!("no {parent}")) {
            Value::Object(map) => {
                map.insert(key.to_owned(), value);
            }
            Value::Array(list) if key == "-" => list.push(value),
            Value::Array(list) => list[key.parse::<usize>().unwrap()] = value,
            other => panic!("{parent} is {other}"),
        }
    }
    pod.to_string()
}

fn pod(changes: &[(&str, &str)]) -> Pod {
    parse_pod(&with(changes), &ctx()).unwrap_or_else(|e| panic!("{e}")).pod
}

#[test]
fn a_small_pod_gets_the_defaults_of_the_api_server() {
    let entry = parse_pod(SMALL, &ctx()).unwrap();
    let pod = &entry.pod;
    assert_eq!(pod.key.to_string(), "default/web");
    assert_eq!(pod.grace_seconds, 30);
    assert_eq!(pod.restart_policy, RestartPolicy::Always);
    assert_eq!(pod.dns.policy, DnsPolicy::ClusterFirst);
    assert_eq!(pod.service_account, "default");
    assert!(pod.enable_service_links);
    assert_eq!(pod.created, ctx().now);
    let c = &pod.containers[0];
    assert_eq!(c.pull_policy, PullPolicy::Always);
    assert_eq!(c.termination_message_path, "/dev/termination-log");
    assert_eq!(entry.raw["metadata"]["uid"], pod.uid.as_str());
    assert_eq!(entry.raw["metadata"]["namespace"], "default");
    assert_eq!(entry.raw["metadata"]["creationTimestamp"], "2023-11-14T22:13:20Z");
    assert_eq!(entry.raw["spec"]["nodeName"], "node-1");
    assert_eq!(pod.origin, Origin::Manifest(PathBuf::new()));
}
