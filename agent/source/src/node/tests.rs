//! The Node's JSON: what the API type reads of it, the images' order and bounds, and the reconciled labels.

use super::*;
use berth_core::quantity::Quantity;
use k8s_openapi::api::core::v1::Node;

fn registration() -> Registration {
    Registration {
        name: NodeName::new("n1").unwrap(),
        hostname: "host-1".into(),
        architecture: "amd64".into(),
        labels: BTreeMap::from([("example.com/rack".into(), "r7".into())]),
        taints: vec![Taint {
            key: "example.com/new".into(),
            value: String::new(),
            effect: "NoSchedule".into(),
        }],
        provider_id: Some("example://1".into()),
    }
}

fn report() -> NodeReport {
    let amounts = |list: &[(&str, &str)]| -> ResourceList {
        list.iter().map(|(name, amount)| ((*name).to_owned(), amount.parse::<Quantity>().unwrap())).collect()
    };
    NodeReport {
        addresses: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
        hostname: "host-1".into(),
        capacity: amounts(&[("cpu", "2"), ("memory", "1024Mi"), ("pods", "110")]),
        allocatable: amounts(&[("cpu", "1500m"), ("memory", "1000Mi"), ("pods", "110")]),
        conditions: vec![NodeCondition {
            kind: NodeConditionType::Ready,
            status: Truth::True,
            reason: "KubeletReady".into(),
            message: "kubelet is posting ready status".into(),
        }],
        info: NodeSystemInfo {
            containerd_version: "v2.0.0".into(),
            swap_bytes: Some(7),
            ..NodeSystemInfo::default()
        },
        port: Some(10250),
        images: Vec::new(),
        volumes_in_use: Default::default(),
        handlers: vec![RuntimeHandler {
            name: String::new(),
            recursive_read_only_mounts: true,
            user_namespaces: false,
        }],
        supplemental_groups_policy: true,
    }
}

#[test]
fn a_node_has_the_shape_that_the_api_type_reads() {
    let object = node_object(&registration(), &report(), Wall(1_767_323_070_900_000_000));
    let node: Node = serde_json::from_value(object.clone()).unwrap();
    let (spec, status) = (node.spec.unwrap(), node.status.unwrap());
    assert_eq!(spec.taints.unwrap()[0].key, "example.com/new");
    assert_eq!(spec.provider_id.as_deref(), Some("example://1"));
    let labels = node.metadata.labels.unwrap();
    for (key, value) in [
        ("kubernetes.io/hostname", "host-1"),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", "amd64"),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", "amd64"),
        ("example.com/rack", "r7"),
    ] {
        assert_eq!(labels.get(key).map(String::as_str), Some(value), "{key}");
    }
    let annotation = "volumes.kubernetes.io/controller-managed-attach-detach";
    assert_eq!(node.metadata.annotations.unwrap()[annotation], "true");
    let addresses: Vec<(String, String)> =
        status.addresses.unwrap().into_iter().map(|address| (address.type_, address.address)).collect();
    let expected = [("InternalIP", "192.0.2.1"), ("InternalIP", "2001:db8::1"), ("Hostname", "host-1")];
    assert_eq!(addresses, expected.map(|(kind, address)| (kind.to_owned(), address.to_owned())));
    let info = status.node_info.unwrap();
    assert_eq!(info.container_runtime_version, "containerd://v2.0.0");
    assert_eq!(info.swap.and_then(|swap| swap.capacity), Some(7));
    assert_eq!(status.allocatable.unwrap()["cpu"].0, "1500m");
    assert_eq!(status.capacity.unwrap()["memory"].0, "1Gi");
    assert_eq!(status.daemon_endpoints.unwrap().kubelet_endpoint.unwrap().port, 10250);
    assert_eq!(status.features.unwrap().supplemental_groups_policy, Some(true));
    assert_eq!(status.declared_features.unwrap(), ["ExtendWebSocketsToKubelet"]);
    let handlers = status.runtime_handlers.unwrap();
    assert_eq!(handlers[0].features.as_ref().unwrap().recursive_read_only_mounts, Some(true));
    assert_eq!(object["status"]["conditions"][0]["lastHeartbeatTime"], "2026-01-02T03:04:30Z");
}

#[test]
fn an_existing_node_gets_the_labels_that_differ_and_keeps_the_rest() {
    let registration = registration();
    let mut node = node_object(&registration, &report(), Wall(0));
    assert_eq!(node_metadata(&registration, &node), None);
    node["metadata"]["labels"]["kubernetes.io/arch"] = "arm64".into();
    node["metadata"]["labels"]["example.com/admin"] = "kept".into();
    node["metadata"]["annotations"] = Value::Null;
    let patch = node_metadata(&registration, &node);
    assert_eq!(
        patch,
        Some(json!({ "metadata": {
            "labels": { "kubernetes.io/arch": "amd64" },
            "annotations": { "volumes.kubernetes.io/controller-managed-attach-detach": "true" },
        } }))
    );
}

#[test]
fn the_fifty_largest_images_are_told_with_five_names_each() {
    let mut report = report();
    report.images = (0..60)
        .map(|at| NodeImage {
            digests: vec![format!("i{at}@sha256:1"), format!("i{at}@sha256:0")],
            tags: (0..5).map(|tag| format!("i{at}:{tag}")).collect(),
            // Pairs of equal size.
            size: at / 2,
        })
        .collect();
    let status = node_status(&report, Wall(0));
    report.images.reverse();
    assert_eq!(node_status(&report, Wall(0)), status);
    let images = status["images"].as_array().unwrap();
    assert_eq!(images.len(), 50);
    assert_eq!(
        images[0],
        json!({
            "names": ["i58@sha256:0", "i58@sha256:1", "i58:0", "i58:1", "i58:2"],
            "sizeBytes": 29,
        })
    );
    let sizes: Vec<u64> = images.iter().map(|image| image["sizeBytes"].as_u64().unwrap()).collect();
    assert!(sizes.is_sorted_by(|a, b| a >= b), "{sizes:?}");
}
