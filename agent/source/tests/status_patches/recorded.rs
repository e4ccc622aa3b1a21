//! What a real API server (v1.36.3) made of patches, recorded by [`super::api_server`]; one case a line.

use super::{
    pods::{NOW, apply, pod},
    shown,
};
use berth_core::model::RestartPolicy;
use berth_source::patch::{PodUpdate, pod_status};
use serde_json::{Value, json};

const RECORDED: &str = include_str!("recorded.jsonl");

#[test]
fn the_merge_of_the_test_and_the_patches_agree_with_a_real_api_server() {
    let pod = pod(RestartPolicy::Always);
    let mut cases = 0;
    for line in RECORDED.lines() {
        let case: Value = serde_json::from_str(line).unwrap();
        let (old, wanted, merged) = (&case["old"], &case["wanted"], &case["merged"]);
        let update = PodUpdate { uid: "u-1", pod: &pod, may_run: case["mayRun"] == true, now: NOW };
        let body = json!({ "metadata": { "uid": "u-1" }, "status": case["patch"] });
        assert_eq!(pod_status(&update, old, wanted).unwrap().as_ref(), Some(&body), "{line}");
        assert_eq!(shown(&apply(old, &body)), shown(merged), "{line}");
        assert_eq!(pod_status(&update, merged, wanted).unwrap(), None, "{line}");
        cases += 1;
    }
    assert!(cases >= 40, "{cases}");
}
