//! Services as the kernel's tables have them.
//!
//! - [`compile`] is pure: one Service and its EndpointSlices become what this node wants of it, with kube-proxy's choice
//!   of endpoints.
//! - [`Allocator`] owns ids, generations and conflicts, and turns changes of what is wanted into the fewest writes, in an
//!   order in which no reader ever meets a mixed or missing set. It keeps a mirror of the tables in memory.
//! - [`Engine`] follows the node: objects, pods, addresses and devices, and brings the kernel to what is wanted. What it
//!   needs of both stands in [`Node`] and [`Kernel`].
//! - [`HostNetwork`] is the node's addresses and uplinks: one pure choice out of what the kernel tells, for Services, for
//!   pods and for people.
//! - [`Linux`] is the kernel of this machine: the loader's programs and maps, devices, networks of pods.
//!
//! No task and no channel lives here: whoever owns the [`Engine`] gives it a thread. After a failed write the mirror
//! counts for nothing: the next [`Allocator::sync`] reads the tables anew and goes on from what is really there.
#![forbid(unsafe_code)]

mod allocator;
mod choose;
mod compile;
mod edit;
mod engine;
mod host_network;
mod kernel;
mod net;
mod tables;
mod veth;
mod wanted;
mod world;

pub use allocator::{Allocator, Change, Difference, Named, Outcome, REST, Stale};
pub use compile::compile;
pub use engine::{Config, Engine};
pub use host_network::{
    DefaultRoute, HostNetwork, HostNetworkConfig, KernelNetwork, LinkLayer, NetworkProblem, Uplink,
};
pub use kernel::{ClearPods, DeviceEvents, Linux, LinuxConfig, detach, hooks_group, read_network};
pub use net::Net;
pub use tables::{FamilyTables, Table, TableError, Tables};
pub use veth::{VethError, VethPair, veth_pair};
pub use wanted::{NodeFacts, Notice, Transport, Wanted, WantedPort, Why};
pub use world::{
    Attachment, Cause, DatapathHealth, Device, Edit, Edits, Kernel, Node, NodeTables, PodNetwork, SeenPod,
};

pub use berth_ebpf_loader::Sizes;

/// An error and what caused it, on one line.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |e| e.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
