//! Notices for owners of Services: conflicts of frontends, and entries that do not fit into the tables.

use super::{family::Family, port::Port};
use crate::{Net, Notice, NoticeReason, Transport, compile::shown};
use berth_ebpf_abi::ServiceKey;
use berth_ebpf_tables::PublishedPort;
use std::sync::Arc;

impl<A: Net> Port<A> {
    /// Notice for the owner of a port that is published in part.
    pub(super) fn cut_short(&self, id: u32) -> Notice {
        let PublishedPort { cluster, local, .. } = self.published(id);
        let wanted = &self.wanted;
        self.owner.notice(NoticeReason::CutShort {
            name: Arc::clone(&wanted.name),
            used: cluster.len().max(local.len()),
            endpoints: wanted.cluster.len().max(wanted.local.len()),
            affinity: wanted.affinity_s != 0,
        })
    }
}

impl<A: Net> Family<A> {
    /// Makes a notice for each port that wants a key which an older Service holds.
    pub(super) fn conflicts(&mut self, key: &ServiceKey<A>, notices: &mut Vec<Notice>) {
        // A bare address makes no notice of its own: the ports of the address do.
        let Some(claims) = self.claims.get(key).filter(|_| key.port != 0) else { return };
        let Some(by) = self.held_by(key).map(|owner| owner.service.clone()) else { return };
        let holder = self.holder(key);
        let transport = transport(key);
        for id in claims {
            let Some(loser) = self.ports.get(id) else { continue };
            if Some(*id) == holder {
                self.notified.remove(&(*key, *id));
            } else if self.notified.insert((*key, *id)) {
                let (address, port) = shown(key);
                let why = NoticeReason::Taken { address, port, transport, by: by.clone() };
                notices.push(loser.owner.notice(why));
            }
        }
    }

    /// Notices of all present conflicts and of entries that do not fit.
    pub(super) fn notices(&self) -> impl Iterator<Item = Notice> {
        let conflicts = self.notified.iter().filter_map(|(key, id)| {
            let loser = self.ports.get(id)?;
            let by = self.held_by(key)?.service.clone();
            let (address, port) = shown(key);
            Some(loser.owner.notice(NoticeReason::Taken { address, port, transport: transport(key), by }))
        });
        let keys = self.unfit.keys.iter().filter_map(|key| self.no_room(key));
        let ports = self.unfit.notified.iter().filter_map(|id| Some(self.ports.get(id)?.cut_short(*id)));
        conflicts.chain(keys).chain(ports)
    }

    /// Notice for the owner of a frontend that does not fit.
    pub(super) fn no_room(&self, key: &ServiceKey<A>) -> Option<Notice> {
        let owner = &self.ports.get(&self.holder(key)?)?.owner;
        // A bare address only rejects other ports, so its absence needs no notice.
        let (address, port) = shown(key);
        let why = NoticeReason::NoRoom { address, port, transport: transport(key) };
        (key.port != 0).then(|| owner.notice(why))
    }
}

fn transport<A>(key: &ServiceKey<A>) -> Transport {
    if key.proto == Transport::Udp.number() { Transport::Udp } else { Transport::Tcp }
}
