//! Claims and the persistent volumes of manifests that are bound to them.
//!
//! A binding is saved in a journal, so that a claim keeps its volume, and its data, over restarts and whatever other
//! volumes come. A volume whose claim is gone stays taken, whatever its reclaim policy is, until its own manifest is
//! gone: no other claim gets the data of the one before, and the node deletes none. A claim that comes back under its
//! name has its volume again.
//!
//! A claim for which no volume fits, and whose class has a driver, is a request to have one made
//! ([`crate::provisioned`]). What was made is set aside for it.

use crate::{
    DesiredPod, Error,
    manifest::{StorageKey, StorageManifest},
    provisioned::{Provisioned, StorageClaims},
};
use berth_core::{
    ids::{Namespace, PodUid},
    model::{
        ClaimRef, CsiDriver, NodeInfo, ObjectKind, Objects, PersistentVolume, PersistentVolumeClaim,
        StorageClass, StorageObject,
    },
    refs::claim_name,
    volume::{
        bind::{Bindings, ClaimName, bind},
        provision::ProvisionRequest,
    },
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Version of the journal. A journal of another version is set aside.
const VERSION: u32 = 1;

type Manifests = Arc<BTreeMap<StorageKey, Arc<StorageManifest>>>;
type Pods = Arc<BTreeMap<PodUid, Arc<DesiredPod>>>;

/// All bindings, as they are on disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct BindingJournal {
    version: u32,
    /// Volumes by namespace and name of their claims.
    bindings: BTreeMap<Namespace, BTreeMap<String, String>>,
}

/// Binder of claims, with the journal of its bindings.
#[derive(Debug)]
pub(crate) struct VolumeBinder {
    node: NodeInfo,
    path: PathBuf,
    bindings: Bindings,
    /// The journal is there and could not be read: no claim may get the volume of another.
    unreadable: bool,
    /// The bindings changed since they were written.
    unsaved: bool,
    /// What the last objects were made from.
    seen: Option<(Arc<Objects>, Manifests, Pods, Arc<Provisioned>)>,
    filled: Arc<Objects>,
    claims: Arc<StorageClaims>,
}

