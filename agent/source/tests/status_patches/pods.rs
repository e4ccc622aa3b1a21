//! The patch of a pod's status: random pairs against the merge of [`super::merge`].

use super::{
    merge,
    random::{OWN, any, pair, some},
    shown,
};
use berth_core::{
    ids::{ContainerName, Namespace, NodeName, PodKey, PodName, PodUid},
    model::{Container, Pod, RestartPolicy},
    time::Wall,
};
use berth_harness::rng::Rng;
use berth_source::patch::{PodUpdate, pod_status};
use serde_json::{Map, Value, json};

/// 2026-01-02T03:04:30Z.
pub(crate) const NOW: Wall = Wall(1_767_323_070_000_000_000);

/// The pod of all random statuses.
pub(crate) fn pod(restart_policy: RestartPolicy) -> Pod {
    let key = PodKey { namespace: Namespace::new("default").unwrap(), name: PodName::new("web").unwrap() };
    let container = |name: &str| Container::new(ContainerName::new(name).unwrap(), "i:1");
    let mut pod = Pod::new(PodUid::new("u-1").unwrap(), key, NodeName::new("n1").unwrap());
    pod.restart_policy = restart_policy;
    pod.init_containers = vec![container("setup"), Container { sidecar: true, ..container("sidecar") }];
    pod.containers = vec![container("web"), container("app"), container("helper")];
    pod
}

pub(crate) fn apply(old: &Value, patch: &Value) -> Value {
    let (Value::Object(old), Value::Object(patch)) = (old.clone(), patch["status"].clone()) else {
        panic!("{old} {patch}")
    };
    merge::object(old, patch.clone()).unwrap_or_else(|error| panic!("{error}: {patch:?}")).into()
}

fn seconds(time: &Value) -> Option<i64> {
    time.as_str().map(|text| text.parse::<jiff::Timestamp>().unwrap().as_second())
}

fn named<'a>(list: &'a Value, key: &str, value: &Value) -> Option<&'a Value> {
    list.as_array()?.iter().find(|element| element[key] == *value)
}

fn is_terminal(status: &Value) -> bool {
    status["phase"] == "Succeeded" || status["phase"] == "Failed"
}

fn is_owned(condition: &Value) -> bool {
    OWN.iter().any(|kind| condition["type"] == *kind)
}

/// Whether the wanted status restarts a container that may not be.
fn is_illegal(policy: RestartPolicy, old: &Value, wanted: &Value) -> bool {
    ["initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses"].iter().any(|list| {
        old[list].as_array().into_iter().flatten().any(|before| {
            let ended = &before["state"]["terminated"];
            let allowed = match before["name"].as_str().unwrap() {
                "debug" => false,
                "sidecar" => true,
                _ => match policy {
                    RestartPolicy::Always => true,
                    RestartPolicy::OnFailure => ended["exitCode"] != 0,
                    RestartPolicy::Never => false,
                },
            };
            let after = named(&wanted[list], "name", &before["name"]);
            ended.is_object() && !allowed && after.is_some_and(|after| after["state"]["terminated"].is_null())
        })
    })
}

