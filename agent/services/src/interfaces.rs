//! Interfaces of the [`Engine`](crate::Engine) to the rest of the agent, as two traits: [`ServiceInputs`]
//! supplies wanted objects and pods and receives results, [`DatapathBackend`] is the kernel with its tables
//! and devices.

use crate::{HealthCheck, HostNetwork, LinkLayer, Named, Notice, Table, Tables, VethPair};
use berth_core::{
    ids::{PodKey, PodUid},
    model::{EndpointSlice, Pod, Service},
    shared::Changes,
    status::PodStatus,
};
use berth_ebpf_abi::{Client, Config, LocalPod, NodeAddress, PodDevice, V4, V6};
use berth_ebpf_loader::{DeviceRole, StalePeer};
use std::{
    collections::{BTreeMap, HashSet},
    error::Error,
    net::IpAddr,
    sync::Arc,
};

/// Error of a call outside the engine. The engine reports it and retries.
pub type Cause = Box<dyn Error + Send + Sync>;

/// The last observation of a pod.
#[derive(Debug, Clone)]
pub struct ObservedPod {
    /// The pod.
    pub pod: Arc<Pod>,
    /// Its status.
    pub status: Arc<PodStatus>,
}

impl ObservedPod {
    /// Whether pod and status are the same objects.
    pub(crate) fn is(&self, other: &ObservedPod) -> bool {
        Arc::ptr_eq(&self.pod, &other.pod) && Arc::ptr_eq(&self.status, &other.status)
    }
}

/// Changes of all sources since the last call, each with the number of its source. Where two sources have an
/// object of one name, the object of the higher number wins.
#[derive(Debug, Default)]
pub struct SourceChanges {
    /// Whether every source has listed. Absent objects count as deleted only then.
    pub listed: bool,
    /// Changes of Services.
    pub services: Vec<(usize, Changes<Service>)>,
    /// Changes of slices that were made by hand or by a control plane.
    pub slices: Vec<(usize, Changes<EndpointSlice>)>,
}

/// Health of the data plane, for people.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DatapathHealth {
    /// Whether the hooks are attached. Services are answered only then.
    pub hooked: bool,
    /// Whether sources and pods are known well enough for the tables to be written.
    pub open: bool,
    /// Failures and shortcomings, one line each.
    pub failures: Vec<String>,
}

/// The rest of the agent: inputs of Services, and the receiver of names, ids, notices and health.
pub trait ServiceInputs {
    /// The changes of the sources' objects since the last call. The first call returns all objects.
    fn changes(&mut self) -> SourceChanges;

    /// All wanted pods, also those that were never observed.
    fn wanted_pods(&self) -> Vec<PodUid>;

    /// The present pods, with their last observation. `None` for a pod that was not observed yet or is being
    /// observed now.
    fn pods(&self) -> BTreeMap<PodUid, Option<ObservedPod>>;

    /// Whether the kernel's state is to be compared with the wanted one at once, because a self-test has failed since
    /// the last call.
    fn is_kernel_doubted(&mut self) -> bool;

    /// Whether the container runtime answers, so that pods can be observed.
    fn runtime_answers(&self) -> bool;

    /// EndpointSlices of these Services, as Kubernetes' EndpointSlice controller computes them. Slices equal
    /// to one in `before` keep their `Arc`.
    fn endpoints(
        &self,
        services: &[Arc<Service>],
        pods: &[&ObservedPod],
        before: &[Arc<EndpointSlice>],
    ) -> Vec<Arc<EndpointSlice>>;

    /// Publishes the cluster's DNS names.
    ///
    /// # Errors
    /// The names could not be written. The engine retries.
    fn publish_names<'a>(
        &mut self,
        services: impl Iterator<Item = &'a Service>,
        slices: impl Iterator<Item = &'a EndpointSlice>,
    ) -> Result<(), Cause>;

    /// Publishes the meaning of the ids in the tables, the next new id, and the notices that hold now.
    ///
    /// # Errors
    /// They could not be written. The engine retries.
    fn publish_ids(
        &mut self,
        ids: impl Iterator<Item = Named>,
        next_id: u32,
        notices: impl Iterator<Item = Notice>,
    ) -> Result<(), Cause>;

    /// Reports a notice to the owner of a Service.
    fn notify(&mut self, notice: &Notice);

    /// Takes the ports at which load balancers ask for the health of Services, after a change.
    fn health_checks(&mut self, checks: &BTreeMap<PodKey, HealthCheck>);

    /// Reports the health of the data plane after a change.
    fn health(&mut self, health: &DatapathHealth);
}

/// Maps of this node besides the Services' tables, one [`Table`] each.
#[allow(missing_docs, reason = "the abi crate describes each map by the same name")]
pub trait NodeTables: Tables {
    fn clients(&mut self) -> &mut dyn Table<u64, Client>;
    fn pods4(&mut self) -> &mut dyn Table<V4, LocalPod>;
    fn pods6(&mut self) -> &mut dyn Table<V6, LocalPod>;
    fn pod_devices(&mut self) -> &mut dyn Table<u32, PodDevice>;
    fn nodes4(&mut self) -> &mut dyn Table<V4, NodeAddress>;
    fn nodes6(&mut self) -> &mut dyn Table<V6, NodeAddress>;
    fn config(&mut self) -> &mut dyn Table<u32, Config>;
}

