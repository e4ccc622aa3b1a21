//! EndpointSlice controller of the engine: the Services that a changed pod concerns, and the slices made for
//! each Service.

use crate::{ObservedPod, ServiceInputs};
use berth_core::{
    ids::{Namespace, PodKey},
    model::{EndpointSlice, Pod, Service},
    shared::Changes,
};
use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

/// Source number of the controller's slices. It is above any source, so a controller's slice wins over a
/// hand-made one of the same name.
pub(super) const SOURCE: usize = usize::MAX;

/// Namespace, key and value of a label in a selector.
type Pair = (Namespace, Arc<str>, Arc<str>);

/// Index of Services by selector, and the slices made for each Service.
#[derive(Debug, Default)]
pub(super) struct EndpointSliceController {
    /// The Services with a selector, by the selector's first label.
    selecting: HashMap<Pair, BTreeSet<PodKey>>,
    slices: HashMap<PodKey, Vec<Arc<EndpointSlice>>>,
}

impl EndpointSliceController {
    /// Takes changes of Services into the index.
    pub(super) fn services(&mut self, changes: &Changes<Service>) {
        for (pair, service) in changes.before().filter_map(|s| Some((pair(s)?, s))) {
            if let Some(of) = self.selecting.get_mut(&pair) {
                of.remove(&service.key);
                if of.is_empty() {
                    self.selecting.remove(&pair);
                }
            }
        }
        for (pair, service) in changes.now.iter().filter_map(|s| Some((pair(s)?, s))) {
            self.selecting.entry(pair).or_default().insert(service.key.clone());
        }
    }

    /// The Services that may select the pod: the first label of their selector is among the pod's labels.
    pub(super) fn selecting(&self, pod: &Pod) -> impl Iterator<Item = &PodKey> {
        pod.labels.iter().flat_map(|(key, value)| {
            let pair = (pod.key.namespace.clone(), key.as_str().into(), value.as_str().into());
            self.selecting.get(&pair).into_iter().flatten()
        })
    }

    /// Computes the slices of the concerned Services. The slices of deleted Services are removed.
    pub(super) fn again(
        &mut self,
        node: &impl ServiceInputs,
        concerned: BTreeSet<PodKey>,
        service: impl Fn(&PodKey) -> Option<Arc<Service>>,
        pods: &[&ObservedPod],
    ) -> Changes<EndpointSlice> {
        let services: Vec<Arc<Service>> = concerned.iter().filter_map(service).collect();
        let before: Vec<Arc<EndpointSlice>> =
            concerned.iter().filter_map(|key| self.slices.remove(key)).flatten().collect();
        let now = if services.iter().all(|s| s.selector.is_empty()) {
            Vec::new()
        } else {
            node.endpoints(&services, pods, &before)
        };
        for slice in &now {
            self.slices.entry(slice.service.clone()).or_default().push(Arc::clone(slice));
        }
        // A kept slice is in both lists.
        Changes { gone: before, now, ..Changes::default() }
    }
}

fn pair(service: &Service) -> Option<Pair> {
    let (key, value) = service.selector.first()?;
    Some((service.key.namespace.clone(), Arc::clone(key), Arc::clone(value)))
}
