//! What the environment of containers is made of, kept in files for an agent that starts while the API server is away:
//! a container that crashes then is started again all the same.
//!
//! Owns a directory below the state of this boot, one file for each pod: the ConfigMaps and Secrets that its variables
//! name, and the Services of its namespace. Tokens are not in it, they lie in the pod's volume. The directory is lost
//! with the boot, as everything that runs is. What is kept counts until the API server has listed: from then on its own
//! answers count.
//!
//! [`keep`] is one task: it follows the snapshots and writes the files of the pods whose inputs changed. A file that
//! cannot be written is a warning; a torn one counts as none.

use berth_core::{
    error::Chain,
    ids::{Namespace, PodUid},
    model::{CsiDriver, KeyedData, ObjectKind, ObjectName, Objects, Pod, Service, StorageObject},
    refs::{env_refs, refs_with},
    shared::Shared,
    value::Value,
};
use berth_source::{DesiredService, Snapshot};
use berth_sys::fs::{read_limited, remove_if_there, write_atomic};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{sync::watch, task::spawn_blocking, time::sleep};

/// The shortest time between two looks at all pods.
const PAUSE: Duration = Duration::from_millis(100);

/// The longest file that is read. A pod's file has at most a few ConfigMaps and Secrets of 1 MiB each.
const MAX: usize = 64 << 20;

/// What was kept of an earlier agent.
#[derive(Debug, Default)]
pub(crate) struct KeptInputs {
    /// The ConfigMaps and Secrets.
    pub(crate) objects: Arc<Objects>,
    /// The Services.
    pub(crate) services: Shared<DesiredService>,
}

/// The inputs of one pod.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct PodInputs {
    config_maps: Vec<Arc<KeyedData>>,
    secrets: Vec<Arc<KeyedData>>,
    /// The objects of its persistent volumes: where a volume is mounted follows from them.
    #[serde(default)]
    storage: Vec<(ObjectName, StorageObject)>,
    /// The drivers of its volumes.
    #[serde(default)]
    drivers: Vec<Arc<CsiDriver>>,
    /// Objects that did not exist: an optional one keeps no container waiting.
    absent: Vec<ObjectName>,
    services: Vec<Arc<Service>>,
}

impl PodInputs {
    fn of(pod: &Pod, objects: &Objects, services: &[Arc<Service>]) -> PodInputs {
        let refs: BTreeSet<_> = pod.all_containers().flat_map(|c| env_refs(pod, c)).collect();
        let mut inputs = PodInputs::default();
        for r in refs {
            match (objects.get(r.kind, &r.namespace, &r.name), r.kind) {
                (Value::Known(object), ObjectKind::ConfigMap) => inputs.config_maps.push(Arc::clone(object)),
                (Value::Known(object), ObjectKind::Secret) => inputs.secrets.push(Arc::clone(object)),
                (Value::Absent, _) => inputs.absent.push((r.kind, r.namespace, r.name)),
                (Value::Known(_), _) | (Value::Unknown(_), _) => {}
            }
        }
        for r in refs_with(pod, objects).into_iter().filter(|r| r.kind.is_storage()) {
            if r.kind == ObjectKind::CsiDriver {
                if let Value::Known(driver) = objects.csi_driver(&r.name) {
                    inputs.drivers.push(Arc::clone(driver));
                }
                continue;
            }
            let name = (r.kind, r.namespace, r.name);
            if let Value::Known(object) = objects.storage(&name) {
                let object = object.clone();
                inputs.storage.push((name, object));
            }
        }
        let seen = |service: &&Arc<Service>| pod.enable_service_links || service.is_kubernetes();
        inputs.services = services.iter().filter(seen).cloned().collect();
        inputs
    }
}

/// The Services that give variables to the pods of each of these namespaces.
fn by_namespace(
    namespaces: BTreeSet<&Namespace>,
    services: &Shared<DesiredService>,
) -> BTreeMap<Namespace, Vec<Arc<Service>>> {
    let mut found: BTreeMap<Namespace, Vec<Arc<Service>>> =
        namespaces.into_iter().map(|namespace| (namespace.clone(), Vec::new())).collect();
    for service in services.iter().map(|s| &s.service).filter(|s| s.primary_cluster_ip().is_some()) {
        let (master, own) = (service.is_kubernetes(), &service.key.namespace);
        if master {
            let others = found.iter_mut().filter(|(namespace, _)| *namespace != own);
            others.for_each(|(_, services)| services.push(Arc::clone(service)));
        }
        if let Some(services) = found.get_mut(own) {
            services.push(Arc::clone(service));
        }
    }
    found
}

