//! Ranges of the node's ports for the three users that share the ports without coordination: node ports,
//! connections to Services that are masqueraded packet by packet, and the masquerade of pods' own traffic by
//! the host's rules.

use std::ops::RangeInclusive;

/// Ports of Services at the node's addresses (`--service-node-port-range` of the API server, at its default).
pub const NODE_PORTS: RangeInclusive<u16> = 30_000..=32_767;

/// Source ports of connections to Services that are masqueraded packet by packet.
pub const SERVICE_MASQUERADE_PORTS: RangeInclusive<u16> = 1_024..=29_999;

/// Source ports that the host's rules masquerade with. They overlap neither of the two ranges above, because
/// a Service would take the replies otherwise.
pub const POD_MASQUERADE_PORTS: RangeInclusive<u16> = 32_768..=65_535;

/// Ports that the kernel must not choose for the node's own sockets (`ip_local_reserved_ports`). A program
/// that binds such a port by number still gets it.
pub const RESERVED_PORTS: RangeInclusive<u16> = *SERVICE_MASQUERADE_PORTS.start()..=*NODE_PORTS.end();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_port_has_two_owners() {
        for port in 1..=u16::MAX {
            let owners =
                [NODE_PORTS, SERVICE_MASQUERADE_PORTS, POD_MASQUERADE_PORTS].map(|all| all.contains(&port));
            let count = owners.iter().filter(|owns| **owns).count();
            assert!(count <= 1, "{port}");
            assert_eq!(RESERVED_PORTS.contains(&port), owners[0] || owners[1], "{port}");
        }
    }
}
