//! The kernel as the node's agent uses it: clocks, files, mounts, namespaces, processes, commands in containers,
//! routing netlink, memory, the process as a service. All user-space unsafe code lies here, in the pause program and in the eBPF loader.
//!
//! Invariants: no task and no lock lives here. What changes a thread's namespaces runs on a thread of its own that
//! ends with it. What is asked of the kernel and not answered at once ([`process::PidFd::poll_exited`]) takes a
//! deadline. A failure leaves nothing half made, or says what is left.
#![allow(unsafe_code, reason = "this crate is where system calls without a safe wrapper are made")]

pub mod clock;
mod copy;
mod detached;
mod error;
pub mod exec;
pub mod fs;
pub mod memory;
pub mod mount;
mod mountinfo;
pub mod netlink;
pub mod ns;
pub mod pause;
pub mod process;
pub mod service;
pub mod spawn;
mod tree;

pub use error::{Error, Result};
