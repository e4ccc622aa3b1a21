//! ConfigMaps, Secrets, tokens and objects of storage that pods refer to.

use super::{
    CsiDriver, PersistentVolume, PersistentVolumeClaim, Pod, StorageObject, Token, TokenRef, VolumeAttachment,
};
use crate::{
    ids::Namespace,
    refs::{Ref, refs_with},
    value::{Value, Why},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

/// The kinds of objects that pods name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ObjectKind {
    /// A ConfigMap.
    ConfigMap,
    /// A Secret.
    Secret,
    /// A ServiceAccount, of which pods take tokens.
    ServiceAccount,
    /// A PersistentVolumeClaim.
    PersistentVolumeClaim,
    /// A PersistentVolume.
    PersistentVolume,
    /// A VolumeAttachment.
    VolumeAttachment,
    /// A CSIDriver.
    CsiDriver,
}

impl ObjectKind {
    /// Whether the object is one of storage.
    pub fn is_storage(self) -> bool {
        match self {
            ObjectKind::ConfigMap | ObjectKind::Secret | ObjectKind::ServiceAccount => false,
            ObjectKind::PersistentVolumeClaim
            | ObjectKind::PersistentVolume
            | ObjectKind::VolumeAttachment
            | ObjectKind::CsiDriver => true,
        }
    }
}

impl fmt::Display for ObjectKind {
    /// The resource's name as the API server writes it in its errors.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ObjectKind::ConfigMap => "configmap",
            ObjectKind::Secret => "secret",
            ObjectKind::ServiceAccount => "serviceaccount",
            ObjectKind::PersistentVolumeClaim => "persistentvolumeclaim",
            ObjectKind::PersistentVolume => "persistentvolume",
            ObjectKind::VolumeAttachment => "volumeattachment",
            ObjectKind::CsiDriver => "csidriver",
        })
    }
}

/// A ConfigMap or Secret: its keys and their bytes.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyedData {
    /// `metadata.namespace`.
    pub namespace: Namespace,
    /// `metadata.name`.
    pub name: String,
    /// `type` of a Secret, for those that pulls of images need.
    #[serde(default)]
    pub kind: Option<String>,
    /// `metadata.uid`; empty for an object of a manifest.
    #[serde(default)]
    pub uid: String,
    /// `data` (ConfigMap), `data` and `stringData` (Secret), decoded.
    pub data: BTreeMap<String, Vec<u8>>,
    /// `binaryData` of a ConfigMap, decoded. Volumes show these keys as files; environments never contain
    /// them. A key is in one of the two maps only.
    #[serde(default)]
    pub binary_data: BTreeMap<String, Vec<u8>>,
}

impl KeyedData {
    /// Every key with its bytes, as a volume shows them.
    pub fn files(&self) -> impl Iterator<Item = (&String, &Vec<u8>)> {
        self.data.iter().chain(&self.binary_data)
    }

    /// Every key with its text.
    ///
    /// # Errors
    /// The first key whose bytes are no UTF-8. The error must not have the bytes, which may be secret.
    pub fn texts(&self) -> Result<BTreeMap<String, String>, &str> {
        let text =
            |(key, bytes): (&String, &Vec<u8>)| Some((key.clone(), String::from_utf8(bytes.clone()).ok()?));
        self.files().map(|file| text(file).ok_or(file.0.as_str())).collect()
    }

    /// The bytes of a key, as a volume shows them.
    pub fn file(&self, key: &str) -> Option<&Vec<u8>> {
        self.data.get(key).or_else(|| self.binary_data.get(key))
    }
}

impl fmt::Debug for KeyedData {
    /// Prints the keys alone, because the values may be secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}/{} {:?}",
            self.namespace,
            self.name,
            self.files().map(|(key, _)| key).collect::<Vec<_>>()
        )
    }
}

/// The kind, the namespace and the name of an object.
pub type ObjectName = (ObjectKind, Namespace, String);

