//! The size of a claim in the API server's JSON, and the patches by which a node tells of an expansion. They are the
//! kubelet's (`pkg/volume/util/resize_util.go`): strategic merge patches of `status`. Pure.

use crate::{
    cluster::{ObjectError, claim},
    status::time,
};
use berth_core::{
    quantity::Quantity,
    time::Wall,
    volume::expand::{ClaimSize, ResizeStatus, SizeChange},
};
use serde_json::{Value, json};

/// The conditions about a resize; a node removes them once the volume has its size.
const CONDITIONS: [&str; 4] =
    ["FileSystemResizePending", "Resizing", "ControllerResizeError", "NodeResizeError"];
/// The condition of a node's failure.
const NODE_ERROR: &str = "NodeResizeError";
/// Nodes have nothing to do.
const NOT_REQUIRED: &str = "volume.kubernetes.io/node-expansion-not-required";

/// Reads what a PersistentVolumeClaim says of its size.
///
/// # Errors
///
/// The JSON is no claim.
pub fn claim_size(json: &[u8]) -> Result<ClaimSize, ObjectError> {
    let read = claim(json)?;
    let object: Value =
        serde_json::from_slice(json).map_err(|e| ObjectError { field: None, reason: e.to_string() })?;
    let status = &object["status"];
    let conditions = status["conditions"].as_array().into_iter().flatten();
    Ok(ClaimSize {
        uid: read.uid,
        version: object["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned(),
        requested: read.request,
        capacity: read.capacity,
        allocated: status["allocatedResources"]["storage"].as_str().and_then(|text| text.parse().ok()),
        status: status["allocatedResourceStatuses"]["storage"].as_str().map(|text| match text {
            "NodeResizePending" | "NodeResizeInProgress" => ResizeStatus::OfNode,
            _ => ResizeStatus::Other,
        }),
        many_nodes: read.access_modes.contains(&berth_core::model::AccessMode::ReadWriteMany),
        not_required: !object["metadata"]["annotations"][NOT_REQUIRED].is_null(),
        conditions: conditions
            .filter_map(|c| c["type"].as_str())
            .filter(|kind| CONDITIONS.contains(kind))
            .map(str::to_owned)
            .collect(),
    })
}

/// The body of a patch of the claim's `status`. The API server refuses it if the claim is another one by now; news of
/// progress also if the claim has changed.
pub fn size_patch(claim: &ClaimSize, change: &SizeChange, now: Wall) -> Value {
    let guarded = json!({ "uid": claim.uid, "resourceVersion": claim.version });
    let always = json!({ "uid": claim.uid });
    match change {
        SizeChange::InProgress => json!({
            "metadata": guarded,
            "status": { "allocatedResourceStatuses": { "storage": "NodeResizeInProgress" } },
        }),
        SizeChange::Finished(size) => json!({
            "metadata": guarded,
            "status": {
                "capacity": { "storage": text(size) },
                "allocatedResourceStatuses": { "storage": null },
                "conditions": claim.conditions.iter().map(removed).collect::<Vec<_>>(),
            },
        }),
        SizeChange::Failed(why) => json!({
            "metadata": always,
            "status": { "conditions": [failed(why, now)] },
        }),
        SizeChange::Infeasible(why) => json!({
            "metadata": always,
            "status": {
                "allocatedResourceStatuses": { "storage": "NodeResizeInfeasible" },
                "conditions": [failed(why, now)],
            },
        }),
    }
}

fn text(size: &Quantity) -> &str {
    size.as_str()
}

fn removed(kind: &String) -> Value {
    json!({ "$patch": "delete", "type": kind })
}

fn failed(why: &str, now: Wall) -> Value {
    json!({
        "type": NODE_ERROR,
        "status": "True",
        "lastTransitionTime": time(now),
        "message": format!("failed to expand pvc with {why}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(status: Value) -> ClaimSize {
        let object = json!({
            "metadata": { "namespace": "n", "name": "c", "uid": "u", "resourceVersion": "7",
                "annotations": { NOT_REQUIRED: "true" } },
            "spec": { "accessModes": ["ReadWriteMany"], "volumeName": "v",
                "resources": { "requests": { "storage": "2Gi" } } },
            "status": status,
        });
        claim_size(object.to_string().as_bytes()).unwrap()
    }

    fn growing() -> ClaimSize {
        read(json!({
            "phase": "Bound",
            "capacity": { "storage": "1Gi" },
            "allocatedResources": { "storage": "2Gi" },
            "allocatedResourceStatuses": { "storage": "NodeResizePending" },
            "conditions": [
                { "type": "FileSystemResizePending", "status": "True" },
                { "type": "ModifyingVolume", "status": "True" },
            ],
        }))
    }

    #[test]
    fn a_claim_tells_its_sizes_and_whose_turn_it_is() {
        let size = growing();
        assert_eq!((size.uid.as_str(), size.version.as_str()), ("u", "7"));
        let gib = |size: Option<Quantity>| size.map(|s| s.units() >> 30);
        let sizes = [size.requested, size.capacity, size.allocated].map(gib);
        assert_eq!(sizes, [Some(2), Some(1), Some(2)]);
        assert_eq!(size.status, Some(ResizeStatus::OfNode));
        assert!(size.many_nodes && size.not_required);
        assert_eq!(size.conditions, ["FileSystemResizePending"], "others' conditions stay");
        assert_eq!(read(json!({})).status, None);
        let other = json!({ "allocatedResourceStatuses": { "storage": "ControllerResizeInfeasible" } });
        assert_eq!(read(other).status, Some(ResizeStatus::Other));
        assert!(claim_size(b"{").is_err());
    }

    #[test]
    fn a_patch_names_the_claim_and_changes_the_resize_alone() {
        let patch = |change| size_patch(&growing(), &change, Wall(1_767_323_070_900_000_000));
        let begun = patch(SizeChange::InProgress);
        assert_eq!(begun["metadata"], json!({ "uid": "u", "resourceVersion": "7" }));
        assert_eq!(begun["status"]["allocatedResourceStatuses"]["storage"], "NodeResizeInProgress");
        let done = patch(SizeChange::Finished("2Gi".parse().unwrap()));
        let expected = json!({
            "capacity": { "storage": "2Gi" },
            "allocatedResourceStatuses": { "storage": null },
            "conditions": [{ "$patch": "delete", "type": "FileSystemResizePending" }],
        });
        assert_eq!(done["status"], expected);
        let failed = patch(SizeChange::Failed("x".into()));
        assert_eq!(failed["metadata"], json!({ "uid": "u" }));
        let condition = &failed["status"]["conditions"][0];
        assert_eq!(condition["message"], "failed to expand pvc with x");
        assert_eq!(condition["lastTransitionTime"], "2026-01-02T03:04:30Z");
        let never = patch(SizeChange::Infeasible("x".into()));
        assert_eq!(never["status"]["allocatedResourceStatuses"]["storage"], "NodeResizeInfeasible");
    }
}
