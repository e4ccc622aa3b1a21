//! Ageing of translated connections: the agent looks for old ones, the kernel judges them and removes both directions.
//!
//! The entries are read without a lock, so an entry may be used between the look and the removal: program `tc_gc` is
//! handed the keys, reads each entry anew and deletes only what is still too old.

use crate::{Datapath, Error, Map, Pins, Plain, Result, attach::open_program, plain::bytes, sys::test_run};
use berth_ebpf_abi::{Addr, Flow, Tuple};
use std::os::fd::{AsFd, OwnedFd};

/// The program that removes.
const PROGRAM: &str = "tc_gc";
/// No entry is too old before this many seconds, whatever its protocol and state: the time of a reset connection.
const YOUNGEST_S: u32 = 10;
/// A test run's packet must fit one page, with the kernel's own room; the program takes 128 keys at most.
const PACKET: usize = 2048;
const ETHERNET: usize = 14;

/// What a collection did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Collected {
    /// Entries that were looked at.
    pub seen: usize,
    /// Keys that were handed to the kernel.
    pub candidates: usize,
    /// Connections that it removed, by its own count.
    pub removed: usize,
}

/// Hands all entries that may be too old to the kernel's program. `now_s`: CLOCK_MONOTONIC in seconds.
///
/// # Errors
/// Nothing was prepared, or the kernel refuses.
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

/// An empty Ethernet header, the family, how many, the keys.
fn packet<A: Addr + Plain>(family: i32, keys: &[Tuple<A>]) -> Vec<u8> {
    let mut packet = vec![0; ETHERNET];
    packet.extend(family.to_ne_bytes());
    packet.extend(u32::try_from(keys.len()).unwrap_or_default().to_ne_bytes());
    packet.extend(bytes(keys));
    packet
}
