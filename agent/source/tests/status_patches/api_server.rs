//! The same pairs through a real API server: the recordings of [`super::recorded`] come from here.
//!
//! Needs a cluster of `cargo xtask cluster --dir DIR` without its controller manager (`--kill kube-controller-manager`),
//! which corrects DisruptionTarget, and curl:
//! `BERTH_CLUSTER=DIR cargo test -p berth-source --test status_patches api_server -- --ignored`. `BERTH_PAIRS` says how
//! many pairs, `BERTH_RECORD` names the file to record cases into.

use super::{
    pods::{NOW, apply, pod},
    random::{CLAIMS, Random, pair},
    shown,
};
use berth_core::model::RestartPolicy;
use berth_source::patch::{CONTENT_TYPE, PodUpdate, pod_status};
use serde_json::{Value, json};
use std::{collections::BTreeSet, fmt::Write, fs, path::PathBuf, process::Command};

/// Requests to one API server as its administrator.
struct Server {
    cluster: PathBuf,
    url: String,
    scratch: tempfile::TempDir,
}

struct Request {
    method: &'static str,
    path: String,
    content_type: &'static str,
    body: Value,
}

impl Server {
    fn new() -> Server {
        let cluster =
            PathBuf::from(std::env::var("BERTH_CLUSTER").expect("BERTH_CLUSTER names a cluster's directory"));
        let kubeconfig = fs::read_to_string(cluster.join("admin.kubeconfig")).unwrap();
        let url =
            kubeconfig.lines().find_map(|line| line.trim().strip_prefix("server: ")).unwrap().to_owned();
        Server { cluster, url, scratch: tempfile::tempdir().unwrap() }
    }

    /// The answers to the requests, which go over one connection one after the other.
    fn send(&self, requests: &[Request]) -> Vec<Value> {
        let dir = self.scratch.path();
        let mut config = String::new();
        for (at, request) in requests.iter().enumerate() {
            fs::write(dir.join(format!("{at}.json")), request.body.to_string()).unwrap();
            let pki = self.cluster.join("pki");
            let next = if at == 0 { "" } else { "next\n" };
            let (pki, dir) = (pki.display(), dir.display());
            let Request { method, path, content_type, .. } = request;
            write!(
                config,
                "{next}url = \"{}{path}\"\nrequest = {method}\nheader = \"Content-Type: {content_type}\"\nsilent\n\
                 data-binary = \"@{dir}/{at}.json\"\noutput = \"{dir}/{at}.out\"\nmax-time = 20\n\
                 cacert = \"{pki}/ca.crt\"\ncert = \"{pki}/admin.crt\"\nkey = \"{pki}/admin.key\"\n",
                self.url
            )
            .unwrap();
        }
        fs::write(dir.join("config"), config).unwrap();
        let status = Command::new("curl").arg("-K").arg(dir.join("config")).status().unwrap();
        assert!(status.success(), "{status}");
        (0..requests.len())
            .map(|at| serde_json::from_slice(&fs::read(dir.join(format!("{at}.out"))).unwrap()).unwrap())
            .collect()
    }

    fn json(&self, method: &'static str, path: &str, body: Value) -> Value {
        let request = Request { method, path: path.to_owned(), content_type: "application/json", body };
        self.send(&[request]).remove(0)
    }
}

/// A pod that no other program touches: it waits for a scheduling gate that nobody opens.
fn gated(name: &str) -> Value {
    let container = |name: &str| json!({ "name": name, "image": "i:1" });
    let claims = CLAIMS.map(|name| json!({ "name": name, "resourceClaimTemplateName": name }));
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
        "spec": {
            "schedulingGates": [{ "name": "berth.test/never" }],
            "automountServiceAccountToken": false,
            "resourceClaims": claims,
            "initContainers": [
                container("setup"), { "name": "sidecar", "image": "i:1", "restartPolicy": "Always" },
            ],
            "containers": [container("web"), container("app"), container("helper")],
        },
    })
}

