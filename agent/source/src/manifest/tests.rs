//! Tables of manifests: the accepted values, and the field and reason of each refusal.

use super::*;
use berth_core::model::*;
use std::path::PathBuf;

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
    assert_eq!(*source("claim"), VolumeSource::NotYet { kind: "persistentVolumeClaim".into() });
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
fn errors_name_the_document_and_the_item_of_a_list() {
    let read = |text: &str| parse_file(Path::new("f.yaml"), text.as_bytes(), &ctx());
    let two =
        format!("# only a comment\n---\n{SMALL}\n---\n# nothing\n---\n{}\n", SMALL.replace("web", "two"));
    let parsed = read(&two).unwrap();
    assert_eq!(parsed.pods.iter().map(|p| p.document).collect::<Vec<_>>(), [1, 3]);
    let e = read(&format!("{SMALL}\n---\na: [\n")).unwrap_err();
    assert_eq!((e.document, e.file.as_path()), (Some(2), Path::new("f.yaml")));
    assert!(e.reason.contains("YAML") && e.reason.contains("line 3"), "{e}");
    let bad = SMALL.replace("web", "WEB");
    let e = read(&format!("{SMALL}\n---\n{bad}")).unwrap_err();
    assert_eq!(e.document, Some(2));
    // The error of a file with a single document has no document number.
    assert_eq!(read(&bad).unwrap_err().document, None);
    assert_eq!(read("a: [").unwrap_err().document, None);
    for empty in ["", "\n\n", "# c\n", "---\n---\n", "null"] {
        assert_eq!(read(empty).unwrap_err().reason, "holds no object", "{empty:?}");
    }
    let list = format!("{{apiVersion: v1, kind: List, items: [{SMALL}]}}");
    assert_eq!(read(&list).unwrap().pods.len(), 1);
    let list = "{apiVersion: v1, kind: PodList, metadata: {}, items: [{metadata: {name: a}, spec: {containers: [{name: c}]}}]}";
    let e = read(list).unwrap_err();
    assert_eq!(e.field.as_deref(), Some("items[0].spec.containers[0].image"));
    let e = read(&list.replace("name: c", "name: c, ports: [{containerPort: x}]")).unwrap_err();
    assert_eq!(e.field.as_deref(), Some("items[0].spec.containers[0].ports[0].containerPort"), "{e}");
    let json = format!("{}{}", with(&[]), with(&[("/metadata/name", "\"two\"")]));
    assert_eq!(parse_file(Path::new("f.json"), json.as_bytes(), &ctx()).unwrap().pods.len(), 2);
    let e = parse_file(Path::new("f.json"), b"{\"a\":1,\"a\":2}", &ctx()).unwrap_err();
    assert!(e.reason.contains("twice"), "{e}");
    assert!(parse_file(Path::new("f.json"), SMALL.as_bytes(), &ctx()).is_err(), "YAML is no JSON");
}

#[test]
fn yaml_is_read_as_kubernetes_reads_it() {
    let volume = |mode: &str| {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nspec:\n  volumes:\n  - name: v\n    configMap: {{name: m, defaultMode: {mode}}}\n  containers:\n  - {{name: c, image: i}}\n"
        );
        match &parse_pod(&text, &ctx()).unwrap_or_else(|e| panic!("{e}")).pod.volumes[0].source {
            VolumeSource::ConfigMap(k) => k.default_mode,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(volume("0644"), 0o644);
    assert_eq!(volume("0o400"), 0o400);
    assert_eq!(volume("420"), 0o644);
    let spec = |extra: &str| parse_pod(&SMALL.replace("spec: {", &format!("spec: {{{extra}, ")), &ctx());
    assert!(spec("hostNetwork: yes").unwrap().pod.namespaces.host_network);
    assert!(spec("hostNetwork: yess").is_err());
    assert!(spec("activeDeadlineSeconds: .inf").is_err());
    assert!(spec("hostPID: true, hostPID: false").unwrap_err().reason.contains("twice"));
    let limits = SMALL.replace("image: i", "image: i, resources: {limits: {cpu: 1, memory: 0.5}}");
    assert_eq!(
        parse_pod(&limits, &ctx()).unwrap().raw["spec"]["containers"][0]["resources"]["limits"]["cpu"],
        "1"
    );
    let anchors = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  containers:\n  - &c {name: c, image: i}\n  - <<: *c\n    name: d\n";
    assert_eq!(parse_pod(anchors, &ctx()).unwrap().pod.containers[1].image, "i");
}

#[test]
fn a_repeated_key_is_an_error_in_a_manifest_and_a_warning_in_a_static_pod() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  containers: [{name: c, image: i}]\n  restartPolicy: Never\n  restartPolicy: OnFailure\n";
    let e = parse_pod(text, &ctx()).unwrap_err();
    assert!(e.reason.contains("key \"restartPolicy\" is there twice at line 7, column 3"), "{e}");
    let parsed = parse_file(Path::new("f"), text.as_bytes(), &statics()).unwrap();
    assert_eq!(parsed.pods[0].pod.restart_policy, RestartPolicy::OnFailure, "the last counts");
    assert_eq!(parsed.warnings.len(), 1);
    let caps = with(&[(
        "/spec/containers/0/securityContext",
        r#"{"capabilities":{"add":["CAP_SYS_TIME","NET_RAW"]}}"#,
    )]);
    let e = parse_pod(&caps, &ctx()).unwrap_err();
    assert!(e.reason.contains("without CAP_"), "{e}");
    let parsed = parse_file(Path::new("f"), caps.as_bytes(), &statics()).unwrap();
    assert_eq!(parsed.pods[0].pod.containers[0].security.capabilities_add, ["NET_RAW"]);
    assert_eq!(parsed.warnings.len(), 1);
}