/// The status of the API after the patch must be this function's, whatever the patch looks like.
fn check(update: &PodUpdate<'_>, old: &Value, wanted: &Value, got: &Value) {
    // Other writers' fields and conditions.
    for name in ["nominatedNodeName", "resourceClaimStatuses", "futureField"] {
        assert_eq!(got[name], old[name], "{name}");
    }
    let (was, will) = (is_terminal(old), is_terminal(wanted));
    let ending = !was && will && !update.may_run;
    let list = |of: &Value| of["conditions"].as_array().cloned().unwrap_or_default();
    let target = json!("DisruptionTarget");
    let target_wanted = ending && named(&wanted["conditions"], "type", &target).is_some();
    let foreign = |of: &Value| -> Vec<Value> {
        list(of).into_iter().filter(|c| !(is_owned(c) || target_wanted && c["type"] == target)).collect()
    };
    assert_eq!(foreign(got), foreign(old));
    assert_eq!(got["qosClass"], "BestEffort");
    // The phase.
    let kept = was || (will && update.may_run);
    for name in ["phase", "reason", "message"] {
        assert_eq!(shown(&got[name]), shown(if kept { &old[name] } else { &wanted[name] }), "{name}");
    }
    // The node's conditions.
    let ready = ["Ready", "ContainersReady"];
    let unready = is_terminal(got)
        && list(wanted).iter().any(|c| ready.iter().any(|kind| c["type"] == *kind) && c["status"] == "True");
    let own = |of: &Value| {
        let mut kinds: Vec<String> = list(of)
            .iter()
            .filter(|c| is_owned(c) || (target_wanted && c["type"] == target))
            .map(|c| c["type"].to_string())
            .collect();
        kinds.sort();
        kinds
    };
    assert_eq!(own(got), own(wanted));
    for c in list(wanted).iter().filter(|c| is_owned(c) || target_wanted) {
        let after = named(&got["conditions"], "type", &c["type"]).unwrap();
        let before = named(&old["conditions"], "type", &c["type"]);
        assert_eq!(after["lastProbeTime"], Value::Null);
        let generation = |c: Option<&Value>| c.and_then(|c| c["observedGeneration"].as_i64()).unwrap_or(0);
        assert_eq!(generation(Some(after)), generation(Some(c)).max(generation(before)));
        if unready && ready.iter().any(|kind| c["type"] == *kind) {
            let reason = if got["phase"] == "Failed" { "PodFailed" } else { "PodCompleted" };
            assert_eq!((&after["status"], &after["reason"]), (&json!("False"), &json!(reason)));
            continue;
        }
        for name in ["status", "reason", "message"] {
            assert_eq!(shown(&after[name]), shown(&c[name]), "{name}");
        }
        let resize = c["type"].as_str().unwrap().starts_with("PodResize");
        let since = match before {
            Some(before)
                if before["status"] == c["status"]
                    && (!resize || shown(&before["reason"]) == shown(&c["reason"]))
                    && before["lastTransitionTime"].is_string() =>
            {
                &before["lastTransitionTime"]
            }
            _ => &c["lastTransitionTime"],
        };
        assert_eq!(seconds(&after["lastTransitionTime"]), seconds(since));
    }
    // Addresses and resources.
    for name in ["hostIP", "hostIPs", "podIP", "podIPs", "resources", "allocatedResources"] {
        assert_eq!(shown(&got[name]), shown(&wanted[name]), "{name}");
    }
    let start = [&old["startTime"], &wanted["startTime"]].into_iter().find_map(seconds);
    assert_eq!(seconds(&got["startTime"]), start.or(Some(NOW.seconds())));
    let generation = |of: &Value| of["observedGeneration"].as_i64().unwrap_or(0);
    assert_eq!(generation(got), generation(old).max(generation(wanted)));
    check_containers(old, wanted, got);
}

fn check_containers(old: &Value, wanted: &Value, got: &Value) {
    for (list, order) in [
        ("initContainerStatuses", &["setup", "sidecar"][..]),
        ("containerStatuses", &["app", "helper", "web"][..]),
        ("ephemeralContainerStatuses", &["debug"][..]),
    ] {
        let of = |status: &Value| status[list].as_array().cloned().unwrap_or_default();
        let names: Vec<Value> = of(got).iter().map(|c| c["name"].clone()).collect();
        let expected: Vec<Value> = order
            .iter()
            .map(|name| json!(name))
            .filter(|name| named(&wanted[list], "name", name).is_some())
            .collect();
        assert_eq!(names, expected);
        for after in of(got) {
            let mut c = named(&wanted[list], "name", &after["name"]).unwrap().clone();
            let before = named(&old[list], "name", &after["name"]);
            let count = before.map_or(0, |before| before["restartCount"].as_i64().unwrap());
            c["restartCount"] = c["restartCount"].as_i64().unwrap().max(count).into();
            for (state, kind, names) in [
                ("state", "running", &["startedAt"][..]),
                ("state", "terminated", &["startedAt", "finishedAt"][..]),
                ("lastState", "terminated", &["startedAt", "finishedAt"][..]),
            ] {
                let Some(state) = c[state].get_mut(kind) else { continue };
                for name in names {
                    let whole = jiff::Timestamp::from_second(seconds(&state[name]).unwrap()).unwrap();
                    state[name] = whole.to_string().into();
                }
                // 12 KiB for five containers.
                if let Some(message) = state.get("message").and_then(Value::as_str) {
                    state["message"] = message.chars().take(1228).collect::<String>().into();
                }
            }
            assert_eq!(shown(&after), shown(&c));
        }
    }
}

