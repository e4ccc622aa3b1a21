//! The node's share of the machine: the cgroups that pods live in, and the numbers in them.
//!
//! Owns: the cgroup tree below the node's roots ([`cgroup`]) and the rules that turn requests and limits into what
//! the kernel takes ([`resources`], pure).
//!
//! No task runs here. Everything is a bounded number of reads and writes of cgroup files; what can wait (removing and
//! killing) says how long at most, and belongs on a thread that may block.

pub mod cgroup;
mod error;
pub mod resources;
#[cfg(test)]
mod testing;

pub use cgroup::CgroupTree;
pub use error::Error;
