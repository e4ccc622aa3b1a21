//! The commands: their names on the command line, and which module runs each. A module of this
//! folder holds one command with its options.

mod backends;
mod bpf;
mod describe;
mod events;
mod exec;
mod image;
mod images;
mod logs;
mod pods;
mod ps;
mod services;
mod status;
mod trace;
mod version;
mod volumes;
mod watch;

pub use self::{
    backends::BackendsArgs,
    describe::{Describe, NamedArgs},
    events::EventsArgs,
    exec::ExecArgs,
    image::Image,
    logs::LogsArgs,
    pods::PodsArgs,
    ps::PsArgs,
    services::ServicesArgs,
    trace::TraceArgs,
    volumes::VolumesArgs,
};

use crate::{
    error::{self, Error},
    names::{self, Resolved},
    output::{self, OutputArgs},
    state::{self, State},
};
use berth_api::view::PodView;
use berth_core::roots::Roots;
use clap::Subcommand;

/// A command for people.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show whether this node is healthy, and if not, why. Exits with 1 where it is not.
    Status(OutputArgs),
    /// List pods, with the reason why each is not ready and what happens next.
    Pods(PodsArgs),
    /// List containers.
    Ps(PsArgs),
    /// Print a container's output.
    Logs(LogsArgs),
    /// Run a command in a container.
    Exec(ExecArgs),
    /// Show the details of one object.
    #[command(subcommand)]
    Describe(Describe),
    /// Manage images.
    #[command(subcommand)]
    Image(Image),
    /// List images.
    Images(OutputArgs),
    /// List volumes: what each is, where it is mounted, who uses it and what it waits for.
    Volumes(VolumesArgs),
    /// List events.
    Events(EventsArgs),
    /// List the Service ports in the kernel's tables, or check the tables.
    #[command(visible_alias = "svc")]
    Services(ServicesArgs),
    /// List the backends of Services.
    Backends(BackendsArgs),
    /// Trace the decision for a connection, step by step. Exits with 1 where it is refused or
    /// dropped.
    Trace(TraceArgs),
    /// Show the eBPF programs, links and maps in the kernel.
    Bpf(OutputArgs),
    /// Show the versions of this program and of the agent.
    Version(OutputArgs),
}

/// Runs a command and returns its exit code.
pub(crate) async fn run(roots: &Roots, command: Command) -> Result<u8, Error> {
    match command {
        Command::Status(args) => return status::run(roots, args.output).await,
        Command::Pods(args) => pods::run(roots, &args).await?,
        Command::Ps(args) => ps::run(roots, &args).await?,
        Command::Logs(args) => logs::run(roots, args).await?,
        Command::Exec(args) => return exec::run(roots, args).await,
        Command::Describe(Describe::Pod(args)) => describe::run(roots, &args).await?,
        Command::Image(args) => image::run(roots, args).await?,
        Command::Images(args) => images::run(roots, args.output).await?,
        Command::Volumes(args) => volumes::run(roots, &args).await?,
        Command::Events(args) => events::run(roots, &args).await?,
        Command::Services(args) => return services::run(roots, &args).await,
        Command::Backends(args) => backends::run(roots, &args).await?,
        Command::Trace(args) => return trace::run(roots, &args).await,
        Command::Bpf(args) => return bpf::run(roots, args.output),
        Command::Version(args) => version::run(roots, args.output).await?,
    }
    Ok(error::OK)
}

/// Reads the node's state; a line on standard error says where it is not from the agent.
async fn read_state(roots: &Roots, with_events: bool) -> Result<State, Error> {
    let state = state::read(roots, with_events).await?;
    if let Some(offline) = &state.offline {
        output::notice(&format!("berth: {}", offline.banner()));
    }
    Ok(state)
}

/// The pods that a name selects: one, or all of them without a name.
fn select(pods: Vec<PodView>, name: Option<&str>) -> Result<(Vec<PodView>, Option<Resolved>), Error> {
    let Some(name) = name else { return Ok((pods, None)) };
    let resolved = names::resolve(name, &state::candidates(&pods))?;
    Ok((pods.into_iter().skip(resolved.pod).take(1).collect(), Some(resolved)))
}
