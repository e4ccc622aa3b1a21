//! The socket hooks in the kernel, in a cgroup and a network namespace of the test, where every address is
//! local.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step is a failed test")]

mod decisions;
mod node;
mod sockets;
