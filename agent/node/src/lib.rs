//! The node's share of the machine: the cgroups that pods live in. The numbers in them are `berth_core::resources`'.
//!
//! Owns: the cgroup tree below the node's roots ([`cgroup`]).
//!
//! No task runs here. Everything is a bounded number of reads and writes of cgroup files; what can wait (removing and
//! killing) says how long at most, and belongs on a thread that may block.

pub mod cgroup;
mod error;
#[cfg(test)]
mod testing;

pub use cgroup::CgroupTree;
pub use error::Error;