/// Reads what an earlier agent of this boot kept. Files that cannot be read are left out.
pub(crate) fn load(dir: &Path) -> KeptInputs {
    let mut objects = Objects::default();
    let (mut services, mut drivers) = (BTreeMap::new(), BTreeMap::new());
    for file in files(dir) {
        let inputs = read_limited(&file, MAX).map_err(|error| Chain(&error).to_string());
        let inputs = inputs
            .and_then(|text| serde_json::from_slice::<PodInputs>(&text).map_err(|error| error.to_string()));
        match inputs {
            Ok(inputs) => {
                inputs.config_maps.into_iter().for_each(|o| objects.put(ObjectKind::ConfigMap, o));
                inputs.secrets.into_iter().for_each(|o| objects.put(ObjectKind::Secret, o));
                inputs.absent.into_iter().for_each(|(kind, ns, name)| objects.put_absent(kind, ns, name));
                inputs.storage.into_iter().for_each(|(name, object)| objects.put_storage(name, object));
                drivers.extend(inputs.drivers.into_iter().map(|driver| (driver.name.clone(), driver)));
                services.extend(inputs.services.into_iter().map(|s| (s.key.clone(), s)));
            }
            Err(error) => {
                tracing::warn!(file = %file.display(), error, "cannot read the kept inputs of a pod");
            }
        }
    }
    if !drivers.is_empty() {
        objects.set_csi_drivers(Arc::new(drivers));
    }
    let mut shared = Shared::default();
    let raw = Arc::new(serde_json::Value::Null);
    for service in services.into_values() {
        shared.put(Arc::new(DesiredService { service, raw: Arc::clone(&raw) }));
    }
    KeptInputs { objects: Arc::new(objects), services: shared }
}

/// Files of the directory. A directory that is not there has none.
fn files(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    paths.filter(|path| path.extension().is_some_and(|e| e == "json")).collect()
}

/// Keeps the inputs of the pods of each listed snapshot. Ends with the source.
pub(crate) async fn keep(dir: PathBuf, mut snapshots: watch::Receiver<Arc<Snapshot>>) {
    let mut keeper = Keeper { dir, kept: BTreeMap::new(), seen: Arc::default() };
    while snapshots.changed().await.is_ok() {
        let snapshot = snapshots.borrow_and_update().clone();
        if !snapshot.listed {
            continue;
        }
        // A panic of the blocking work ends this task: the files are then as old as the last write.
        match spawn_blocking(move || {
            keeper.take(&snapshot);
            keeper
        })
        .await
        {
            Ok(back) => keeper = back,
            Err(error) => {
                tracing::error!(%error, "the inputs of pods are kept no more");
                return;
            }
        }
        // Every change of one pod makes a snapshot, and all pods are gone through for it.
        sleep(PAUSE).await;
    }
}

/// The files as they were written last.
#[derive(Debug)]
struct Keeper {
    dir: PathBuf,
    kept: BTreeMap<PodUid, PodInputs>,
    seen: Arc<Snapshot>,
}

impl Keeper {
    fn take(&mut self, snapshot: &Arc<Snapshot>) {
        let first = !self.seen.listed;
        let before = std::mem::replace(&mut self.seen, Arc::clone(snapshot));
        if !first
            && Arc::ptr_eq(&before.pods, &snapshot.pods)
            && Arc::ptr_eq(&before.objects, &snapshot.objects)
            && before.services.is(&snapshot.services)
        {
            return;
        }
        let alive = || snapshot.pods.values().filter(|desired| !desired.is_over()).map(|d| &d.pod);
        let services = by_namespace(alive().map(|pod| &pod.key.namespace).collect(), &snapshot.services);
        let services_of = |pod: &Pod| services.get(&pod.key.namespace).map_or(&[][..], Vec::as_slice);
        let inputs = |pod: &Arc<Pod>| PodInputs::of(pod, &snapshot.objects, services_of(pod));
        let wanted: BTreeMap<PodUid, PodInputs> = alive().map(|pod| (pod.uid.clone(), inputs(pod))).collect();
        let made = if first { self.prepare(&wanted) } else { Ok(()) };
        let removed: Vec<PodUid> =
            self.kept.keys().filter(|uid| !wanted.contains_key(*uid)).cloned().collect();
        let written = made.and_then(|()| {
            for uid in &removed {
                remove_if_there(&self.file(uid)).map_err(|error| error.to_string())?;
            }
            for (uid, inputs) in wanted.iter().filter(|(uid, inputs)| self.kept.get(*uid) != Some(*inputs)) {
                let text = serde_json::to_vec(inputs).map_err(|error| error.to_string())?;
                write_atomic(&self.file(uid), &text, 0o600).map_err(|error| Chain(&error).to_string())?;
            }
            Ok(())
        });
        match written {
            Ok(()) => self.kept = wanted,
            // The next change writes all files that differ from those of the last success.
            Err(error) => tracing::warn!(
                error,
                "cannot keep the inputs of pods: an agent that starts without the API server lacks them"
            ),
        }
    }

    /// Makes the directory, and removes the files of pods that are gone since an earlier agent wrote them.
    fn prepare(&self, wanted: &BTreeMap<PodUid, PodInputs>) -> Result<(), String> {
        fs::create_dir_all(&self.dir).map_err(|error| error.to_string())?;
        for file in files(&self.dir) {
            let uid = file.file_stem().and_then(|stem| stem.to_str()?.parse::<PodUid>().ok());
            if uid.is_none_or(|uid| !wanted.contains_key(&uid)) {
                remove_if_there(&file).map_err(|error| error.to_string())?;
            }
        }
        Ok(())
    }

    fn file(&self, uid: &PodUid) -> PathBuf {
        self.dir.join(format!("{uid}.json"))
    }
}

#[cfg(test)]
mod tests;
