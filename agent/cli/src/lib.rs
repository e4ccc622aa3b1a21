//! The debugging commands: readers of what the agent publishes and of what lies on disk.
//!
//! - [`Command`] is what can be asked; [`run`] does it and gives the exit code: 0 all is well, 1 a problem was found or
//!   something failed, 2 the command was not understood, 3 the agent cannot be reached and the command needs it, 4 no
//!   such thing. `exec` gives the exit code of its command.
//! - `state` asks the agent, or reads what it left where it does not run; then a line on standard error says so.
//! - `services` reads the Service tables in the kernel by their pins, with the agent or without it.
//! - `render` is pure: what is known and the time become text or JSON.
//!
//! Invariants: nothing here changes the node but `exec` and `image import`; no text of a pod reaches the terminal with
//! control characters in it, but for the output of its own processes.
#![forbid(unsafe_code)]

mod commands;
mod error;
mod exec;
#[cfg(test)]
mod golden;
mod logs;
mod names;
mod out;
mod render;
mod services;
mod state;
mod table;
mod time;
mod v1;
mod watch;

pub use commands::{
    Command, Describe, EventsArgs, Image, NamedArgs, Output, OutputArgs, PodOutput, PodsArgs, PsArgs,
};
pub use exec::ExecArgs;
pub use logs::LogsArgs;
pub use services::{BackendsArgs, ServicesArgs, TraceArgs};

use berth_core::roots::Roots;
use error::Error;
use std::{process::ExitCode, time::Duration};

/// Runs a command and gives its exit code: 0 ok, 1 problem found, 2 usage, 3 agent unreachable, 4 not found.
pub fn run(roots: &Roots, command: Command) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = match runtime.map_err(Error::io("start")) {
        Ok(runtime) => runtime,
        Err(error) => return error.report(),
    };
    let done = runtime.block_on(commands::run(roots, command));
    // A thread that still reads standard input must not keep the process.
    runtime.shutdown_timeout(Duration::ZERO);
    match done {
        Ok(code) => ExitCode::from(code),
        Err(error) => error.report(),
    }
}