#[test]
fn null_counts_as_absent_everywhere() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: p, annotations: {a: null, b: ~, c: }, labels: {x: }, creationTimestamp: null}\nspec:\n  hostNetwork: null\n  containers: [{name: c, image: i, args: [a, null], env: [{name: A, value: }], ports: null, resources: {limits: {cpu: null}}}]\n";
    let pod = parse_pod(text, &ctx()).unwrap().pod;
    assert!(["a", "b", "c"].iter().all(|k| pod.annotations[*k].is_empty()));
    assert_eq!(pod.labels["x"], "");
    assert_eq!(pod.containers[0].args, ["a", ""]);
    assert_eq!(pod.containers[0].env[0].value, EnvValue::Text(String::new()));
    assert_eq!(pod.containers[0].resources.cpu_limit_millis(), None);
    let e = parse_pod(&SMALL.replace("{name: c, image: i}", "null"), &ctx()).unwrap_err();
    assert_eq!((e.field.as_deref(), e.reason.as_str()), (Some("spec.containers[0].name"), "is required"));
}

#[test]
fn whole_numbers_may_be_written_as_helm_writes_them() {
    let read = |spec: &str| parse_pod(&SMALL.replace("spec: {", &format!("spec: {{{spec}, ")), &ctx());
    let pod = read("securityContext: {runAsUser: 1.00065e+09}, activeDeadlineSeconds: 1e3").unwrap().pod;
    assert_eq!((pod.security.run_as_user, pod.active_deadline_seconds), (Some(1_000_650_000), Some(1000)));
    let e = read("activeDeadlineSeconds: 5.5").unwrap_err();
    assert_eq!(e.reason, "must be a whole number, not the number 5.5");
    assert_eq!(e.field.as_deref(), Some("spec.activeDeadlineSeconds"));
    // Numbers of JSON documents are not converted.
    assert!(parse_pod(&with(&[("/spec/activeDeadlineSeconds", "5.0")]), &ctx()).is_err());
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
fn errors_name_the_fault_and_the_remedy() {
    let read =
        |spec: &str| parse_pod(&SMALL.replace("spec: {", &format!("spec: {{{spec}, ")), &ctx()).unwrap_err();
    assert_eq!(
        read("hostname: y").reason,
        "must be a string, not the boolean true: quote it (y, n, yes, no, on and off are booleans too)"
    );
    assert_eq!(read("volumes: {}").reason, "must be a list, not an object");
    assert_eq!(read("securityContext: []").reason, "must be an object, not a list");
    assert_eq!(read("hostNetwork: \"yes\"").reason, "must be true or false, not a string");
    assert!(read("activeDeadlineSeconds: .nan").reason.contains("\".nan\" is no finite number: quote it"));
    let e = parse_file(
        Path::new("f"),
        b"{apiVersion: v1, kind: Secret, metadata: {name: s}, data: {cert: plain text}}",
        &ctx(),
    );
    let e = e.unwrap_err();
    assert_eq!(e.field.as_deref(), Some("data.cert"));
    assert!(e.reason.starts_with("is no base64: ' ' at byte 5; plain text goes into stringData"), "{e}");
}

#[test]
fn binary_data_is_kept_apart_and_may_have_line_ends() {
    let text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m}\ndata: {a: \"1\", b: , on: x}\nbinaryData:\n  t: aGk=\n  w: |\n    AAEC\n    AAEC\n";
    let parsed = parse_file(Path::new("f"), text.as_bytes(), &ctx()).unwrap();
    let map = &parsed.config_maps[0];
    let keys = |data: &std::collections::BTreeMap<String, Vec<u8>>| data.keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&map.data), ["a", "b", "true"], "`on` is a boolean");
    assert_eq!(map.data["b"], b"");
    assert_eq!(keys(&map.binary_data), ["t", "w"]);
    assert_eq!(map.binary_data["w"], [0, 1, 2, 0, 1, 2]);
    let secret = "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ndata: {a: null, b: \"YWJj\\n\"}\nstringData: {c: ~}\n";
    let parsed = parse_file(Path::new("f"), secret.as_bytes(), &ctx()).unwrap();
    let data = &parsed.secrets[0].data;
    assert_eq!((&data["a"][..], &data["b"][..], &data["c"][..]), (&b""[..], &b"abc"[..], &b""[..]));
}

