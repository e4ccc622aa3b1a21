//! The commands' options, and those commands that ask once and show.

use crate::{
    error::{self, Error},
    exec::ExecArgs,
    logs::LogsArgs,
    names::{self, Meant},
    out,
    render::{self, describe, events, images, pods, ps, status},
    services::{self, BackendsArgs, ServicesArgs, TraceArgs},
    state::{self, State},
    watch,
};
use berth_api::{
    client::Client,
    message::{Reply, Request},
    view::PodView,
};
use berth_core::{event::EventRecord, roots::Roots};
use berth_sys::{clock, process};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;
use std::{path::PathBuf, time::Duration};

/// How long an import may take.
const IMPORT: Duration = Duration::from_secs(3600);

/// A command for people.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show whether this node is well, and if not, why. Exits with 1 where it is not.
    Status(OutputArgs),
    /// Show the pods, why they are not ready and what happens next.
    Pods(PodsArgs),
    /// Show the containers.
    Ps(PsArgs),
    /// Show a container's output.
    Logs(LogsArgs),
    /// Run a command in a container.
    Exec(ExecArgs),
    /// Show everything about one thing.
    #[command(subcommand)]
    Describe(Describe),
    /// Take images in.
    #[command(subcommand)]
    Image(Image),
    /// Show the images.
    Images(OutputArgs),
    /// Show what happened.
    Events(EventsArgs),
    /// Show the Service ports that the kernel serves, or check the tables.
    #[command(visible_alias = "svc")]
    Services(ServicesArgs),
    /// Show where Services lead.
    Backends(BackendsArgs),
    /// Show what becomes of a connection, step by step: exits with 1 where it is refused or dropped.
    Trace(TraceArgs),
    /// Show the programs, links and maps in the kernel.
    Bpf(OutputArgs),
    /// Show the versions of this program and of the agent.
    Version(OutputArgs),
}

/// What can be described.
#[derive(Debug, Subcommand)]
pub enum Describe {
    /// A pod: its containers, conditions, volumes, events, and what was done to it when.
    #[command(visible_alias = "pods", alias = "po")]
    Pod(NamedArgs),
}

/// What can be done to images.
#[derive(Debug, Subcommand)]
pub enum Image {
    /// Take an OCI archive in.
    Import {
        /// The archive.
        file: PathBuf,
    },
}

/// How to show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// How to show pods and containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PodOutput {
    /// For people.
    Table,
    /// For people with wide screens.
    Wide,
    /// For programs.
    Json,
    /// Names only.
    Name,
}

/// Options of commands without others.
#[derive(Debug, Args)]
pub struct OutputArgs {
    /// How to show it.
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
}

/// Options of `pods`.
#[derive(Debug, Args)]
pub struct PodsArgs {
    /// Go on with every change.
    #[arg(short, long)]
    watch: bool,
    /// How to show them.
    #[arg(short, long, value_enum, default_value = "table")]
    output: PodOutput,
    /// Only this one.
    name: Option<String>,
}

/// Options of `ps`.
#[derive(Debug, Args)]
pub struct PsArgs {
    /// How to show them.
    #[arg(short, long, value_enum, default_value = "table")]
    output: PodOutput,
    /// Only those of this pod, or only this one.
    name: Option<String>,
}

/// Options of `events`.
#[derive(Debug, Args)]
pub struct EventsArgs {
    /// How to show them.
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
    /// Only those of this pod or Service.
    name: Option<String>,
}

/// Options of commands about one pod.
#[derive(Debug, Args)]
pub struct NamedArgs {
    /// How to show it.
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
    /// namespace/pod, or less where that is enough.
    name: String,
}