/// 10,000 pairs, or as many as `BERTH_PAIRS` says: the API's status after the patch is the wanted one, others' parts of it are as they were, and
/// nothing is sent a second time.
#[test]
fn a_patch_makes_the_wanted_status_and_no_second_one_follows() {
    let pairs: usize = std::env::var("BERTH_PAIRS").map_or(10_000, |count| count.parse().unwrap());
    let halves = [0_u64, 1].map(|half| std::thread::spawn(move || run(half, pairs / 2)));
    let [first, second] = halves.map(|half| half.join().unwrap());
    let counts = [first, second].iter().fold([0; 3], |sum, one| [0, 1, 2].map(|at| sum[at] + one[at]));
    // All three outcomes have to be frequent, else the pairs test little.
    assert!(counts.iter().all(|count| count * 50 > pairs), "patched, nothing to do, illegal: {counts:?}");
}

fn run(seed: u64, pairs: usize) -> [usize; 3] {
    let mut r = Rng::new(seed);
    let mut counts = [0; 3];
    let policies = [RestartPolicy::Always, RestartPolicy::OnFailure, RestartPolicy::Never];
    let pods = policies.map(|policy| (policy, pod(policy)));
    for case in 0..pairs {
        let (policy, pod) = &pods[r.index(3)];
        let (mut old, wanted) = pair(&mut r);
        old["futureField"] = json!({ "a": [1] });
        old["nominatedNodeName"] = "n2".into();
        let update = PodUpdate { uid: "u-1", pod, may_run: r.one_in(2), now: NOW };
        let outcome = std::panic::catch_unwind(|| {
            let Ok(patch) = pod_status(&update, &old, &wanted) else {
                assert!(is_illegal(*policy, &old, &wanted));
                return 2;
            };
            assert!(!is_illegal(*policy, &old, &wanted));
            let got = patch.as_ref().map_or(old.clone(), |patch| {
                assert_eq!(patch["metadata"], json!({ "uid": "u-1" }));
                apply(&old, patch)
            });
            check(&update, &old, &wanted, &got);
            let later = PodUpdate { now: Wall(NOW.0 + 60_000_000_000), ..update };
            assert_eq!(pod_status(&later, &got, &wanted).unwrap(), None);
            usize::from(patch.is_none())
        });
        match outcome {
            Ok(which) => counts[which] += 1,
            Err(panic) => {
                eprintln!("seed {seed}, case {case}, may_run {}\nold {old}\nwanted {wanted}", update.may_run);
                std::panic::resume_unwind(panic);
            }
        }
    }
    counts
}

fn always<'a>(pod: &'a Pod, may_run: bool) -> PodUpdate<'a> {
    PodUpdate { uid: "u-1", pod, may_run, now: NOW }
}

/// The body as the API server gets it, in full.
#[test]
fn the_body_of_a_patch() {
    let pod = pod(RestartPolicy::Always);
    let old = json!({
        "phase": "Pending",
        "qosClass": "BestEffort",
        "startTime": "2026-01-02T03:04:05Z",
        "podIP": "192.0.2.1",
        "podIPs": [{ "ip": "192.0.2.1" }],
        "message": "starting",
        "conditions": [
            { "type": "Ready", "status": "False", "reason": "ContainersNotReady", "lastProbeTime": null,
              "lastTransitionTime": "2026-01-02T03:04:05Z", "observedGeneration": 1 },
            { "type": "example.com/gate", "status": "True", "lastProbeTime": null, "lastTransitionTime": null },
            { "type": "PodResizePending", "status": "True", "lastProbeTime": null, "lastTransitionTime": null },
        ],
    });
    let wanted = json!({
        "phase": "Running",
        "qosClass": "BestEffort",
        "startTime": "2026-01-02T03:04:06.5Z",
        "podIP": "192.0.2.2",
        "podIPs": [{ "ip": "192.0.2.2" }],
        "conditions": [
            { "type": "Ready", "status": "True", "lastProbeTime": null,
              "lastTransitionTime": "2026-01-02T03:04:08.9Z", "observedGeneration": 1 },
        ],
    });
    let patch = pod_status(&always(&pod, true), &old, &wanted).unwrap().unwrap();
    assert_eq!(
        patch,
        json!({
            "metadata": { "uid": "u-1" },
            "status": {
                "phase": "Running",
                "message": null,
                "podIP": "192.0.2.2",
                "$setElementOrder/podIPs": [{ "ip": "192.0.2.2" }],
                "podIPs": [{ "ip": "192.0.2.2" }, { "ip": "192.0.2.1", "$patch": "delete" }],
                "$setElementOrder/conditions": [{ "type": "example.com/gate" }, { "type": "Ready" }],
                "conditions": [
                    { "type": "Ready", "status": "True", "reason": null,
                      "lastTransitionTime": "2026-01-02T03:04:08Z" },
                    { "type": "PodResizePending", "$patch": "delete" },
                ],
            },
        })
    );
}

