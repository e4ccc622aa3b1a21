//! The writer against an API server in memory.

use super::*;
use serde_json::json;
use std::sync::Mutex;

/// An API server that has one Node and its CSINode.
#[derive(Default)]
struct Fake {
    /// The CSINode, and the patches of the Node.
    state: Mutex<(Option<Value>, Vec<Value>)>,
    /// Names, ids and labels with this text are refused.
    refuses: &'static str,
    /// The next changes of the CSINode meet these codes.
    codes: Mutex<Vec<u16>>,
}

fn refusal(code: u16) -> Error {
    let refusal = Refusal::of_answer(code, None, b"no");
    Error::Refused { method: "PUT".into(), path: PATH.into(), refusal }
}

impl Fake {
    fn check(&self, value: &Value) -> Result<(), Error> {
        let bad = !self.refuses.is_empty() && value.to_string().contains(self.refuses);
        if bad { Err(refusal(422)) } else { Ok(()) }
    }
}

impl CsiNodeApi for Fake {
    async fn patch_node(&self, patch: &Value) -> Result<(), Error> {
        self.check(&patch["metadata"]["labels"])?;
        self.state.lock().unwrap().1.push(patch.clone());
        Ok(())
    }

    async fn read(&self) -> Result<Option<Value>, Error> {
        Ok(self.state.lock().unwrap().0.clone())
    }

    async fn change(&self, change: CsiNodeChange, _before: Option<&Value>) -> Result<(), Error> {
        if let Some(code) = self.codes.lock().unwrap().pop() {
            return Err(refusal(code));
        }
        let object = match change {
            CsiNodeChange::Create(object) | CsiNodeChange::Put(object) => Some(object),
            CsiNodeChange::Delete => None,
        };
        object.as_ref().map_or(Ok(()), |object| self.check(object))?;
        self.state.lock().unwrap().0 = object;
        Ok(())
    }
}

fn driver(name: &str, topology: &[(&str, &str)]) -> CsiNodeDriver {
    let topology = topology.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    CsiNodeDriver { name: name.into(), node_id: format!("id-{name}"), topology, max_volumes: None }
}

fn writer(refuses: &'static str) -> Writer<Fake> {
    Writer {
        api: Fake { refuses, ..Fake::default() },
        node: NodeName::new("n1").unwrap(),
        known: BTreeSet::new(),
        refused: BTreeMap::new(),
    }
}

/// The drivers that the CSINode shows.
fn shown(writer: &Writer<Fake>) -> Vec<String> {
    let state = writer.api.state.lock().unwrap();
    let drivers = state.0.as_ref().unwrap()["spec"]["drivers"].as_array().unwrap();
    drivers.iter().map(|d| d["name"].as_str().unwrap().to_owned()).collect()
}

fn node() -> Value {
    json!({ "metadata": { "name": "n1", "uid": "u", "labels": { "zone": "x" } } })
}

#[tokio::test]
async fn a_csi_node_is_made_without_drivers_and_follows_them() {
    let mut writer = writer("");
    writer.write(&node(), "u", Vec::new()).await.unwrap();
    assert_eq!(shown(&writer), [""; 0]);
    writer.write(&node(), "u", vec![driver("a", &[("zone", "x")]), driver("b", &[])]).await.unwrap();
    assert_eq!(shown(&writer), ["a", "b"]);
    writer.write(&node(), "u", vec![driver("b", &[])]).await.unwrap();
    assert_eq!(shown(&writer), ["b"]);
    // Another Node of the name: deleted and made anew in one go.
    writer.write(&node(), "u2", vec![driver("b", &[])]).await.unwrap();
    let owner = writer.api.state.lock().unwrap().0.as_ref().unwrap()["metadata"]["ownerReferences"].clone();
    assert_eq!((owner[0]["uid"].as_str(), shown(&writer)), (Some("u2"), vec!["b".to_owned()]));
}

#[tokio::test]
async fn a_driver_that_is_refused_or_contradicts_the_node_keeps_no_other_out() {
    let drivers = || {
        vec![
            driver("BAD", &[]),
            driver("a", &[("rack", "1")]),
            driver("b", &[("zone", "y")]),
            driver("c", &[("BAD-key", "1")]),
            driver("d", &[("rack", "2")]),
            driver("e", &[]),
        ]
    };
    let mut writer = writer("BAD");
    for _ in 0..2 {
        writer.write(&node(), "u", drivers()).await.unwrap();
        assert_eq!(shown(&writer), ["a", "e"]);
        assert_eq!(writer.refused.keys().collect::<Vec<_>>(), ["BAD", "b", "c", "d"]);
        assert!(writer.refused["BAD"].starts_with("driver BAD is refused: "), "{:?}", writer.refused);
    }
    let patches = writer.api.state.lock().unwrap().1.clone();
    assert_eq!(patches.last().unwrap()["metadata"]["labels"], json!({ "rack": "1" }));
    // All are refused, also alone.
    let mut writer = self::writer("id-");
    writer.write(&node(), "u", drivers()).await.unwrap();
    assert_eq!(shown(&writer), [""; 0]);
}

#[tokio::test]
async fn another_writer_is_answered_by_a_read_and_an_outage_is_an_error() {
    let mut writer = writer("");
    writer.api.codes = Mutex::new(vec![404, 409]);
    writer.write(&node(), "u", vec![driver("a", &[])]).await.unwrap();
    assert_eq!(shown(&writer), ["a"]);
    for code in [500, 429, 401] {
        writer.api.codes = Mutex::new(vec![code]);
        let error = writer.write(&node(), "u", Vec::new()).await.unwrap_err();
        assert_eq!((error.refusal().unwrap().code, shown(&writer)), (code, vec!["a".to_owned()]));
    }
    // A missing right is an error too, and not the fault of a driver.
    writer.api.codes = Mutex::new(vec![403; 9]);
    writer.write(&node(), "u", vec![driver("b", &[])]).await.unwrap_err();
}