/// Network of a pod, read from the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodNetwork {
    /// Cookie of the network namespace.
    pub cookie: u64,
    /// The pair of devices that joins the pod to the host, where it has one.
    pub pair: Option<VethPair>,
    /// Whether no rule of the host's stack applies to the pod's packets, as far as the component that
    /// attached the pod knows.
    pub clear: bool,
}

/// A device of the host that may have addresses. Devices of pods are not included.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Device {
    /// The device's index.
    pub index: u32,
    /// The device's addresses in the kernel's order; temporary, deprecated and tentative addresses come last.
    pub addresses: Vec<IpAddr>,
    /// Whether the device is a bridge.
    pub bridge: bool,
    /// Whether the device is the loopback device (`IFF_LOOPBACK`).
    pub loopback: bool,
    /// The device's framing of packets.
    pub layer: LinkLayer,
}

/// Result of an attachment.
#[derive(Debug)]
pub enum AttachOutcome {
    /// The programs are attached.
    Done,
    /// The device was deleted meanwhile.
    Gone,
    /// The programs could not be attached.
    Failed(Cause),
}

/// The kernel of this machine. Each call blocks for some microseconds, unless its doc says otherwise.
pub trait DatapathBackend {
    /// The open tables.
    type Maps: NodeTables;

    /// Opens the tables. Tables of another build are used where they have the same layout. Where there are no
    /// programs, they are loaded; those of sockets are waited for.
    ///
    /// # Errors
    /// There is no BPF file system, or the kernel rejects the programs.
    fn open(&mut self) -> Result<Self::Maps, Cause>;

    /// Whether the programs for packets are no longer being loaded. Until then no device can get any, and
    /// [`attach_hooks`](DatapathBackend::attach_hooks) attaches those of sockets.
    ///
    /// # Errors
    /// The kernel has rejected them: the tables must be opened again.
    fn has_packet_programs(&mut self) -> Result<bool, Cause>;

    /// Whether the programs and tables that were opened are pinned no more, so that nothing runs by them any longer and they
    /// must be opened again. Reads one pin.
    fn is_lost(&self) -> bool;

    /// Shortcomings of a data plane that works, one line each. Reads some tables.
    fn shortcomings(&mut self, maps: &Self::Maps) -> Vec<String>;

    /// Attaches this build's programs to the hooks. The call may block until all are loaded, where tables of another
    /// build were opened. After a success a further call does nothing, except that with `look`
    /// it checks that all programs are still attached.
    ///
    /// # Errors
    /// The kernel rejects the programs or the hooks.
    fn attach_hooks(&mut self, look: bool) -> Result<(), Cause>;

    /// The node's addresses and uplinks, where they differ from the last call. The first call always returns
    /// them.
    fn host_network(&mut self) -> Option<Arc<HostNetwork>>;

    /// The live devices with pinned links, of this or another agent, and their role; `None` where a part of
    /// the links is missing.
    ///
    /// # Errors
    /// The pins cannot be read.
    fn attached(&mut self) -> Result<BTreeMap<u32, Option<DeviceRole>>, Cause>;

    /// Attaches programs to devices. Each device may take some ten milliseconds.
    fn attach(&mut self, devices: &[(u32, DeviceRole)]) -> Vec<(u32, DeviceRole, AttachOutcome)>;

    /// Detaches a device's programs. For a deleted device, which has taken its programs along, the call
    /// succeeds.
    ///
    /// # Errors
    /// The programs are still attached.
    fn detach(&mut self, index: u32) -> Result<(), Cause>;

    /// Cookie of the host's own network namespace, which is this process's. Blocks for some 100 microseconds.
    ///
    /// # Errors
    /// The kernel rejects the request.
    fn host_cookie(&self) -> Result<u64, Cause>;

    /// Inode number of the pod's network namespace. A different number means a different namespace.
    ///
    /// # Errors
    /// The pod has no network namespace, or it is gone.
    fn network_inode(&self, pod: &PodUid) -> Result<u64, Cause>;

    /// The pod's network. Blocks for some 100 microseconds.
    ///
    /// # Errors
    /// The pod has no network, or it is gone.
    fn network(&self, pod: &PodUid) -> Result<PodNetwork, Cause>;

    /// Ends connected UDP sockets, of the host and of these pods, that use one of the backends through the
    /// frontend that lost it. Where the frontend of a socket cannot be known, all sockets with such a peer
    /// are ended. Returns the number of ended sockets. The call blocks in proportion to the number of
    /// sockets. Failures are logged, and their sockets are left.
    fn end_sockets(&mut self, dead: &HashSet<StalePeer>, pods: &mut dyn Iterator<Item = &PodUid>) -> usize;

    /// Stores the stale backends whose sockets are to be ended, so that a later process can end them. An
    /// empty set removes the record.
    ///
    /// # Errors
    /// The record cannot be written.
    fn record_stale(&mut self, dead: &HashSet<StalePeer>) -> Result<(), Cause>;

    /// The stale backends that an earlier process recorded and whose sockets it did not end.
    ///
    /// # Errors
    /// The record cannot be read.
    fn recorded_stale(&mut self) -> Result<HashSet<StalePeer>, Cause>;

    /// Removes expired translated connections. Returns whether there were any connections at all.
    ///
    /// # Errors
    /// The kernel rejects the request.
    fn collect_flows(&mut self, maps: &Self::Maps) -> Result<bool, Cause>;
}