impl VolumeBinder {
    /// Reads the journal. A torn one is set aside: the claims are then bound anew.
    pub(crate) fn open(node: NodeInfo, folder: &Path) -> VolumeBinder {
        let path = folder.join("volume-bindings.json");
        let mut unreadable = false;
        let journal = match std::fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => BindingJournal::default(),
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "cannot read which claim has which volume: no claim is bound until the agent's next start");
                unreadable = true;
                BindingJournal::default()
            }
            Ok(bytes) => match serde_json::from_slice::<BindingJournal>(&bytes) {
                Ok(journal) if journal.version == VERSION => journal,
                _ => {
                    crate::state_file::set_aside(&path);
                    BindingJournal::default()
                }
            },
        };
        let of = |(namespace, claims): (Namespace, BTreeMap<String, String>)| {
            claims.into_iter().map(move |(claim, volume)| ((namespace.clone(), claim), volume))
        };
        let bindings = journal.bindings.into_iter().flat_map(of).collect();
        VolumeBinder {
            node,
            path,
            bindings,
            unreadable,
            unsaved: false,
            seen: None,
            filled: Arc::default(),
            claims: Arc::default(),
        }
    }

    /// The objects with the claims, and the volumes that are bound to them. With `whole` the manifests are all there are: a
    /// claim and a volume that are not among them are gone.
    pub(crate) fn fill(
        &mut self,
        objects: &Arc<Objects>,
        manifests: &Manifests,
        pods: &Pods,
        made: Option<&Arc<Provisioned>>,
        whole: bool,
    ) -> Arc<Objects> {
        let made = made.cloned().unwrap_or_default();
        if manifests.is_empty() && self.bindings.is_empty() {
            self.claims = Arc::new(StorageClaims { whole: objects.is_listed(), ..StorageClaims::default() });
            return Arc::clone(objects);
        }
        let same = self.seen.as_ref().is_some_and(|(o, m, p, made_before)| {
            Arc::ptr_eq(o, objects)
                && Arc::ptr_eq(m, manifests)
                && Arc::ptr_eq(p, pods)
                && *made_before == made
        });
        if same {
            return Arc::clone(&self.filled);
        }
        self.seen = Some((Arc::clone(objects), Arc::clone(manifests), Arc::clone(pods), Arc::clone(&made)));
        let mut sorted = Sorted::of(manifests);
        sorted.volumes.extend(made.volumes.iter().cloned());
        let used = used(pods);
        self.bind(&sorted, &used, whole && objects.is_listed());
        let mut filled = Objects::clone(objects);
        let mut requests = Vec::new();
        for claim in &sorted.claims {
            let name = (claim.namespace.clone(), claim.name.clone());
            let bound = self.bindings.get(&name);
            let volume = bound.and_then(|name| sorted.volumes.iter().find(|v| v.name == *name));
            let mut claim = Arc::clone(claim);
            if bound.is_none() && !self.unreadable {
                let (request, pending) = sorted.request(&claim, used.contains(&name));
                let pending =
                    made.problems.get(&name).filter(|_| request.is_some()).cloned().unwrap_or(pending);
                requests.extend(request);
                Arc::make_mut(&mut claim).pending = Some(pending);
            }
            put(&mut filled, &claim, bound, volume);
        }
        let claims = sorted.claims.iter().map(|c| (c.namespace.clone(), c.name.clone())).collect();
        self.claims = Arc::new(StorageClaims { whole: objects.is_listed(), claims, used, requests });
        if !sorted.drivers.is_empty() {
            filled.set_csi_drivers(Arc::new(sorted.drivers));
        }
        // Most changes are of pods that have no claim.
        if *self.filled != filled {
            self.filled = Arc::new(filled);
        }
        Arc::clone(&self.filled)
    }

    /// The claims of the last objects. `whole`: the manifests are all there are.
    pub(crate) fn claims(&self, whole: bool) -> Arc<StorageClaims> {
        match self.claims.whole && !whole {
            true => Arc::new(StorageClaims { whole, ..StorageClaims::clone(&self.claims) }),
            false => Arc::clone(&self.claims),
        }
    }

    fn bind(&mut self, sorted: &Sorted, used: &BTreeSet<ClaimName>, listed: bool) {
        if self.unreadable {
            return;
        }
        let waits = |claim: &&Arc<PersistentVolumeClaim>| {
            sorted.class_of(claim).is_some_and(|class| class.waits_for_pod)
        };
        let name = |claim: &PersistentVolumeClaim| (claim.namespace.clone(), claim.name.clone());
        let pending: BTreeSet<ClaimName> =
            sorted.claims.iter().filter(waits).map(|c| name(c)).filter(|name| !used.contains(name)).collect();
        let mut now = bind(&sorted.claims, &sorted.volumes, &self.node, &self.bindings, &pending);
        for (claim, volume) in &self.bindings {
            let gone = listed
                && !sorted.claims.iter().any(|c| name(c) == *claim)
                && !sorted.volumes.iter().any(|v| v.name == *volume);
            if !gone {
                now.insert(claim.clone(), volume.clone());
            }
        }
        for (claim, volume) in &now {
            if self.bindings.get(claim) != Some(volume) {
                tracing::info!(claim = format!("{}/{}", claim.0, claim.1), volume, "claim bound");
            }
        }
        self.unsaved |= now != self.bindings;
        self.bindings = now;
    }

    /// Writes the journal, if it has changed.
    pub(crate) fn save(&mut self) -> Result<(), Error> {
        if !self.unsaved {
            return Ok(());
        }
        let mut journal = BindingJournal { version: VERSION, bindings: BTreeMap::new() };
        for ((namespace, claim), volume) in &self.bindings {
            journal.bindings.entry(namespace.clone()).or_default().insert(claim.clone(), volume.clone());
        }
        let fail = |source| Error::State { path: self.path.clone(), source };
        let bytes = serde_json::to_vec_pretty(&journal).map_err(|e| fail(e.into()))?;
        let replace = || crate::state_file::replace_synced(&self.path, &bytes);
        berth_sys::failpoint::step("save-bindings", replace).map_err(fail)?;
        self.unsaved = false;
        Ok(())
    }
}

