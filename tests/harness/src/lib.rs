//! Harness shared by the suites and the demo: a private containerd, a node of the real programs, images made
//! from files, and a snapshot of the machine before and after.
//!
//! Every process started here belongs to one directory and one cgroup of its own name, is identified by pid
//! and start time, and is ended by that identity. All waiting is for a condition, with a deadline.

pub use berth_core::{ids::NodeName, roots::Roots};

pub mod cgroup;
pub mod containerd;
pub mod fuse;
pub mod image;
pub mod logs;
pub mod machine;
pub mod mutate;
pub mod netns;
pub mod node;
pub mod oci;
pub mod process;
pub mod programs;
pub mod race;
pub mod registry;
pub mod rng;
pub mod socket;
pub mod stats;
pub mod tools;
pub mod wait;
