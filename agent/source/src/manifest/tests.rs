//! Tables of manifests: the accepted values, and the field and reason of each refusal.

use super::*;
use berth_core::model::*;
use std::path::PathBuf;

mod static_pods;
mod text;

pub(crate) fn ctx() -> ManifestContext {
    ManifestContext {
        node: NodeName::new("node-1").unwrap(),
        mode: Mode::Manifests,
        now: Wall(1_700_000_000_000_000_000),
        services: None,
    }
}

fn statics() -> ManifestContext {
    ManifestContext { mode: Mode::StaticPods, ..ctx() }
}

const SMALL: &str =
    "{apiVersion: v1, kind: Pod, metadata: {name: web}, spec: {containers: [{name: c, image: i}]}}";

/// The small pod with values set at JSON pointers. A pointer's last part `-` appends; `null` removes the
/// value.
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

const C: &str = "/spec/containers/0";

/// Each case names the field of the error and words of its reason.
#[test]
fn an_invalid_value_is_rejected_with_the_field_and_the_reason_of_the_api_server() {
    let cases = include_str!("../../tests/corpus/invalid_pods.txt");
    let cases = cases.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let mut count = 0;
    for line in cases {
        let [pointer, value, field, reason] = line.split('|').map(str::trim).collect::<Vec<_>>()[..] else {
            panic!("{line}: must have four parts");
        };
        count += 1;
        let pointer = pointer.replacen('C', C, usize::from(pointer.starts_with('C')));
        let text = with(&[(&pointer, value)]);
        match parse_pod(&text, &ctx()) {
            Ok(_) => panic!("{pointer} = {value} is accepted"),
            Err(e) => {
                assert_eq!(e.field.as_deref(), Some(field), "{pointer} = {value}: {e}");
                assert!(e.reason.contains(reason), "{pointer} = {value}: {e}");
                assert_eq!(e.document, None);
            }
        }
    }
    assert!(count >= 158, "only {count} cases");
}

