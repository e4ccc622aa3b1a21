//! Ageing of translated connections: the agent collects old entries, and the kernel checks them again and
//! removes both directions.
//!
//! The agent reads the entries without a lock, so a packet may use an entry between the read and the removal.
//! Program `tc_gc` therefore receives only the keys, reads each entry again and deletes it only if it is
//! still too old.

use crate::{Datapath, Error, Map, Pins, Plain, Result, pins::open_program, plain::bytes, sys::test_run};
use berth_ebpf_abi::{Addr, Flow, Tuple};
use std::os::fd::{AsFd, OwnedFd};

/// The program that removes the entries.
const PROGRAM: &str = "tc_gc";
/// Minimum age of a candidate in seconds: the timeout of a reset connection, the shortest of all protocols
/// and states.
const YOUNGEST_S: u32 = 10;
/// A test run's packet and the kernel's own headroom must fit one page; the program takes at most 128 keys.
const PACKET: usize = 2048;
const ETHERNET: usize = 14;

/// Counts of one collection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Collected {
    /// Entries that were read.
    pub seen: usize,
    /// Keys that were passed to the kernel.
    pub candidates: usize,
    /// Connections that the program removed, by its own count.
    pub removed: usize,
}

/// Passes all entries that may be too old to the kernel's program. `now_s` is CLOCK_MONOTONIC in seconds.
///
/// # Errors
/// No program is pinned, or the kernel refuses.
pub fn collect_flows(pins: &Pins, datapath: &Datapath, now_s: u32) -> Result<Collected> {
    let (program, _) = open_program(pins, PROGRAM)?;
    let mut collected = Collected::default();
    let Datapath { assured4, assured6, unassured4, unassured6, udp4, udp6, .. } = datapath;
    for flows in [assured4, unassured4, udp4] {
        collect(&program, flows, libc::AF_INET, now_s, &mut collected)?;
    }
    for flows in [assured6, unassured6, udp6] {
        collect(&program, flows, libc::AF_INET6, now_s, &mut collected)?;
    }
    Ok(collected)
}

fn collect<A: Addr + Plain>(
    program: &OwnedFd,
    flows: &Map<Tuple<A>, Flow<A>>,
    family: i32,
    now_s: u32,
    collected: &mut Collected,
) -> Result<()> {
    let mut old = Vec::new();
    flows.visit(|keys, values| {
        collected.seen += keys.len();
        let both = keys.iter().zip(values);
        old.extend(
            both.filter(|(_, flow)| now_s.saturating_sub(flow.seen_s) >= YOUNGEST_S).map(|(key, _)| *key),
        );
    })?;
    collected.candidates += old.len();
    let room = (PACKET - ETHERNET - 8) / size_of::<Tuple<A>>();
    for part in old.chunks(room) {
        let failed = |source| Error::Program { op: "run", program: PROGRAM.to_owned(), source };
        let answer = test_run(program.as_fd(), &packet(family, part), 1).map_err(failed)?;
        collected.removed += usize::try_from(answer.value).unwrap_or_default();
    }
    Ok(())
}

/// The packet of a test run: an empty Ethernet header, the address family, the number of keys, the keys.
fn packet<A: Addr + Plain>(family: i32, keys: &[Tuple<A>]) -> Vec<u8> {
    let mut packet = vec![0; ETHERNET];
    packet.extend(family.to_ne_bytes());
    packet.extend(u32::try_from(keys.len()).unwrap_or_default().to_ne_bytes());
    packet.extend(bytes(keys));
    packet
}
