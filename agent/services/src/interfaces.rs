//! What the [`Engine`](crate::Engine) needs of the rest of the world, as two traits: the node, which knows what is
//! wanted and hears what became of it, and the kernel, with its tables and devices.

use crate::{HostNetwork, LinkLayer, Named, Notice, Table, Tables, VethPair};
use berth_core::{
    ids::{PodKey, PodUid},
    model::{EndpointSlice, Pod, Service},
    status::PodStatus,
};
use berth_ebpf_abi::{Client, Config, LocalPod, NodeAddress, PodDevice, V4, V6};
use berth_ebpf_loader::{Role, StalePeer};
use std::{
    collections::{BTreeMap, HashSet},
    error::Error,
    net::IpAddr,
    sync::Arc,
};

/// NoticeReason something outside did not work; the engine tells it on and tries again.
pub type Cause = Box<dyn Error + Send + Sync>;

/// A pod as it was last looked at.
#[derive(Debug, Clone)]
pub struct ObservedPod {
    /// The pod.
    pub pod: Arc<Pod>,
    /// Its status.
    pub status: Arc<PodStatus>,
}

impl ObservedPod {
    /// Whether neither was made anew.
    pub(crate) fn is(&self, other: &ObservedPod) -> bool {
        Arc::ptr_eq(&self.pod, &other.pod) && Arc::ptr_eq(&self.status, &other.status)
    }
}

/// How one source's list of objects became another: what went, and what is there in its place or besides. An object
/// that is only another one than before stands in both.
#[derive(Debug)]
pub struct Edit<T> {
    /// The source, by a number of its own; where two have an object of one name, the higher one's counts.
    pub source: usize,
    /// The names that went.
    pub gone: Vec<PodKey>,
    /// What came.
    pub now: Vec<Arc<T>>,
}

/// What the sources say, as far as it is other than at the last asking.
#[derive(Debug, Default)]
pub struct Edits {
    /// Whether every source has listed: what is absent is gone.
    pub listed: bool,
    /// Services.
    pub services: Vec<Edit<Service>>,
    /// Slices that were made by hand, or by a control plane.
    pub slices: Vec<Edit<EndpointSlice>>,
}

/// How the data plane is, for people.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DatapathHealth {
    /// Whether the hooks are attached: Services are answered.
    pub hooked: bool,
    /// Whether enough is known of sources and pods for the tables to be written.
    pub open: bool,
    /// What is not as it is wanted, one line each.
    pub failures: Vec<String>,
}

/// The rest of the agent: what Services follow from, and who hears of them.
pub trait ServiceInputs {
    /// What changed of the sources' objects since the last call; all of it at the first.
    fn edits(&mut self) -> Edits;

    /// The pods that are wanted, whether they are known already or not.
    fn wanted_pods(&self) -> Vec<PodUid>;

    /// The pods that there are; without more where nobody has looked at one yet, or just does.
    fn pods(&self) -> BTreeMap<PodUid, Option<ObservedPod>>;

    /// Whether the runtime answers, so that pods can be looked at.
    fn runtime_answers(&self) -> bool;

    /// Plays the endpoint controller: the slices of these Services. Those that are as in `before` keep their `Arc`.
    fn endpoints(
        &self,
        services: &[Arc<Service>],
        pods: &[&ObservedPod],
        before: &[Arc<EndpointSlice>],
    ) -> Vec<Arc<EndpointSlice>>;

    /// Publishes the cluster's names.
    ///
    /// # Errors
    /// They could not be written; the engine comes again.
    fn publish_names<'a>(
        &mut self,
        services: impl Iterator<Item = &'a Service>,
        slices: impl Iterator<Item = &'a EndpointSlice>,
    ) -> Result<(), Cause>;

    /// Publishes what the ids in the tables stand for, where ids go on, and the notices that hold just now.
    ///
    /// # Errors
    /// They could not be written; the engine comes again.
    fn publish_ids(
        &mut self,
        ids: impl Iterator<Item = Named>,
        next_id: u32,
        notices: impl Iterator<Item = Notice>,
    ) -> Result<(), Cause>;

    /// Something that a Service's owner should know.
    fn tell(&mut self, notice: &Notice);

    /// The data plane is as it says now; told where it changed.
    fn health(&mut self, health: &DatapathHealth);
}

/// What the programs know of this node, beside the Services. A [`Table`] each.
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

