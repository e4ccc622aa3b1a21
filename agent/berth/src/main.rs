//! `berth`: the node agent, its helpers and the commands for people in one program.
//!
//! The first argument says which role: `agent`, its helpers `logd`, `dns`, `probe-exec` and the
//! loader of the eBPF programs; `reset` and everything else is a command for people.

mod agent;
mod dns;
mod lock;
mod logging;
mod reset;
mod roots;
mod shutdown;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use std::{path::PathBuf, process::ExitCode};

/// A Kubernetes node agent: pods through containerd.
#[derive(Debug, Parser)]
#[command(name = "berth", version, disable_help_subcommand = true)]
struct Args {
    /// A JSON file with every path and name of the node; without it the usual ones of a Kubernetes
    /// node.
    #[arg(long, global = true, env = "BERTH_ROOTS", value_name = "FILE")]
    roots: Option<PathBuf>,
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Run the node agent.
    Agent(Box<agent::args::AgentArgs>),
    /// Write container output to files (started by the agent or a service manager).
    #[command(hide = true)]
    Logd,
    /// Serve cluster DNS (started by the agent or a service manager).
    #[command(hide = true)]
    Dns(dns::DnsArgs),
    /// Run exec probes (started by the agent).
    #[command(hide = true)]
    ProbeExec,
    /// Remove the state that outlives the agent: hooks and tables of Services, cluster DNS,
    /// sysctls. Pods stay.
    Reset(reset::ResetArgs),
    /// Terminate all pods because the machine shuts down; none is started until the next boot.
    /// Called by a service manager.
    Shutdown(shutdown::ShutdownArgs),
    /// Make this machine a node of a cluster by a bootstrap token.
    Join(Box<berth_join::JoinArgs>),
    /// Take this machine out of its cluster.
    Leave(berth_join::LeaveArgs),
    #[command(flatten)]
    Cli(berth_cli::Command),
}

fn main() -> ExitCode {
    // The exec helper must stay single-threaded and small, so it runs before anything is set up.
    if std::env::args_os().nth(1).is_some_and(|a| a == "probe-exec") {
        return berth_probe::exec_helper::main();
    }
    // The same holds for the child that loads the eBPF programs.
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
        Role::Reset(args) => reset::run(&roots, &args),
        Role::Shutdown(args) => shutdown::run(&roots, &args),
        Role::Join(join) => berth_join::join(&roots, args.roots.as_deref(), &join).map_err(Into::into),
        Role::Leave(leave) => berth_join::leave(&roots, &leave).map_err(Into::into),
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

/// Protects this process from the OOM killer; the first step of every process on which pods depend.
fn helper() {
    let own = std::process::id();
    if let Err(error) = berth_sys::service::protect_from_oom(own, berth_core::resources::OOM_AGENT) {
        // Without the privilege the process that starts this one sets the score.
        tracing::info!(%error, "cannot set the OOM score");
    }
}

#[expect(clippy::print_stderr, reason = "the program's last error goes to its user")]
fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("berth: {error:#}");
    ExitCode::FAILURE
}
