//! The same pairs through a real API server: the recordings of [`super::recorded`] come from here.
//!
//! Needs a cluster of `cargo xtask cluster --dir DIR` without its controller manager (`--kill kube-controller-manager`),
//! which corrects DisruptionTarget, and curl:
//! `BERTH_CLUSTER=DIR cargo test -p berth-source --test status_patches api_server -- --ignored`. `BERTH_PAIRS` says how
//! many pairs, `BERTH_RECORD` names the file to record cases into.

use super::{
    nodes,
    pods::{NOW, apply, pod},
    random::{CLAIMS, pair},
    shown,
};
use berth_core::model::RestartPolicy;
use berth_harness::rng::Rng;
use berth_source::patch::{CONTENT_TYPE, Heartbeat, PodUpdate, node_status, pod_status};
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

type Again<'a> = Box<dyn Fn(&Value) -> Option<Value> + 'a>;

/// A pair on its way through the API server.
struct Case<'a> {
    old: Value,
    wanted: Value,
    may_run: bool,
    patch: Option<Value>,
    /// The patch from another old status to the wanted one.
    again: Again<'a>,
}

impl Server {
    /// Puts each case's old status, patches it, and compares what the API server made of it with the merge of this test.
    /// The API server's old and new status of those cases that had a patch.
    fn through(&self, status_path: &str, object: &Value, cases: &[Case<'_>]) -> Vec<Option<(Value, Value)>> {
        let put = |status: Value| {
            let mut body = object.clone();
            body["status"] = status;
            Request { method: "PUT", path: status_path.to_owned(), content_type: "application/json", body }
        };
        let mut requests = Vec::new();
        for case in cases {
            // The empty status between two cases makes each container's state a new one.
            requests.extend([put(json!({})), put(case.old.clone())]);
            if let Some(body) = case.patch.clone() {
                let path = status_path.to_owned();
                requests.push(Request { method: "PATCH", path, content_type: CONTENT_TYPE, body });
            }
        }
        let mut answers = self.send(&requests).into_iter();
        let mut through = Vec::new();
        for Case { old, wanted, patch, again, .. } in cases {
            answers.next().unwrap();
            let before = answers.next().unwrap()["status"].clone();
            same_members(&before, old);
            assert_eq!(again(&before), *patch, "from the API server's form of {old}");
            let Some(patch) = patch else {
                through.push(None);
                continue;
            };
            let answer = answers.next().unwrap();
            assert_eq!(answer["kind"], object["kind"], "refused: {answer}\npatch {patch}\nold {old}");
            let after = answer["status"].clone();
            same_members(&after, &apply(&before, patch));
            assert_eq!(again(&after), None, "patch {patch}\nold {old}\nwanted {wanted}\nafter {after}");
            through.push(Some((before, after)));
        }
        through
    }
}

fn pairs() -> usize {
    std::env::var("BERTH_PAIRS").map_or(1_000, |count| count.parse().unwrap())
}

#[test]
#[ignore = "needs a cluster of `cargo xtask cluster`, named by BERTH_CLUSTER"]
fn pairs_go_through_a_real_api_server() {
    let server = Server::new();
    let pods = "/api/v1/namespaces/default/pods";
    let name = "berth-status-patches";
    let path = format!("{pods}/{name}");
    server.json("DELETE", &path, json!({ "gracePeriodSeconds": 0 }));
    let made = server.json("POST", pods, gated(name));
    let uid = made["metadata"]["uid"].as_str().unwrap_or_else(|| panic!("{made}")).to_owned();
    let object = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "uid": uid } });
    let model = pod(RestartPolicy::Always);
    let (mut r, mut sent, mut shapes, mut recorded) = (Rng::new(17), 0, BTreeSet::new(), String::new());
    for _ in 0..pairs().div_ceil(100) {
        let mut cases = Vec::new();
        while cases.len() < 100 {
            let (mut old, wanted) = pair(&mut r);
            // The API server keeps the last one where none is put.
            if old["observedGeneration"].is_null() {
                old["observedGeneration"] = 1.into();
            }
            let may_run = r.one_in(2);
            let update = PodUpdate { uid: &uid, pod: &model, may_run, now: NOW };
            let Ok(patch) = pod_status(&update, &old, &wanted) else { continue };
            let to = wanted.clone();
            let again = Box::new(move |old: &Value| pod_status(&update, old, &to).unwrap());
            cases.push(Case { old, wanted, may_run, patch, again });
        }
        let through = server.through(&format!("{path}/status"), &object, &cases);
        for (case, (before, after)) in
            cases.iter().zip(through).filter_map(|(case, both)| Some((case, both?)))
        {
            sent += 1;
            let patch = &case.patch.as_ref().unwrap()["status"];
            let line = json!({
                "old": before, "wanted": case.wanted, "mayRun": case.may_run, "patch": patch, "merged": after,
            })
            .to_string();
            if line.len() < 6_000 && shapes.insert(shape(patch)) {
                recorded.push_str(&line);
                recorded.push('\n');
            }
        }
    }
    server.json("DELETE", &path, json!({ "gracePeriodSeconds": 0 }));
    eprintln!("{sent} patches of {} pairs went through the API server", pairs());
    assert!(sent * 2 > pairs(), "{sent}");
    if let Ok(file) = std::env::var("BERTH_RECORD") {
        fs::write(file, recorded).unwrap();
    }
}

#[test]
#[ignore = "needs a cluster of `cargo xtask cluster`, named by BERTH_CLUSTER"]
fn node_pairs_go_through_a_real_api_server() {
    let server = Server::new();
    let name = "berth-status-patches";
    let path = format!("/api/v1/nodes/{name}");
    server.json("DELETE", &path, json!({}));
    let object = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name } });
    let made = server.json("POST", "/api/v1/nodes", object.clone());
    assert_eq!(made["kind"], "Node", "{made}");
    let (mut r, mut sent) = (Rng::new(18), 0);
    for _ in 0..pairs().div_ceil(100) {
        let cases: Vec<Case<'_>> = (0..100)
            .map(|_| {
                let (old, wanted) = nodes::pair(&mut r);
                let patch = node_status(&old, &wanted, Heartbeat::Due);
                let to = wanted.clone();
                let again = Box::new(move |old: &Value| node_status(old, &to, Heartbeat::Due));
                Case { old, wanted, may_run: false, patch, again }
            })
            .collect();
        sent += server.through(&format!("{path}/status"), &object, &cases).iter().flatten().count();
    }
    server.json("DELETE", &path, json!({}));
    eprintln!("{sent} patches of {} node pairs went through the API server", pairs());
    assert!(sent * 2 > pairs(), "{sent}");
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
