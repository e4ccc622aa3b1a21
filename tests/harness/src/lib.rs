//! What the suites and the demo share: a private containerd, a node of the real programs, images made from files,
//! and a picture of the machine before and after.
//!
//! Everything that is started here lives below one directory and in one cgroup of its own name, is known by pid and
//! start time, and is ended by them. Waiting is always for a condition, with a deadline.

pub mod cgroup;
pub mod containerd;
pub mod image;
pub mod logs;
pub mod machine;
pub mod mutate;
pub mod node;
pub mod oci;
pub mod process;
pub mod programs;
pub mod rng;
pub mod socket;
pub mod tools;
pub mod wait;