/// Puts a claim as an API server would show it, and its volume.
fn put(
    objects: &mut Objects,
    claim: &Arc<PersistentVolumeClaim>,
    bound: Option<&String>,
    volume: Option<&Arc<PersistentVolume>>,
) {
    let key = |kind, name: &str| (kind, claim.namespace.clone(), name.to_owned());
    let shown = PersistentVolumeClaim {
        bound: bound.is_some(),
        volume: bound.or(claim.volume.as_ref()).cloned(),
        capacity: volume.and_then(|volume| volume.capacity.clone()),
        ..PersistentVolumeClaim::clone(claim)
    };
    let shown = StorageObject::Claim(Arc::new(shown));
    objects.put_storage(key(ObjectKind::PersistentVolumeClaim, &claim.name), shown);
    if let Some(volume) = volume {
        let of = ClaimRef {
            namespace: claim.namespace.to_string(),
            name: claim.name.clone(),
            uid: claim.uid.clone(),
        };
        let volume = PersistentVolume { claim: Some(of), ..PersistentVolume::clone(volume) };
        let name = key(ObjectKind::PersistentVolume, &volume.name);
        objects.put_storage(name, StorageObject::Volume(Arc::new(volume)));
    }
}

/// The claims that pods use.
fn used(pods: &Pods) -> BTreeSet<ClaimName> {
    let of_pod = |pod: &Arc<DesiredPod>| {
        let pod = Arc::clone(&pod.pod);
        let claims: Vec<ClaimName> = pod
            .mounted_volumes()
            .filter_map(|volume| claim_name(&pod, volume))
            .map(|claim| (pod.key.namespace.clone(), claim))
            .collect();
        claims
    };
    pods.values().flat_map(of_pod).collect()
}

/// The objects by their kinds.
#[derive(Debug, Default)]
struct Sorted {
    claims: Vec<Arc<PersistentVolumeClaim>>,
    volumes: Vec<Arc<PersistentVolume>>,
    classes: Vec<Arc<StorageClass>>,
    drivers: BTreeMap<String, Arc<CsiDriver>>,
}

impl Sorted {
    fn class_of(&self, claim: &PersistentVolumeClaim) -> Option<&Arc<StorageClass>> {
        let class = claim.class.as_deref().unwrap_or_default();
        self.classes.iter().find(|c| c.name == class)
    }

    /// The request of a claim that is not bound, if a driver is to make its volume, and what the claim waits for.
    fn request(&self, claim: &Arc<PersistentVolumeClaim>, used: bool) -> (Option<ProvisionRequest>, String) {
        let no = |why: String| (None, why);
        let Some(class) = self.class_of(claim) else {
            return no(match claim.class.as_deref().unwrap_or_default() {
                "" => "no persistent volume fits, and the claim has no StorageClass".to_owned(),
                class => format!("no persistent volume fits, and there is no StorageClass {class:?}"),
            });
        };
        if class.waits_for_pod && !used {
            return no("no pod uses it yet".to_owned());
        }
        if !class.is_provisioned() {
            return no("no persistent volume fits".to_owned());
        }
        if claim.volume.is_some() {
            return no("the persistent volume that it names does not fit or is not there".to_owned());
        }
        if !claim.selector.is_empty() {
            return no("no persistent volume fits, and a claim with a selector is not provisioned".to_owned());
        }
        let waits = format!("CSI driver {} has to make its volume", class.provisioner);
        (Some(ProvisionRequest { claim: Arc::clone(claim), class: Arc::clone(class) }), waits)
    }

    /// A claim that names no class has the default one, as the API server's admission gives it.
    fn of(manifests: &Manifests) -> Sorted {
        let mut sorted = Sorted::default();
        for manifest in manifests.values() {
            match &**manifest {
                StorageManifest::Claim(claim) => sorted.claims.push(Arc::clone(claim)),
                StorageManifest::Volume(volume) => sorted.volumes.push(Arc::clone(volume)),
                StorageManifest::Class(class) => sorted.classes.push(Arc::clone(class)),
                StorageManifest::Driver(driver) => {
                    sorted.drivers.insert(driver.name.clone(), Arc::clone(driver));
                }
            }
        }
        if let Some(default) = sorted.classes.iter().find(|class| class.is_default) {
            for claim in sorted.claims.iter_mut().filter(|claim| claim.class.is_none()) {
                Arc::make_mut(claim).class = Some(default.name.clone());
            }
        }
        sorted
    }
}

#[cfg(test)]
mod tests;
