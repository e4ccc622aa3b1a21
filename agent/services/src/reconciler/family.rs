//! State of one address family: wanted ports, the mirror of the tables, and pending writes. The writes
//! themselves are in [`super::write`].

use super::{
    Ids, Named, StaleBackend,
    port::{Adopted, Numbered, Owner, Port, UdpKey, serving},
    stale::{client_frontends_after, flows_after, stale_backends},
};
use crate::{Net, Transport, WantedPort, compile::shown};
use berth_core::time::Boottime;
use berth_ebpf_abi::{ChunkKey, MemberKey, Service, ServiceKey};
use berth_ebpf_tables::address_value;
use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    sync::Arc,
};

/// Entries that do not fit into the tables.
#[derive(Debug)]
pub(super) struct Overflow<A> {
    /// Frontends without an entry. Their owners have a notice.
    pub(super) keys: HashSet<ServiceKey<A>>,
    /// Ports that are published in part.
    pub(super) ports: BTreeSet<u32>,
    /// Ports published in part whose owners have a notice.
    pub(super) notified: BTreeSet<u32>,
    /// Free entries at the time the overflow was found: services, chunks, members.
    pub(super) room: [usize; 3],
}

impl<A> Default for Overflow<A> {
    fn default() -> Self {
        Overflow { keys: HashSet::new(), ports: BTreeSet::new(), notified: BTreeSet::new(), room: [0; 3] }
    }
}

/// Wanted ports, mirror and pending writes of one family.
#[derive(Debug)]
pub(super) struct Family<A> {
    pub(super) ports: HashMap<u32, Port<A>>,
    /// Ports that want a key, the oldest first. The first port that may have the key holds it.
    pub(super) claims: HashMap<ServiceKey<A>, Vec<u32>>,
    /// Mirror of the tables.
    pub(super) services: HashMap<ServiceKey<A>, Service<A>>,
    pub(super) members: HashSet<MemberKey<A>>,
    pub(super) chunks: HashSet<ChunkKey>,
    /// Keys whose value may have changed.
    pub(super) touched: HashSet<ServiceKey<A>>,
    /// Ports whose chunks and members may not all be there.
    pub(super) pending: BTreeSet<u32>,
    /// Pending ports that have waited once for space that was about to become free.
    pub(super) waited: HashSet<u32>,
    pub(super) old_members: Vec<MemberKey<A>>,
    pub(super) old_chunks: Vec<ChunkKey>,
    pub(super) resting: VecDeque<(Boottime, ChunkKey)>,
    /// Entries that do not fit.
    pub(super) unfit: Overflow<A>,
    /// Capacity of the tables: services, chunks, members.
    pub(super) capacity: [usize; 3],
    /// Whether the mirror equals the tables.
    pub(super) synced: bool,
    /// Ports found in the tables at the last read that no port has claimed yet, by id.
    pub(super) adopted: HashMap<u32, Adopted<A>>,
    /// UDP keys found in the tables at the last read.
    pub(super) adopted_udp: Vec<UdpKey<A>>,
    /// Conflicts whose losing port has a notice: key and the port's id.
    pub(super) notified: HashSet<(ServiceKey<A>, u32)>,
}

impl<A> Default for Family<A> {
    fn default() -> Self {
        Family {
            ports: HashMap::new(),
            claims: HashMap::new(),
            services: HashMap::new(),
            members: HashSet::new(),
            chunks: HashSet::new(),
            touched: HashSet::new(),
            pending: BTreeSet::new(),
            waited: HashSet::new(),
            old_members: Vec::new(),
            old_chunks: Vec::new(),
            resting: VecDeque::new(),
            unfit: Overflow::default(),
            capacity: [0; 3],
            synced: false,
            adopted: HashMap::new(),
            adopted_udp: Vec::new(),
            notified: HashSet::new(),
        }
    }
}

impl<A: Net> Family<A> {
    /// Resets the family, but keeps the record of notices already made.
    pub(super) fn forget(&mut self) {
        let (notified, unfit) = (std::mem::take(&mut self.notified), std::mem::take(&mut self.unfit));
        *self = Family { notified, unfit, ..Family::default() };
    }

    /// Sets the ports of one Service, whose earlier ports are `before`. Returns the ids of the new ports.
    pub(super) fn set(
        &mut self,
        owner: &Arc<Owner>,
        mut before: Vec<Numbered>,
        wanted: Vec<WantedPort<A>>,
        ids: &mut Ids,
        stale: &mut Vec<StaleBackend>,
    ) -> Vec<Numbered> {
        let mut now = Vec::with_capacity(wanted.len());
        for port in wanted {
            let same =
                |n: &Numbered| n.name == port.name && n.transport == port.transport && n.uid == owner.uid;
            let numbered = match before.iter().position(same) {
                Some(at) => before.swap_remove(at),
                None => Numbered {
                    id: self.adoptable(&port, ids).unwrap_or_else(|| ids.fresh()),
                    name: Arc::clone(&port.name),
                    transport: port.transport,
                    uid: Arc::clone(&owner.uid),
                },
            };
            self.set_port(numbered.id, owner, port, stale);
            now.push(numbered);
        }
        for Numbered { id, .. } in before {
            self.remove_port(id, stale);
            ids.used.remove(&id);
        }
        now
    }

