//! Capacities of the maps of Services: by the options, else by the machine's memory. Pure.

use berth_services::Sizes;

/// Memory in bytes from which on the default capacity for established connections is doubled.
const LARGE: u64 = 8 << 30;

/// Capacities by the options, for IPv4; IPv6 has half as many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Limits {
    /// Frontends of Services.
    pub(crate) services: Option<u32>,
    /// Backends of Services with session affinity, and chunks of backends.
    pub(crate) backends: Option<u32>,
    /// Clients with session affinity.
    pub(crate) affinity: Option<u32>,
    /// Established TCP connections that are translated packet by packet. The capacities of the
    /// other classes keep their defaults' proportion to it.
    pub(crate) connections: Option<u32>,
}

impl Limits {
    /// The capacities; `memory`: the machine's in bytes, where known.
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
            // A larger map takes memory for its slots at once, for entries only as they are added.
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
    fn options_decide_capacities_and_memory_where_there_are_none() {
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

    /// Each flow needs a port of its own where all of them go to one backend with one masquerade
    /// address.
    #[test]
    fn capacities_of_unassured_flows_leave_masquerade_ports_to_a_backend() {
        let ports = u32::try_from(SERVICE_MASQUERADE_PORTS.count()).unwrap();
        let Sizes { udp, unassured, .. } = Sizes::default();
        assert!(udp[0].max(unassured[0]) * 10 <= ports * 9, "{udp:?}, {unassured:?} of {ports}");
    }
}