#[test]
fn files_that_would_exhaust_memory_or_stack_are_rejected() {
    let mut laughs = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..12 {
        let list = vec![format!("*a{}", level - 1); 10].join(", ");
        laughs.push_str(&format!("a{level}: &a{level} [{list}]\n"));
    }
    let deep = format!("a: {}{}", "[".repeat(5_000), "]".repeat(5_000));
    let deep_block: String = (0..3_000).map(|n| format!("{}a:\n", " ".repeat(n))).collect();
    let deep_json = format!("{}{}", "{\"a\":".repeat(20_000), "}".repeat(20_000));
    let many = "---\na: 1\n".repeat(20_000);
    let leaves = "x,".repeat(100_000);
    let anchors: String = (0..40).map(|n| format!("&a{n} [")).collect();
    let copies = format!("a: {anchors}{leaves}{}", "]".repeat(40));
    let big = vec![b' '; usize::try_from(MAX_FILE_BYTES).unwrap() + 1];
    for (what, bytes) in [
        ("laughs", laughs.as_bytes()),
        ("deep", deep.as_bytes()),
        ("deep block", deep_block.as_bytes()),
        ("deep json", deep_json.as_bytes()),
        ("documents", many.as_bytes()),
        ("anchors within anchors", copies.as_bytes()),
        ("size", &big),
        ("utf-8", b"a: \xff"),
    ] {
        let bytes = bytes.to_vec();
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || tell.send(parse_file(Path::new("f"), &bytes, &ctx()).is_err()));
        // The parser must only end with an error: a full expansion of this text would take days.
        let refused = told.recv_timeout(std::time::Duration::from_secs(120));
        assert_eq!(refused, Ok(true), "{what}");
    }
}

