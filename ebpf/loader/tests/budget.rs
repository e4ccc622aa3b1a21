//! The verifier takes the programs, and they are no larger than they should be.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step is a failed test")]

mod support;

use berth_ebpf_abi::{Chunk, ChunkKey, Service, ServiceKey, V4};
use berth_ebpf_loader::{Access, Datapath, OBJECT, digest, load, report};

/// Instructions as the kernel runs them, at most. A hook of IPv6 holds the code of both families: sockets of IPv6 also
/// connect to mapped IPv4 addresses.
const BUDGETS: [(&str, u32); 8] = [
    ("connect4", 400),
    ("sendmsg4", 400),
    ("connect6", 1000),
    ("sendmsg6", 600),
    ("recvmsg4", 100),
    ("getpeername4", 100),
    ("recvmsg6", 200),
    ("getpeername6", 200),
];

#[test]
fn socket_hooks_keep_their_budgets() {
    let scratch = support::Scratch::new();
    // What to try instead of what is committed.
    let object = std::env::var_os("BERTH_OBJECT").map(|path| std::fs::read(path).unwrap());
    load(&scratch.pins(), object.as_deref().unwrap_or(OBJECT), |_| {}).unwrap();
    let report = report(&scratch.pins(), false).unwrap();
    let mut over = Vec::new();
    for (name, budget) in BUDGETS {
        let program = report.programs.iter().find(|program| program.name == name).unwrap();
        println!("{name}: {} instructions, {} verified", program.instructions, program.verified);
        if program.instructions > budget {
            over.push(format!("{name}: {} instructions, allowed are {budget}", program.instructions));
        }
    }
    assert!(over.is_empty(), "{}", over.join("; "));
}

#[test]
fn ten_thousand_services_fit_in_thirty_megabytes() {
    let scratch = support::Scratch::new();
    load(&scratch.pins(), OBJECT, |_| {}).unwrap();
    let maps = Datapath::open(&scratch.pins(), Access::Write).unwrap();
    let (mut ways, mut chunks) = (Vec::new(), Vec::new());
    for id in 1..=10_000_u32 {
        // Ten endpoints each: a chunk. The address itself is known too.
        let key = ServiceKey { addr: id, port: 80, proto: 6, pad: 0 };
        ways.push((key, Service::<V4>::default()));
        ways.push((ServiceKey { port: 0, proto: 0, ..key }, Service::default()));
        chunks.push((ChunkKey { id, ..ChunkKey::default() }, Chunk::<V4>::default()));
    }
    maps.service4.put_all(&ways).unwrap();
    maps.chunk4.put_all(&chunks).unwrap();
    let report = report(&scratch.pins(), false).unwrap();
    for map in &report.maps {
        println!("{}: {} kB", map.name, map.memory / 1000);
    }
    let megabytes = report.map_memory() / 1_000_000;
    println!("all: {megabytes} MB");
    assert!(megabytes <= 30, "{megabytes} MB");
}

#[test]
fn the_object_is_the_recorded_one_and_cannot_panic() {
    let recorded = include_str!("../../programs/berth.bpf.o.sha256");
    assert_eq!(recorded.split(' ').next(), Some(digest(OBJECT).as_str()));
    for symbol in ["core9panicking", "rust_begin_unwind"] {
        let found = OBJECT.windows(symbol.len()).any(|window| window == symbol.as_bytes());
        assert!(!found, "{symbol} is in the object");
    }
}