/// The ConfigMaps, Secrets and objects of storage that a source knows. An object that is in no list is absent once the source has listed,
/// and unknown before. A source that reads objects one by one never lists. Tokens of service accounts are here too, for
/// the pods that ask for them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Objects {
    known: BTreeMap<ObjectName, Arc<KeyedData>>,
    storage: BTreeMap<ObjectName, StorageObject>,
    drivers: Option<Arc<BTreeMap<String, Arc<CsiDriver>>>>,
    unknown: BTreeMap<ObjectName, Why>,
    tokens: Arc<BTreeMap<TokenRef, Value<Token>>>,
    absent: BTreeSet<ObjectName>,
    listed: bool,
}

impl Objects {
    /// The objects of a source that has listed and has none.
    pub fn listed() -> Objects {
        Objects { listed: true, ..Objects::default() }
    }

    /// Takes that the source has listed: an object that it does not have does not exist.
    pub fn set_listed(&mut self) {
        self.listed = true;
    }

    /// Whether the source has listed.
    pub fn is_listed(&self) -> bool {
        self.listed
    }

    /// Adds or replaces a ConfigMap.
    pub fn put_config_map(&mut self, object: impl Into<Arc<KeyedData>>) {
        self.put(ObjectKind::ConfigMap, object.into());
    }

    /// Removes a ConfigMap.
    pub fn remove_config_map(&mut self, name: &(Namespace, String)) {
        self.known.remove(&(ObjectKind::ConfigMap, name.0.clone(), name.1.clone()));
    }

    /// Adds or replaces a Secret.
    pub fn put_secret(&mut self, object: impl Into<Arc<KeyedData>>) {
        self.put(ObjectKind::Secret, object.into());
    }

    /// Removes a Secret.
    pub fn remove_secret(&mut self, name: &(Namespace, String)) {
        self.known.remove(&(ObjectKind::Secret, name.0.clone(), name.1.clone()));
    }

    /// Takes that an object is unknown.
    pub fn put_unknown(&mut self, kind: ObjectKind, namespace: Namespace, name: String, why: Why) {
        let name = (kind, namespace, name);
        self.known.remove(&name);
        self.storage.remove(&name);
        self.absent.remove(&name);
        self.unknown.insert(name, why);
    }

    /// Takes that an object does not exist.
    pub fn put_absent(&mut self, kind: ObjectKind, namespace: Namespace, name: String) {
        let name = (kind, namespace, name);
        self.known.remove(&name);
        self.storage.remove(&name);
        self.unknown.remove(&name);
        self.absent.insert(name);
    }

    /// Forgets all that is known of an object.
    pub fn forget(&mut self, kind: ObjectKind, namespace: &Namespace, name: &str) {
        let name = (kind, namespace.clone(), name.to_owned());
        self.known.remove(&name);
        self.storage.remove(&name);
        self.unknown.remove(&name);
        self.absent.remove(&name);
    }

    /// Adds or replaces an object.
    pub fn put(&mut self, kind: ObjectKind, object: Arc<KeyedData>) {
        let name = (kind, object.namespace.clone(), object.name.clone());
        self.unknown.remove(&name);
        self.absent.remove(&name);
        self.known.insert(name, object);
    }

    /// What is known of the object of that kind and name.
    pub fn get(&self, kind: ObjectKind, namespace: &Namespace, name: &str) -> Value<&Arc<KeyedData>> {
        let name = (kind, namespace.clone(), name.to_owned());
        match (self.known.get(&name), self.unknown.get(&name)) {
            (Some(object), _) => Value::Known(object),
            (None, Some(why)) => Value::Unknown(why.clone()),
            (None, None) if self.listed || self.absent.contains(&name) => Value::Absent,
            (None, None) => Value::Unknown(Why::NotAsked),
        }
    }

    /// Adds or replaces an object of storage under that name.
    pub fn put_storage(&mut self, name: ObjectName, object: StorageObject) {
        self.unknown.remove(&name);
        self.absent.remove(&name);
        self.storage.insert(name, object);
    }

