//! `node`: clients that load a node's API as users and as attackers do: commands at a fixed rate, clients that vanish,
//! slow ones, and bytes of any shape.
//!
//! Each role sends to the one address of its options and ends after its time, or when standard input is closed. What it
//! did is one line of JSON on standard output.

mod client;
mod exec;
mod fuzz;
mod inputs;
mod slow;
mod vanish;

use anyhow::Result;
use clap::Subcommand;

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Node {
    /// Run commands at a fixed rate.
    Exec(exec::Exec),
    /// Stop in every state of a connection and stay there.
    Vanish(vanish::Vanish),
    /// Send and read as slowly as possible.
    Slow(slow::Slow),
    /// Send mutated heads, queries, SPDY frames and WebSocket frames.
    Fuzz(fuzz::Fuzz),
}

pub(crate) fn run(node: &Node) -> Result<()> {
    match node {
        Node::Exec(options) => exec::run(options),
        Node::Vanish(options) => vanish::run(options),
        Node::Slow(options) => slow::run(options),
        Node::Fuzz(options) => fuzz::run(options),
    }
}
