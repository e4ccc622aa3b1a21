//! Tests on the running kernel. Each test has its own BPF file system, cgroups and namespaces.

mod bpffs;
mod client;
mod devices;
mod kills;
mod load;
mod maps;
mod scratch;
mod sockets;
mod trace;

use scratch::{Cgroup, Scratch, in_new_netns, other_build};
