//! How many entries the maps of Services take: what is given, else what suits the machine's memory. Pure.

use berth_services::Sizes;

/// From so much memory on there is room for twice as many connections in use.
const LARGE: u64 = 8 << 30;

/// What options give, for IPv4; IPv6 has half as many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Limits {
    /// Ways into Services.
    pub(crate) services: Option<u32>,
    /// Backends that clients stay with, and chunks of backends.
    pub(crate) backends: Option<u32>,
    /// Clients that stay with a backend.
    pub(crate) affinity: Option<u32>,
    /// TCP connections in use that are translated packet by packet. The other classes go with them, as their defaults do.
    pub(crate) connections: Option<u32>,
}

impl Limits {
    /// The sizes on a machine with so many bytes of memory, where that is known.
    pub(crate) fn sizes(self, memory: Option<u64>) -> Sizes {
        let default = Sizes::default();
        let halved = |n: u32| [n, n.div_ceil(2)];
        let both = |given: Option<u32>, default: [u32; 2]| given.map_or(default, halved);
        let mut sizes = Sizes {
            services: both(self.services, default.services),
            members: both(self.backends, default.members),
            chunks: both(self.backends, default.chunks),
            affinity: both(self.affinity, default.affinity),
            ..default
        };
        match self.connections {
            Some(n) => {
                sizes.assured = halved(n);
                sizes.unassured = halved(n.div_ceil(4));
                sizes.udp = halved(n.div_ceil(8).saturating_mul(3));
            }
            // An entry takes memory when it comes; its slot at once.
            None if memory.is_some_and(|bytes| bytes >= LARGE) => {
                sizes.assured = sizes.assured.map(|n| n.saturating_mul(2));
            }
            None => {}
        }
        sizes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_core::ports::SERVICE_MASQUERADE_PORTS;

    #[test]
    fn what_is_given_counts_and_memory_where_nothing_is() {
        let none = Limits::default();
        let default = Sizes::default();
        assert_eq!(none.sizes(None), default);
        assert_eq!(none.sizes(Some(LARGE - 1)), default);
        assert_eq!(none.sizes(Some(LARGE)), Sizes { assured: [131_072, 65_536], ..default });
        let given = Limits { connections: Some(default.assured[0]), ..none };
        assert_eq!(given.sizes(Some(LARGE)), default, "in proportion");
        let given =
            Limits { services: Some(16), backends: Some(31), affinity: Some(17), connections: Some(64) };
        let sizes = given.sizes(None);
        assert_eq!((sizes.services, sizes.affinity), ([16, 8], [17, 9]));
        assert_eq!((sizes.members, sizes.chunks), ([31, 16], [31, 16]));
        assert_eq!((sizes.assured, sizes.unassured, sizes.udp), ([64, 32], [16, 8], [24, 12]));
    }

    /// Where all of them go to one backend under one address, each has a port of its own.
    #[test]
    fn datagrams_of_strangers_do_not_use_up_the_ports_towards_a_backend() {
        let ports = u32::try_from(SERVICE_MASQUERADE_PORTS.count()).unwrap();
        let Sizes { udp, unassured, .. } = Sizes::default();
        assert!(udp[0].max(unassured[0]) * 10 <= ports * 9, "{udp:?}, {unassured:?} of {ports}");
    }
}