    /// Takes all CSIDrivers, by their names.
    pub fn set_csi_drivers(&mut self, drivers: Arc<BTreeMap<String, Arc<CsiDriver>>>) {
        self.drivers = Some(drivers);
    }

    /// What is known of an object of storage of that kind and name.
    pub fn storage(&self, name: &ObjectName) -> Value<&StorageObject> {
        match (self.storage.get(name), self.unknown.get(name)) {
            (Some(object), _) => Value::Known(object),
            (None, Some(why)) => Value::Unknown(why.clone()),
            (None, None) if self.listed || self.absent.contains(name) => Value::Absent,
            (None, None) => Value::Unknown(Why::NotAsked),
        }
    }

    /// What is known of a PersistentVolumeClaim.
    pub fn claim(&self, namespace: &Namespace, name: &str) -> Value<&Arc<PersistentVolumeClaim>> {
        let name = (ObjectKind::PersistentVolumeClaim, namespace.clone(), name.to_owned());
        self.storage(&name).and_then(|object| match object {
            StorageObject::Claim(claim) => Some(claim),
            StorageObject::Volume(_) | StorageObject::Attachment(_) => None,
        })
    }

    /// What is known of the PersistentVolume of a claim in that namespace.
    pub fn persistent_volume(&self, namespace: &Namespace, name: &str) -> Value<&Arc<PersistentVolume>> {
        let name = (ObjectKind::PersistentVolume, namespace.clone(), name.to_owned());
        self.storage(&name).and_then(|object| match object {
            StorageObject::Volume(volume) => Some(volume),
            StorageObject::Claim(_) | StorageObject::Attachment(_) => None,
        })
    }

    /// What is known of the VolumeAttachment of a volume whose claim is in that namespace.
    pub fn attachment(&self, namespace: &Namespace, name: &str) -> Value<&Arc<VolumeAttachment>> {
        let name = (ObjectKind::VolumeAttachment, namespace.clone(), name.to_owned());
        self.storage(&name).and_then(|object| match object {
            StorageObject::Attachment(attachment) => Some(attachment),
            StorageObject::Claim(_) | StorageObject::Volume(_) => None,
        })
    }

    /// What is known of the CSIDriver of that name.
    pub fn csi_driver(&self, name: &str) -> Value<&Arc<CsiDriver>> {
        match &self.drivers {
            Some(drivers) => drivers.get(name).map_or(Value::Absent, Value::Known),
            None if self.listed => Value::Absent,
            None => Value::Unknown(Why::NotAsked),
        }
    }

    /// Whether what is known of the objects of a reference differs.
    pub fn differs(&self, other: &Objects, r: &Ref) -> bool {
        let name = || (r.kind, r.namespace.clone(), r.name.clone());
        match r.kind {
            ObjectKind::CsiDriver => self.csi_driver(&r.name) != other.csi_driver(&r.name),
            kind if kind.is_storage() => self.storage(&name()) != other.storage(&name()),
            kind => self.get(kind, &r.namespace, &r.name) != other.get(kind, &r.namespace, &r.name),
        }
    }

    /// The names of the objects that are known, or known not to exist.
    pub fn names(&self) -> impl Iterator<Item = &ObjectName> {
        self.known.keys().chain(self.storage.keys()).chain(&self.absent)
    }

    /// The ConfigMap of that name, if it is known.
    pub fn config_map(&self, namespace: &Namespace, name: &str) -> Option<&Arc<KeyedData>> {
        self.known.get(&(ObjectKind::ConfigMap, namespace.clone(), name.to_owned()))
    }

    /// The Secret of that name, if it is known.
    pub fn secret(&self, namespace: &Namespace, name: &str) -> Option<&Arc<KeyedData>> {
        self.known.get(&(ObjectKind::Secret, namespace.clone(), name.to_owned()))
    }

