use super::*;
use crate::DesiredPod;
use crate::status::pod_status;
use berth_core::{
    model::{Container, NodeInfo, Origin, PullPolicy, QosClass},
    status::{
        ApiStatus, Condition, ConditionType, ContainerState, ContainerStatus, ContainerUser, Phase,
        PodStatus, Terminated, Truth,
    },
};
use serde_json::{Value, json};

fn object(spec: Value) -> Value {
    json!({
        "metadata": {
            "name": "p", "namespace": "default", "uid": "u-1", "resourceVersion": "7",
            "creationTimestamp": "2026-01-01T00:00:01Z",
            "managedFields": [{ "manager": "kubectl" }],
        },
        "spec": spec,
        "status": { "phase": "Pending" },
    })
}

fn spec() -> Value {
    json!({ "nodeName": "n", "containers": [{ "name": "c", "image": "i:1" }] })
}

fn read(object: &Value) -> (ObjectId, ApiPod, Vec<String>) {
    let (id, pod, ignored) = pod(object.to_string().as_bytes(), &"n".parse().unwrap()).unwrap();
    (id, pod, ignored.iter().map(ToString::to_string).collect())
}

fn desired(object: &Value) -> (DesiredPod, Vec<String>) {
    match read(object) {
        (_, ApiPod::Pod(pod), ignored) => (pod, ignored),
        (_, ApiPod::Mirror { .. }, _) => panic!("a mirror pod"),
    }
}

