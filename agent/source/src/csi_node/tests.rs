//! A CSINode is changed until it says what is registered, by changes that the API server accepts.

use super::*;
use k8s_openapi::api::storage::v1::CSINode;
use proptest::prelude::*;

fn driver(name: &str, id: &str, topology: &[(&str, &str)], max: Option<u64>) -> CsiNodeDriver {
    CsiNodeDriver {
        name: name.into(),
        node_id: id.into(),
        topology: topology.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        max_volumes: max,
    }
}

fn name() -> NodeName {
    NodeName::new("n1").unwrap()
}

fn names(drivers: &[CsiNodeDriver]) -> BTreeSet<String> {
    drivers.iter().map(|d| d.name.clone()).collect()
}

/// The API server's rules: what it stores of a change, or why it refuses it (`ValidateCSINodeUpdate` of 1.36).
fn apply(before: Option<&Value>, change: CsiNodeChange) -> Result<Option<Value>, String> {
    let new = match change {
        CsiNodeChange::Delete => return Ok(None),
        CsiNodeChange::Create(_) if before.is_some() => return Err("exists".into()),
        CsiNodeChange::Put(_) if before.is_none() => return Err("does not exist".into()),
        CsiNodeChange::Create(new) | CsiNodeChange::Put(new) => new,
    };
    let typed: CSINode = serde_json::from_value(new.clone()).map_err(|e| e.to_string())?;
    let mut seen = BTreeSet::new();
    for driver in &typed.spec.drivers {
        if !seen.insert(driver.name.clone()) || driver.node_id.is_empty() {
            return Err(format!("invalid {}", driver.name));
        }
    }
    if let Some(before) = before {
        let old: CSINode = serde_json::from_value(before.clone()).map_err(|e| e.to_string())?;
        for new in &typed.spec.drivers {
            for old in old.spec.drivers.iter().filter(|o| o.name == new.name) {
                if (&old.node_id, &old.topology_keys) != (&new.node_id, &new.topology_keys) {
                    return Err(format!("immutable {}", new.name));
                }
            }
        }
    }
    Ok(Some(new))
}

/// Changes the object until nothing is left. Returns it with the number of changes.
fn settle(
    mut object: Option<Value>,
    uid: &str,
    drivers: &[CsiNodeDriver],
    known: &BTreeSet<String>,
) -> (Value, usize) {
    for changes in 0..=4 {
        match csi_node_change(&name(), uid, object.as_ref(), drivers, known) {
            None => return (object.unwrap(), changes),
            Some(change) => object = apply(object.as_ref(), change).unwrap(),
        }
    }
    panic!("no end: {object:?}");
}

