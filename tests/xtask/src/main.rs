//! The project's tasks: `cargo xtask setup`, `demo`, `test`, `vm`, `ebpf`, `bench`.
//!
//! It builds without protoc and without anything that `setup` installs, so that a fresh machine needs Rust, Go and a
//! linker only.

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
    /// Install what building and testing need: Debian packages, containerd and runc. Does nothing twice.
    Setup,
    /// Start a node with the pods of deploy/examples and show what it does; or end it.
    Demo(demo::Args),
    /// Run the tests: formatting, lints, crate borders, all crates, and the suites of a real node.
    Test(test::Args),
    /// Boot a VM with Berth on it as README says, and run a command there; or look around in it.
    Vm(vm::Args),
    /// Build the programs of the kernel, or check the committed object against them.
    Ebpf(ebpf::Args),
    /// Measure, side by side with a yardstick.
    Bench(bench::Args),
}

fn main() -> ExitCode {
    let done = match Args::parse().task {
        // A command in a VM ends as it does here.
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

/// The repository's root.
fn root() -> PathBuf {
    berth_harness::tools::repository()
}
