//! Which ConfigMaps and Secrets a pod refers to.

use berth_core::model::{EnvFromSource, EnvValue, Pod, ProjectedSource, VolumeSource};
use std::collections::BTreeSet;

/// The names, both kinds together: one that is of the other kind wakes a pod once too often, no more.
pub(crate) fn references(pod: &Pod) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for v in &pod.volumes {
        match &v.source {
            VolumeSource::ConfigMap(k) | VolumeSource::Secret(k) => {
                names.insert(k.name.clone());
            }
            VolumeSource::Projected { sources, .. } => {
                for s in sources {
                    if let ProjectedSource::ConfigMap(k) | ProjectedSource::Secret(k) = s {
                        names.insert(k.name.clone());
                    }
                }
            }
            _ => {}
        }
    }
    for c in pod.all_containers() {
        for from in &c.env_from {
            let (EnvFromSource::ConfigMap(name) | EnvFromSource::Secret(name)) = &from.source;
            names.insert(name.clone());
        }
        for e in &c.env {
            if let EnvValue::ConfigMapKey(k) | EnvValue::SecretKey(k) = &e.value {
                names.insert(k.name.clone());
            }
        }
    }
    names
}
