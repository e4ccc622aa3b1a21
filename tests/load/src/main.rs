//! `berth-load`: small clients and servers, each in a network namespace and a cgroup of its own.
//!
//! `serve` answers each byte with one line, `<name> <client address>`, over TCP and UDP. `client` measures
//! new connections (`new`: connect, one byte, one line, reset) or requests over open ones (`keep`), and
//! prints one line of JSON. `ask` sends requests at a fixed rate and prints a line of JSON for each answer.
//! `connections` counts what fails of new connections and datagrams. `node` loads a node's API. The program sends to no other addresses than those of its options. It ends after its time, or when its
//! standard input is closed.

mod ask;
mod client;
mod connections;
mod node;
mod reach;
mod server;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use nix::sched::{CloneFlags, setns};
use std::{fs, fs::File, io::Read as _, path::PathBuf, process::ExitCode, thread};

#[derive(Debug, Parser)]
#[command(name = "berth-load")]
struct Program {
    #[command(flatten)]
    place: Place,
    #[command(subcommand)]
    role: Role,
}

/// Namespace and cgroup of the program.
#[derive(Debug, Args)]
struct Place {
    /// File of the network namespace to enter.
    #[arg(long, value_name = "FILE")]
    netns: Option<PathBuf>,
    /// Directory of the cgroup to join.
    #[arg(long, value_name = "DIR")]
    cgroup: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Answer until standard input is closed.
    Serve(server::Serve),
    /// Load a server for some time.
    Client(client::Client),
    /// Ask many servers at a fixed rate.
    Ask(ask::Ask),
    /// Open connections and send datagrams at fixed rates, and count what fails.
    Connections(connections::Connections),
    /// Dial addresses until each has answered once.
    Reach(reach::Reach),
    /// Load the node's API.
    #[command(subcommand)]
    Node(node::Node),
}

fn main() -> ExitCode {
    match run(Program::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn run(program: Program) -> Result<()> {
    if let Some(cgroup) = &program.place.cgroup {
        let file = cgroup.join("cgroup.procs");
        fs::write(&file, std::process::id().to_string())
            .with_context(|| format!("join {}", cgroup.display()))?;
    }
    if let Some(netns) = &program.place.netns {
        let file = File::open(netns).with_context(|| format!("open {}", netns.display()))?;
        setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("enter {}", netns.display()))?;
    }
    match program.role {
        Role::Serve(serve) => {
            server::start(&serve)?;
            until_input_ends();
            Ok(())
        }
        Role::Client(client) => {
            end_with_input();
            client::run(&client)
        }
        Role::Ask(ask) => {
            end_with_input();
            ask::run(&ask)
        }
        Role::Connections(connections) => {
            end_with_input();
            connections::run(&connections)
        }
        Role::Reach(reach) => {
            end_with_input();
            reach::run(&reach)
        }
        Role::Node(node) => {
            end_with_input();
            node::run(&node)
        }
    }
}

/// Ends the program when its standard input closes, so that it does not outlive the test that started it.
fn end_with_input() {
    thread::spawn(|| {
        until_input_ends();
        #[expect(clippy::exit, reason = "the one who asked is gone")]
        std::process::exit(2);
    });
}

fn until_input_ends() {
    let mut byte = [0_u8; 64];
    let mut input = std::io::stdin();
    while input.read(&mut byte).is_ok_and(|n| n > 0) {}
}

#[expect(clippy::print_stderr, reason = "the end of the program is told where its user looks")]
fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("berth-load: {error:#}");
    ExitCode::FAILURE
}
