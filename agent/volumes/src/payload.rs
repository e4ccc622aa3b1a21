//! The files of volumes whose content the node writes, from objects and from facts about the pod.

use crate::{Error, PodFacts, fields, inputs::VolumeInputs};
use berth_core::{
    ids::VolumeName,
    model::{Container, DownwardItem, DownwardValue, KeysVolume, ObjectKind, Objects, Pod, TokenRef},
    value::Value,
};
use std::{
    collections::BTreeMap,
    fmt,
    os::unix::ffi::OsStrExt as _,
    path::{Component, Path, PathBuf},
};

/// Limit of the path of a file, in bytes.
const MAX_PATH: usize = 4096;
/// Limit of one name in a path, in bytes.
const MAX_NAME: usize = 255;
/// Mode of a file that only its owner reads. `fsGroup` adds the group.
const OWNER_ALONE: u32 = 0o600;

/// One file.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct PayloadFile {
    /// Its content.
    pub bytes: Vec<u8>,
    /// Its permission bits.
    pub mode: u32,
    /// Its owner; `None` is root.
    pub owner: Option<u32>,
}

impl fmt::Debug for PayloadFile {
    /// Shows the length, never the bytes: they may be secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes, mode {:o}", self.bytes.len(), self.mode)
    }
}

/// The files of a volume by their normal relative paths; no path is a directory of another.
pub(crate) type VolumeFiles = BTreeMap<PathBuf, PayloadFile>;

/// Collector of the files of one volume.
pub(crate) struct Collector<'a> {
    pod: &'a Pod,
    volume: &'a VolumeName,
    facts: &'a PodFacts,
    objects: &'a Objects,
    files: VolumeFiles,
}

