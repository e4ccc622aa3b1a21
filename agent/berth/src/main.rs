//! `berth`: the node agent, its helpers and its debugging commands in one program.
//!
//! The first argument says which role: `agent`, its helpers `logd`, `dns`, `probe-exec` and the loader of the eBPF
//! programs; `reset` and everything else is a command for people.

mod agent;
mod backend;
mod board;
mod dns;
mod exec;
mod host_network;
mod local;
mod lock;
mod logging;
mod node;
mod reset;
mod roots;
mod services;
mod shutdown;
mod sources;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use std::{path::PathBuf, process::ExitCode};

/// A Kubernetes node agent: pods through containerd.
#[derive(Debug, Parser)]
#[command(name = "berth", version, disable_help_subcommand = true)]
struct Args {
    /// A JSON file with every path and name of the node; without it the usual ones of a Kubernetes node.
    #[arg(long, global = true, env = "BERTH_ROOTS", value_name = "FILE")]
    roots: Option<PathBuf>,
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Run the node agent.
    Agent(Box<agent::AgentArgs>),
    /// Drain container output into files (started by the agent or a service manager).
    #[command(hide = true)]
    Logd,
    /// Answer the cluster's names (started by the agent or a service manager).
    #[command(hide = true)]
    Dns(dns::DnsArgs),
    /// Run exec probes (started by the agent).
    #[command(hide = true)]
    ProbeExec,
    /// Take away what is made to outlive the agent: hooks and tables of Services, cluster DNS, sysctls. Pods stay.
    Reset,
    /// End the pods by their grace because the machine is shut down; none is started until the next boot. A service
    /// manager calls it.
    Shutdown(shutdown::ShutdownArgs),
    #[command(flatten)]
    Cli(berth_cli::Command),
}

fn main() -> ExitCode {
    // The exec helper is single-threaded and small: nothing is set up before it.
    if std::env::args_os().nth(1).is_some_and(|a| a == "probe-exec") {
        return berth_probe::exec_helper::main();
    }
    // So is the child that loads the eBPF programs.
    if std::env::args_os().nth(1).is_some_and(|a| a == berth_ebpf_loader::ROLE) {
        return berth_ebpf_loader::child_main(std::env::args_os().skip(2));
    }
    let args = Args::parse();
    let roots = match roots::load(args.roots.as_deref()) {
        Ok(roots) => roots,
        Err(error) => return fail(&error),
    };
    let done = match args.role {
        Role::Agent(agent) => agent::run(roots, *agent),
        Role::Logd => logd(roots),
        Role::Dns(args) => dns::run(roots, args),
        Role::Reset => reset::run(&roots),
        Role::Shutdown(args) => shutdown::run(&roots, &args),
        Role::ProbeExec => return berth_probe::exec_helper::main(),
        Role::Cli(command) => return berth_cli::run(&roots, command),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn logd(roots: berth_core::roots::Roots) -> anyhow::Result<()> {
    logging::to_stderr();
    helper();
    match berth_logd::server::run(berth_logd::server::Config::defaults(roots)) {
        Ok(_never_or_replaced) => Ok(()),
        Err(error) => Err(error).context("logd"),
    }
}

/// What every process that pods hang on does for itself first.
fn helper() {
    let own = std::process::id();
    if let Err(error) = berth_sys::service::protect_from_oom(own, berth_core::resources::OOM_AGENT) {
        // Where it may not, whoever started this one has to.
        tracing::info!(%error, "the score for the OOM killer is left as it is");
    }
}

#[expect(clippy::print_stderr, reason = "the end of the program is told where its user looks")]
fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("berth: {error:#}");
    ExitCode::FAILURE
}
