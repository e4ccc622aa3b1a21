//! The patch of a Node's status: random pairs against the merge of [`super::merge`].

use super::{
    pods::apply,
    random::{any, some, time},
    shown,
};
use berth_harness::rng::Rng;
use berth_source::patch::{Heartbeat, node_status};
use serde_json::{Map, Value, json};

const OWN: [&str; 4] = ["MemoryPressure", "DiskPressure", "PIDPressure", "Ready"];

fn condition(r: &mut Rng, kind: &str) -> Value {
    let status = any(r, &["True", "False"]);
    json!({
        "type": kind,
        "status": status,
        "reason": any(r, &["A", "B"]),
        "message": any(r, &["one", "two"]),
        "lastHeartbeatTime": time(r, false),
        "lastTransitionTime": time(r, false),
    })
}

fn amounts(r: &mut Rng, names: &[&str]) -> Value {
    names
        .iter()
        .map(|name| ((*name).to_owned(), any(r, &["1", "2", "3"]).into()))
        .collect::<Map<_, _>>()
        .into()
}

fn status(r: &mut Rng, node: bool) -> Value {
    let mut names = vec!["cpu", "memory", "pods"];
    if r.one_in(2) {
        names.push("hugepages-2Mi");
    }
    let kinds = if node {
        OWN.to_vec()
    } else {
        some(r, &[&OWN[..], &["NetworkUnavailable", "example.com/disk"]].concat(), 3)
    };
    let conditions: Vec<Value> = kinds.iter().map(|kind| condition(r, kind)).collect();
    let address = |kind: &str, address: &str| json!({ "type": kind, "address": address });
    let mut addresses = vec![address("InternalIP", any(r, &["192.0.2.1", "192.0.2.2"]))];
    if r.one_in(2) {
        addresses.push(address("InternalIP", any(r, &["2001:db8::1", "2001:db8::2"])));
    }
    addresses.push(address("Hostname", "n1"));
    let mut status = json!({
        "capacity": amounts(r, &names),
        "allocatable": amounts(r, &names),
        "conditions": conditions,
        "addresses": addresses,
        "daemonEndpoints": { "kubeletEndpoint": { "Port": any(r, &[0, 10250]) } },
        "nodeInfo": {
            "machineID": "m", "systemUUID": "s", "bootID": any(r, &["b1", "b2"]), "kernelVersion": "6.1", "osImage": "os",
            "containerRuntimeVersion": "containerd://2", "kubeletVersion": "v1.36.3", "operatingSystem": "linux",
            "architecture": "amd64", "kubeProxyVersion": if node { "" } else { any(r, &["", "v1.20.0"]) },
        },
        "images": some(r, &[json!({ "names": ["a:1"], "sizeBytes": 2 }), json!({ "names": ["b:1"], "sizeBytes": 1 })], 2),
    });
    if r.one_in(2) {
        status["nodeInfo"]["swap"] = json!({ "capacity": 5 });
    }
    if r.one_in(2) {
        status["features"] = json!({ "supplementalGroupsPolicy": r.one_in(2) });
        status["runtimeHandlers"] = json!([{ "name": "", "features": { "userNamespaces": r.one_in(2) } }]);
    }
    if !node {
        if r.one_in(2) {
            status["capacity"]["example.com/fakecpu"] = "5".into();
        }
        if r.one_in(3) {
            status["allocatable"]["example.com/gone"] = "1".into();
        }
        if r.one_in(3) {
            status["addresses"] = Value::Null;
        }
        if r.one_in(3) {
            status["declaredFeatures"] = json!(["Old"]);
        }
        status["volumesAttached"] = json!([{ "name": "v1", "devicePath": "/dev/x" }]);
    }
    status
}

/// The status in the API and the one that the node wants.
pub(crate) fn pair(r: &mut Rng) -> (Value, Value) {
    let (mut old, wanted) = (status(r, false), status(r, true));
    // Often only a few fields differ, and at times the heartbeats alone.
    if !r.one_in(3) {
        let names: Vec<String> = old.as_object().map(Map::keys).into_iter().flatten().cloned().collect();
        for name in names.iter().filter(|name| wanted.get(*name).is_some()) {
            if !r.one_in(16) {
                old[name] = wanted[name].clone();
            }
        }
        for name in ["features", "runtimeHandlers", "declaredFeatures"] {
            old[name] = wanted[name].clone();
        }
        if !r.one_in(4) {
            for condition in old["conditions"].as_array_mut().into_iter().flatten() {
                condition["lastHeartbeatTime"] = time(r, false);
            }
        }
    }
    (old, wanted)
}

fn of_type<'a>(list: &'a Value, kind: &Value) -> Option<&'a Value> {
    list.as_array()?.iter().find(|c| c["type"] == *kind)
}

/// Whether anything beside the heartbeat times differs.
fn is_changed(old: &Value, got: &Value) -> bool {
    let quiet = |status: &Value| {
        let mut status = status.clone();
        for condition in status["conditions"].as_array_mut().into_iter().flatten() {
            condition["lastHeartbeatTime"] = Value::Null;
        }
        shown(&status)
    };
    quiet(old) != quiet(got)
}

