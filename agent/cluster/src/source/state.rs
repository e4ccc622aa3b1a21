//! The objects of the node's desired state, and the snapshot that follows from them. Pure, but for its logs.

use crate::{ApiPods, inputs::KeptInputs};
use berth_core::{
    ids::{Namespace, PodKey, PodName, PodUid},
    model::{CsiDriver, EndpointSlice, Objects, Service, TokenRef},
    shared::{Keyed, Shared},
};
use berth_kube::reflector::{Change, Effect, Meta, Store};
use berth_source::{DesiredPod, DesiredService, Snapshot, cluster::ApiPod};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// The followed sets and what they hold.
#[derive(Debug, Default)]
pub(super) struct State {
    api: ApiPods,
    pods: Presence,
    services: Presence,
    slices: Presence,
    drivers: Presence,
    known_drivers: BTreeMap<String, Arc<CsiDriver>>,
    desired: Arc<BTreeMap<PodUid, Arc<DesiredPod>>>,
    /// The static pods' UIDs by those of their mirrors.
    mirrors: BTreeMap<Box<str>, PodUid>,
    /// The pods of which the specification changed, or the phase became final, since they were last taken. Only these
    /// decide what a pod reads.
    changed: Vec<PodUid>,
    desired_services: Shared<DesiredService>,
    desired_slices: Shared<EndpointSlice>,
    /// The ConfigMaps and Secrets, one by one.
    pub(super) objects: Arc<Objects>,
    /// The Services that an earlier agent kept. They stand in for the Services until those are listed.
    kept_services: Shared<DesiredService>,
    listed_before: bool,
    /// What stands for the object of each Service.
    no_raw: Arc<Value>,
}

impl State {
    pub(super) fn new(api: ApiPods, kept: KeptInputs) -> State {
        State { api, objects: kept.objects, kept_services: kept.services, ..State::default() }
    }

    /// Whether pods and Services were listed since the last call and not before.
    pub(super) fn take_first_listing(&mut self) -> bool {
        let first = self.is_listed() && !self.listed_before;
        self.listed_before |= first;
        first
    }

    fn is_listed(&self) -> bool {
        self.pods.listed && self.services.listed
    }

    pub(super) fn pod(&mut self, change: Change<ApiPod>) {
        let (effects, mut pod) = self.pods.apply("pod", change);
        for effect in effects {
            match (effect, pod.take()) {
                (Effect::Put(_), Some(ApiPod::Pod(desired))) => self.put_pod(desired),
                // A mirror pod runs from its file.
                (Effect::Put(meta), Some(ApiPod::Mirror { of, raw })) => {
                    self.api.put(&of, raw);
                    self.mirrors.insert(meta.uid, of);
                }
                (Effect::Put(_), None) => {}
                (Effect::Removed(meta, _), kept) => {
                    self.remove_pod(&meta);
                    pod = kept;
                }
            }
        }
    }

    fn put_pod(&mut self, pod: DesiredPod) {
        let uid = pod.pod.uid.clone();
        let raw = self.api.share(&uid, Arc::clone(&pod.raw));
        // Most changes are of the status, and leave what is to run.
        let known = self.desired.get(&uid).filter(|known| known.pod == pod.pod);
        if known.is_none_or(|known| known.is_over() != pod.is_over()) {
            self.changed.push(uid.clone());
        }
        let model = known.map_or_else(|| Arc::clone(&pod.pod), |known| Arc::clone(&known.pod));
        Arc::make_mut(&mut self.desired).insert(uid, Arc::new(DesiredPod { pod: model, raw, ..pod }));
    }

    fn remove_pod(&mut self, meta: &Meta) {
        if let Some(of) = self.mirrors.remove(&meta.uid) {
            // Another mirror of the same pod may have come already.
            if !self.mirrors.values().any(|other| *other == of) {
                self.api.remove(&of);
            }
            return;
        }
        let Ok(uid) = PodUid::new(&*meta.uid) else { return };
        self.api.remove(&uid);
        if self.desired.contains_key(&uid) {
            Arc::make_mut(&mut self.desired).remove(&uid);
            self.changed.push(uid);
        }
    }

    pub(super) fn service(&mut self, change: Change<Service>) {
        let (effects, mut service) = self.services.apply("Service", change);
        for effect in effects {
            match effect {
                Effect::Put(_) => {
                    let Some(service) = service.take() else { continue };
                    let known = self.desired_services.get(&service.key);
                    if known.is_none_or(|known| *known.service != service) {
                        let raw = Arc::clone(&self.no_raw);
                        self.desired_services
                            .put(Arc::new(DesiredService { service: Arc::new(service), raw }));
                    }
                }
                Effect::Removed(meta, _) => remove(&mut self.desired_services, &meta),
            }
        }
    }

