//! `berth-cni`: gives a container a veth pair, addresses and routes, by the CNI specification
//! 1.1.0.
//!
//! The plugin is started for each pod by the runtime that reads its configuration, and needs no
//! agent. It owns the address journal of its networks (`berth-cni-ipam`), the host end of each
//! pair, and the routes, neighbour entries and sysctls of that device. `ip_forward` and address
//! translation are left to the node.
//!
//! There is no bridge. The pod's default route goes to a link-local gateway (169.254.1.1, fe80::1)
//! that no device has: a permanent neighbour entry maps it to the host end. Towards the pod there
//! is one route for each address.
//!
//! Invariants:
//! - An address is in the journal before its device is created, and is released only after the
//!   device is down, without routes, and about to be deleted. If the plugin is killed at any
//!   instruction, DEL or GC find the rest under the container's id.
//! - Everything outside of the journal has a name that is a function of network and container, so
//!   that a second ADD finds the devices of the first, and DEL needs neither the namespace nor the
//!   earlier result.
//! - The plugin has one thread, except for the short-lived one that enters the pod's network
//!   namespace.

mod attachment;
mod commands;
mod config;
mod environment;
mod error;
#[cfg(test)]
mod mutations;
mod names;
mod netlink;
mod netns;
mod output;
mod retired;
mod sysctl;
mod version;

use std::{
    io::{Read, Write},
    path::Path,
    process::ExitCode,
};

/// The largest configuration in bytes.
const LARGEST_INPUT: u64 = 8 << 20;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == retired::ARGUMENT) {
        // Nobody reads what this process writes: an error shows in what it leaves.
        return match arguments.next().map(|locks| retired::delete_in_turn(Path::new(&locks))) {
            Some(Ok(())) => ExitCode::SUCCESS,
            Some(Err(_)) | None => ExitCode::FAILURE,
        };
    }
    let mut input = Vec::new();
    let answer = match std::io::stdin().lock().take(LARGEST_INPUT).read_to_end(&mut input) {
        Ok(_) => commands::run(&environment::Environment::of_process(), &input),
        Err(source) => Err(error::Error::Input(source)),
    };
    let (text, code) = match answer {
        Ok(None) => return ExitCode::SUCCESS,
        Ok(Some(value)) => (value.to_string(), ExitCode::SUCCESS),
        Err(error) => (output::error(&error, &config::version_of(&input)).to_string(), ExitCode::FAILURE),
    };
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.write_all(b"\n")) {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}
