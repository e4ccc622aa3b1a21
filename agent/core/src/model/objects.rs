//! ConfigMaps and Secrets that pods refer to.

use crate::ids::Namespace;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, sync::Arc};

/// The kinds of objects from which pods take files and variables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKind {
    /// A ConfigMap.
    ConfigMap,
    /// A Secret.
    Secret,
}

impl fmt::Display for ObjectKind {
    /// The resource's name as the API server writes it in its errors.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ObjectKind::ConfigMap => "configmap",
            ObjectKind::Secret => "secret",
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

/// The ConfigMaps and Secrets that a source knows. A missing object does not exist, or is not known yet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Objects {
    config_maps: BTreeMap<(Namespace, String), Arc<KeyedData>>,
    secrets: BTreeMap<(Namespace, String), Arc<KeyedData>>,
}

impl Objects {
    /// Adds or replaces a ConfigMap.
    pub fn put_config_map(&mut self, object: impl Into<Arc<KeyedData>>) {
        let object = object.into();
        self.config_maps.insert((object.namespace.clone(), object.name.clone()), object);
    }
    /// Removes a ConfigMap.
    pub fn remove_config_map(&mut self, name: &(Namespace, String)) {
        self.config_maps.remove(name);
    }
    /// Adds or replaces a Secret.
    pub fn put_secret(&mut self, object: impl Into<Arc<KeyedData>>) {
        let object = object.into();
        self.secrets.insert((object.namespace.clone(), object.name.clone()), object);
    }
    /// Removes a Secret.
    pub fn remove_secret(&mut self, name: &(Namespace, String)) {
        self.secrets.remove(name);
    }
    /// The ConfigMap of that name.
    pub fn config_map(&self, namespace: &Namespace, name: &str) -> Option<&Arc<KeyedData>> {
        self.config_maps.get(&(namespace.clone(), name.to_owned()))
    }
    /// The Secret of that name.
    pub fn secret(&self, namespace: &Namespace, name: &str) -> Option<&Arc<KeyedData>> {
        self.secrets.get(&(namespace.clone(), name.to_owned()))
    }
}

impl Objects {
    /// The names of the objects, of either kind, that differ between the two values.
    pub fn changed_since(&self, before: &Objects) -> Vec<(Namespace, String)> {
        fn differing<'a>(
            a: &'a BTreeMap<(Namespace, String), Arc<KeyedData>>,
            b: &'a BTreeMap<(Namespace, String), Arc<KeyedData>>,
        ) -> impl Iterator<Item = (Namespace, String)> + 'a {
            let new = a.iter().filter(|(k, v)| b.get(*k).is_none_or(|o| !Arc::ptr_eq(o, v) && o != *v));
            let gone = b.keys().filter(|k| !a.contains_key(*k));
            new.map(|(k, _)| k).chain(gone).cloned()
        }
        differing(&self.config_maps, &before.config_maps)
            .chain(differing(&self.secrets, &before.secrets))
            .collect()
    }
}
