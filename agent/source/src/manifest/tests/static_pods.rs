//! Static pods: the kubelet's own rules for manifests without an API server.

use super::*;
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
fn the_systems_priority_classes_are_known() {
    let class = |name: &str| pod(&[("/spec/priorityClassName", &format!("{name:?}"))]).priority;
    assert_eq!(class("system-node-critical"), 2_000_001_000);
    assert_eq!(class("system-cluster-critical"), 2_000_000_000);
    assert_eq!(class("mine"), 0);
}