#[test]
#[ignore = "needs a cluster of `cargo xtask cluster`, named by BERTH_CLUSTER"]
fn pairs_go_through_a_real_api_server() {
    let pairs: usize = std::env::var("BERTH_PAIRS").map_or(1_000, |count| count.parse().unwrap());
    let server = Server::new();
    let pods = "/api/v1/namespaces/default/pods";
    let name = "berth-status-patches";
    let path = format!("{pods}/{name}");
    server.json("DELETE", &path, json!({ "gracePeriodSeconds": 0 }));
    let made = server.json("POST", pods, gated(name));
    let uid = made["metadata"]["uid"].as_str().unwrap_or_else(|| panic!("{made}")).to_owned();
    let model = pod(RestartPolicy::Always);
    let status_path = format!("{path}/status");
    let put = |status: Value| Request {
        method: "PUT",
        path: status_path.clone(),
        content_type: "application/json",
        body: json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "uid": uid }, "status": status }),
    };
    let (mut r, mut sent, mut shapes, mut recorded) = (Random(17), 0, BTreeSet::new(), String::new());
    for _ in 0..pairs.div_ceil(100) {
        let mut cases = Vec::new();
        let mut requests = Vec::new();
        while cases.len() < 100 {
            let (mut old, wanted) = pair(&mut r);
            // The API server keeps the last one where none is put.
            if old["observedGeneration"].is_null() {
                old["observedGeneration"] = 1.into();
            }
            let update = PodUpdate { uid: &uid, pod: &model, may_run: r.once_in(2), now: NOW };
            let Ok(patch) = pod_status(&update, &old, &wanted) else { continue };
            requests.push(put(json!({})));
            requests.push(put(old.clone()));
            if let Some(body) = patch.clone() {
                requests.push(Request {
                    method: "PATCH",
                    path: status_path.clone(),
                    content_type: CONTENT_TYPE,
                    body,
                });
            }
            cases.push((old, wanted, update, patch));
        }
        let mut answers = server.send(&requests).into_iter();
        for (old, wanted, update, patch) in cases {
            answers.next().unwrap();
            let before = answers.next().unwrap();
            assert_eq!(
                shown(&before["status"]),
                shown(&old),
                "the API server's form of the old status: {before}"
            );
            let before = &before["status"];
            assert_eq!(pod_status(&update, before, &wanted).unwrap(), patch, "old in the API server's form");
            let Some(patch) = patch else { continue };
            let after = answers.next().unwrap();
            assert_eq!(after["metadata"]["uid"], uid.as_str(), "refused: {after}\npatch {patch}\nold {old}");
            let after = &after["status"];
            same_members(after, &apply(before, &patch));
            let second = pod_status(&update, after, &wanted).unwrap();
            assert_eq!(second, None, "patch {patch}\nold {old}\nwanted {wanted}\nafter {after}");
            sent += 1;
            let case = json!({
                "old": before, "wanted": wanted, "mayRun": update.may_run, "patch": patch["status"], "merged": after,
            });
            let line = case.to_string();
            if line.len() < 6_000 && shapes.len() < 150 && shapes.insert(shape(&patch["status"])) {
                recorded.push_str(&line);
                recorded.push('\n');
            }
        }
    }
    server.json("DELETE", &path, json!({ "gracePeriodSeconds": 0 }));
    eprintln!("{sent} patches of {pairs} pairs went through the API server");
    assert!(sent * 2 > pairs, "{sent}");
    if let Ok(file) = std::env::var("BERTH_RECORD") {
        fs::write(file, recorded).unwrap();
    }
}

/// Compares what the API server has with what it should have, member by member.
fn same_members(server: &Value, ours: &Value) {
    let names: BTreeSet<&String> = [server, ours]
        .iter()
        .flat_map(|status| status.as_object().into_iter().flatten())
        .map(|(name, _)| name)
        .collect();
    for name in names {
        assert_eq!(shown(&server[name]), shown(&ours[name]), "{name} of\n{server}\n{ours}");
    }
}

/// What a patch does with each list that has a merge key, so that each kind of change is recorded once.
fn shape(patch: &Value) -> String {
    let mut text = String::new();
    for list in ["conditions", "podIPs", "hostIPs"] {
        let changes = patch[list].as_array().cloned().unwrap_or_default();
        let deleted = changes.iter().filter(|change| change.get("$patch").is_some()).count();
        let order = patch[format!("$setElementOrder/{list}")].is_array();
        let cleared = patch.get(list).is_some_and(Value::is_null);
        write!(text, "{list} {} {} {order} {cleared} ", changes.len().min(3), deleted.min(2)).unwrap();
    }
    text
}