#[test]
fn a_uid_follows_the_spec_and_nothing_else() {
    let uid = |changes: &[(&str, &str)]| pod(changes).uid;
    let base = uid(&[]);
    assert_eq!(base.as_str().len(), 36);
    assert_eq!(uid(&[("/metadata/labels", r#"{"a":"b"}"#), ("/metadata/annotations", r#"{"a":"b"}"#)]), base);
    assert_eq!(uid(&[("/spec/hostname", "null")]), base, "null is not given");
    assert_ne!(uid(&[("/spec/hostname", "\"x\"")]), base);
    assert_ne!(uid(&[("/metadata/name", "\"x\"")]), base);
    assert_ne!(uid(&[("/metadata/namespace", "\"x\"")]), base);
    assert_eq!(uid(&[("/metadata/namespace", "\"default\"")]), base);
    assert_eq!(uid(&[("/metadata/uid", "\"my-own\"")]).as_str(), "my-own");
    let yaml = "kind: Pod\napiVersion: v1\nspec:\n  containers:\n  - image: i\n    name: c\n  volumes:\n  - emptyDir: {}\n    name: v\nmetadata: {name: web}\n";
    assert_eq!(parse_pod(yaml, &ctx()).unwrap().pod.uid, base, "order and format do not matter");
}

#[test]
fn static_pods_follow_the_kubelets_rules() {
    let node = |name: &str| ManifestContext { node: NodeName::new(name).unwrap(), ..statics() };
    let read = |file: &str, ctx: &ManifestContext, text: &str| {
        parse_file(Path::new(file), text.as_bytes(), ctx).unwrap_or_else(|e| panic!("{e}"))
    };
    let one = |file: &str, ctx: &ManifestContext, text: &str| read(file, ctx, text).pods.remove(0);
    let base = one("/m/a", &node("n1"), SMALL);
    assert_eq!(base.pod.key.to_string(), "default/web-n1");
    assert_eq!(base.pod.origin, Origin::StaticFile("/m/a".into()));
    assert_eq!(base.raw["metadata"]["name"], "web-n1");
    assert_eq!(base.raw["metadata"]["annotations"]["kubernetes.io/config.hash"], base.pod.uid.as_str());
    assert_eq!(base.raw["metadata"]["annotations"]["kubernetes.io/config.source"], "file");
    assert_eq!(
        base.raw["spec"]["tolerations"],
        serde_json::json!([{"operator": "Exists", "effect": "NoExecute"}])
    );
    assert_eq!(base.pod.uid.as_str().len(), 32);
    let uid = |file: &str, ctx: &ManifestContext, text: &str| one(file, ctx, text).pod.uid;
    assert_eq!(uid("/m/a", &node("n1"), SMALL), base.pod.uid);
    assert_ne!(uid("/m/b", &node("n1"), SMALL), base.pod.uid, "the path counts");
    assert_ne!(uid("/m/a", &node("n2"), SMALL), base.pod.uid, "the node counts");
    assert_ne!(uid("/m/a", &node("n1"), &SMALL.replace("image: i", "image: j")), base.pod.uid);
    let labelled = SMALL.replace("name: web", "name: web, labels: {a: b}");
    assert_ne!(uid("/m/a", &node("n1"), &labelled), base.pod.uid, "the whole object counts");
    assert_eq!(
        uid("/m/a", &node("n1"), &SMALL.replace("name: web", "name: web, uid: given")).as_str(),
        "given"
    );
    // Input that the kubelet ignores causes a warning.
    let parsed = read("/m/a", &node("n1"), &format!("{SMALL}\n---\n{SMALL}"));
    assert_eq!((parsed.pods.len(), parsed.warnings.len()), (1, 1));
    let parsed = read("/m/a", &node("n1"), &SMALL.replace("spec: {", "spec: {typo: 1, "));
    assert_eq!(parsed.warnings[0].field.as_deref(), Some("spec.typo"));
    let e = parse_pod("{apiVersion: v1, kind: ConfigMap, metadata: {name: a}}", &statics()).unwrap_err();
    assert_eq!(e.field.as_deref(), Some("kind"));
}

#[test]
fn static_pods_may_not_refer_to_api_objects() {
    let cases: &[(&str, &str, &str)] = &[
        ("/spec/serviceAccountName", "\"x\"", "spec.serviceAccountName"),
        ("/spec/imagePullSecrets", r#"[{"name":"x"}]"#, "spec.imagePullSecrets"),
        ("/spec/resourceClaims", r#"[{"name":"x"}]"#, "spec.resourceClaims"),
        ("/spec/volumes/-", r#"{"name":"w","configMap":{"name":"x"}}"#, "spec.volumes[1].configMap"),
        ("/spec/volumes/-", r#"{"name":"w","secret":{"secretName":"x"}}"#, "spec.volumes[1].secret"),
        (
            "/spec/volumes/-",
            r#"{"name":"w","persistentVolumeClaim":{"claimName":"x"}}"#,
            "spec.volumes[1].persistentVolumeClaim",
        ),
        ("/spec/volumes/-", r#"{"name":"w","csi":{"driver":"x"}}"#, "spec.volumes[1].csi"),
        (
            "/spec/volumes/-",
            r#"{"name":"w","projected":{"sources":[{"serviceAccountToken":{"path":"t"}}]}}"#,
            "spec.volumes[1].projected.sources[0].serviceAccountToken",
        ),
        (
            "C/env",
            r#"[{"name":"a","valueFrom":{"secretKeyRef":{"name":"s","key":"k"}}}]"#,
            "spec.containers[0].env[0].valueFrom.secretKeyRef",
        ),
        ("C/envFrom", r#"[{"configMapRef":{"name":"m"}}]"#, "spec.containers[0].envFrom[0].configMapRef"),
    ];
    for (pointer, value, field) in cases {
        let pointer = pointer.replacen('C', C, usize::from(pointer.starts_with('C')));
        let e = parse_pod(&with(&[(&pointer, value)]), &statics()).unwrap_err();
        assert_eq!(e.field.as_deref(), Some(*field), "{e}");
        assert!(e.reason.contains("static pod may not refer"), "{e}");
    }
    let fine = [(
        "/spec/volumes/-",
        r#"{"name":"w","projected":{"sources":[{"downwardAPI":{"items":[{"path":"n","fieldRef":{"fieldPath":"metadata.name"}}]}}]}}"#,
    )];
    assert!(parse_pod(&with(&fine), &statics()).is_ok());
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
fn the_systems_priority_classes_are_known() {
    let class = |name: &str| pod(&[("/spec/priorityClassName", &format!("{name:?}"))]).priority;
    assert_eq!(class("system-node-critical"), 2_000_001_000);
    assert_eq!(class("system-cluster-critical"), 2_000_000_000);
    assert_eq!(class("mine"), 0);
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

#[test]
fn an_error_names_file_field_and_reason() {
    let e = parse_file(Path::new("/m/web.yaml"), with(&[("/spec/containers", "[]")]).as_bytes(), &ctx())
        .unwrap_err();
    assert_eq!(e.to_string(), "/m/web.yaml: spec.containers: must hold at least one container");
}