fn check(old: &Value, wanted: &Value, got: &Value) {
    for name in ["volumesAttached", "futureField"] {
        assert_eq!(got[name], old[name], "{name}");
    }
    for name in [
        "addresses",
        "daemonEndpoints",
        "nodeInfo",
        "images",
        "features",
        "runtimeHandlers",
        "declaredFeatures",
    ] {
        assert_eq!(shown(&got[name]), shown(&wanted[name]), "{name}");
    }
    let extended = &old["capacity"]["example.com/fakecpu"];
    for list in ["capacity", "allocatable"] {
        let mut expected = wanted[list].clone();
        expected["example.com/fakecpu"] = extended.clone();
        assert_eq!(shown(&got[list]), shown(&expected), "{list}");
    }
    let list = |of: &Value| of["conditions"].as_array().cloned().unwrap_or_default();
    let others = |of: &Value| -> Vec<Value> {
        list(of).into_iter().filter(|c| OWN.iter().all(|kind| c["type"] != *kind)).collect()
    };
    assert_eq!(others(got), others(old));
    assert_eq!(list(got).len(), others(old).len() + OWN.len());
    for c in list(wanted) {
        let mut expected = c.clone();
        if let Some(before) =
            of_type(&old["conditions"], &c["type"]).filter(|before| before["status"] == c["status"])
        {
            expected["lastTransitionTime"] = before["lastTransitionTime"].clone();
        }
        assert_eq!(of_type(&got["conditions"], &c["type"]), Some(&expected));
    }
}

/// 10,000 pairs, or as many as `BERTH_PAIRS` says: the API's status after the patch is the wanted one, others' parts of
/// it are as they were, and heartbeat times alone are sent only when they are due.
#[test]
fn a_patch_makes_the_wanted_node_status_and_no_second_one_follows() {
    let pairs: usize = std::env::var("BERTH_PAIRS").map_or(10_000, |count| count.parse().unwrap());
    let (mut r, mut quiet) = (Rng::new(5), 0);
    for case in 0..pairs {
        let (mut old, wanted) = pair(&mut r);
        old["futureField"] = json!({ "a": [1] });
        let outcome = std::panic::catch_unwind(|| {
            let due = node_status(&old, &wanted, Heartbeat::Due);
            let got = due.as_ref().map_or(old.clone(), |patch| apply(&old, patch));
            check(&old, &wanted, &got);
            assert_eq!(node_status(&got, &wanted, Heartbeat::Due), None);
            let on_change = node_status(&old, &wanted, Heartbeat::OnChange);
            assert_eq!(on_change, due.filter(|_| is_changed(&old, &got)));
            on_change.is_none()
        });
        quiet += usize::from(outcome.unwrap_or_else(|panic| {
            eprintln!("case {case}\nold {old}\nwanted {wanted}");
            std::panic::resume_unwind(panic)
        }));
    }
    // Both outcomes have to be frequent, else the pairs test little.
    assert!(quiet * 50 > pairs && quiet * 2 < pairs, "{quiet}");
}

#[test]
fn addresses_of_one_type_are_replaced_and_conditions_of_others_are_not_sent() {
    let heartbeat = |time: &str| json!({ "type": "Ready", "status": "True", "lastHeartbeatTime": time });
    let old = json!({
        "addresses": [{ "type": "InternalIP", "address": "192.0.2.1" }],
        "conditions": [{ "type": "NetworkUnavailable", "status": "False" }, heartbeat("2026-01-02T03:04:05Z")],
    });
    let addresses = json!([
        { "type": "InternalIP", "address": "192.0.2.1" }, { "type": "InternalIP", "address": "2001:db8::1" },
    ]);
    let wanted = json!({ "addresses": addresses, "conditions": [heartbeat("2026-01-02T03:04:15Z")] });
    let patch = node_status(&old, &wanted, Heartbeat::OnChange).unwrap();
    assert_eq!(
        patch,
        json!({ "status": {
            "addresses": [
                { "type": "InternalIP", "address": "192.0.2.1" }, { "type": "InternalIP", "address": "2001:db8::1" },
                { "$patch": "replace" },
            ],
            "$setElementOrder/conditions": [{ "type": "NetworkUnavailable" }, { "type": "Ready" }],
            "conditions": [{ "type": "Ready", "lastHeartbeatTime": "2026-01-02T03:04:15Z" }],
        } })
    );
    assert_eq!(apply(&old, &patch)["addresses"], addresses);
}

/// Old statuses of any shape, such as a newer API server's, make no panic.
#[test]
fn node_statuses_of_any_shape_make_no_panic() {
    let odd = [json!(null), json!(7), json!("x"), json!([]), json!([1, {}, { "type": 1 }]), json!({})];
    let mut r = Rng::new(3);
    for _ in 0..3_000 {
        let (mut old, mut wanted) = pair(&mut r);
        for status in [&mut old, &mut wanted] {
            let names: Vec<String> =
                status.as_object().map(Map::keys).into_iter().flatten().cloned().collect();
            for name in some(&mut r, &names, 1) {
                status[name] = any(&mut r, &odd);
            }
        }
        // Any result will do, as long as there is one.
        drop(node_status(&old, &wanted, Heartbeat::OnChange));
    }
}
