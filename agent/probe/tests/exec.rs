//! Tests of commands in a real container, made by `unshare`: with namespaces, cgroups in every hierarchy and
//! its own root.
//!
//! The test program is also the helper: started with `probe-exec` it takes that role, so no other binary is
//! needed.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "exec/cases.rs"]
mod cases;
#[path = "exec/fixture.rs"]
mod fixture;
#[path = "exec/sessions.rs"]
mod sessions;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|a| a == "probe-exec") {
        return berth_probe::exec_helper::main();
    }
    let filter = arguments.iter().find(|a| !a.starts_with('-'));
    let wanted = |name: &str| filter.is_none_or(|f| name.contains(f.as_str()));
    let all = || cases::ALL.iter().chain(sessions::ALL);
    let cases: Vec<_> = all().filter(|(name, _)| wanted(name)).collect();
    if arguments.iter().any(|a| a == "--list") {
        cases.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    println!("\nrunning {} tests", cases.len());
    let mut failed = 0;
    for (name, case) in &cases {
        let passed = std::panic::catch_unwind(case).is_ok();
        println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
        failed += usize::from(!passed);
    }
    println!(
        "\ntest result: {} passed; {failed} failed; {} filtered out",
        cases.len() - failed,
        all().count() - cases.len()
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