#[test]
fn fields_that_would_change_the_host_are_rejected_with_host_namespaces() {
    for (changes, field) in [
        (
            vec![
                ("/spec/hostNetwork", "true"),
                ("/spec/securityContext", r#"{"sysctls":[{"name":"net.x","value":"1"}]}"#),
            ],
            "spec.securityContext.sysctls[0].name",
        ),
        (
            vec![
                ("/spec/hostIPC", "true"),
                ("/spec/securityContext", r#"{"sysctls":[{"name":"kernel.shmmax","value":"1"}]}"#),
            ],
            "spec.securityContext.sysctls[0].name",
        ),
        (
            vec![("/spec/hostPID", "true"), ("/spec/shareProcessNamespace", "true")],
            "spec.shareProcessNamespace",
        ),
        (
            vec![
                ("/spec/hostNetwork", "true"),
                ("/spec/containers/0/ports", r#"[{"containerPort":80,"hostPort":81}]"#),
            ],
            "spec.containers[0].ports[0].hostPort",
        ),
    ] {
        let e = parse_pod(&with(&changes), &ctx()).unwrap_err();
        assert_eq!(e.field.as_deref(), Some(field), "{e}");
    }
    let pod =
        pod(&[("/spec/hostNetwork", "true"), ("/spec/containers/0/ports", r#"[{"containerPort":80}]"#)]);
    assert_eq!(pod.containers[0].ports[0].host_port, Some(80));
}

#[test]
fn every_field_reaches_the_model() {
    let text = include_str!("../../tests/corpus/full.yaml");
    let parsed =
        parse_file(Path::new("full.yaml"), text.as_bytes(), &ctx()).unwrap_or_else(|e| panic!("{e}"));
    let pod = &parsed.pods[0].pod;
    let c = pod.container(&"app".parse().unwrap()).unwrap();
    assert_eq!(c.pull_policy, PullPolicy::IfNotPresent);
    assert_eq!(c.resources.requests["memory"].units(), 64 << 20, "a missing request equals its limit");
    assert_eq!(c.resources.cpu_request_millis(), 100);
    assert_eq!(
        c.liveness.as_ref().unwrap().action,
        ProbeAction::Http(HttpTarget {
            host: None,
            port: PortRef::Name("http".into()),
            path: "/healthz".into(),
            https: false,
            headers: vec![("Host".into(), "web".into())],
        })
    );
    let liveness = c.liveness.as_ref().unwrap();
    assert_eq!((liveness.timeout_seconds, liveness.period_seconds, liveness.failure_threshold), (1, 10, 3));
    assert_eq!(liveness.grace_seconds, Some(5));
    assert_eq!(c.pre_stop, Some(Hook::Sleep(2)));
    assert_eq!(c.env[0].value, EnvValue::Text("$(POD) ok".into()));
    assert_eq!(c.env[1].value, EnvValue::Field("metadata.name".into()));
    assert_eq!(c.security.capabilities_add, ["NET_BIND_SERVICE"]);
    assert_eq!(c.security.app_armor, Some(AppArmor::Unconfined), "from the annotation");
    assert_eq!(c.mounts[1].mount_path, "/relative", "a relative path counts from the root");
    assert!(pod.init_containers[1].sidecar && !pod.init_containers[0].sidecar);
    let source = |name: &str| &pod.volumes.iter().find(|v| v.name.as_str() == name).unwrap().source;
    assert!(
        matches!(source("page"), VolumeSource::ConfigMap(k) if k.default_mode == 0o440 && k.items.len() == 1)
    );
    let claim = VolumeSource::PersistentVolumeClaim { claim: "data".into(), read_only: false };
    assert_eq!(*source("claim"), claim);
    assert_eq!(*source("plain"), VolumeSource::EmptyDir { medium: Medium::Disk, size_limit: None });
    assert!(matches!(source("all"), VolumeSource::Projected { sources, .. }
        if matches!(&sources[2], ProjectedSource::ServiceAccountToken { audience: None, .. })));
    assert_eq!(pod.security.sysctls, [("net.ipv4.ip_unprivileged_port_start".to_owned(), "0".to_owned())]);
    assert_eq!(pod.dns.options, [("ndots".to_owned(), Some("2".to_owned()))]);
    assert_eq!(parsed.config_maps[0].data["index.html"], b"<h1>hi</h1>\n");
    assert_eq!(parsed.config_maps[0].binary_data["blob"], [0, 1, 2]);
    assert_eq!(parsed.secrets[0].data["password"], b"stringData wins");
    assert_eq!(parsed.services[0].service.key.to_string(), "prod/web");
    assert_eq!(parsed.services[0].raw["spec"]["ports"][0]["port"], 80);
}

#[test]
fn a_grace_period_out_of_range_is_bounded() {
    let grace = |text: &str| pod(&[("/spec/terminationGracePeriodSeconds", text)]).grace_seconds;
    assert_eq!((grace("-5"), grace("0"), grace("7")), (1, 0, 7));
    assert_eq!(grace("100000000000"), 2_147_483_647);
}

#[test]
fn a_name_too_long_for_the_log_directory_is_rejected() {
    let named =
        |length: usize| parse_pod(&with(&[("/metadata/name", &format!("{:?}", "a".repeat(length)))]), &ctx());
    // The file name has the form default_<name>_<36 characters>.
    assert!(named(210).is_ok());
    let e = named(211).unwrap_err();
    assert_eq!(e.field.as_deref(), Some("metadata.name"));
    assert!(e.reason.contains("too long by 1") && e.reason.contains("may have 210"), "{e}");
    assert!(named(253).is_err());
}

#[test]
fn pull_policies_follow_the_tag() {
    for (image, policy) in [
        ("i", PullPolicy::Always),
        ("i:latest", PullPolicy::Always),
        ("i:1", PullPolicy::IfNotPresent),
        ("host:5000/i", PullPolicy::Always),
        ("host:5000/i:1", PullPolicy::IfNotPresent),
        ("i@sha256:00", PullPolicy::IfNotPresent),
        ("i:latest@sha256:00", PullPolicy::Always),
    ] {
        let pod = pod(&[("/spec/containers/0/image", &format!("{image:?}"))]);
        assert_eq!(pod.containers[0].pull_policy, policy, "{image}");
    }
}

#[test]
fn a_pod_says_which_nodes_it_may_run_on() {
    const AFFINITY: &str = "/spec/affinity";
    const WHERE: &str =
        "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms";
    let required = |terms: &str| {
        format!(
            r#"{{"nodeAffinity":{{"requiredDuringSchedulingIgnoredDuringExecution":{{"nodeSelectorTerms":{terms}}}}}}}"#
        )
    };
    let found = pod(&[
        ("/spec/nodeSelector", r#"{"disk":"ssd"}"#),
        (AFFINITY, &required(r#"[{"matchExpressions":[{"key":"n","operator":"Gt","values":["7"]}]}]"#)),
    ]);
    let labels: NodeLabels = [("disk", "ssd"), ("n", "8")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    assert!(found.selects_node("n", &labels) && !found.selects_node("n", &NodeLabels::new()));
    let preferred = r#"{"nodeAffinity":{"preferredDuringSchedulingIgnoredDuringExecution":[{"weight":1,"preference":
        {"matchExpressions":[{"key":"n","operator":"Exists"}]}}]}}"#;
    assert!(pod(&[(AFFINITY, preferred)]).selects_node("n", &NodeLabels::new()));
    for (terms, field, reason) in [
        ("[]", "", "at least one term"),
        (
            r#"[{"matchExpressions":[{"key":"a","operator":"in"}]}]"#,
            "[0].matchExpressions[0].operator",
            "one of In",
        ),
        (
            r#"[{"matchExpressions":[{"key":"a","operator":"In"}]}]"#,
            "[0].matchExpressions[0].values",
            "at least one",
        ),
        (
            r#"[{"matchExpressions":[{"key":"a","operator":"Exists","values":["b"]}]}]"#,
            "[0].matchExpressions[0].values",
            "empty",
        ),
        (
            r#"[{"matchExpressions":[{"key":"a","operator":"Lt","values":["x"]}]}]"#,
            "[0].matchExpressions[0].values[0]",
            "whole number",
        ),
        (
            r#"[{"matchFields":[{"key":"metadata.uid","operator":"In","values":["x"]}]}]"#,
            "[0].matchFields[0].key",
            "metadata.name",
        ),
    ] {
        let e = parse_pod(&with(&[(AFFINITY, &required(terms))]), &ctx()).unwrap_err();
        assert_eq!(e.field, Some(format!("{WHERE}{field}")), "{terms}: {e}");
        assert!(e.reason.contains(reason), "{terms}: {e}");
    }
}

#[test]
fn the_first_pod_of_a_file_is_the_oldest() {
    let text = format!("{SMALL}\n---\n{}\n", SMALL.replace("web", "two"));
    let parsed = parse_file(Path::new("f.yaml"), text.as_bytes(), &ctx()).unwrap();
    let created: Vec<i64> = parsed.pods.iter().map(|p| p.pod.created.0 - ctx().now.0).collect();
    assert_eq!(created, [0, 1]);
}

#[test]
fn pod_level_requests_default_to_the_containers_or_the_limit() {
    let pod = pod(&[
        ("/spec/resources", r#"{"limits":{"cpu":"2","memory":"1Gi"}}"#),
        ("/spec/containers/0/resources", r#"{"requests":{"cpu":"300m"}}"#),
    ]);
    let r = pod.resources.unwrap();
    assert_eq!((r.cpu_request_millis(), r.memory_request_bytes()), (300, 1 << 30));
    // The kubelet's rule: a sidecar runs beside the large init container, so the pod's request is 240m.
    let init = r#"[{"name":"s","image":"i","restartPolicy":"Always","resources":{"requests":{"cpu":"40m"}}},
        {"name":"big","image":"i","resources":{"requests":{"cpu":"200m"}}}]"#;
    let limits = r#"{"limits":{"cpu":"300m","memory":"100Mi"}}"#;
    let main = r#"{"requests":{"cpu":"20m"}}"#;
    let changes = [("/spec/initContainers", init), ("/spec/containers/0/resources", main)];
    let with_limits = self::pod(&[changes[0], changes[1], ("/spec/resources", limits)]);
    assert_eq!(with_limits.resources.unwrap().cpu_request_millis(), 240);
    // Without limits of the pod no request is added to the stated ones.
    let without =
        self::pod(&[changes[0], changes[1], ("/spec/resources", r#"{"requests":{"memory":"1Mi"}}"#)]);
    assert_eq!(without.resources.unwrap().requests.keys().collect::<Vec<_>>(), ["memory"]);
    let e = parse_pod(
        &with(&[
            ("/spec/resources", r#"{"requests":{"cpu":"100m"}}"#),
            ("/spec/containers/0/resources", r#"{"requests":{"cpu":"300m"}}"#),
        ]),
        &ctx(),
    )
    .unwrap_err();
    assert_eq!(e.field.as_deref(), Some("spec.resources.requests.cpu"));
}

#[test]
fn invalid_config_maps_secrets_and_services_are_rejected_at_their_field() {
    let read = |text: &str| parse_file(Path::new("f"), text.as_bytes(), &ctx());
    for (text, field) in [
        ("{kind: ConfigMap, apiVersion: v1, metadata: {name: a}, data: {'a/b': x}}", r#"data"#),
        (
            "{kind: ConfigMap, apiVersion: v1, metadata: {name: a}, data: {a: x}, binaryData: {a: AA==}}",
            "binaryData.a",
        ),
        ("{kind: ConfigMap, apiVersion: v1, metadata: {name: a}, dat: {a: x}}", "dat"),
        ("{kind: ConfigMap, apiVersion: v1, metadata: {name: a}, data: {a: 1}}", "data.a"),
        ("{kind: ConfigMap, apiVersion: v1}", "metadata.name"),
        ("{kind: Secret, apiVersion: v1, metadata: {name: a}, data: {a: '%'}}", "data.a"),
        ("{kind: Secret, apiVersion: v1, metadata: {name: A}}", "metadata.name"),
        ("{kind: Service, apiVersion: v1, metadata: {name: a}}", "spec"),
        (
            "{kind: Service, apiVersion: v1, metadata: {name: a.b}, spec: {ports: [{port: 1}]}}",
            "metadata.name",
        ),
        ("{kind: Service, apiVersion: v1, metadata: {name: a}, spec: {}}", "spec.ports"),
        (
            "{kind: Service, apiVersion: v1, metadata: {name: a}, spec: {ports: [{port: 0}]}}",
            "spec.ports[0].port",
        ),
        (
            "{kind: Service, apiVersion: v1, metadata: {name: a}, spec: {ports: [{port: 1}, {port: 2}]}}",
            "spec.ports[0].name",
        ),
        (
            "{kind: Service, apiVersion: v1, metadata: {name: a}, spec: {type: X, ports: [{port: 1}]}}",
            "spec.type",
        ),
        (
            "{kind: Service, apiVersion: v1, metadata: {name: a}, spec: {clusterIP: x, ports: [{port: 1}]}}",
            "spec.clusterIP",
        ),
        ("{kind: List, apiVersion: v1, items: [{kind: List, apiVersion: v1}]}", "items[0].kind"),
        ("{kind: List, apiVersion: v1, itmes: []}", "itmes"),
        ("[1]", ""),
    ] {
        let e = read(text).unwrap_err();
        assert_eq!(e.field.as_deref().unwrap_or_default(), field, "{text}: {e}");
    }
    assert!(read("{kind: Service, apiVersion: v1, metadata: {name: a}, spec: {clusterIP: None}}").is_ok());
    assert!(read("{kind: ConfigMap, apiVersion: v1, metadata: {name: a}}").is_ok());
}
