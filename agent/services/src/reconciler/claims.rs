//! Claims of ports on frontends: which port holds a key that several Services want.

use super::{family::Family, port::Owner};
use crate::Net;
use berth_ebpf_abi::{ServiceKey, frontend};

impl<A: Net> Family<A> {
    /// Adds the claims of a port on its frontends.
    pub(super) fn claim(&mut self, id: u32) {
        let Some(port) = self.ports.get(&id) else { return };
        for (key, _) in &port.wanted.frontends {
            let claims = self.claims.entry(*key).or_default();
            if !claims.contains(&id) {
                claims.push(id);
            }
            // Claims are in order of age. The creation time of a Service may have changed.
            let ports = &self.ports;
            if claims.len() > 1 {
                claims.sort_by_key(|id| ports.get(id).map(|p| (p.owner.created, &p.owner.uid, *id)));
            }
            self.touched.insert(*key);
            // The owner of the address may have changed, and with it the holders of its ports.
            let others = |id: &u32| ports.get(id).is_some_and(|p| p.owner.service != port.owner.service);
            if key.port == 0 && claims.iter().any(others) {
                self.touched.extend(claims.iter().filter_map(|id| ports.get(id)?.at_cluster_ip()));
            }
        }
    }

    /// Removes the claim of a port on one frontend.
    pub(super) fn unclaim(&mut self, id: u32, key: &ServiceKey<A>) {
        if let Some(claims) = self.claims.get_mut(key) {
            claims.retain(|c| *c != id);
            if key.port == 0 {
                self.touched.extend(claims.iter().filter_map(|id| self.ports.get(id)?.at_cluster_ip()));
            }
            if claims.is_empty() {
                self.claims.remove(key);
                self.unfit.keys.remove(key);
            }
        }
        self.notified.remove(&(*key, id));
        self.touched.insert(*key);
    }

    /// The port that holds a key: the oldest claimant that may have it.
    pub(super) fn holder(&self, key: &ServiceKey<A>) -> Option<u32> {
        self.claims.get(key)?.iter().copied().find(|id| self.may_have(*id, key))
    }

    /// Whether the port may have the key. A ClusterIP with all of its ports belongs to the oldest Service
    /// that names it, as the API server rejects a second Service with the same ClusterIP.
    /// A claim by an external frontend is exempt.
    fn may_have(&self, id: u32, key: &ServiceKey<A>) -> bool {
        let Some((port, owner)) = self.ports.get(&id).zip(self.has_address(key)) else { return true };
        let is_external = |(k, flags): &(ServiceKey<A>, u32)| k == key && flags & frontend::EXTERNAL != 0;
        key.port == 0 || port.owner.service == owner.service || port.wanted.frontends.iter().any(is_external)
    }

    /// The Service that owns a key's address as its ClusterIP.
    fn has_address(&self, key: &ServiceKey<A>) -> Option<&Owner> {
        let bare = ServiceKey { port: 0, proto: 0, ..*key };
        Some(&self.ports.get(self.claims.get(&bare)?.first()?)?.owner)
    }

    /// The Service that holds a contended key, or that owns the key's address.
    pub(super) fn held_by(&self, key: &ServiceKey<A>) -> Option<&Owner> {
        match self.holder(key) {
            Some(id) => self.ports.get(&id).map(|port| &*port.owner),
            None => self.has_address(key),
        }
    }
}
