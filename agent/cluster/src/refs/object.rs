//! One followed ConfigMap or Secret.

use super::Answer;
use crate::object::{bad, meta};
use berth_core::{
    model::{ObjectKind, ObjectName},
    value::Why,
};
use berth_kube::{
    pool::Pool,
    reflector::{Bad, Change, Health, Kind, ListWatch, Meta, Options, follow},
    status::is_about_request,
};
use berth_source::cluster::{self, DataObject};
use std::{pin::pin, sync::Arc};
use tokio::sync::{mpsc, watch};

/// The object of one name.
struct Object {
    secret: bool,
    path: String,
    query: String,
}

impl Object {
    fn of((kind, namespace, name): &ObjectName) -> Object {
        let secret = *kind == ObjectKind::Secret;
        let kind = if secret { "secrets" } else { "configmaps" };
        Object {
            secret,
            path: format!("/api/v1/namespaces/{namespace}/{kind}"),
            query: format!("fieldSelector=metadata.name%3D{name}"),
        }
    }
}

impl Kind for Object {
    type Item = DataObject;

    fn path(&self) -> &str {
        &self.path
    }

    fn query(&self) -> &str {
        &self.query
    }

    fn read(&self, json: &[u8]) -> Result<(Meta, DataObject), Bad> {
        let read = if self.secret { cluster::secret(json) } else { cluster::config_map(json) };
        let (id, object) = read.map_err(bad)?;
        Ok((meta(id)?, object))
    }
}

/// Follows the object of that name. Ends when the object never changes.
pub(super) async fn run(name: ObjectName, pool: Pool, answers: mpsc::Sender<(ObjectName, Answer)>) {
    let (changes, mut incoming) = mpsc::channel(4);
    let (tell, mut health) = watch::channel(Health::unknown());
    let mut follow = pin!(follow(Object::of(&name), pool, ListWatch::new(Options::single()), changes, tell));
    let mut listing = Listing::default();
    loop {
        let answer = tokio::select! {
            biased;
            Some(change) = incoming.recv() => listing.answer(change),
            Ok(()) = health.changed() => Some(match &*health.borrow_and_update() {
                Health::Ok { .. } => Answer::Current,
                Health::Behind { why, refused, .. } => Answer::Behind(reason(why, *refused)),
            }),
            () = &mut follow => return,
        };
        let Some(answer) = answer else { continue };
        let ends = matches!(answer, Answer::Known { immutable: true, .. });
        if answers.send((name.clone(), answer)).await.is_err() || ends {
            return;
        }
    }
}

/// Why an object is unknown. A server that is overloaded or fails has refused nothing.
fn reason(why: &str, refused: Option<u16>) -> Why {
    match refused {
        Some(code) if is_about_request(code) => Why::Refused(why.to_owned()),
        _ => Why::Unreachable(why.to_owned()),
    }
}

/// What the list in progress has shown of the object.
#[derive(Debug, Default)]
struct Listing {
    seen: bool,
    listed: bool,
}

impl Listing {
    fn answer(&mut self, change: Change<DataObject>) -> Option<Answer> {
        match change {
            Change::Begin => {
                self.seen = false;
                None
            }
            Change::Put(_, DataObject { data, immutable }) => {
                self.seen = true;
                Some(Answer::Known { data: Arc::new(data), immutable })
            }
            Change::Unreadable(_, bad) => {
                self.seen = true;
                Some(Answer::Behind(Why::Refused(bad.0)))
            }
            Change::Gone(..) | Change::UnreadableGone(_) => {
                self.seen = false;
                // Within a list the end of the list tells.
                self.listed.then_some(Answer::Absent)
            }
            Change::Complete(_) => {
                self.listed = true;
                (!self.seen).then_some(Answer::Absent)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_core::model::KeyedData;
    use berth_kube::reflector::ResourceVersion;
    use std::collections::BTreeMap;

    fn put() -> Change<DataObject> {
        let data = KeyedData {
            namespace: "default".parse().unwrap(),
            name: "m".into(),
            kind: None,
            uid: String::new(),
            data: BTreeMap::new(),
            binary_data: BTreeMap::new(),
        };
        Change::Put(Meta::default(), DataObject { data, immutable: false })
    }

    fn complete() -> Change<DataObject> {
        Change::Complete(ResourceVersion::new("1").unwrap())
    }

    #[test]
    fn only_an_answer_about_the_object_is_a_refusal() {
        let refused = |code| matches!(reason("m", code), Why::Refused(_));
        let codes = [Some(403), Some(401), Some(404), Some(429), Some(503), None];
        assert_eq!(codes.map(refused), [true, true, true, false, false, false]);
    }

    #[test]
    fn an_object_is_absent_by_a_whole_list_without_it_and_by_its_deletion() {
        let mut listing = Listing::default();
        assert_eq!(listing.answer(Change::Begin), None);
        assert_eq!(listing.answer(Change::Begin), None, "the list broke off: nothing is known");
        assert_eq!(listing.answer(complete()), Some(Answer::Absent));
        assert!(matches!(listing.answer(put()), Some(Answer::Known { .. })));
        let Change::Put(meta, item) = put() else { panic!() };
        assert_eq!(listing.answer(Change::Gone(meta, item)), Some(Answer::Absent));
        assert_eq!(listing.answer(Change::Begin), None);
        assert!(matches!(listing.answer(put()), Some(Answer::Known { .. })));
        assert_eq!(listing.answer(complete()), None, "the object is in the list");
        let bad = Change::Unreadable(Meta::default(), Bad("data: has a wrong type".into()));
        let why = Why::Refused("data: has a wrong type".into());
        assert_eq!(listing.answer(bad), Some(Answer::Behind(why)));
    }
}