/// The network of a pod, as the kernel has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodNetwork {
    /// The namespace's cookie.
    pub cookie: u64,
    /// The pair of devices that joins it to the host, where it has one.
    pub pair: Option<VethPair>,
    /// Nothing of the host's stack is meant for its packets, as far as who attached it knows.
    pub clear: bool,
}

/// A device of the host that may bear addresses. Those of pods are not among them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Device {
    /// Its index.
    pub index: u32,
    /// Its addresses in the kernel's order; those that are temporary, deprecated or tentative last.
    pub addresses: Vec<IpAddr>,
    /// Whether it is a bridge.
    pub bridge: bool,
    /// Whether it is the loopback device (`IFF_LOOPBACK`).
    pub loopback: bool,
    /// How it frames packets.
    pub layer: LinkLayer,
}

/// What became of an attachment.
#[derive(Debug)]
pub enum Attachment {
    /// The programs are there.
    Done,
    /// The device went away meanwhile.
    Gone,
    /// They are not there.
    Failed(Cause),
}

/// The kernel of this machine. Every call blocks for some microseconds, unless it says otherwise.
pub trait DatapathBackend {
    /// Its tables.
    type Maps: NodeTables;

    /// Opens the tables, those of another build where they are of the same form; loads programs where there are none,
    /// which takes the better part of a second.
    ///
    /// # Errors
    /// There is no BPF file system, or the programs are refused.
    fn open(&mut self) -> Result<Self::Maps, Cause>;

    /// What is not as it is wanted though nothing fails, one line each. Reads some tables.
    fn shortcomings(&mut self, maps: &Self::Maps) -> Vec<String>;

    /// Sees to it that this build's programs are attached to the hooks. May block as [`open`](Kernel::open) does; once
    /// it has succeeded it does nothing, unless it shall `look` whether all of them are still there.
    ///
    /// # Errors
    /// The programs are refused, or the hooks are.
    fn attach_hooks(&mut self, look: bool) -> Result<(), Cause>;

    /// The node's addresses and uplinks, where they are others than at the last call; always at the first.
    fn host_network(&mut self) -> Option<Arc<HostNetwork>>;

    /// The live devices that links are pinned for, whoever attached them, with what they are attached as; `None` where
    /// a part is missing.
    ///
    /// # Errors
    /// The pins cannot be read.
    fn attached(&mut self) -> Result<BTreeMap<u32, Option<Role>>, Cause>;

    /// Attaches programs to devices, each of which may take some ten milliseconds.
    fn attach(&mut self, devices: &[(u32, Role)]) -> Vec<(u32, Role, Attachment)>;

    /// Takes a device's programs away; one that is gone took them along.
    ///
    /// # Errors
    /// They are still there.
    fn detach(&mut self, index: u32) -> Result<(), Cause>;

    /// The cookie of the host's own network namespace, which is this process's. Some 100 microseconds.
    ///
    /// # Errors
    /// The kernel refuses.
    fn host_cookie(&self) -> Result<u64, Cause>;

    /// The number that the pod's network namespace has as a file: another one is another namespace.
    ///
    /// # Errors
    /// It has none, or not any more.
    fn network_inode(&self, pod: &PodUid) -> Result<u64, Cause>;

    /// The pod's network. Some 100 microseconds.
    ///
    /// # Errors
    /// It has none, or not any more.
    fn network(&self, pod: &PodUid) -> Result<PodNetwork, Cause>;

    /// Ends connected UDP sockets of the host and of these pods that came to one of the backends by the way in that lost
    /// it, or, where that cannot be known, all that have such a peer; how many there were. Blocks for as long as there
    /// are sockets. What does not work is told and left.
    fn end_sockets(&mut self, dead: &HashSet<StalePeer>, pods: &mut dyn Iterator<Item = &PodUid>) -> usize;

    /// Remembers beyond this process which backends' sockets are to be ended; none where all are.
    ///
    /// # Errors
    /// It cannot be kept.
    fn record_stale(&mut self, dead: &HashSet<StalePeer>) -> Result<(), Cause>;

    /// What a process before this one noted and did not get to.
    ///
    /// # Errors
    /// It cannot be read.
    fn recorded_stale(&mut self) -> Result<HashSet<StalePeer>, Cause>;

    /// Removes translated connections that are too old; whether there were any at all.
    ///
    /// # Errors
    /// The kernel refuses.
    fn collect_flows(&mut self, maps: &Self::Maps) -> Result<bool, Cause>;
}