    /// Takes what is known of a token.
    pub fn put_token(&mut self, token: TokenRef, value: Value<Token>) {
        Arc::make_mut(&mut self.tokens).insert(token, value);
    }

    /// Takes what is known of all tokens.
    pub fn set_tokens(&mut self, tokens: Arc<BTreeMap<TokenRef, Value<Token>>>) {
        self.tokens = tokens;
    }

    /// What is known of a token. A source that lists its objects as a whole, such as a directory, has no tokens.
    pub fn token(&self, token: &TokenRef) -> Value<&Token> {
        match self.tokens.get(token) {
            Some(Value::Known(token)) => Value::Known(token),
            Some(Value::Unknown(why)) => Value::Unknown(why.clone()),
            Some(Value::Absent) => Value::Absent,
            None if self.listed => Value::Absent,
            None => Value::Unknown(Why::NotAsked),
        }
    }

    /// What is known of the objects and tokens that this pod refers to, and of no others. A pod keeps this part alone:
    /// with the whole it would keep an old version of every other pod's objects in memory.
    pub fn of_pod(&self, pod: &Pod) -> Objects {
        let mut part = Objects { listed: self.listed, ..Objects::default() };
        for r in refs_with(pod, self) {
            if r.kind == ObjectKind::CsiDriver {
                part.drivers.clone_from(&self.drivers);
                continue;
            }
            if let Some(token) = TokenRef::of(pod, &r) {
                if let Some(value) = self.tokens.get(&token) {
                    part.put_token(token, value.clone());
                }
                continue;
            }
            let name = (r.kind, r.namespace, r.name);
            if let Some(object) = self.known.get(&name) {
                part.known.insert(name, Arc::clone(object));
            } else if let Some(object) = self.storage.get(&name) {
                part.storage.insert(name, object.clone());
            } else if let Some(why) = self.unknown.get(&name) {
                part.unknown.insert(name, why.clone());
            } else if self.absent.contains(&name) {
                part.absent.insert(name);
            }
        }
        part
    }

    /// Why the object of a reference is unknown.
    fn why(&self, r: &Ref) -> Option<Why> {
        let name = || (r.kind, r.namespace.clone(), r.name.clone());
        match r.kind {
            ObjectKind::CsiDriver => self.csi_driver(&r.name).why(),
            // Attaching takes its time, and no pod shows an error meanwhile.
            ObjectKind::VolumeAttachment => match self.attachment(&r.namespace, &r.name) {
                Value::Known(a) if a.attached && !a.deleting || a.error.is_some() => None,
                Value::Known(_) | Value::Absent => Some(Why::Pending("not attached yet".to_owned())),
                Value::Unknown(why) => Some(why),
            },
            kind if kind.is_storage() => self.storage(&name()).why(),
            kind => self.get(kind, &r.namespace, &r.name).why(),
        }
    }

    /// The pod's references to unknown objects and tokens.
    pub fn unknown_of(&self, pod: &Pod) -> BTreeMap<Ref, Why> {
        let unknown = refs_with(pod, self).into_iter().filter_map(|r| {
            let why = match TokenRef::of(pod, &r) {
                Some(token) => self.token(&token).why(),
                None => self.why(&r),
            };
            Some((r, why?))
        });
        unknown.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ids::PodKey,
        model::{Container, EnvFrom, EnvFromSource},
    };

    fn object(name: &str) -> KeyedData {
        let namespace = "default".parse().unwrap();
        KeyedData {
            namespace,
            name: name.into(),
            kind: None,
            uid: String::new(),
            data: BTreeMap::new(),
            binary_data: BTreeMap::new(),
        }
    }

