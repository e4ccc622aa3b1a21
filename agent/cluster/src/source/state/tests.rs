use super::*;
use berth_core::model::Pod;
use berth_kube::reflector::ResourceVersion;
use berth_source::RawPod;
use serde_json::json;

fn meta(name: &str, uid: &str, version: u64) -> Meta {
    Meta {
        namespace: "default".into(),
        name: name.into(),
        uid: uid.into(),
        resource_version: ResourceVersion::new(&version.to_string()).unwrap(),
    }
}

fn key(name: &str) -> PodKey {
    PodKey { namespace: "default".parse().unwrap(), name: name.parse().unwrap() }
}

fn uid(uid: &str) -> PodUid {
    uid.parse().unwrap()
}

/// A pod whose priority is its spec and whose phase is its status.
fn pod(name: &str, id: &str, version: u64, priority: i32, phase: &str) -> Change<ApiPod> {
    let model = Pod { priority, ..Pod::new(uid(id), key(name), "n".parse().unwrap()) };
    let raw = json!({ "metadata": { "resourceVersion": version.to_string() }, "status": { "phase": phase } });
    let desired = DesiredPod::of_api(Arc::new(model), &raw);
    Change::Put(meta(name, id, version), ApiPod::Pod(desired))
}

fn service(name: &str, id: &str, version: u64) -> Change<Service> {
    Change::Put(meta(name, id, version), read_service(name, 80))
}

fn read_service(name: &str, port: u16) -> Service {
    let json = json!({
        "metadata": { "name": name, "namespace": "default" },
        "spec": { "clusterIP": "10.96.0.1", "ports": [{ "port": port }] },
    });
    berth_source::cluster::service(json.to_string().as_bytes()).unwrap().1
}

fn complete<T>() -> Change<T> {
    Change::Complete(ResourceVersion::new("1").unwrap())
}

/// A state with a pod `a` and a Service `s`, all sets listed, and its snapshot.
fn listed() -> (State, ApiPods, Snapshot) {
    let api = ApiPods::default();
    let mut state = State::new(api.clone(), KeptInputs::default());
    [Change::Begin, pod("a", "a1", 1, 0, "Pending"), complete()].into_iter().for_each(|c| state.pod(c));
    [Change::Begin, service("s", "s1", 2), complete()].into_iter().for_each(|c| state.service(c));
    [Change::Begin, complete()].into_iter().for_each(|c| state.slice(c));
    let snapshot = state.snapshot(&Snapshot::default());
    (state, api, snapshot)
}

#[test]
fn no_pod_is_shown_before_pods_and_services_were_listed() {
    let mut state = State::new(ApiPods::default(), KeptInputs::default());
    let mut shown = Snapshot::default();
    let mut see = |state: &State| {
        shown = state.snapshot(&shown);
        (shown.listed, shown.pods.len())
    };
    state.pod(Change::Begin);
    state.pod(pod("a", "a1", 1, 0, "Pending"));
    assert_eq!(see(&state), (false, 0));
    state.pod(complete());
    assert_eq!(see(&state), (false, 0), "the pod's variables of Services are not known");
    state.service(Change::Begin);
    state.service(service("s", "s1", 2));
    assert_eq!(see(&state), (false, 0));
    state.service(complete());
    assert_eq!(see(&state), (true, 1), "the node may not read EndpointSlices");
    assert!(state.snapshot(&Snapshot::default()).slices_pending, "the data plane keeps its endpoints");
    [Change::Begin, complete()].into_iter().for_each(|c| state.slice(c));
    assert!(!state.snapshot(&Snapshot::default()).slices_pending);
    state.pod(Change::Begin);
    state.service(Change::Begin);
    assert_eq!(see(&state), (true, 1), "a list that begins anew takes nothing away");
}

#[test]
fn an_unchanged_object_keeps_its_pointer_and_a_new_status_keeps_the_model() {
    let (mut state, api, before) = listed();
    [Change::Begin, pod("a", "a1", 1, 0, "Pending"), complete()].into_iter().for_each(|c| state.pod(c));
    [Change::Begin, service("s", "s1", 2), complete()].into_iter().for_each(|c| state.service(c));
    assert!(state.snapshot(&before).is(&before), "a list of the same objects");
    state.service(service("s", "s1", 3));
    assert!(state.snapshot(&before).is(&before), "a version that changes nothing of the model");
    state.pod(pod("a", "a1", 4, 0, "Running"));
    let now = state.snapshot(&before);
    assert!(!now.is(&before) && now.version == before.version + 1);
    let (old, new) = (&before.pods[&uid("a1")], &now.pods[&uid("a1")]);
    assert!(Arc::ptr_eq(&old.pod, &new.pod));
    assert_eq!(
        (new.raw.value()["status"]["phase"].clone(), api.get(&uid("a1")).unwrap()),
        (json!("Running"), new.raw.clone())
    );
    state.pod(pod("a", "a1", 5, 1, "Running"));
    assert_eq!(state.snapshot(&now).pods[&uid("a1")].pod.priority, 1);
}

