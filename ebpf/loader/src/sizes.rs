//! Sizes of the maps, in entries.

use crate::object::{Contents, MapSpec};
use berth_ebpf_abi::maps;
use std::ffi::OsString;

/// Maximum entries of the maps that a load creates, for IPv4 and IPv6 where a map exists twice. A map that is
/// already pinned keeps its size until a reset or the node's next boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sizes {
    /// Frontends. A Service with a single port has two, and a third for its node port.
    pub services: [u32; 2],
    /// Chunks of sixteen backends, of Services with more than four.
    pub chunks: [u32; 2],
    /// Backends of Services with session affinity, and of UDP Services with chunks.
    pub members: [u32; 2],
    /// Clients with session affinity to a backend.
    pub affinity: [u32; 2],
    /// Pods of the node.
    pub pods: u32,
    /// The node's own addresses of each family.
    pub node_addresses: u32,
    /// TCP connections in use that are translated packet by packet.
    pub assured: [u32; 2],
    /// TCP connections that are beginning or closed; when the map is full, the oldest of these are evicted.
    pub unassured: [u32; 2],
    /// UDP flows, as for TCP; those that are streams are not evicted.
    pub udp: [u32; 2],
    /// Connections between pods of this node that the host's stack translated (host ports).
    pub stack: [u32; 2],
    /// Fragmented datagrams in transit.
    pub fragments: [u32; 2],
}

impl Default for Sizes {
    /// The sizes that the object defines.
    fn default() -> Sizes {
        Sizes {
            services: [131_072, 65_536],
            chunks: [65_536, 32_768],
            members: [65_536, 32_768],
            affinity: [16_384, 8_192],
            pods: 4_096,
            node_addresses: 1_024,
            assured: [65_536, 32_768],
            unassured: [16_384, 8_192],
            udp: [24_576, 12_288],
            stack: [4_096, 2_048],
            fragments: [8_192, 4_096],
        }
    }
}

impl Sizes {
    /// The sizes by map name.
    fn by_name(&self) -> [(&'static str, u32); 28] {
        let Sizes { services, chunks, members, affinity, pods, node_addresses, .. } = *self;
        let Sizes { assured, unassured, udp, stack, fragments, .. } = *self;
        // A connection has one entry for each direction, and one place in the eviction order.
        let [assured_entries, unassured_entries, udp_entries] =
            [assured, unassured, udp].map(|connections| connections.map(|n: u32| n.saturating_mul(2)));

        [
            (maps::SERVICE4, services[0]),
            (maps::SERVICE6, services[1]),
            (maps::CHUNK4, chunks[0]),
            (maps::CHUNK6, chunks[1]),
            (maps::MEMBER4, members[0]),
            (maps::MEMBER6, members[1]),
            (maps::AFFINITY4, affinity[0]),
            (maps::AFFINITY6, affinity[1]),
            (maps::CLIENT, pods),
            (maps::POD4, pods),
            (maps::POD6, pods),
            (maps::POD_DEVICE, pods),
            (maps::NODE4, node_addresses),
            (maps::NODE6, node_addresses),
            (maps::ASSURED4, assured_entries[0]),
            (maps::ASSURED6, assured_entries[1]),
            (maps::UNASSURED4, unassured_entries[0]),
            (maps::UNASSURED6, unassured_entries[1]),
            (maps::BEGUN_TCP4, unassured[0]),
            (maps::BEGUN_TCP6, unassured[1]),
            (maps::UDP4, udp_entries[0]),
            (maps::UDP6, udp_entries[1]),
            (maps::BEGUN_UDP4, udp[0]),
            (maps::BEGUN_UDP6, udp[1]),
            (maps::STACK4, stack[0]),
            (maps::STACK6, stack[1]),
            (maps::FRAGMENT4, fragments[0]),
            (maps::FRAGMENT6, fragments[1]),
        ]
    }

    /// The sizes that differ from the object's own, by map name. A map has at least one entry.
    pub(crate) fn other_than_default(&self) -> Vec<(String, u32)> {
        let both = self.by_name().into_iter().zip(Sizes::default().by_name());
        both.filter(|(own, default)| own != default)
            .map(|((name, n), _)| (name.to_owned(), n.max(1)))
            .collect()
    }
}

/// Arguments that pass the sizes to the loading child: one `NAME=ENTRIES` for each map.
pub(crate) fn arguments(sizes: &[(String, u32)]) -> Vec<OsString> {
    sizes.iter().map(|(name, entries)| format!("{name}={entries}").into()).collect()
}

/// Parses one `NAME=ENTRIES` argument.
pub(crate) fn parse(argument: &OsString) -> Option<(String, u32)> {
    let (name, entries) = argument.to_str()?.split_once('=')?;
    Some((name.to_owned(), entries.parse().ok()?))
}

/// Sets these sizes on an object's maps.
pub(crate) fn resize(contents: &mut Contents, sizes: &[(String, u32)]) {
    let wanted =
        |map: &MapSpec| sizes.iter().find(|(name, _)| *name == map.name).map(|(_, entries)| *entries);
    for map in &mut contents.maps {
        map.max_entries = wanted(map).unwrap_or(map.max_entries);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::OBJECT;

    #[test]
    fn the_defaults_are_those_of_the_object() {
        let contents = Contents::parse(OBJECT).unwrap();
        for (name, entries) in Sizes::default().by_name() {
            let map = contents.maps.iter().find(|map| map.name == name).unwrap();
            assert_eq!(map.max_entries, entries, "{name}");
        }
        assert_eq!(Sizes::default().other_than_default(), []);
    }

    #[test]
    fn sizes_reach_the_child() {
        let sizes = Sizes { members: [7, 0], ..Sizes::default() }.other_than_default();
        let arguments = arguments(&sizes);
        assert_eq!(arguments, ["MEMBER4=7", "MEMBER6=1"]);
        assert_eq!(arguments.iter().map(|one| parse(one).unwrap()).collect::<Vec<_>>(), sizes);
        for wrong in ["MEMBER4", "MEMBER4=", "MEMBER4=-1", "MEMBER4=4294967296"] {
            assert_eq!(parse(&wrong.into()), None, "{wrong}");
        }
    }
}
