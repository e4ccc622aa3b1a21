use super::*;
use crate::manifest::{ManifestContext, Mode, parse_file, parse_pod};
use berth_core::{
    model::QosClass,
    status::{Condition, ConditionType, Truth},
    time::Wall,
};
use std::path::Path;

fn ctx() -> ManifestContext {
    ManifestContext { node: "n1".parse().unwrap(), mode: Mode::Manifests, now: Wall(0), services: None }
}

fn service(spec: &str) -> Arc<Service> {
    let text = format!("{{apiVersion: v1, kind: Service, metadata: {{name: web}}, spec: {{{spec}}}}}");
    let parsed = parse_file(Path::new("f.yaml"), text.as_bytes(), &ctx()).unwrap_or_else(|e| panic!("{e}"));
    Arc::new(parsed.services.into_iter().next().unwrap().service)
}

fn pod(name: &str, spec: &str) -> Pod {
    let text = format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, labels: {{app: web, tier: front}}}}, spec: {{{spec}}}}}"
    );
    parse_pod(&text, &ctx()).unwrap_or_else(|e| panic!("{e}")).pod
}

const PLAIN: &str = "containers: [{name: c, image: i, ports: [{name: http, containerPort: 8080}]}]";

fn status(ips: &[&str], ready: bool) -> PodStatus {
    PodStatus {
        pod_ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
        conditions: vec![Condition {
            kind: ConditionType::Ready,
            status: if ready { Truth::True } else { Truth::False },
            reason: None,
            message: None,
            since: Wall(0),
            generation: None,
        }],
        ..PodStatus::new(Phase::Running, QosClass::BestEffort)
    }
}

fn run(service: &Arc<Service>, pods: &[(Pod, PodStatus)]) -> Vec<Arc<EndpointSlice>> {
    let facts: Vec<_> = pods.iter().map(|(pod, status)| EndpointPod { pod, status }).collect();
    slices(std::slice::from_ref(service), &facts, &[])
}

/// Ready, serving, terminating of the only endpoint.
fn state(slices: &[Arc<EndpointSlice>]) -> Option<(bool, bool, bool)> {
    let all: Vec<_> = slices.iter().flat_map(|s| &s.endpoints).collect();
    assert!(all.len() < 2);
    all.first().map(|e| (e.ready, e.serving, e.terminating))
}

const SIMPLE: &str = "clusterIP: 10.96.0.9, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]";

#[test]
fn an_endpoint_has_the_conditions_of_its_pod() {
    let s = service(SIMPLE);
    let hopeful = service(&format!("publishNotReadyAddresses: true, {SIMPLE}"));
    let one = |f: &dyn Fn(&mut PodStatus)| {
        let mut st = status(&["10.1.0.1"], true);
        f(&mut st);
        [(pod("a", PLAIN), st)]
    };
    let not_ready = |s: &mut PodStatus| s.conditions[0].status = Truth::Unknown;
    assert_eq!(state(&run(&s, &one(&|_| {}))), Some((true, true, false)));
    assert_eq!(state(&run(&s, &one(&not_ready))), Some((false, false, false)));
    assert_eq!(state(&run(&s, &one(&|s| s.terminating = true))), Some((false, true, true)));
    assert_eq!(state(&run(&hopeful, &one(&not_ready))), Some((true, false, false)));
    assert_eq!(state(&run(&hopeful, &one(&|s| s.terminating = true))), Some((true, true, true)));
    assert_eq!(state(&run(&s, &one(&|s| s.pod_ips.clear()))), None);
    for ended in [Phase::Succeeded, Phase::Failed] {
        assert_eq!(state(&run(&hopeful, &one(&|s| s.phase = ended))), None);
    }
    let slice = &run(&s, &one(&|_| {}))[0];
    let e = &slice.endpoints[0];
    assert_eq!((e.node.as_deref(), slice.service.name.as_str()), (Some("n1"), "web"));
}

#[test]
fn only_the_selected_pods_of_the_namespace_count() {
    let all = [(pod("a", PLAIN), status(&["10.1.0.1"], true))];
    let count = |selector: &str| {
        run(&service(&format!("clusterIP: 10.96.0.9, ports: [{{port: 80}}], selector: {selector}")), &all)
            .len()
    };
    assert_eq!(count("{app: web}"), 1);
    assert_eq!(count("{app: web, tier: front}"), 1);
    assert_eq!(count("{app: web, tier: back}"), 0);
    assert_eq!(count("{other: web}"), 0);
    assert_eq!(count("{}"), 0, "endpoints of a Service without a selector are made by hand");
    let mut elsewhere = all;
    elsewhere[0].0.key.namespace = "other".parse().unwrap();
    assert!(run(&service(SIMPLE), &elsewhere).is_empty());
    let named = "type: ExternalName, externalName: example.org, selector: {app: web}";
    assert!(run(&service(named), &elsewhere).is_empty());
}

