//! The journal of volumes that drivers make: `provisioned-volumes.json` in the lasting state. A journal that cannot be read
//! is an error: a volume that is not in it would be lost, or made anew.

use berth_core::{
    error::Chain,
    model::PersistentVolume,
    volume::{
        bind::ClaimName,
        provision::{MadeVolume, ProvisionRequest, ProvisionStep, Provisioning},
    },
};
use berth_sys::fs::write_atomic_synced;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::task::spawn_blocking;

/// Version of the journal. Another one is an error.
const VERSION: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
struct File {
    version: u32,
    volumes: Vec<Provisioning>,
}

/// The volumes by their claims.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    entries: BTreeMap<ClaimName, Provisioning>,
    /// Changed since it was written.
    unsaved: bool,
}

impl Journal {
    /// Reads the journal below that directory.
    pub(super) fn open(dir: &Path) -> io::Result<Journal> {
        let path = dir.join("provisioned-volumes.json");
        let volumes = match std::fs::read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(e),
            Ok(bytes) => match serde_json::from_slice::<File>(&bytes).map_err(io::Error::other)? {
                File { version: VERSION, volumes } => volumes,
                File { version, .. } => {
                    let text = format!("{} has the unknown version {version}", path.display());
                    return Err(io::Error::other(text));
                }
            },
        };
        let entries = volumes.into_iter().map(|entry| (entry.request.claim_name(), entry)).collect();
        Ok(Journal { path, entries, unsaved: false })
    }

    /// The claims.
    pub(super) fn names(&self) -> Vec<ClaimName> {
        self.entries.keys().cloned().collect()
    }

    /// What is known of the volume of a claim.
    pub(super) fn get(&self, name: &ClaimName) -> Option<&Provisioning> {
        self.entries.get(name)
    }

    /// The PersistentVolumes.
    pub(super) fn volumes(&self) -> Vec<Arc<PersistentVolume>> {
        self.entries.values().filter_map(Provisioning::volume).map(Arc::new).collect()
    }

    /// Takes a request. One for which a call was made stays as it was then.
    pub(super) fn add(&mut self, request: &ProvisionRequest) {
        let name = request.claim_name();
        let known = self.entries.get(&name);
        if known.is_none_or(|known| !known.begun && known.made.is_none() && known.request != *request) {
            self.entries.insert(name, Provisioning::new(request.clone()));
            self.unsaved = true;
        }
    }

    /// Takes that a call is about to be made.
    pub(super) fn begin(&mut self, name: &ClaimName, step: ProvisionStep) {
        if step == ProvisionStep::Create {
            self.change(name, |entry| entry.begun = true);
        }
    }

    /// Takes that the first call for a volume had no effect.
    pub(super) fn refused(&mut self, name: &ClaimName) {
        self.change(name, |entry| entry.begun = false);
    }

    /// Takes that the driver has made the volume.
    pub(super) fn made(&mut self, name: &ClaimName, made: MadeVolume) {
        self.change(name, |entry| entry.made = Some(made));
    }

    /// Takes a volume out.
    pub(super) fn remove(&mut self, name: &ClaimName) {
        self.unsaved |= self.entries.remove(name).is_some();
    }

    fn change(&mut self, name: &ClaimName, change: impl FnOnce(&mut Provisioning)) {
        let Some(entry) = self.entries.get_mut(name) else { return };
        let before = entry.clone();
        change(entry);
        self.unsaved |= *entry != before;
    }

    /// Writes the journal, if it has changed. Returns whether it is on disk.
    pub(super) async fn save(&mut self) -> bool {
        if !self.unsaved {
            return true;
        }
        let file = File { version: VERSION, volumes: self.entries.values().cloned().collect() };
        let path = self.path.clone();
        let write = move || -> io::Result<()> {
            let bytes = serde_json::to_vec_pretty(&file)?;
            write_atomic_synced(&path, &bytes, 0o600).map_err(|e| io::Error::other(Chain(&e).to_string()))
        };
        let error = match spawn_blocking(write).await {
            Ok(Ok(())) => {
                self.unsaved = false;
                return true;
            }
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        tracing::warn!(path = %self.path.display(), error, "cannot store which volumes are made: none is made or deleted meanwhile");
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_core::model::{PersistentVolumeClaim, StorageClass};

    fn request(class: &str) -> ProvisionRequest {
        let claim = PersistentVolumeClaim::new("default".parse().unwrap(), "data");
        ProvisionRequest { claim: Arc::new(claim), class: Arc::new(StorageClass::new(class, "d.io")) }
    }

    #[tokio::test]
    async fn what_was_begun_is_known_after_a_restart_and_stays_as_it_was_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(dir.path()).unwrap();
        let name = request("a").claim_name();
        journal.add(&request("a"));
        journal.add(&request("b"));
        assert_eq!(journal.get(&name).unwrap().request, request("b"), "nothing was begun");
        journal.begin(&name, ProvisionStep::Create);
        assert!(journal.save().await);
        let mut journal = Journal::open(dir.path()).unwrap();
        journal.add(&request("c"));
        let known = journal.get(&name).unwrap();
        assert!(known.begun && known.request == request("b") && journal.volumes().is_empty());
        journal.made(&name, MadeVolume { handle: "h".into(), attributes: BTreeMap::new(), bytes: None });
        assert!(journal.save().await);
        let mut journal = Journal::open(dir.path()).unwrap();
        assert_eq!(journal.volumes()[0].name, "pvc-data");
        journal.remove(&name);
        assert!(journal.save().await && Journal::open(dir.path()).unwrap().names().is_empty());
        for odd in ["{", r#"{"version":2,"volumes":[]}"#] {
            std::fs::write(dir.path().join("provisioned-volumes.json"), odd).unwrap();
            Journal::open(dir.path()).unwrap_err();
        }
    }
}