#[test]
fn a_pod_has_its_identity_its_times_and_its_object_of_the_api() {
    let mut of_api = object(spec());
    of_api["spec"]["fieldOfALaterVersion"] = json!({ "a": 1 });
    let (id, _, _) = read(&of_api);
    assert_eq!((&*id.namespace, &*id.name, &*id.uid, &*id.resource_version), ("default", "p", "u-1", "7"));
    let (pod, ignored) = desired(&of_api);
    assert_eq!((pod.pod.unsupported.as_ref(), ignored.len()), (None, 0), "unknown fields are ignored");
    assert_eq!((pod.pod.created, pod.pod.origin.clone()), (Wall(1_767_225_601_000_000_000), Origin::Cluster));
    let raw = pod.raw.value();
    assert_eq!((&raw["apiVersion"], &raw["kind"]), (&json!("v1"), &json!("Pod")));
    assert_eq!(raw["status"]["phase"], "Pending");
    assert_eq!(raw["metadata"].get("managedFields"), None);
    assert_eq!((pod.end, pod.is_over()), (None, false));
    of_api["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:09Z".into();
    of_api["metadata"]["deletionGracePeriodSeconds"] = 0.into();
    of_api["status"]["phase"] = "Failed".into();
    let (pod, _) = desired(&of_api);
    assert_eq!((pod.end, pod.is_over()), (Some(1), true));
}

#[test]
fn a_status_of_the_api_is_the_report_that_it_was_made_of() {
    let ended = |id: Option<&str>| Terminated {
        exit_code: 137,
        reason: "Error".into(),
        message: None,
        started_at: id.map(|_| Wall(1_767_225_601_000_000_000)),
        finished_at: id.map(|_| Wall(1_767_225_602_000_000_000)),
        id: id.map(|c| c.repeat(64).parse().unwrap()),
    };
    let container = |name: &str, id: Option<&str>, state, last_state| ContainerStatus {
        name: name.parse().unwrap(),
        image: "i:1".into(),
        image_id: String::new(),
        id: id.map(|c| c.repeat(64).parse().unwrap()),
        ready: Truth::False,
        started: Some(false),
        restart_count: 3,
        state,
        last_state,
        resources: None,
        user: id.map(|_| ContainerUser { uid: 7, gid: 0, groups: vec![0, 8] }),
    };
    let waiting = ContainerState::Waiting { reason: "CrashLoopBackOff".into(), message: Some("10s".into()) };
    let running = ContainerState::Running { started_at: Wall(1_767_225_603_000_000_000) };
    let report = PodStatus {
        reason: Some("Evicted".into()),
        message: Some("m".into()),
        start_time: Some(Wall(1_767_225_600_000_000_000)),
        pod_ips: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
        conditions: vec![Condition {
            kind: ConditionType::Ready,
            status: Truth::False,
            reason: None,
            message: None,
            since: Wall(1_767_225_604_000_000_000),
            generation: None,
        }],
        init_containers: vec![container("i", Some("1"), ContainerState::Terminated(ended(Some("1"))), None)],
        ephemeral_containers: vec![ContainerStatus {
            started: None,
            ..container("e", Some("4"), ContainerState::Terminated(ended(Some("4"))), None)
        }],
        containers: vec![
            container("a", Some("2"), waiting, Some(ended(Some("2")))),
            container("b", None, ContainerState::Terminated(ended(None)), None),
            ContainerStatus {
                ready: Truth::True,
                started: Some(true),
                ..container("c", Some("3"), running, None)
            },
        ],
        ..PodStatus::new(Phase::Failed, QosClass::BestEffort)
    };
    let (pod, _) = desired(&object(spec()));
    let mut json = pod_status(&pod.pod, &report, &NodeInfo::new("n".parse().unwrap()));
    let gate = json!({ "type": "a.b/gate", "status": "False", "lastTransitionTime": null });
    json["conditions"].as_array_mut().unwrap().push(gate);
    let read = api_status(&json);
    assert_eq!(read.terminal().unwrap().reason, report.reason);
    assert_eq!(
        (read.message, read.start_time, read.pod_ips),
        (report.message, report.start_time, report.pod_ips)
    );
    let conditions = [
        ("Ready".to_owned(), (Truth::False, Some(report.conditions[0].since))),
        ("a.b/gate".to_owned(), (Truth::False, None)),
    ];
    assert_eq!(read.conditions, conditions.into());
    assert_eq!(
        read.containers,
        [report.init_containers, report.containers, report.ephemeral_containers].concat()
    );
    let garbage =
        json!({ "phase": 1, "podIPs": [{}, { "ip": "x" }], "containerStatuses": [{ "name": "-" }, 3] });
    assert_eq!(api_status(&garbage), ApiStatus::default());
}

#[test]
fn what_is_not_supported_stays_with_the_pod_and_is_no_error() {
    for (field, value, told) in [
        ("hostUsers", json!(false), "spec.hostUsers: user namespaces are not supported yet"),
        (
            "resourceClaims",
            json!([{ "name": "c" }]),
            "spec.resourceClaims: resource claims are not supported yet",
        ),
        (
            "terminationGracePeriodSeconds",
            json!("x"),
            "spec.terminationGracePeriodSeconds: invalid type: string \"x\", expected i64",
        ),
    ] {
        let mut of_api = object(spec());
        of_api["spec"][field] = value;
        let (pod, _) = desired(&of_api);
        assert_eq!(pod.pod.unsupported.as_deref(), Some(told));
        let containers: Vec<_> = pod.pod.containers.iter().map(|c| (c.name.as_str(), &*c.image)).collect();
        assert_eq!(containers, [("c", "i:1")]);
        assert_eq!(pod.pod.created, Wall(1_767_225_601_000_000_000));
    }
    let mut of_api = object(spec());
    of_api["metadata"]["name"] = "n".repeat(250).into();
    let (pod, _) = desired(&of_api);
    assert!(pod.pod.unsupported.as_deref().unwrap().starts_with("metadata.name: is too long by "));
}

#[test]
fn values_that_the_kubelet_ignores_keep_no_pod_from_running() {
    let mut of_api = object(spec());
    let labels = json!({ "level": "s0:c1" });
    of_api["spec"]["securityContext"] =
        json!({ "seLinuxOptions": labels, "seLinuxChangePolicy": "Recursive" });
    of_api["spec"]["containers"][0]["securityContext"] =
        json!({ "seLinuxOptions": labels, "capabilities": { "add": ["NO_SUCH"] } });
    of_api["spec"]["ephemeralContainers"] =
        json!([{ "name": "debug", "image": "i:1" }, { "name": "debug", "image": "i:1" }]);
    let (pod, ignored) = desired(&of_api);
    assert_eq!(pod.pod.unsupported, None);
    assert_eq!(
        ignored,
        [
            "spec.containers[0].securityContext.seLinuxOptions: SELinux labels are not supported yet",
            "spec.containers[0].securityContext.capabilities.add[0]: \"NO_SUCH\" is no capability",
            "spec.ephemeralContainers[1].name: debug is there twice",
            "spec.securityContext.seLinuxOptions: SELinux labels are not supported yet",
            "spec.securityContext.seLinuxChangePolicy: \"Recursive\" is not supported yet",
        ]
    );
}

#[test]
fn ephemeral_containers_join_the_pod_and_one_that_cannot_run_says_so() {
    let mut of_api = object(spec());
    of_api["spec"]["volumes"] = json!([{ "name": "v", "emptyDir": {} }]);
    let mount = |sub_path: Value| json!([{ "name": "v", "mountPath": "/v", "subPath": sub_path }]);
    of_api["spec"]["ephemeralContainers"] = json!([
        {
            "name": "debug", "image": "i", "targetContainerName": "c", "stdin": true, "stdinOnce": true, "tty": true,
            "command": ["sh"], "env": [{ "name": "A", "value": "b" }], "volumeMounts": mount(Value::Null),
            "securityContext": { "privileged": true }, "resources": {},
        },
        { "name": "probed", "image": "i:2", "livenessProbe": { "exec": { "command": ["true"] } } },
        { "name": "port", "image": "i:2", "ports": [{ "containerPort": 80 }] },
        { "name": "limit", "image": "i:2", "resources": { "limits": { "cpu": "1" } } },
        { "name": "again", "image": "i:2", "restartPolicy": "Always" },
        { "name": "sub", "image": "i:2", "volumeMounts": mount("a".into()) },
        { "name": "lost", "image": "i:2", "targetContainerName": "d" },
    ]);
    let (pod, ignored) = desired(&of_api);
    assert_eq!(pod.pod.unsupported, None);
    assert_eq!(ignored, [""; 0]);
    let [debug, others @ ..] = pod.pod.ephemeral_containers.as_slice() else { panic!("none") };
    assert_eq!(debug.unsupported, None);
    assert_eq!((debug.name.as_str(), debug.pull_policy), ("debug", PullPolicy::Always));
    assert_eq!(debug.target.as_ref().map(|name| name.as_str()), Some("c"));
    assert!(debug.stdin && debug.stdin_once && debug.tty && debug.security.privileged);
    assert_eq!((debug.command.len(), debug.env.len(), debug.mounts.len()), (1, 1, 1));
    let why = |c: &Container| c.unsupported.as_deref().unwrap_or_default().to_owned();
    let fields: Vec<String> =
        others.iter().map(|c| why(c).split(": ").next().unwrap_or_default().into()).collect();
    assert_eq!(
        fields,
        [
            "spec.ephemeralContainers[1].livenessProbe",
            "spec.ephemeralContainers[2].ports",
            "spec.ephemeralContainers[3].resources",
            "spec.ephemeralContainers[4].restartPolicy",
            "spec.ephemeralContainers[5].volumeMounts[0]",
            "spec.ephemeralContainers[6].targetContainerName",
        ]
    );
}

#[test]
fn a_resize_policy_is_read_by_resource() {
    let mut of_api = object(spec());
    of_api["spec"]["containers"][0]["resizePolicy"] = json!([
        { "resourceName": "cpu", "restartPolicy": "NotRequired" },
        { "resourceName": "memory", "restartPolicy": "RestartContainer" },
    ]);
    let (pod, _) = desired(&of_api);
    let policy = pod.pod.containers[0].resize_policy;
    assert_eq!((policy.cpu_restarts, policy.memory_restarts), (false, true));
    of_api["spec"]["containers"][0]["resizePolicy"][0]["resourceName"] = "disk".into();
    let (pod, _) = desired(&of_api);
    let why = pod.pod.unsupported.clone().unwrap();
    assert!(why.starts_with("spec.containers[0].resizePolicy[0].resourceName: "), "{why}");
}

#[test]
fn mirror_pods_are_told_apart_and_pods_without_identity_are_errors() {
    let mut of_api = object(spec());
    of_api["metadata"]["annotations"] = json!({ "kubernetes.io/config.mirror": "hash" });
    assert!(matches!(read(&of_api).1, ApiPod::Mirror { of, .. } if of.as_str() == "hash"));
    of_api["metadata"]["uid"] = Value::Null;
    let error = |json: &[u8]| pod(json, &"n".parse().unwrap()).unwrap_err().to_string();
    assert!(error(of_api.to_string().as_bytes()).starts_with("metadata.uid: "));
    assert_eq!(error(b"{}"), "metadata: is required");
    assert_eq!(error(b"[]"), "is no object");
    assert_eq!(error(b"{"), "is no JSON: Eof error");
}

#[test]
fn services_have_addresses_of_the_api_and_no_endpoints_of_the_node() {
    let json = json!({
        "metadata": { "name": "0-digits", "namespace": "default", "uid": "s", "resourceVersion": "1" },
        "spec": {
            "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"], "selector": { "app": "a" },
            "ports": [{ "port": 80, "protocol": "TCP", "targetPort": "http", "nodePort": 30080 }],
            "type": "NodePort", "sessionAffinity": "None", "externalTrafficPolicy": "Cluster",
            "internalTrafficPolicy": "Cluster", "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
        },
        "status": { "loadBalancer": {} },
    });
    let (id, service) = service(json.to_string().as_bytes()).unwrap();
    assert_eq!((&*id.name, service.key.name.as_str()), ("0-digits", "0-digits"));
    assert_eq!(service.cluster_ips, ["10.96.0.10".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(service.ports[0].node_port, Some(30080));
    assert!(service.selector.is_empty(), "its EndpointSlices come from the API server");
    let bad = super::service(br#"{"metadata": {"name": "s"}, "spec": {"ports": [{"port": 0}]}}"#);
    assert_eq!(bad.unwrap_err().to_string(), "spec.ports[0].port: port 0 must be 1 to 65535");
}

#[test]
fn slices_that_serve_no_service_are_left_out() {
    let slice = |labels: Value, kind: &str, address: &str| {
        let json = json!({
            "metadata": { "name": "s-1", "namespace": "default", "labels": labels },
            "addressType": kind, "ports": null,
            "endpoints": [{ "addresses": [address], "conditions": { "ready": true } }],
        });
        endpoint_slice(json.to_string().as_bytes()).unwrap().1
    };
    let named = || json!({ SERVICE_NAME: "s" });
    let found = slice(named(), "IPv4", "10.1.0.1").unwrap();
    assert_eq!((found.service.name.as_str(), found.endpoints.len()), ("s", 1));
    assert_eq!(slice(json!({}), "IPv4", "10.1.0.1"), None);
    assert_eq!(slice(named(), "FQDN", "a.example"), None);
}

#[test]
fn data_has_its_bytes_and_an_error_shows_none_of_them() {
    let secret = |data: Value| {
        let json =
            json!({ "metadata": { "name": "s", "namespace": "default" }, "data": data, "immutable": true });
        super::secret(json.to_string().as_bytes()).map(|(_, object)| object)
    };
    let good = secret(json!({ "a": "aHVzaA==" })).unwrap();
    assert_eq!((good.data.data["a"].as_slice(), good.immutable), (&b"hush"[..], true));
    assert_eq!(secret(json!({ "a": "hush-1" })).unwrap_err().to_string(), "data.a: has a wrong type");
    assert_eq!(secret(json!({ "a": { "hush": 1 } })).unwrap_err().to_string(), "data.a: has a wrong type");
    let map = json!({ "metadata": { "name": "m", "namespace": "default" }, "data": { "a": "1" } });
    let (_, map) = config_map(map.to_string().as_bytes()).unwrap();
    assert_eq!((map.data.data["a"].as_slice(), map.immutable), (&b"1"[..], false));
}

#[test]
fn all_values_of_an_object_may_take_a_mebibyte_whatever_its_keys() {
    let of = |bytes: usize| {
        let data = json!({ "k".repeat(200): "v".repeat(bytes) });
        let json = json!({ "metadata": { "name": "m", "namespace": "default" }, "data": data });
        config_map(json.to_string().as_bytes()).is_ok()
    };
    assert_eq!((of(1 << 20), of((1 << 20) + 1)), (true, false));
}