/// Runs a command and gives its exit code.
pub(crate) async fn run(roots: &Roots, command: Command) -> Result<u8, Error> {
    match command {
        Command::Status(args) => return status(roots, args.output).await,
        Command::Pods(args) if args.watch => watch::run(roots, args.output, args.name.as_deref()).await?,
        Command::Pods(args) => show_pods(roots, &args).await?,
        Command::Ps(args) => show_containers(roots, &args).await?,
        Command::Logs(args) => crate::logs::run(roots, args).await?,
        Command::Exec(args) => return crate::exec::run(roots, args).await,
        Command::Describe(Describe::Pod(args)) => describe_pod(roots, &args).await?,
        Command::Image(Image::Import { file }) => import(roots, file).await?,
        Command::Images(args) => show_images(roots, args.output).await?,
        Command::Events(args) => show_events(roots, &args).await?,
        Command::Services(args) => return services::services(roots, &args).await,
        Command::Backends(args) => services::backends(roots, &args).await?,
        Command::Trace(args) => return services::trace(roots, &args).await,
        Command::Bpf(args) => return services::bpf(roots, args.output),
        Command::Version(args) => version(roots, args.output).await?,
    }
    Ok(error::OK)
}

/// What is known, with a line on standard error where it is not from the agent.
async fn known(roots: &Roots, with_events: bool) -> Result<State, Error> {
    let state = state::read(roots, with_events).await?;
    if let Some(offline) = &state.offline {
        out::tell(&format!("berth: {}", offline.banner()));
    }
    Ok(state)
}

/// The pods that a name leaves, all without one.
fn narrow(pods: Vec<PodView>, name: Option<&str>) -> Result<(Vec<PodView>, Option<Meant>), Error> {
    let Some(name) = name else { return Ok((pods, None)) };
    let meant = names::resolve(name, &state::candidates(&pods))?;
    Ok((pods.into_iter().skip(meant.pod).take(1).collect(), Some(meant)))
}

async fn status(roots: &Roots, output: Output) -> Result<u8, Error> {
    let (node, silent) = state::node(roots).await?;
    let state = match silent {
        // MemberQuery twice the answer could differ: one look, one state.
        Some(why) => state::offline(roots, why)?,
        None => state::read(roots, true).await?,
    };
    let stuck = state.offline.is_some()
        && node.as_ref().is_some_and(|n| process::alive(n.pid, n.start_time).unwrap_or(false));
    let page = status::Page { node: node.as_ref(), state: &state, stuck };
    let now = clock::wall();
    match output {
        Output::Table => out::put(&page.text(now))?,
        Output::Json => out::put_json(&page.json(now)?)?,
    }
    Ok(if page.problems(now).is_empty() { error::OK } else { error::PROBLEM })
}

async fn show_pods(roots: &Roots, args: &PodsArgs) -> Result<(), Error> {
    let (shown, _) = narrow(known(roots, false).await?.pods, args.name.as_deref())?;
    let form = if args.output == PodOutput::Wide { pods::Form::Wide } else { pods::Form::Table };
    match args.output {
        PodOutput::Table | PodOutput::Wide => {
            let mut table = pods::table(form);
            let now = clock::wall();
            shown.iter().for_each(|view| pods::row(&mut table, form, view, now));
            put_table(table, "No pods.")
        }
        PodOutput::Name => out::put(&shown.iter().map(|v| format!("{}\n", v.key)).collect::<String>()),
        PodOutput::Json => {
            let mut objects: Vec<_> = shown.into_iter().map(|v| v.object).collect();
            match (args.name.is_some(), objects.pop()) {
                (true, Some(one)) => out::put_json(&one),
                (_, last) => {
                    objects.extend(last);
                    out::put_json(&render::list(objects))
                }
            }
        }
    }
}

pub(crate) fn put_table(mut table: crate::table::Table, none: &str) -> Result<(), Error> {
    if table.len() == 0 {
        out::tell(none);
        return Ok(());
    }
    table.fit(out::columns());
    out::put(&table.take())
}

