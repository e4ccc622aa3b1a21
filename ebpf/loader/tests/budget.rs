//! The verifier takes the programs, and they are no larger than they should be.

mod support;

use berth_ebpf_loader::{OBJECT, load, report};

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
