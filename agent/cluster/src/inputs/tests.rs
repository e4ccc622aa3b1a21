use super::*;
use berth_core::{
    ids::PodKey,
    model::{Container, EnvFrom, EnvFromSource},
    status::{ApiStatus, Phase},
};
use berth_source::DesiredPod;
use serde_json::json;
use std::os::unix::fs::PermissionsExt;

fn key(name: &str) -> PodKey {
    PodKey { namespace: "default".parse().unwrap(), name: name.parse().unwrap() }
}

fn object(name: &str) -> KeyedData {
    let data = [("K".to_owned(), b"v".to_vec())].into();
    KeyedData {
        namespace: "default".parse().unwrap(),
        name: name.into(),
        kind: None,
        uid: String::new(),
        data,
        binary_data: BTreeMap::new(),
    }
}

fn service(namespace: &str, name: &str) -> Arc<DesiredService> {
    let json = json!({
        "metadata": { "name": name, "namespace": namespace },
        "spec": { "clusterIP": "10.96.0.1", "ports": [{ "port": 80 }] },
    });
    let service = Arc::new(berth_source::cluster::service(json.to_string().as_bytes()).unwrap().1);
    Arc::new(DesiredService { service, raw: Arc::default() })
}

/// A pod whose environment is made of a ConfigMap, a Secret and an object that does not exist.
fn desired(uid: &str) -> Arc<DesiredPod> {
    let from = |source| EnvFrom { prefix: String::new(), source, optional: true };
    let container = Container {
        env_from: vec![
            from(EnvFromSource::ConfigMap("settings".to_owned())),
            from(EnvFromSource::Secret("password".to_owned())),
            from(EnvFromSource::ConfigMap("none".to_owned())),
        ],
        ..Container::new("app".parse().unwrap(), "i".to_owned())
    };
    let pod = Pod::new(uid.parse().unwrap(), key(uid), "n".parse().unwrap());
    let pod = Pod { containers: vec![container], ..pod };
    Arc::new(DesiredPod::of_api(Arc::new(pod), &serde_json::Value::Null))
}

fn snapshot(pods: &[Arc<DesiredPod>]) -> Arc<Snapshot> {
    let mut objects = Objects::default();
    objects.put_config_map(object("settings"));
    objects.put_config_map(object("of a volume"));
    objects.put_secret(object("password"));
    objects.put_absent(ObjectKind::ConfigMap, "default".parse().unwrap(), "none".to_owned());
    let mut services = Shared::default();
    for (namespace, name) in [("default", "kubernetes"), ("default", "web"), ("other", "db")] {
        services.put(service(namespace, name));
    }
    let pods = pods.iter().map(|p| (p.pod.uid.clone(), Arc::clone(p))).collect();
    Arc::new(Snapshot {
        listed: true,
        pods: Arc::new(pods),
        objects: Arc::new(objects),
        services,
        ..Snapshot::default()
    })
}

fn keeper(dir: &Path) -> Keeper {
    Keeper { dir: dir.join("cluster"), kept: BTreeMap::new(), seen: Arc::default() }
}

#[test]
fn a_later_agent_finds_the_objects_and_services_of_the_environment_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let mut keeper = keeper(dir.path());
    keeper.take(&snapshot(&[desired("u1")]));
    let kept = load(&keeper.dir);
    let namespace: Namespace = "default".parse().unwrap();
    let get = |kind, name| kept.objects.get(kind, &namespace, name);
    assert_eq!(get(ObjectKind::ConfigMap, "settings"), Value::Known(&Arc::new(object("settings"))));
    assert_eq!(get(ObjectKind::Secret, "password"), Value::Known(&Arc::new(object("password"))));
    assert_eq!(get(ObjectKind::ConfigMap, "none"), Value::Absent);
    assert!(matches!(get(ObjectKind::ConfigMap, "of a volume"), Value::Unknown(_)));
    let services: Vec<_> = kept.services.iter().map(|s| s.service.key.to_string()).collect();
    assert_eq!(services, ["default/kubernetes", "default/web"]);
    let mode = fs::metadata(keeper.file(&"u1".parse().unwrap())).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "the file has Secrets");
}

#[test]
fn the_inputs_of_a_pod_that_is_gone_are_removed_also_by_the_next_agent() {
    let dir = tempfile::tempdir().unwrap();
    let mut before = keeper(dir.path());
    before.take(&snapshot(&[desired("u1"), desired("u2"), desired("u3")]));
    assert_eq!(files(&before.dir).len(), 3);
    before.take(&snapshot(&[desired("u1"), desired("u2")]));
    assert_eq!(files(&before.dir).len(), 2);
    let api = Arc::new(ApiStatus { phase: Some(Phase::Failed), ..ApiStatus::default() });
    let ended = DesiredPod { api, ..(*desired("u2")).clone() };
    let mut after = keeper(dir.path());
    after.take(&snapshot(&[Arc::new(ended), desired("u4")]));
    let left: Vec<_> = files(&after.dir).iter().map(|f| f.file_stem().unwrap().to_owned()).collect();
    assert_eq!(left, ["u4"]);
    after.take(&snapshot(&[desired("u4"), desired("u5")]));
    fs::write(after.file(&"u4".parse().unwrap()), "{").unwrap();
    assert_eq!(load(&after.dir).services.len(), 2, "a torn file counts as none");
}