/// The order of conditions says nothing, so it is no reason for a request; that of addresses says which is first.
#[test]
fn another_order_of_conditions_sends_nothing_and_one_of_addresses_does() {
    let pod = pod(RestartPolicy::Always);
    let condition =
        |kind: &str| json!({ "type": kind, "status": "True", "lastTransitionTime": "2026-01-02T03:04:05Z" });
    let ips = |list: &[&str]| list.iter().map(|ip| json!({ "ip": ip })).collect::<Vec<_>>();
    let status = |conditions: [&str; 2], addresses: [&str; 2]| {
        json!({
            "phase": "Running", "startTime": "2026-01-02T03:04:05Z",
            "conditions": conditions.map(condition), "podIP": addresses[0], "podIPs": ips(&addresses),
        })
    };
    let (old, same) = (
        status(["Ready", "Initialized"], ["192.0.2.1", "2001:db8::1"]),
        status(["Initialized", "Ready"], ["192.0.2.1", "2001:db8::1"]),
    );
    assert_eq!(pod_status(&always(&pod, true), &old, &same).unwrap(), None);
    let swapped = status(["Ready", "Initialized"], ["2001:db8::1", "192.0.2.1"]);
    let patch = pod_status(&always(&pod, true), &old, &swapped).unwrap().unwrap();
    assert_eq!(
        patch["status"],
        json!({ "podIP": "2001:db8::1", "$setElementOrder/podIPs": [{ "ip": "2001:db8::1" }, { "ip": "192.0.2.1" }] })
    );
    assert_eq!(apply(&old, &patch)["podIPs"], swapped["podIPs"]);
}

/// Old statuses of any shape, such as a newer API server's, make no panic.
#[test]
fn statuses_of_any_shape_make_no_panic() {
    let pod = pod(RestartPolicy::Never);
    let odd = [
        json!(null),
        json!(7),
        json!("x"),
        json!([]),
        json!([1, {}, { "type": 1 }, { "name": null }]),
        json!({}),
    ];
    let mut r = Rng::new(3);
    for _ in 0..5_000 {
        let (mut old, mut wanted) = pair(&mut r);
        for status in [&mut old, &mut wanted] {
            let names: Vec<String> =
                status.as_object().map(Map::keys).into_iter().flatten().cloned().collect();
            for name in some(&mut r, &names, 1) {
                status[name] = any(&mut r, &odd);
            }
            if r.one_in(10) {
                *status = any(&mut r, &odd);
            }
        }
        // Any result will do, as long as there is one.
        drop(pod_status(&always(&pod, r.one_in(2)), &old, &wanted));
    }
}

#[test]
fn an_illegal_transition_names_the_container() {
    let pod = pod(RestartPolicy::Never);
    let old =
        json!({ "containerStatuses": [{ "name": "app", "state": { "terminated": { "exitCode": 0 } } }] });
    let wanted =
        json!({ "containerStatuses": [{ "name": "app", "state": { "waiting": { "reason": "x" } } }] });
    let error = pod_status(&always(&pod, true), &old, &wanted).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot report the status of container app: it ended, and the pod's restartPolicy does not let it start again"
    );
}