    #[test]
    fn an_object_is_absent_only_once_the_source_has_listed() {
        let namespace: Namespace = "default".parse().unwrap();
        let mut objects = Objects::default();
        objects.put_config_map(object("one"));
        let get = |objects: &Objects, kind, name: &str| match objects.get(kind, &namespace, name) {
            Value::Known(object) => object.name.clone(),
            Value::Absent => "absent".to_owned(),
            Value::Unknown(why) => why.to_string(),
        };
        assert_eq!(get(&objects, ObjectKind::ConfigMap, "one"), "one");
        assert_eq!(get(&objects, ObjectKind::Secret, "one"), "not read yet", "the kinds are not mixed up");
        objects.set_listed();
        assert_eq!(get(&objects, ObjectKind::Secret, "one"), "absent");
        let why = Why::Refused("no relationship found".into());
        objects.put_unknown(ObjectKind::ConfigMap, namespace.clone(), "one".into(), why);
        assert_eq!(get(&objects, ObjectKind::ConfigMap, "one"), "refused: no relationship found");
        objects.put_config_map(object("one"));
        assert_eq!(get(&objects, ObjectKind::ConfigMap, "one"), "one");
    }

    #[test]
    fn a_pod_has_its_own_objects_and_tokens_alone() {
        let key = PodKey { namespace: "default".parse().unwrap(), name: "p".parse().unwrap() };
        let env = |name: &str| EnvFrom {
            prefix: String::new(),
            source: EnvFromSource::ConfigMap(name.into()),
            optional: true,
        };
        let env_from = ["known", "absent", "unknown", "unasked"].map(env).into();
        let container = Container { env_from, ..Container::new("c".parse().unwrap(), "i") };
        let pod =
            Pod { containers: vec![container], ..Pod::new("u".parse().unwrap(), key, "n".parse().unwrap()) };
        let namespace: Namespace = "default".parse().unwrap();
        let (kind, mut all) = (ObjectKind::ConfigMap, Objects::default());
        for name in ["known", "other"] {
            all.put_config_map(object(name));
        }
        all.put_secret(object("known"));
        for name in ["absent", "other absent"] {
            all.put_absent(kind, namespace.clone(), name.to_owned());
        }
        for name in ["unknown", "other unknown"] {
            all.put_unknown(kind, namespace.clone(), name.to_owned(), Why::NotAsked);
        }
        let (token, other) = (TokenRef::new(&pod, None, 3600), TokenRef::new(&pod, Some("x"), 3600));
        all.put_token(token.clone(), Value::Absent);
        all.put_token(other, Value::Absent);
        let part = all.of_pod(&pod);
        for name in ["known", "absent", "unknown", "unasked"] {
            assert_eq!(part.get(kind, &namespace, name), all.get(kind, &namespace, name), "{name}");
        }
        assert_eq!(part.names().count(), 2, "{part:?}");
        assert!(part.tokens.is_empty() && part.unknown.len() == 1, "the pod asks for no token");
        all.set_listed();
        assert_eq!(all.of_pod(&pod).get(kind, &namespace, "unasked"), Value::Absent);
    }

    #[test]
    fn a_source_that_never_lists_tells_absence_object_by_object() {
        let namespace: Namespace = "default".parse().unwrap();
        let (kind, name) = (ObjectKind::ConfigMap, "one");
        let mut objects = Objects::default();
        objects.put_absent(kind, namespace.clone(), name.to_owned());
        assert_eq!(objects.get(kind, &namespace, name), Value::Absent);
        assert_eq!(objects.get(ObjectKind::Secret, &namespace, name), Value::Unknown(Why::NotAsked));
        objects.put(kind, Arc::new(object(name)));
        assert!(matches!(objects.get(kind, &namespace, name), Value::Known(_)));
        objects.put_absent(kind, namespace.clone(), name.to_owned());
        assert_eq!(objects.get(kind, &namespace, name), Value::Absent);
        objects.put_unknown(kind, namespace.clone(), name.to_owned(), Why::NotAsked);
        assert_eq!(objects.get(kind, &namespace, name), Value::Unknown(Why::NotAsked));
        objects.put(kind, Arc::new(object(name)));
        objects.forget(kind, &namespace, name);
        assert_eq!(objects, Objects::default());
    }
}
