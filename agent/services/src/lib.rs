//! Services as the kernel's tables have them.
//!
//! - [`compile`] is pure: one Service and its EndpointSlices become what this node wants of it, with kube-proxy's choice
//!   of endpoints.
//! - [`TableReconciler`] owns ids, generations and conflicts, and turns changes of what is wanted into the fewest writes, in an
//!   order in which no reader ever meets a mixed or missing set. It keeps a mirror of the tables in memory.
//! - [`Engine`] follows the node: objects, pods, addresses and devices, and brings the kernel to what is wanted. What it
//!   needs of both stands in [`ServiceInputs`] and [`DatapathBackend`].
//! - [`HostNetwork`] is the node's addresses and uplinks: one pure choice out of what the kernel tells, for Services, for
//!   pods and for people.
//! - [`LinuxDatapath`] is the kernel of this machine: the loader's programs and maps, devices, networks of pods.
//!
//! No task and no channel lives here: whoever owns the [`Engine`] gives it a thread. After a failed write the mirror
//! counts for nothing: the next [`TableReconciler::sync`] reads the tables anew and goes on from what is really there.
#![forbid(unsafe_code)]

mod compile;
mod edit;
mod endpoint_choice;
mod engine;
mod host_network;
mod interfaces;
mod kernel;
mod net;
mod reconciler;
mod tables;
mod veth;
mod wanted;

pub use compile::compile;
pub use engine::{Config, Engine};
pub use host_network::{
    DefaultRoute, HostNetwork, HostNetworkConfig, KernelNetwork, LinkLayer, NetworkProblem, Uplink,
};
pub use interfaces::{
    Attachment, Cause, DatapathBackend, DatapathHealth, Device, Edit, Edits, NodeTables, ObservedPod,
    PodNetwork, ServiceInputs,
};
pub use kernel::{
    ClearPods, DeviceEvents, LinuxDatapath, LinuxDatapathConfig, detach, hooks_group, read_network,
};
pub use net::Net;
pub use reconciler::{Change, Difference, Named, Outcome, REST, StaleBackend, TableReconciler};
pub use tables::{FamilyTables, Table, TableError, Tables};
pub use veth::{VethError, VethPair, veth_pair};
pub use wanted::{NodeFacts, Notice, NoticeReason, Transport, Wanted, WantedPort};

pub use berth_ebpf_loader::Sizes;