async fn show_containers(roots: &Roots, args: &PsArgs) -> Result<(), Error> {
    let (shown, meant) = narrow(known(roots, false).await?.pods, args.name.as_deref())?;
    let only = meant.and_then(|m| m.container);
    let only = only.as_deref();
    match args.output {
        PodOutput::Table => put_table(ps::table(&shown, only, false, clock::wall()), "No containers."),
        PodOutput::Wide => put_table(ps::table(&shown, only, true, clock::wall()), "No containers."),
        PodOutput::Json => out::put_json(&ps::json(&shown, only)),
        PodOutput::Name => out::put(&ps::names(&shown, only)),
    }
}

async fn describe_pod(roots: &Roots, args: &NamedArgs) -> Result<(), Error> {
    let State { pods, offline, events } = known(roots, true).await?;
    let (mut shown, _) = narrow(pods, Some(&args.name))?;
    let Some(view) = shown.pop() else {
        return Err(Error::NotFound(format!(
            "no pod is named {:?}; `berth status` tells of manifests that are refused",
            args.name
        )));
    };
    let events: Vec<_> = events.into_iter().filter(|e| e.involved.is_pod(&view.uid)).collect();
    match args.output {
        Output::Table => out::put(&describe::page(&view, &events, offline.as_ref(), clock::wall())),
        Output::Json => {
            let mut whole = serde_json::to_value(&view)?;
            if let Some(fields) = whole.as_object_mut() {
                fields.insert("events".to_owned(), serde_json::to_value(&events)?);
            }
            out::put_json(&whole)
        }
    }
}

async fn import(roots: &Roots, file: PathBuf) -> Result<(), Error> {
    let path = file.canonicalize().map_err(Error::io(format!("find {}", file.display())))?;
    let mut client = Client::connect(&roots.agent_socket()).await?;
    match client.ask(&Request::ImportImage { path }, IMPORT).await? {
        Reply::Imported { names } => out::put(&names.iter().map(|n| format!("{n}\n")).collect::<String>()),
        _ => Err(berth_api::Error::Unexpected.into()),
    }
}

async fn show_images(roots: &Roots, output: Output) -> Result<(), Error> {
    let mut client = Client::connect(&roots.agent_socket()).await?;
    let Reply::Images { images } = client.ask(&Request::Images, state::ANSWER).await? else {
        return Err(berth_api::Error::Unexpected.into());
    };
    match output {
        Output::Table => put_table(images::table(&images, clock::wall()), "No images."),
        Output::Json => out::put_json(&images::json(&images)),
    }
}

async fn show_events(roots: &Roots, args: &EventsArgs) -> Result<(), Error> {
    let State { pods, mut events, .. } = known(roots, true).await?;
    if let Some(name) = &args.name {
        let of_service = |e: &EventRecord| events::is_of_service(e, name);
        let has_service = events.iter().any(of_service);
        let shown = match narrow(pods, Some(name)) {
            Ok((shown, _)) => shown,
            Err(Error::NotFound(_)) if has_service => Vec::new(),
            Err(e) => return Err(e),
        };
        events.retain(|e| of_service(e) || shown.iter().any(|p| e.involved.is_pod(&p.uid)));
    }
    match args.output {
        Output::Table => put_table(events::table(&events, clock::wall()), "No events."),
        Output::Json => out::put_json(&render::list(events::json(&events))),
    }
}

async fn version(roots: &Roots, output: Output) -> Result<(), Error> {
    let agent = Client::connect(&roots.agent_socket()).await;
    let ours = env!("CARGO_PKG_VERSION");
    match output {
        Output::Table => {
            let theirs = match &agent {
                Ok(client) => client.agent.version.clone(),
                Err(e) => format!("not reached: {}", e.chain()),
            };
            out::put(&format!("berth  {ours}\nagent  {theirs}\n"))
        }
        Output::Json => out::put_json(&json!({
            "clientVersion": { "gitVersion": ours },
            "serverVersion": agent.ok().map(|c| json!({ "gitVersion": c.agent.version })),
        })),
    }
}
