//! Binding of claims to persistent volumes on a node without a control plane, as the volume controller and the
//! scheduler bind them together: only for a volume of this node, the smallest that suits. Pure.

use crate::{
    ids::Namespace,
    model::{NodeInfo, PersistentVolume, PersistentVolumeClaim},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Namespace and name of a claim.
pub type ClaimName = (Namespace, String);

/// The name of the volume of each bound claim.
pub type Bindings = BTreeMap<ClaimName, String>;

/// The bindings of these claims to these volumes.
///
/// A claim that is bound stays so, also while its volume is not there: its data may lie on it. `pending` are the claims
/// that no pod of the node uses and whose class waits for the first one (`WaitForFirstConsumer`): those bind only to a
/// volume that they name themselves, or that names them.
pub fn bind(
    claims: &[Arc<PersistentVolumeClaim>],
    volumes: &[Arc<PersistentVolume>],
    node: &NodeInfo,
    before: &Bindings,
    pending: &BTreeSet<ClaimName>,
) -> Bindings {
    let name = |claim: &PersistentVolumeClaim| (claim.namespace.clone(), claim.name.clone());
    let mut bound: Bindings =
        claims.iter().filter_map(|claim| Some((name(claim), before.get(&name(claim))?.clone()))).collect();
    let mut taken: BTreeSet<String> = bound.values().cloned().collect();
    // A volume that was bound and not freed belongs to its former claim.
    taken.extend(before.values().cloned());
    // Those that name each other go first, so that no other claim takes their volume.
    let named = |claim: &PersistentVolumeClaim| {
        claim.volume.is_some() || volumes.iter().any(|volume| is_set_aside_for(volume, claim))
    };
    let mut open: Vec<&Arc<PersistentVolumeClaim>> =
        claims.iter().filter(|claim| !bound.contains_key(&name(claim))).collect();
    open.sort_by_key(|claim| (!named(claim), name(claim)));
    for claim in open {
        if pending.contains(&name(claim)) && !named(claim) {
            continue;
        }
        let fits = volumes.iter().filter(|volume| {
            !taken.contains(&volume.name)
                && volume.is_on_node(node.name.as_str(), &node.labels)
                && suits(volume, claim)
        });
        let size = |volume: &PersistentVolume| volume.capacity.as_ref().map_or(0, |c| c.units());
        // A volume that is set aside for the claim goes before a smaller one.
        let best = fits.min_by_key(|volume| (!is_set_aside_for(volume, claim), size(volume), &volume.name));
        if let Some(best) = best {
            taken.insert(best.name.clone());
            bound.insert(name(claim), best.name.clone());
        }
    }
    bound
}

/// Whether the volume's `claimRef` names the claim.
fn is_set_aside_for(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    volume.claim.as_ref().is_some_and(|of| {
        of.namespace == claim.namespace.as_str()
            && of.name == claim.name
            && (of.uid.is_empty() || of.uid == claim.uid)
    })
}

/// Whether a volume has what a claim asks for (`volume.FindMatchingVolume`, `component-helpers/storage`).
fn suits(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let units = |q: &Option<crate::quantity::Quantity>| q.as_ref().map_or(0, |q| q.units());
    let free = match &volume.claim {
        Some(_) => is_set_aside_for(volume, claim),
        None => claim.selector.iter().all(|r| r.holds(&volume.labels)),
    };
    free && claim.volume.as_ref().is_none_or(|name| *name == volume.name)
        && claim.class.as_deref().unwrap_or_default() == volume.class
        && claim.mode == volume.mode
        && claim.access_modes.iter().all(|mode| volume.access_modes.contains(mode))
        && units(&claim.request) <= units(&volume.capacity)
}

#[cfg(test)]
mod tests;