#[test]
fn pods_leave_by_events_by_lists_and_by_another_pod_of_their_name() {
    let (mut state, api, _) = listed();
    state.take_changed();
    state.pod(pod("a", "a2", 10, 0, "Pending"));
    assert_eq!(state.take_changed(), [uid("a1"), uid("a2")]);
    assert!(state.desired(&uid("a1")).is_none() && api.get(&uid("a1")).is_none());
    state.pod(pod("b", "b1", 11, 0, "Pending"));
    let mirror = || ApiPod::Mirror { of: uid("file"), raw: Arc::new(RawPod::new(&json!({}))) };
    state.pod(Change::Put(meta("m", "m1", 12), mirror()));
    assert_eq!(api.uids(), [uid("a2"), uid("b1"), uid("file")]);
    assert!(state.desired(&uid("file")).is_none(), "a mirror pod is not one to run");
    state.pod(Change::Put(meta("m", "m2", 13), mirror()));
    assert!(api.get(&uid("file")).is_some(), "another mirror in the place of the first");
    state.pod(Change::Gone(meta("m", "m2", 14), mirror()));
    assert!(api.get(&uid("file")).is_none());
    state.pod(Change::Gone(meta("b", "b1", 15), mirror()));
    assert_eq!(api.uids(), [uid("a2")]);
    state.pod(Change::Begin);
    assert_eq!(api.uids(), [uid("a2")], "half a list removes nothing");
    state.pod(complete());
    assert_eq!(api.uids(), []);
    assert_eq!(state.take_changed(), [uid("b1"), uid("b1"), uid("a2")]);
    assert!(state.snapshot(&Snapshot::default()).pods.is_empty());
}

#[test]
fn services_and_slices_follow_their_sets() {
    let (mut state, _, before) = listed();
    let bad = berth_kube::reflector::Bad("spec.ports[0].port: port 0 must be 1 to 65535".into());
    state.service(Change::Unreadable(meta("s", "s1", 20), bad));
    assert!(state.snapshot(&before).is(&before), "the last good version stays");
    state.service(Change::Put(meta("s", "s2", 21), read_service("s", 81)));
    let now = state.snapshot(&before);
    assert_eq!(now.services.get(&key("s")).unwrap().service.ports[0].port, 81, "a new Service of the name");
    let slice = |labels: serde_json::Value| {
        let json = json!({
            "metadata": { "name": "s-1", "namespace": "default", "labels": labels }, "addressType": "IPv4",
            "endpoints": [{ "addresses": ["10.1.0.1"] }],
        });
        berth_source::cluster::endpoint_slice(json.to_string().as_bytes()).unwrap().1
    };
    let named = json!({ "kubernetes.io/service-name": "s" });
    state.slice(Change::Begin);
    state.slice(Change::Put(meta("s-1", "e1", 30), slice(named)));
    assert_eq!(state.snapshot(&now).slices.len(), 1);
    state.slice(Change::Put(meta("s-1", "e1", 31), slice(json!({}))));
    assert_eq!(state.snapshot(&now).slices.len(), 0, "the slice is no Service's any more");
    state.service(Change::Gone(meta("s", "s2", 32), read_service("s", 81)));
    assert_eq!(state.snapshot(&now).services.len(), 0);
}

#[test]
fn what_an_earlier_agent_kept_stands_in_until_pods_and_services_are_listed() {
    let kept_service = read_service("old", 80);
    let mut kept = KeptInputs::default();
    kept.services.put(Arc::new(DesiredService { service: Arc::new(kept_service), raw: Arc::default() }));
    let mut state = State::new(ApiPods::default(), kept);
    let names = |state: &State| {
        let snapshot = state.snapshot(&Snapshot::default());
        let names: Vec<_> = snapshot.services.iter().map(|s| s.service.key.name.to_string()).collect();
        (snapshot.listed, names)
    };
    assert_eq!(names(&state), (false, vec!["old".to_owned()]));
    [Change::Begin, service("s", "s1", 2), complete()].into_iter().for_each(|c| state.service(c));
    assert_eq!(names(&state), (false, vec!["old".to_owned()]), "pods are not listed");
    assert!(!state.take_first_listing());
    [Change::Begin, complete()].into_iter().for_each(|c| state.pod(c));
    assert!(state.take_first_listing());
    assert_eq!(names(&state), (true, vec!["s".to_owned()]));
    assert!(!state.take_first_listing(), "once");
}