    pub(super) fn slice(&mut self, change: Change<Option<EndpointSlice>>) {
        let (effects, slice) = self.slices.apply("EndpointSlice", change);
        let mut slice = slice.flatten();
        for effect in effects {
            match (effect, slice.take()) {
                (Effect::Put(_), Some(slice)) => {
                    if self.desired_slices.get(&slice.key).is_none_or(|known| **known != slice) {
                        self.desired_slices.put(Arc::new(slice));
                    }
                }
                // A slice that lost the label of its Service serves none.
                (Effect::Put(meta), None) => remove(&mut self.desired_slices, &meta),
                (Effect::Removed(meta, _), kept) => {
                    remove(&mut self.desired_slices, &meta);
                    slice = kept;
                }
            }
        }
    }

    /// Takes a change of the CSI drivers. Returns whether they differ from before.
    pub(super) fn driver(&mut self, change: Change<CsiDriver>) -> bool {
        let was_listed = self.drivers.listed;
        let (effects, mut driver) = self.drivers.apply("CSIDriver", change);
        let mut changed = !was_listed && self.drivers.listed;
        for effect in effects {
            changed = true;
            match effect {
                Effect::Put(_) => {
                    if let Some(driver) = driver.take() {
                        self.known_drivers.insert(driver.name.clone(), Arc::new(driver));
                    }
                }
                Effect::Removed(meta, _) => drop(self.known_drivers.remove(&*meta.name)),
            }
        }
        // Until all are listed, one that is not there may exist.
        if changed && self.drivers.listed {
            Arc::make_mut(&mut self.objects).set_csi_drivers(Arc::new(self.known_drivers.clone()));
        }
        changed && self.drivers.listed
    }

    /// The pods that changed since the last call. A pod that is not in the set is gone.
    pub(super) fn take_changed(&mut self) -> Vec<PodUid> {
        std::mem::take(&mut self.changed)
    }

    /// The tokens of the pods that have not ended.
    pub(super) fn tokens(&self) -> BTreeSet<TokenRef> {
        let alive = self.desired.values().filter(|desired| !desired.is_over());
        alive.flat_map(|desired| TokenRef::all_of(&desired.pod, &self.objects)).collect()
    }

    pub(super) fn desired(&self, uid: &PodUid) -> Option<&Arc<DesiredPod>> {
        self.desired.get(uid)
    }

    /// The desired state. Until pods and Services were listed once it has no pods: a pod that started before the Services
    /// would lack their environment variables for its whole life. Pods run also while the EndpointSlices are not listed,
    /// because a node needs a right of its own for those. A set that is listed stays so, whatever the server's state.
    /// Until then the snapshot has what an earlier agent kept, for the containers that run already.
    pub(super) fn snapshot(&self, before: &Snapshot) -> Snapshot {
        let listed = self.is_listed();
        Snapshot {
            listed,
            pods: if listed { Arc::clone(&self.desired) } else { Arc::clone(&before.pods) },
            objects: Arc::clone(&self.objects),
            services: if listed { self.desired_services.clone() } else { self.kept_services.clone() },
            slices: self.desired_slices.clone(),
            slices_pending: !self.slices.listed,
            version: before.version.saturating_add(1),
            ..Snapshot::default()
        }
    }
}

/// Which objects of a set exist. The objects themselves are elsewhere.
#[derive(Debug, Default)]
struct Presence {
    store: Store<()>,
    listed: bool,
}

impl Presence {
    /// Applies a change. Returns its effects, and the object of the change.
    fn apply<T>(&mut self, what: &str, change: Change<T>) -> (Vec<Effect<()>>, Option<T>) {
        let (change, object) = match change {
            Change::Begin => (Change::Begin, None),
            Change::Put(meta, object) => (Change::Put(meta, ()), Some(object)),
            Change::Gone(meta, _) => (Change::Gone(meta, ()), None),
            Change::Unreadable(meta, bad) => {
                let Meta { namespace, name, .. } = &meta;
                tracing::error!(%namespace, %name, %bad, "{what} rejected: its last good version stays");
                (Change::Unreadable(meta, bad), None)
            }
            Change::UnreadableGone(meta) => (Change::UnreadableGone(meta), None),
            Change::Complete(version) => {
                self.listed = true;
                (Change::Complete(version), None)
            }
        };
        (self.store.apply(change), object)
    }
}

fn remove<T: Keyed>(set: &mut Shared<T>, meta: &Meta) {
    let (Ok(namespace), Ok(name)) = (Namespace::new(&*meta.namespace), PodName::new(&*meta.name)) else {
        return;
    };
    set.remove(&PodKey { namespace, name });
}

#[cfg(test)]
mod tests;
