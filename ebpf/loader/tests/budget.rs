//! The verifier accepts the programs, and the programs stay within their budgets of instructions.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step is a failed test")]

mod support;

use berth_ebpf_abi::{Chunk, ChunkKey, Service, ServiceKey, V4};
use berth_ebpf_loader::{Access, Datapath, FunctionReport, OBJECT, Report, digest, functions, load, report};

/// Limit of the instructions, as the kernel runs them, of a program with all its functions.
const BUDGETS: [(&str, u32); 8] = [
    ("connect4", 410),
    // Two functions. Nearly every datagram to a Service keeps the backend that the socket has, and runs the
    // first function only.
    ("sendmsg4", 640),
    // Two programs in one, because IPv6 sockets also connect to mapped IPv4 addresses. No call runs both.
    ("connect6", 820),
    ("sendmsg6", 680),
    ("recvmsg4", 100),
    ("getpeername4", 100),
    ("recvmsg6", 100),
    ("getpeername6", 100),
];

/// Limit of the instructions of each function of these programs.
const FUNCTION: u32 = 410;

/// Limit for the functions of a socket's first datagram to an address, set to the measured size.
const FIRST_DATAGRAM: (&str, u32) = ("first_datagram", 430);

/// Limit for the functions of every other datagram.
const DATAGRAM: (&str, u32) = ("sendmsg", 240);

fn function_budget(function: &str) -> u32 {
    let special = [FIRST_DATAGRAM, DATAGRAM].into_iter().find(|(name, _)| function.contains(name));
    special.map_or(FUNCTION, |(_, budget)| budget)
}

#[test]
fn socket_hooks_keep_their_budgets() {
    let loaded = Loaded::new();
    let mut over = Vec::new();
    for (name, budget) in BUDGETS {
        let program = loaded.report.programs.iter().find(|program| program.name == name).unwrap();
        println!("{name}: {} instructions, {} verified", program.instructions, program.verified);
        if program.instructions > budget {
            over.push(format!("{name}: {} instructions, allowed are {budget}", program.instructions));
        }
        let functions = loaded.functions(name);
        assert_eq!(functions.first().map(|one| one.name.as_str()), Some(name));
        assert_eq!(functions.iter().map(|one| one.instructions).sum::<u32>(), program.instructions);
        for one in &functions {
            println!("  {}: {}", one.name, one.instructions);
            let budget = function_budget(&one.name);
            if one.instructions > budget {
                over.push(format!("{one:?} of {name}, allowed are {budget}"));
            }
        }
    }
    assert!(over.is_empty(), "{}", over.join("; "));
}

/// Functions that a packet runs at a device, by a part of their symbols; every packet takes one of the paths.
/// `#` stands for the family's part of a symbol.
struct Path {
    what: &'static str,
    programs: &'static [(&'static str, &'static str)],
    functions: &'static [&'static str],
    /// Limits of the instructions, as the kernel runs them, for IPv4 and IPv6.
    budget: [u32; 2],
}

/// The packet budget holds for the first path, which nearly all packets take. The limits of the others are
/// set to the measured sizes.
///
/// The lookup of a route for the device is a function of its own.
const PATHS: [Path; 3] = [
    Path {
        what: "a packet of a connection that was looked at in this second",
        programs: &[("tc_uplink", "uplink"), ("tc_pod", "pod"), ("tc_out", "out")],
        functions: &["act6device#"],
        budget: [800, 800],
    },
    Path {
        what: "the first such packet in a second",
        programs: &[("tc_uplink", "uplink"), ("tc_pod", "pod"), ("tc_out", "out")],
        functions: &["memset", "act6device#", "act13refresh_known#"],
        budget: [2000, 2500],
    },
    Path {
        what: "a connection's first packet",
        programs: &[("tc_uplink", "uplink"), ("tc_pod", "pod")],
        functions: &[
            "memset",
            "act6device#",
            "act13refresh_known#",
            "act12classify_new#",
            "act5begin#",
            "flow9open_flow9open_flow#",
        ],
        budget: [4000, 5000],
    },
];

#[test]
fn packets_keep_their_budgets() {
    let loaded = Loaded::new();
    let mut over = Vec::new();
    for path in &PATHS {
        for (program, part) in path.programs {
            let functions = loaded.functions(program);
            // The spelling of the address types in a symbol.
            for (family, mark, budget) in [(4, "m", path.budget[0]), (6, "Amj4_", path.budget[1])] {
                let wanted = path.functions.iter().map(|name| name.replace('#', mark));
                let own = [(*program).to_owned(), format!("2tc{}{part}{family}", part.len() + 1)];
                let mut sum = 0;
                for name in own.into_iter().chain(wanted) {
                    let found: Vec<_> = functions.iter().filter(|one| one.name.contains(&name)).collect();
                    let [found] = found[..] else { panic!("{program} has not one {name}: {functions:?}") };
                    sum += found.instructions;
                }
                println!("IPv{family}, {program}, {}: {sum} instructions", path.what);
                if sum > budget {
                    over.push(format!("IPv{family}, {program}, {}: {sum} of {budget}", path.what));
                }
            }
        }
    }
    assert!(over.is_empty(), "{}", over.join("; "));
}

/// The programs, loaded into the kernel.
struct Loaded {
    scratch: support::Scratch,
    object: Vec<u8>,
    report: Report,
}

impl Loaded {
    fn new() -> Loaded {
        let scratch = support::Scratch::new();
        // `BERTH_OBJECT` names an object to test instead of the committed one.
        let object = std::env::var_os("BERTH_OBJECT")
            .map_or_else(|| OBJECT.to_vec(), |path| std::fs::read(path).unwrap());
        load(&scratch.pins(), &object, |_| {}).unwrap();
        let report = report(&scratch.pins(), false).unwrap();
        Loaded { scratch, object, report }
    }

    fn functions(&self, program: &str) -> Vec<FunctionReport> {
        functions(&self.scratch.pins(), &self.object, program).unwrap()
    }
}

#[test]
fn ten_thousand_services_fit_in_thirty_megabytes() {
    let scratch = support::Scratch::new();
    load(&scratch.pins(), OBJECT, |_| {}).unwrap();
    let maps = Datapath::open(&scratch.pins(), Access::Write).unwrap();
    let (mut ways, mut chunks) = (Vec::new(), Vec::new());
    for id in 1..=10_000_u32 {
        // Ten endpoints take one chunk. The Service's address has an entry of its own.
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
