//! Table and JSON of `berth volumes`.

use crate::{table::Table, v1};
use berth_api::view::{PodView, VolumeView};
use berth_core::ids::PodUid;
use serde_json::{Value, json};
use std::path::PathBuf;

/// Kinds whose data is not the pod's own.
const LASTING: [&str; 6] = ["nfs", "csi", "local", "hostPath", "unbound", "not supported"];

/// A volume of a pod.
pub(crate) struct Row<'a> {
    pod: String,
    volume: &'a VolumeView,
    /// Where it is on the node, if it is there.
    at: Option<PathBuf>,
    /// The containers that mount it.
    users: Vec<String>,
    /// What it waits for.
    waits_for: Option<String>,
}

/// The volumes of these pods; with `all` also those whose data is the pod's own. `dir` gives the directory of a pod.
pub(crate) fn rows<'a>(pods: &'a [PodView], all: bool, dir: impl Fn(&PodUid) -> PathBuf) -> Vec<Row<'a>> {
    let of_pod = |pod: &'a PodView| {
        let dir = dir(&pod.uid);
        let object = v1::Pod::of(pod);
        let containers =
            [&object.spec.init_containers, &object.spec.containers, &object.spec.ephemeral_containers];
        let rows: Vec<Row<'a>> = pod
            .volumes
            .iter()
            .filter(|volume| all || LASTING.contains(&volume.kind.as_str()))
            .map(|volume| {
                let at = volume
                    .root
                    .as_ref()
                    .map(|root| dir.join(root))
                    .filter(|at| at.symlink_metadata().is_ok());
                let uses = |c: &&v1::Container| c.volume_mounts.iter().any(|m| m.name == volume.name);
                let users: Vec<String> = containers
                    .iter()
                    .flat_map(|list| list.iter())
                    .filter(uses)
                    .map(|c| c.name.clone())
                    .collect();
                let waits = at.is_none() && !users.is_empty() && !pod.gone;
                let waits_for = waits.then(|| pod.waiting_for.clone()).flatten();
                Row { pod: pod.key.to_string(), volume, at, users, waits_for }
            })
            .collect();
        rows
    };
    pods.iter().flat_map(of_pod).collect()
}

/// The table of volumes.
pub(crate) fn table(rows: &[Row<'_>]) -> Table {
    let mut table =
        Table::new(&["POD", "VOLUME", "CLAIM", "KIND", "SOURCE", "MOUNTED AT", "USERS", "WAITS FOR"]);
    let or_dash = |text: String| if text.is_empty() { "-".to_owned() } else { text };
    for row in rows {
        let claim = match &row.volume.claim {
            None => String::new(),
            Some((claim, None)) => claim.clone(),
            Some((claim, Some(volume))) => format!("{claim} -> {volume}"),
        };
        table.row(vec![
            row.pod.clone(),
            row.volume.name.clone(),
            or_dash(claim),
            row.volume.kind.clone(),
            or_dash(row.volume.source.clone()),
            or_dash(row.at.as_ref().map(|at| at.display().to_string()).unwrap_or_default()),
            or_dash(row.users.join(",")),
            or_dash(row.waits_for.clone().unwrap_or_default()),
        ]);
    }
    table
}

/// The volumes as JSON.
pub(crate) fn json(rows: &[Row<'_>]) -> Vec<Value> {
    let row = |row: &Row<'_>| {
        json!({
            "pod": row.pod,
            "name": row.volume.name,
            "kind": row.volume.kind,
            "source": row.volume.source,
            "claim": row.volume.claim.as_ref().map(|(claim, _)| claim),
            "persistentVolume": row.volume.claim.as_ref().and_then(|(_, volume)| volume.as_ref()),
            "mountedAt": row.at,
            "containers": row.users,
            "waitsFor": row.waits_for,
        })
    };
    rows.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_tells_where_it_is_or_what_it_waits_for() {
        let node = tempfile::tempdir().unwrap();
        let text = r#"{"uid":"u","key":{"namespace":"d","name":"p"},"waiting_for":"PVC is not bound",
            "object":{"spec":{"containers":[{"name":"c","volumeMounts":[{"name":"data"},{"name":"more"}]}]}},
            "volumes":[
                {"name":"data","kind":"local","source":"/d","claim":["data","pv"],"root":"volumes/x"},
                {"name":"more","kind":"unbound","source":"","claim":["more",null],"root":null},
                {"name":"own","kind":"emptyDir","source":"","claim":null,"root":null}]}"#;
        let pods: Vec<PodView> = vec![serde_json::from_str(text).unwrap()];
        std::fs::create_dir_all(node.path().join("u/volumes/x")).unwrap();
        let dir = |uid: &PodUid| node.path().join(uid.as_str());
        let shown = rows(&pods, false, dir);
        assert_eq!(shown.len(), 2, "the pod's own data is left out");
        assert_eq!(rows(&pods, true, dir).len(), 3);
        let list = json(&shown);
        assert_eq!(list[0]["mountedAt"], json!(node.path().join("u/volumes/x")));
        assert_eq!((&list[0]["waitsFor"], &list[1]["waitsFor"]), (&Value::Null, &json!("PVC is not bound")));
        let text = table(&shown).take();
        assert!(text.contains("data -> pv") && text.contains("PVC is not bound"), "{text}");
    }
}
