use super::*;
use crate::{ids::PodKey, model::*};

fn keys(name: &str) -> KeysVolume {
    KeysVolume { name: name.into(), items: Vec::new(), default_mode: 0o644, optional: true }
}

fn pod(volumes: Vec<(&str, VolumeSource)>, mounted: &[&str], container: Container) -> Pod {
    let mounts = mounted.iter().map(|name| VolumeMount {
        volume: name.parse().unwrap(),
        mount_path: format!("/{name}"),
        read_only: false,
        recursive_read_only: RecursiveReadOnly::default(),
        sub_path: None,
        propagation: MountPropagation::default(),
    });
    let volumes = volumes.into_iter().map(|(name, source)| Volume { name: name.parse().unwrap(), source });
    let key = PodKey { namespace: "ns".parse().unwrap(), name: "web".parse().unwrap() };
    Pod {
        containers: vec![Container { mounts: mounts.collect(), ..container }],
        volumes: volumes.collect(),
        service_account: "robot".to_owned(),
        ..Pod::new("u".parse().unwrap(), key, "n".parse().unwrap())
    }
}

fn container(name: &str) -> Container {
    Container::new(name.parse().unwrap(), "image")
}

/// The references as kind, name and use.
fn shown(pod: &Pod) -> Vec<String> {
    let all = refs(pod);
    assert!(all.iter().all(|r| r.namespace.as_str() == "ns"));
    all.iter().map(|r| format!("{} {} {:?}", r.kind, r.name, r.used_for)).collect()
}

#[test]
fn each_volume_that_a_container_mounts_names_its_objects() {
    let token = ProjectedSource::ServiceAccountToken {
        audience: Some("vault".into()),
        expiration_seconds: 3607,
        path: "token".into(),
    };
    let projected = VolumeSource::Projected {
        sources: vec![
            ProjectedSource::ConfigMap(keys("in-projected")),
            ProjectedSource::Secret(keys("same")),
            ProjectedSource::DownwardApi(Vec::new()),
            ProjectedSource::NotYet { kind: "clusterTrustBundle".into() },
            token,
        ],
        default_mode: 0o644,
    };
    let volumes = vec![
        ("map", VolumeSource::ConfigMap(keys("same"))),
        ("secret", VolumeSource::Secret(keys("key"))),
        ("all", projected),
        ("empty", VolumeSource::EmptyDir { medium: Medium::Disk, size_limit: None }),
        ("fields", VolumeSource::DownwardApi { items: Vec::new(), default_mode: 0o644 }),
        ("unmounted", VolumeSource::Secret(keys("unused"))),
    ];
    let pod = pod(volumes, &["map", "secret", "all", "empty", "fields"], container("c"));
    assert_eq!(
        shown(&pod),
        [
            "configmap in-projected Volume",
            "configmap same Volume",
            "secret key Volume",
            "secret same Volume",
            "serviceaccount robot Token { audience: Some(\"vault\"), ttl: 3607, path: \"token\" }",
        ]
    );
}

#[test]
fn each_container_names_the_objects_of_its_environment() {
    let from = |source| EnvFrom { prefix: String::new(), source, optional: true };
    let var = |value| EnvVar { name: "A".into(), value };
    let key = |name: &str| KeyRef { name: name.into(), key: "k".into(), optional: false };
    let main = Container {
        env_from: vec![
            from(EnvFromSource::ConfigMap("one".into())),
            from(EnvFromSource::Secret("two".into())),
        ],
        env: vec![var(EnvValue::Text("$(A)".into())), var(EnvValue::Field("metadata.name".into()))],
        ..container("main")
    };
    let init = Container {
        env: vec![var(EnvValue::ConfigMapKey(key("two"))), var(EnvValue::SecretKey(key("one")))],
        ..container("init")
    };
    let pod = Pod { init_containers: vec![init], ..pod(Vec::new(), &[], main) };
    assert_eq!(shown(&pod), ["configmap one Env", "configmap two Env", "secret one Env", "secret two Env"]);
    let of_init: Vec<Ref> = env_refs(&pod, &pod.init_containers[0]).collect();
    let names: Vec<(ObjectKind, &str)> = of_init.iter().map(|r| (r.kind, r.name.as_str())).collect();
    assert_eq!(names, [(ObjectKind::ConfigMap, "two"), (ObjectKind::Secret, "one")]);
}

#[test]
fn one_object_has_a_reference_for_each_use() {
    let from =
        EnvFrom { prefix: String::new(), source: EnvFromSource::Secret("all".into()), optional: false };
    let volumes = vec![("v", VolumeSource::Secret(keys("all")))];
    let main = Container { env_from: vec![from], ..container("c") };
    let pod = Pod { image_pull_secrets: vec!["all".into()], ..pod(volumes, &["v"], main) };
    assert_eq!(shown(&pod), ["secret all Volume", "secret all Env", "secret all Pull"]);
    // Each use waits for a source, a pull only for a while.
    let uses: Vec<RefUse> = Objects::default().unknown_of(&pod).into_keys().map(|r| r.used_for).collect();
    assert_eq!(uses, [RefUse::Volume, RefUse::Env, RefUse::Pull]);
    assert!(Objects::listed().unknown_of(&pod).is_empty());
}