impl<'a> Collector<'a> {
    /// The files that `add` adds, with the paths checked against each other.
    pub(crate) fn collect(
        inputs: &VolumeInputs<'a>,
        add: impl FnOnce(&mut Collector<'a>) -> Result<(), Error>,
    ) -> Result<Option<VolumeFiles>, Error> {
        let VolumeInputs { pod, volume, facts, objects } = *inputs;
        let mut collector =
            Collector { pod, volume: &volume.name, facts, objects, files: VolumeFiles::new() };
        add(&mut collector)?;
        collector.no_file_is_a_directory()?;
        Ok(Some(collector.files))
    }

    /// Adds the keys of a ConfigMap or Secret.
    pub(crate) fn keys(
        &mut self,
        kind: ObjectKind,
        keys: &KeysVolume,
        default_mode: u32,
    ) -> Result<(), Error> {
        let namespace = &self.pod.key.namespace;
        let object = match self.objects.get(kind, namespace, &keys.name) {
            Value::Known(object) => object,
            Value::Absent if keys.optional => return Ok(()),
            Value::Absent => {
                return Err(Error::MissingObject {
                    volume: self.volume.clone(),
                    kind,
                    name: keys.name.clone(),
                });
            }
            Value::Unknown(why) => {
                return Err(Error::UnknownObject {
                    volume: self.volume.clone(),
                    kind,
                    name: keys.name.clone(),
                    why,
                });
            }
        };
        if keys.items.is_empty() {
            for (key, bytes) in object.files() {
                self.put(Path::new(key), bytes.clone(), default_mode)?;
            }
        }
        for item in &keys.items {
            match object.file(&item.key) {
                Some(bytes) => self.put(&item.path, bytes.clone(), item.mode.unwrap_or(default_mode))?,
                None if keys.optional => {}
                None => {
                    return Err(Error::MissingKey {
                        volume: self.volume.clone(),
                        kind,
                        name: keys.name.clone(),
                        key: item.key.clone(),
                    });
                }
            }
        }
        Ok(())
    }

    /// Adds fields of the pod.
    pub(crate) fn downward(&mut self, items: &[DownwardItem], default_mode: u32) -> Result<(), Error> {
        for item in items {
            let value = match &item.value {
                DownwardValue::Field(path) => fields::field(self.pod, self.facts, path),
                DownwardValue::Resource(field) => fields::resource(self.pod, None, self.facts, field),
            };
            let value = value.map_err(|source| Error::Downward {
                volume: self.volume.clone(),
                path: item.path.clone(),
                source,
            })?;
            self.put(&item.path, value.into_bytes(), item.mode.unwrap_or(default_mode))?;
        }
        Ok(())
    }

    /// Adds a token of the pod's service account. The file is its reader's alone where the pod names that reader: the
    /// one user of all containers, or the group `fsGroup` (`pkg/volume/projected/projected.go`, `collectData`).
    pub(crate) fn token(
        &mut self,
        path: &Path,
        audience: Option<&str>,
        ttl: u64,
        default_mode: u32,
    ) -> Result<(), Error> {
        let token = match self.objects.token(&TokenRef::new(self.pod, audience, ttl)) {
            Value::Known(token) => token,
            Value::Absent => {
                let kind = "projected serviceAccountToken".to_owned();
                return Err(Error::NotYet { volume: self.volume.clone(), kind });
            }
            Value::Unknown(why) => {
                return Err(Error::UnknownObject {
                    volume: self.volume.clone(),
                    kind: ObjectKind::ServiceAccount,
                    name: self.pod.service_account.clone(),
                    why,
                });
            }
        };
        let owner = only_user(self.pod);
        let private = owner.is_some() || self.pod.security.fs_group.is_some();
        let mode = if private { OWNER_ALONE } else { default_mode };
        let path = normal(path).map_err(|reason| self.bad_path(path, reason))?;
        let bytes = token.text.clone().into_bytes();
        self.files.insert(path, PayloadFile { bytes, mode: mode & 0o777, owner });
        Ok(())
    }

    fn put(&mut self, path: &Path, bytes: Vec<u8>, mode: u32) -> Result<(), Error> {
        let path = normal(path).map_err(|reason| self.bad_path(path, reason))?;
        self.files.insert(path, PayloadFile { bytes, mode: mode & 0o777, owner: None });
        Ok(())
    }

    fn bad_path(&self, path: &Path, reason: &'static str) -> Error {
        Error::FilePath { volume: self.volume.clone(), path: path.to_owned(), reason }
    }

    fn no_file_is_a_directory(&self) -> Result<(), Error> {
        for path in self.files.keys() {
            if path.ancestors().skip(1).any(|dir| self.files.contains_key(dir)) {
                return Err(self.bad_path(path, "lies below another file of the volume"));
            }
        }
        Ok(())
    }
}

/// The user by which all containers run, if the pod names one and the same for each (`FsUserFrom`,
/// `pkg/volume/util/util.go`).
fn only_user(pod: &Pod) -> Option<u32> {
    let user = |c: &Container| c.security.run_as_user.or(pod.security.run_as_user);
    let mut users = pod.all_containers().map(user);
    let first = users.next()??;
    users.all(|other| other == Some(first)).then_some(first)
}

/// The path with `.` and double slashes left out.
fn normal(path: &Path) -> Result<PathBuf, &'static str> {
    if path.as_os_str().len() > MAX_PATH {
        return Err("is longer than 4096 bytes");
    }
    let mut out = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) if name.len() > MAX_NAME => {
                return Err("has a name longer than 255 bytes");
            }
            Component::Normal(name) if name.as_bytes().contains(&0) => return Err("has a NUL in it"),
            // The volume's own entries (`..data` and the versions) start so.
            Component::Normal(name) if out.as_os_str().is_empty() && name.as_bytes().starts_with(b"..") => {
                return Err("may not start with '..'");
            }
            Component::Normal(name) => out.push(name),
            Component::CurDir => {}
            Component::ParentDir => return Err("may not have '..' in it"),
            Component::RootDir | Component::Prefix(_) => return Err("must be relative"),
        }
    }
    if out.as_os_str().is_empty() {
        return Err("is empty");
    }
    Ok(out)
}

#[cfg(test)]
mod tests;
