//! System calls of the agent in safe functions: clocks, files, mounts, namespaces, processes, commands in
//! containers, routing netlink, the allocator, and the process as a service. The other unsafe code of user
//! space is in the pause program and in the eBPF loader.
//!
//! Invariants: the crate starts no task and shares no lock. A function that changes a thread's namespaces
//! runs on a thread of its own, which ends with the call. A function that waits for the kernel
//! ([`process::PidFd::poll_exited`]) takes a deadline. A failed function undoes its work, or its docs name
//! the rest.
#![allow(unsafe_code, reason = "this crate is where system calls without a safe wrapper are made")]

pub mod clock;
mod copy;
mod detached;
mod error;
pub mod exec;
pub mod failpoint;
pub mod fs;
pub mod ip_tables;
pub mod memory;
pub mod mount;
mod mountinfo;
pub mod netfilter;
pub mod netlink;
pub mod ns;
pub mod pause;
pub mod process;
pub mod service;
pub mod spawn;
pub mod tcp;
mod tree;
mod unmount;

pub use error::{Error, Result};