#[test]
fn a_named_port_has_its_number_in_each_pod() {
    let s = service(
        "clusterIP: 10.96.0.9, selector: {app: web}, ports: [{name: a, port: 80, targetPort: http}, {name: b, port: 81, targetPort: http, protocol: UDP}]",
    );
    let sidecar = "initContainers: [{name: s, image: i, restartPolicy: Always, ports: [{name: http, containerPort: 9090}]}], containers: [{name: c, image: i}]";
    let both = "containers: [{name: c, image: i, ports: [{name: http, containerPort: 8080}, {name: x, containerPort: 1}]}, {name: d, image: i, ports: [{name: http, containerPort: 7070, protocol: UDP}]}]";
    let slices = run(
        &s,
        &[
            (pod("a", PLAIN), status(&["10.1.0.1"], true)),
            (pod("b", sidecar), status(&["10.1.0.2"], true)),
            (pod("c", PLAIN), status(&["10.1.0.3"], true)),
            (pod("d", "containers: [{name: c, image: i}]"), status(&["10.1.0.4"], true)),
            (pod("e", both), status(&["10.1.0.5"], true)),
        ],
    );
    let shown: std::collections::BTreeSet<String> = slices
        .iter()
        .map(|s| {
            let ports: Vec<_> = s.ports.iter().map(|p| format!("{}={}", p.name, p.port)).collect();
            let ips: Vec<_> = s.endpoints.iter().map(|e| e.address.to_string()).collect();
            format!("{} {}", ports.join(","), ips.join(","))
        })
        .collect();
    assert_eq!(
        shown,
        ["a=8080 10.1.0.1,10.1.0.3", "a=8080,b=7070 10.1.0.5", "a=9090 10.1.0.2"].map(String::from).into()
    );
    let names: std::collections::BTreeSet<_> = slices.iter().map(|s| &s.key).collect();
    assert_eq!(names.len(), slices.len());
}

#[test]
fn endpoints_have_the_families_of_the_service_and_the_host_names_of_their_pods() {
    let dual = |spec: &str| {
        let named = format!("hostname: db-0, subdomain: web, {PLAIN}");
        run(&service(spec), &[(pod("a", &named), status(&["10.1.0.1", "fd00::1"], true))])
    };
    let addresses = |slices: &[Arc<EndpointSlice>]| -> Vec<String> {
        let mut all: Vec<_> =
            slices.iter().flat_map(|s| &s.endpoints).map(|e| e.address.to_string()).collect();
        all.sort();
        all
    };
    assert_eq!(addresses(&dual(SIMPLE)), ["10.1.0.1"]);
    assert_eq!(
        addresses(&dual("clusterIPs: [10.96.0.9, 'fd00:96::9'], selector: {app: web}, ports: [{port: 80}]")),
        ["10.1.0.1", "fd00::1"]
    );
    let headless = dual("clusterIP: None, selector: {app: web}");
    assert_eq!(addresses(&headless), ["10.1.0.1", "fd00::1"], "a headless Service needs no ports");
    assert!(headless.iter().all(|s| s.endpoints[0].hostname() == Some("db-0")));
    let other = run(
        &service("clusterIP: None, selector: {app: web}"),
        &[(pod("a", &format!("hostname: db-0, subdomain: other, {PLAIN}")), status(&["10.1.0.1"], true))],
    );
    assert_eq!(other[0].endpoints[0].hostname(), None);
}

#[test]
fn an_unchanged_slice_keeps_its_arc() {
    let s = service(SIMPLE);
    let (a, b) = (pod("a", PLAIN), pod("b", PLAIN));
    let (one, mut two) = (status(&["10.1.0.1"], true), status(&["10.1.0.2"], true));
    let first = slices(
        std::slice::from_ref(&s),
        &[EndpointPod { pod: &a, status: &one }, EndpointPod { pod: &b, status: &two }],
        &[],
    );
    let again = slices(
        std::slice::from_ref(&s),
        &[EndpointPod { pod: &b, status: &two }, EndpointPod { pod: &a, status: &one }],
        &first,
    );
    assert!(Arc::ptr_eq(&first[0], &again[0]));
    two.terminating = true;
    let third = slices(
        std::slice::from_ref(&s),
        &[EndpointPod { pod: &b, status: &two }, EndpointPod { pod: &a, status: &one }],
        &again,
    );
    assert!(!Arc::ptr_eq(&first[0], &third[0]));
    assert_eq!(first[0].key, third[0].key);
}
