//! Services of this node: from Kubernetes objects to the kernel's Service tables.
//!
//! - [`compile`] is pure: it turns one Service and its EndpointSlices into the wanted ports of this node,
//!   with kube-proxy's choice of endpoints.
//! - [`TableReconciler`] owns ids, generations and conflicts. It turns changes into the fewest writes, in an
//!   order in which no reader meets a mixed or missing set. It keeps a mirror of the tables in memory.
//! - [`Engine`] follows the node's objects, pods, addresses and devices, and brings the kernel to the wanted
//!   state. Its needs of both sides stand in [`ServiceInputs`] and [`DatapathBackend`].
//! - [`HostNetwork`] holds the node's addresses and uplinks: one pure choice from the kernel's devices,
//!   addresses and routes, used for Services, for pods and for people.
//! - [`SelfTest`] tells whether connections are answered through the hooks, by a Service of the agent's own.
//! - [`LinuxDatapath`] is the kernel of this machine: the loader's programs and maps, devices, and the
//!   networks of pods.
//!
//! The crate has no task and no channel: the owner of the [`Engine`] gives it a thread. After a failed write
//! the mirror is no longer valid: the next [`TableReconciler::sync`] reads the tables and continues from
//! their real contents.
#![forbid(unsafe_code)]

mod compile;
mod endpoint_choice;
mod engine;
mod health_check;
mod host_network;
mod interfaces;
mod kernel;
pub mod metrics;
mod reconciler;
mod self_test;
mod tables;
mod veth;
mod wanted;

pub use berth_ebpf_tables::{Difference, Net};
pub use compile::compile;
pub use engine::{Config, Engine};
pub use health_check::HealthCheck;
pub use host_network::{
    DefaultRoute, HostNetwork, HostNetworkConfig, KernelNetwork, LinkLayer, NetworkProblem, Uplink,
};
pub use interfaces::{
    AttachOutcome, Cause, DatapathBackend, DatapathHealth, Device, NodeTables, ObservedPod, PodNetwork,
    ServiceInputs, SourceChanges,
};
pub use kernel::{
    ClearPods, DeviceEvents, KubeletPods, LinuxDatapath, LinuxDatapathConfig, OnStale, PodNetworks, detach,
    drain, hooks_group, read_network,
};
pub use metrics::NoLocalEndpoints;
pub use reconciler::{Named, Outcome, REST, StaleBackend, TableReconciler};
pub use self_test::{SelfTest, SelfTestService};
pub use tables::{FamilyTables, Table, TableError, Tables};
pub use veth::{VethError, VethPair, veth_pair};
pub use wanted::{NodeFacts, Notice, NoticeReason, Transport, Wanted, WantedPort};

pub use berth_ebpf_loader::Sizes;
