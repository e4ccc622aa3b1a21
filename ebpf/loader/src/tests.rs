//! Tests on the running kernel. Each makes a BPF file system of its own, and cgroups and namespaces of its own.

mod bpffs;
mod client;
mod devices;
mod kills;
mod load;
mod maps;
mod scratch;
mod sockets;

use scratch::{Cgroup, Scratch, in_new_netns, other_build};
