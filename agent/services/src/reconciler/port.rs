//! A Service port in the reconciler: its owner, its id, its published sets, and the state that the tables hold
//! of it.

use crate::{Net, Notice, NoticeReason, Transport, WantedPort};
use berth_core::{ids::PodKey, time::Wall};
use berth_ebpf_abi::{Backend, INLINE, MemberKey, ServiceKey};
use berth_ebpf_tables::{PublishedPort, serving_members};
use std::{collections::HashSet, sync::Arc};

/// The Service that owns a port.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) service: PodKey,
    pub(super) uid: Arc<str>,
    pub(super) created: Wall,
}

impl Owner {
    /// A notice for the Service's owner.
    pub(super) fn notice(&self, why: NoticeReason) -> Notice {
        Notice { service: self.service.clone(), uid: Arc::clone(&self.uid), why }
    }
}

/// The id of a Service's port.
#[derive(Debug)]
pub(super) struct Numbered {
    pub(super) id: u32,
    pub(super) name: Arc<str>,
    pub(super) transport: Transport,
    /// UID of the Service. A Service created again under the same name is a different one.
    pub(super) uid: Arc<str>,
}

/// A Service port with its id's state.
#[derive(Debug)]
pub(super) struct Port<A> {
    pub(super) owner: Arc<Owner>,
    pub(super) wanted: WantedPort<A>,
    pub(super) generation: u32,
    /// The highest generation of any entry with this id. A failed sync may have left one above the published
    /// generation.
    pub(super) highest: u32,
    /// Backends that UDP clients may still use.
    pub(super) flows: Vec<Backend<A>>,
    /// Frontends, present and former, through which clients may have reached these backends.
    pub(super) client_frontends: Vec<ServiceKey<A>>,
    /// Whether the port is published in part because the tables are full: only the first backends that fit
    /// into the Service value itself are published, without affinity.
    pub(super) reduced: bool,
}

impl<A: Net> Port<A> {
    /// The port as published: what its entries in the tables are made of.
    pub(super) fn published(&self, id: u32) -> PublishedPort<'_, A> {
        let wanted = &self.wanted;
        let (mut cluster, mut local) = (wanted.cluster.as_slice(), wanted.local.as_slice());
        if self.reduced {
            // Local backends get at most half of the value, where a policy asks for them.
            let here = local.len().min(INLINE / 2);
            let room = INLINE.saturating_sub(here);
            (cluster, local) = (cluster.get(..room).unwrap_or(cluster), local.get(..here).unwrap_or(local));
        }
        PublishedPort {
            id,
            generation: self.generation,
            has_endpoints: wanted.has_endpoints,
            affinity_s: if self.reduced { 0 } else { wanted.affinity_s },
            cluster,
            local,
        }
    }

    /// The members of the port as published: the backends of its sets where it has affinity, and the backends
    /// that UDP flows may keep.
    pub(super) fn members(&self, id: u32) -> Vec<MemberKey<A>> {
        if self.reduced {
            return Vec::new();
        }
        let mut members = serving(id, &self.wanted);
        members.extend(self.published(id).affinity_members());
        members
    }

    /// The ClusterIP frontend, which is the first frontend of the port.
    pub(super) fn at_cluster_ip(&self) -> Option<ServiceKey<A>> {
        self.wanted.frontends.first().map(|(key, _)| *key)
    }
}

/// Members of the backends that flows of a UDP port may keep: the backends of its sets and those that only
/// serve.
pub(super) fn serving<A: Net>(id: u32, wanted: &WantedPort<A>) -> Vec<MemberKey<A>> {
    if wanted.transport != Transport::Udp {
        return Vec::new();
    }
    serving_members(id, wanted.cluster.iter().chain(&wanted.local).chain(&wanted.serving))
}

/// A UDP key in the tables, with its id and backends.
#[derive(Debug)]
pub(super) struct UdpKey<A> {
    pub(super) key: ServiceKey<A>,
    pub(super) id: u32,
    pub(super) backends: Vec<Backend<A>>,
}

/// A Service port as the tables hold it.
#[derive(Debug)]
pub(super) struct Adopted<A> {
    /// The highest published generation.
    pub(super) generation: u32,
    /// The highest generation of any entry with this id. A new generation must be above it.
    pub(super) highest: u32,
    /// Whether all chunks of the sets were found.
    pub(super) whole: bool,
    pub(super) cluster: Vec<Backend<A>>,
    pub(super) local: Vec<Backend<A>>,
    /// Member entries of the backends that flows of a UDP port may keep.
    pub(super) serving: HashSet<MemberKey<A>>,
    /// Backends that clients of the port may still use, from an earlier sync of this process.
    pub(super) flows: Vec<Backend<A>>,
    /// Frontends through which clients may have reached these backends.
    pub(super) client_frontends: Vec<ServiceKey<A>>,
}

impl<A> Default for Adopted<A> {
    fn default() -> Self {
        Adopted {
            generation: 0,
            highest: 0,
            whole: false,
            cluster: Vec::new(),
            local: Vec::new(),
            serving: HashSet::new(),
            flows: Vec::new(),
            client_frontends: Vec::new(),
        }
    }
}
