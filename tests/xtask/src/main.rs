//! The project's tasks: `cargo xtask setup`, `demo`, `test`, `vm`, `ebpf`, `bench`, `peers`,
//! `cluster`, `conformance`, `outage`, `node-api`, `clients`,
//! `image`, `takeover`.
//!
//! The crate builds without protoc and without anything that `setup` installs: a fresh machine needs only
//! Rust, Go and a linker.

mod apt;
mod arrows;
mod bench;
mod cargo;
mod clients;
mod cluster;
mod conformance;
mod csi;
mod demo;
mod docs;
mod ebpf;
mod image;
mod node_api;
mod out;
mod outage;
mod peers;
mod setup;
mod takeover;
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
    /// Build the programs of a real cluster, in the versions that tests/peers pins. Safe to repeat.
    Peers(peers::Args),
    /// Make a container image of Berth: an OCI archive with one static program.
    Image(image::Args),
    /// Start a control plane, with or without a node, to be used by hand; or end it.
    Cluster(cluster::Args),
    /// Run Kubernetes' own end-to-end tests on a cluster, and keep the result of each.
    Conformance(conformance::Args),
    /// Disturb a cluster with fifty pods in every way, and report what became of them.
    Outage(outage::Args),
    /// Put Berth in the place of kube-proxy on a node of the real kubelet and back, under connections of which none may fail.
    Takeover(takeover::Args),
    /// Ask the node's API of the kubelet and of Berth as many identities, and compare the statuses.
    NodeApi(node_api::Args),
    /// Bring real clients to the node's API: kubectl of today and of 1.29, metrics-server, promtool; and rotate the node's
    /// certificates under them.
    Clients(clients::Args),
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
        Task::Peers(args) => peers::run(&args),
        Task::Image(args) => image::run(&args),
        Task::Cluster(args) => cluster::run(&args),
        Task::Conformance(args) => conformance::run(&args),
        Task::Outage(args) => outage::run(&args),
        Task::Takeover(args) => takeover::run(&args),
        Task::NodeApi(args) => node_api::run(&args),
        Task::Clients(args) => clients::run(&args),
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
