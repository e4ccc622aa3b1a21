//! The cgroups in which pods run. The limits written to them are computed by `berth_core::resources`.
//!
//! Owns the cgroup tree below the configured roots ([`cgroup`]).
//!
//! The crate starts no task. Every operation is a bounded number of reads and writes of cgroup files.
//! Operations that wait (removing and killing) state their longest wait and belong on a thread that may
//! block.

pub mod cgroup;
mod error;
pub mod metrics;
#[cfg(test)]
mod testing;

pub use cgroup::CgroupTree;
pub use error::Error;
