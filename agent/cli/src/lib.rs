//! The commands for people: readers of what the agent publishes and of files on disk.
//!
//! - [`Command`] lists the commands; [`run`] runs one and returns the exit code: 0 success, 1 a
//!   problem was found or the command failed, 2 wrong usage, 3 the command needs the agent and
//!   cannot reach it, 4 not found. `exec` returns the exit code of its command.
//! - `commands` holds one module a command, with its options.
//! - `state` reads the node's state from the agent, or from its status files where no agent runs;
//!   then a line on standard error says so.
//! - `services` reads the Service tables in the kernel by their pins, with an agent or without one.
//! - `render` is pure: it turns the state and the time into text or JSON.
//!
//! Invariants: only `exec` and `image import` change the node. Text of a pod reaches the terminal
//! without control characters, except the output of its processes.
#![forbid(unsafe_code)]

mod commands;
mod error;
#[cfg(test)]
mod golden;
mod names;
mod output;
mod render;
mod services;
mod state;
mod table;
mod time;
mod v1;

pub use commands::{
    BackendsArgs, Command, Describe, EventsArgs, ExecArgs, Image, LogsArgs, NamedArgs, PodsArgs, PsArgs,
    ServicesArgs, TraceArgs, VolumesArgs,
};
pub use output::{Output, OutputArgs, PodOutput};

use berth_core::{error::Chain, roots::Roots};
use error::Error;
use std::{process::ExitCode, time::Duration};

/// Runs a command and returns its exit code: 0 success, 1 problem or failure, 2 wrong usage, 3
/// agent unreachable, 4 not found.
pub fn run(roots: &Roots, command: Command) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = match runtime.map_err(Error::io("start the async runtime")) {
        Ok(runtime) => runtime,
        Err(error) => return report(&error),
    };
    let done = runtime.block_on(commands::run(roots, command));
    // A thread that still reads standard input must not keep the process alive.
    runtime.shutdown_timeout(Duration::ZERO);
    match done {
        Ok(code) => ExitCode::from(code),
        Err(error) => report(&error),
    }
}

/// Prints an error to standard error and returns its exit code. A closed standard output is no
/// error.
fn report(error: &Error) -> ExitCode {
    if !matches!(error, Error::Pipe) {
        output::notice(&format!("berth: {}", Chain(error)));
    }
    ExitCode::from(error.code())
}
