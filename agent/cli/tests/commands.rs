//! Tests of the commands from outside: exit codes and output, with an agent, without one and after its death.
//!
//! The test program is also the command: started with `--as-command` it takes that role. The agent is the
//! real server with a backend whose commands run on the host.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "commands/agent.rs"]
mod agent;
#[path = "commands/cases.rs"]
mod cases;
#[path = "commands/services.rs"]
mod services;

use clap::Parser;
use std::{path::PathBuf, process::ExitCode};

#[derive(Parser)]
struct Args {
    #[arg(long)]
    roots: PathBuf,
    #[command(subcommand)]
    command: berth_cli::Command,
}

fn main() -> ExitCode {
    let mut arguments: Vec<String> = std::env::args().collect();
    if arguments.get(1).is_some_and(|a| a == "--as-command") {
        arguments.remove(1);
        let args = Args::parse_from(arguments);
        let roots = serde_json::from_slice(&std::fs::read(args.roots).unwrap()).unwrap();
        return berth_cli::run(&roots, args.command);
    }
    let filter = arguments.iter().skip(1).find(|a| !a.starts_with('-'));
    let wanted = |name: &str| filter.is_none_or(|f| name.contains(f.as_str()));
    let all = || cases::ALL.iter().chain(services::ALL);
    let chosen: Vec<_> = all().filter(|(name, _)| wanted(name)).collect();
    if arguments.iter().any(|a| a == "--list") {
        chosen.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    println!("\nrunning {} tests", chosen.len());
    let mut failed = 0;
    for (name, case) in &chosen {
        let passed = std::panic::catch_unwind(case).is_ok();
        println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
        failed += usize::from(!passed);
    }
    println!(
        "\ntest result: {} passed; {failed} failed; {} filtered out",
        chosen.len() - failed,
        all().count() - chosen.len()
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
