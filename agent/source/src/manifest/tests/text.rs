//! Documents as text: YAML as Kubernetes reads it, faults of a file, and files that would exhaust memory.

use super::*;

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
fn an_error_names_file_field_and_reason() {
    let e = parse_file(Path::new("/m/web.yaml"), with(&[("/spec/containers", "[]")]).as_bytes(), &ctx())
        .unwrap_err();
    assert_eq!(e.to_string(), "/m/web.yaml: spec.containers: must hold at least one container");
}
