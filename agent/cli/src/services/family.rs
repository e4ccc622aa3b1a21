//! The pinned maps of IPv4 and IPv6.

use berth_ebpf_abi::{
    Affinity, AffinityKey, Chunk, ChunkKey, Config, Flow, LocalPod, MemberKey, NodeAddress, Prefix, Service,
    ServiceKey, Tuple, V4, V6, maps,
};
use berth_ebpf_decide::{Family, flow::Class};
use berth_ebpf_loader::{Datapath, Error, Map, Plain};
use berth_ebpf_tables::{Contents, Net};

/// The element of a class of connections.
pub(crate) fn by_class<T: Copy>([udp, unassured, assured]: [T; 3], class: Class) -> T {
    match class {
        Class::Udp => udp,
        Class::Unassured => unassured,
        Class::Assured => assured,
    }
}

/// The pinned maps of one family.
pub(crate) struct FamilyMaps<'d, A> {
    pub(crate) service: &'d Map<ServiceKey<A>, Service<A>>,
    pub(crate) chunk: &'d Map<ChunkKey, Chunk<A>>,
    pub(crate) member: &'d Map<MemberKey<A>, u32>,
    pub(crate) affinity: &'d Map<AffinityKey<A>, Affinity<A>>,
    pub(crate) node: &'d Map<A, NodeAddress>,
    pub(crate) pod: &'d Map<A, LocalPod>,
    /// In the order of [`Class`].
    pub(crate) flows: [&'d Map<Tuple<A>, Flow<A>>; 3],
}

/// The names of one family's maps beside the Service tables.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MapNames {
    pub(crate) affinity: &'static str,
    pub(crate) node: &'static str,
    pub(crate) pod: &'static str,
    /// In the order of [`Class`].
    pub(crate) flows: [&'static str; 3],
    pub(crate) fragment: &'static str,
}

/// An address family with its pinned maps.
pub(crate) trait MapFamily: Net + Family + Plain {
    /// The names of its maps beside the Service tables, which are [`Net::TABLES`].
    const MAPS: MapNames;

    /// Its pinned maps.
    fn maps(datapath: &Datapath) -> FamilyMaps<'_, Self>;
    /// The Service ranges of the node's configuration.
    fn ranges(config: &Config) -> [Prefix; 2];
    /// The source address of masqueraded connections.
    fn masquerade(config: &Config) -> Self;
}

/// Reads the Service tables of one family. Service entries come first: chunks that are replaced meanwhile stay
/// for a moment.
pub(crate) fn read<A: MapFamily>(datapath: &Datapath) -> Result<Contents<A>, Error> {
    let maps = A::maps(datapath);
    Ok(Contents {
        services: maps.service.entries()?,
        chunks: maps.chunk.entries()?.into_iter().collect(),
        members: maps.member.entries()?.into_iter().map(|(key, _)| key).collect(),
    })
}

impl MapFamily for V4 {
    const MAPS: MapNames = MapNames {
        affinity: maps::AFFINITY4,
        node: maps::NODE4,
        pod: maps::POD4,
        flows: [maps::UDP4, maps::UNASSURED4, maps::ASSURED4],
        fragment: maps::FRAGMENT4,
    };

    fn maps(d: &Datapath) -> FamilyMaps<'_, V4> {
        FamilyMaps {
            service: &d.service4,
            chunk: &d.chunk4,
            member: &d.member4,
            affinity: &d.affinity4,
            node: &d.node4,
            pod: &d.pod4,
            flows: [&d.udp4, &d.unassured4, &d.assured4],
        }
    }

    fn ranges(config: &Config) -> [Prefix; 2] {
        config.service4
    }

    fn masquerade(config: &Config) -> V4 {
        config.masquerade4
    }
}

impl MapFamily for V6 {
    const MAPS: MapNames = MapNames {
        affinity: maps::AFFINITY6,
        node: maps::NODE6,
        pod: maps::POD6,
        flows: [maps::UDP6, maps::UNASSURED6, maps::ASSURED6],
        fragment: maps::FRAGMENT6,
    };

    fn maps(d: &Datapath) -> FamilyMaps<'_, V6> {
        FamilyMaps {
            service: &d.service6,
            chunk: &d.chunk6,
            member: &d.member6,
            affinity: &d.affinity6,
            node: &d.node6,
            pod: &d.pod6,
            flows: [&d.udp6, &d.unassured6, &d.assured6],
        }
    }

    fn ranges(config: &Config) -> [Prefix; 2] {
        config.service6
    }

    fn masquerade(config: &Config) -> V6 {
        config.masquerade6
    }
}