    /// The id that the tables already hold at one of the port's keys.
    fn adoptable(&self, port: &WantedPort<A>, ids: &mut Ids) -> Option<u32> {
        if self.adopted.is_empty() {
            return None;
        }
        let there = port.frontends.iter().filter_map(|(key, _)| self.services.get(key)).map(|s| s.id);
        let id = there.into_iter().find(|id| self.adopted.contains_key(id) && !ids.used.contains(id))?;
        ids.used.insert(id);
        Some(id)
    }

    fn set_port(
        &mut self,
        id: u32,
        owner: &Arc<Owner>,
        wanted: WantedPort<A>,
        stale: &mut Vec<StaleBackend>,
    ) {
        let before = self.ports.remove(&id);
        let mut reduced = false;
        let adopted = self.adopted.remove(&id);
        let none = Vec::new();
        let (kept, highest, flows, came_by) = match (&before, &adopted) {
            (Some(port), _) => {
                let same = wanted.same_sets(&port.wanted.cluster, &port.wanted.local)
                    && wanted.serving == port.wanted.serving;
                reduced = same && port.reduced;
                if !same {
                    self.retire_chunks(id, port);
                }
                (same.then_some(port.generation), port.highest, &port.flows, &port.client_frontends)
            }
            (None, Some(a)) => {
                let same = a.whole
                    && wanted.same_sets(&a.cluster, &a.local)
                    && serving(id, &wanted).into_iter().collect::<HashSet<_>>() == a.serving;
                (same.then_some(a.generation), a.highest, &a.flows, &a.client_frontends)
            }
            (None, None) => (None, 0, &none, &Vec::new()),
        };
        let generation = kept.unwrap_or_else(|| highest.wrapping_add(1));
        let highest = highest.max(generation);
        let udp = wanted.transport == Transport::Udp;
        let flows = if udp { flows_after(id, (flows, came_by), &wanted, stale) } else { Vec::new() };
        let client_frontends = if udp { client_frontends_after(came_by, &wanted) } else { Vec::new() };
        let port =
            Port { owner: Arc::clone(owner), wanted, generation, highest, flows, client_frontends, reduced };
        if let Some(before) = &before {
            let members = port.members(id);
            let kept: HashSet<&MemberKey<A>> = members.iter().collect();
            // Members that an earlier change marked for deletion may be wanted again.
            self.old_members.retain(|key| !kept.contains(key));
            self.old_members.extend(before.members(id).iter().filter(|m| !kept.contains(m)));
            let kept = &port.wanted.frontends;
            for (key, _) in before.wanted.frontends.iter().filter(|(k, _)| kept.iter().all(|(n, _)| n != k)) {
                self.unclaim(id, key);
            }
        }
        self.ports.insert(id, port);
        self.pending.insert(id);
        self.claim(id);
    }

    fn remove_port(&mut self, id: u32, stale: &mut Vec<StaleBackend>) {
        let Some(port) = self.ports.remove(&id) else { return };
        self.retire_chunks(id, &port);
        self.old_members.extend(port.members(id));
        self.pending.remove(&id);
        self.waited.remove(&id);
        self.unfit.ports.remove(&id);
        for (key, _) in &port.wanted.frontends {
            self.unclaim(id, key);
        }
        self.notified.retain(|(_, notified)| *notified != id);
        stale.extend(port.flows.iter().flat_map(|b| stale_backends(id, b, &port.client_frontends)));
    }

    /// Marks the chunks of a port's published generation for deletion.
    fn retire_chunks(&mut self, id: u32, port: &Port<A>) {
        self.old_chunks.extend(port.published(id).chunk_keys());
    }

    /// The wanted value of a key.
    pub(super) fn value(&self, key: &ServiceKey<A>) -> Option<Service<A>> {
        let id = self.holder(key)?;
        if key.port == 0 {
            return Some(address_value());
        }
        let port = self.ports.get(&id)?;
        let (_, flags) = port.wanted.frontends.iter().find(|(k, _)| k == key)?;
        Some(port.published(id).value(*flags))
    }

    /// The meaning of the family's ids, for [`super::TableReconciler::names`].
    pub(super) fn names(&self) -> impl Iterator<Item = Named> {
        self.ports.iter().map(|(id, port)| Named {
            id: *id,
            v6: A::V6,
            service: port.owner.service.clone(),
            port: Arc::clone(&port.wanted.name),
            transport: port.wanted.transport,
            frontends: port.wanted.frontends.iter().map(|(key, _)| shown(key)).collect(),
        })
    }
}
