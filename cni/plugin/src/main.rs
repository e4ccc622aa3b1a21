//! `berth-cni`: gives a container a veth pair, addresses and routes, by the CNI specification 1.1.0.
//!
//! Called anew for each pod by whichever runtime reads its configuration; it needs no agent. It owns the address
//! journal of its networks (`berth-cni-ipam`), the host end of each pair, and what hangs on it: routes, neighbour
//! entries and the device's own sysctls. `ip_forward` and address translation are the node's business, not its own.
//!
//! There is no bridge. The pod's default route goes to a link-local gateway (169.254.1.1, fe80::1) that no device need
//! have: a permanent neighbour entry says that it is the host end. Towards the pod there is one route an address.
//!
//! Invariants:
//! - An address is journalled before a device is made, and given back only after the device is gone. Killed at any
//!   instruction, what is left is found again under the container's id by DEL or GC.
//! - Everything outside of the journal is named by a function of network and container, so that a second ADD meets the
//!   first and DEL needs neither the namespace nor the earlier result.
//! - One thread, but for the short-lived one that enters the pod's network namespace.

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
mod sysctl;

use std::{
    io::{Read, Write},
    process::ExitCode,
};

/// More than any configuration has; what is longer is not one.
const LARGEST_INPUT: u64 = 8 << 20;

fn main() -> ExitCode {
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
