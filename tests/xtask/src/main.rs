//! The project's tasks: `cargo xtask setup`, `demo`, `test`, `vm`, `ebpf`, `bench`.
//!
//! The crate builds without protoc and without anything that `setup` installs: a fresh machine needs only
//! Rust, Go and a linker.

mod arrows;
mod bench;
mod cargo;
mod demo;
mod docs;
mod ebpf;
mod out;
mod setup;
mod test;
mod vm;

use clap::{Parser, Subcommand};
use std::{path::PathBuf, process::ExitCode};

/// Tasks of this repository.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", disable_help_subcommand = true)]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Install what building and testing need: Debian packages, containerd and runc. Safe to repeat.
    Setup,
    /// Start a node with the pods of deploy/examples and show them at work; or end the node.
    Demo(demo::Args),
    /// Run the tests: formatting, lints, crate borders, all crates, and the suites of a real node.
    Test(test::Args),
    /// Boot a VM with Berth installed as README says, and run a command or a shell there.
    Vm(vm::Args),
    /// Build the eBPF programs, or check the committed object against its sources.
    Ebpf(ebpf::Args),
    /// Measure performance, side by side with a yardstick.
    Bench(bench::Args),
}

fn main() -> ExitCode {
    let done = match Args::parse().task {
        // The exit code of a VM command becomes the exit code of xtask.
        Task::Vm(args) => match vm::run(&args) {
            Ok(code) => return ExitCode::from(code),
            Err(error) => Err(error),
        },
        Task::Setup => setup::run().map(|()| true),
        Task::Demo(args) => demo::run(&args),
        Task::Test(args) => test::run(&args),
        Task::Ebpf(args) => ebpf::run(&args),
        Task::Bench(args) => bench::run(&args),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            out::line(&format!("failed: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Root of the repository.
fn root() -> PathBuf {
    berth_harness::tools::repository()
}