#[test]
fn a_csi_node_follows_its_drivers() {
    let (a, b) = (driver("a", "1", &[("zone", "x")], Some(5)), driver("b", "2", &[], Some(u64::MAX)));
    let (object, changes) = settle(None, "u", &[], &BTreeSet::new());
    assert_eq!(
        (object, changes),
        (
            json!({
                "apiVersion": "storage.k8s.io/v1",
                "kind": "CSINode",
                "metadata": {
                    "name": "n1",
                    "ownerReferences": [{ "apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "u" }],
                },
                "spec": { "drivers": [] },
            }),
            1
        )
    );
    let both = [a.clone(), b.clone()];
    let known = names(&both);
    let (mut object, changes) = settle(None, "u", &both, &known);
    assert_eq!(changes, 1);
    object["metadata"]["resourceVersion"] = "7".into();
    let expected = json!([
        { "name": "a", "nodeID": "1", "topologyKeys": ["zone"], "allocatable": { "count": 5 } },
        { "name": "b", "nodeID": "2", "topologyKeys": [], "allocatable": { "count": 2_147_483_647 } },
    ]);
    assert_eq!(object["spec"]["drivers"], expected);
    // The version goes back to the API server, which refuses an old one.
    let (object, changes) = settle(Some(object), "u", &[b], &known);
    assert_eq!((changes, object["metadata"]["resourceVersion"].as_str()), (1, Some("7")));
    assert_eq!(object["spec"]["drivers"], json!([expected[1]]));
    // A driver that this agent has not seen stays.
    let (object, changes) = settle(Some(object), "u", &[a], &BTreeSet::from(["a".into()]));
    assert_eq!((changes, object["spec"]["drivers"].as_array().unwrap().len()), (1, 2));
}

#[test]
fn another_id_takes_two_changes_and_another_limit_one() {
    let known = BTreeSet::from(["a".to_owned()]);
    let (object, _) = settle(None, "u", &[driver("a", "1", &[], None)], &known);
    let (object, changes) = settle(Some(object), "u", &[driver("a", "1", &[], Some(3))], &known);
    assert_eq!((changes, &object["spec"]["drivers"][0]["allocatable"]["count"]), (1, &json!(3)));
    let (object, changes) = settle(Some(object), "u", &[driver("a", "2", &[], Some(3))], &known);
    assert_eq!((changes, &object["spec"]["drivers"][0]["nodeID"]), (2, &json!("2")));
    let (object, changes) = settle(Some(object), "u", &[driver("a", "2", &[("z", "1")], None)], &known);
    assert_eq!((changes, &object["spec"]["drivers"][0]["topologyKeys"]), (2, &json!(["z"])));
}

#[test]
fn the_csi_node_of_a_former_node_is_made_anew() {
    let drivers = [driver("a", "1", &[], None)];
    let (object, _) = settle(None, "old", &drivers, &names(&drivers));
    let change = csi_node_change(&name(), "new", Some(&object), &drivers, &names(&drivers));
    assert_eq!(change, Some(CsiNodeChange::Delete));
    let (object, changes) = settle(Some(object), "new", &drivers, &names(&drivers));
    assert_eq!((changes, &object["metadata"]["ownerReferences"][0]["uid"]), (2, &json!("new")));
}

#[test]
fn the_node_gets_topology_and_ids() {
    let drivers = [driver("a", "1", &[("zone", "x")], None), driver("b", "2", &[("rack", "7")], None)];
    let known = names(&drivers);
    let mut node = json!({ "metadata": { "labels": { "rack": "7" } } });
    let patch = node_patch(&node, &drivers, &known).unwrap();
    let ids = json!({ NODE_IDS: r#"{"a":"1","b":"2"}"# });
    assert_eq!(patch, json!({ "metadata": { "labels": { "zone": "x" }, "annotations": ids } }));
    node["metadata"]["labels"]["zone"] = "x".into();
    node["metadata"]["annotations"] = ids;
    assert_eq!(node_patch(&node, &drivers, &known), None);
    let fewer = node_patch(&node, &drivers[1..], &known).unwrap();
    assert_eq!(fewer, json!({ "metadata": { "annotations": { NODE_IDS: r#"{"b":"2"}"# } } }));
    let none = node_patch(&node, &[], &known).unwrap();
    assert_eq!(none, json!({ "metadata": { "annotations": { NODE_IDS: null } } }));
    // A driver that has not come back yet keeps its id.
    assert_eq!(node_patch(&node, &[], &BTreeSet::new()), None);
    assert_eq!(node_patch(&json!({}), &[], &BTreeSet::new()), None);
    node["metadata"]["annotations"][NODE_IDS] = "odd".into();
    assert!(node_patch(&node, &drivers, &known).is_some());
}

#[test]
fn a_label_with_another_value_is_a_conflict() {
    let node = json!({ "metadata": { "labels": { "zone": "x" } } });
    let (a, b) = (driver("a", "1", &[("rack", "1")], None), driver("b", "2", &[("rack", "2")], None));
    let none = || std::iter::empty();
    assert_eq!(topology_conflict(&driver("a", "1", &[("zone", "x")], None), &node, none()), None);
    let conflict = topology_conflict(&driver("a", "1", &[("zone", "y")], None), &node, none()).unwrap();
    let text = r#"driver a says that the node's label zone is "y", and the Node has "x""#;
    assert_eq!(conflict.to_string(), text);
    assert_eq!(topology_conflict(&b, &node, none()), None);
    assert_eq!(topology_conflict(&b, &node, [&a].into_iter()).unwrap().there, "1");
}

#[test]
fn a_csi_node_of_any_shape_makes_no_panic() {
    for odd in [
        json!(7),
        json!([]),
        json!({ "metadata": 7, "spec": [] }),
        json!({ "metadata": { "ownerReferences": [{ "kind": "Node", "name": "n1", "uid": "u" }] }, "spec": 7 }),
        json!({
            "metadata": { "ownerReferences": [{ "kind": "Node", "name": "n1", "uid": "u" }] },
            "spec": { "drivers": [7, { "name": 7 }, null] },
        }),
    ] {
        let change =
            csi_node_change(&name(), "u", Some(&odd), &[driver("a", "1", &[], None)], &BTreeSet::new());
        assert!(change.is_some());
        node_patch(&odd, &[driver("a", "1", &[("z", "1")], None)], &BTreeSet::new());
    }
}

fn any_driver() -> impl Strategy<Value = CsiNodeDriver> {
    let topology = prop::collection::btree_map("[xyz]", "[12]", 0..3);
    ("[abc]", "[12]", topology, prop::option::of(1..4_u64)).prop_map(
        |(name, node_id, topology, max_volumes)| CsiNodeDriver { name, node_id, topology, max_volumes },
    )
}

/// Drivers with a name each.
fn any_drivers() -> impl Strategy<Value = Vec<CsiNodeDriver>> {
    prop::collection::vec(any_driver(), 0..4).prop_map(|drivers| {
        let by_name: BTreeMap<String, CsiNodeDriver> =
            drivers.into_iter().map(|d| (d.name.clone(), d)).collect();
        by_name.into_values().collect()
    })
}

proptest! {
    /// From any CSINode to any drivers, the API server accepts each change, at most two are needed, and the result has
    /// exactly the drivers and those that were never seen.
    #[test]
    fn every_change_is_accepted(before in any_drivers(), drivers in any_drivers(), seen in prop::collection::btree_set("[abc]", 0..3)) {
        let (object, _) = settle(None, "u", &before, &names(&before));
        let known: BTreeSet<String> = seen.into_iter().chain(names(&drivers)).collect();
        let (object, changes) = settle(Some(object), "u", &drivers, &known);
        prop_assert!(changes <= 2);
        let there: BTreeMap<String, Value> = object["spec"]["drivers"].as_array().unwrap().iter()
            .map(|d| (d["name"].as_str().unwrap().to_owned(), d.clone())).collect();
        let unseen = before.iter().filter(|d| !known.contains(&d.name));
        let expected: BTreeMap<String, Value> =
            drivers.iter().chain(unseen).map(|d| (d.name.clone(), entry(d))).collect();
        prop_assert_eq!(there, expected);
    }
}
