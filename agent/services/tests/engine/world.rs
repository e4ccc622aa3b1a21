//! In-memory node and kernel for tests of the engine.

mod kernel;
mod maps;
mod node;

use crate::support::key;
use berth_core::{
    ids::{NodeName, PodKey, PodUid},
    model::{EndpointSlice, Pod, QosClass, Service},
    status::{Phase, PodStatus},
};
use berth_ebpf_abi::{Client, LocalPod, NodeAddress, PodDevice, V4};
use berth_ebpf_loader::{DeviceRole, StalePeer};
use berth_services::{DatapathHealth, Device, HealthCheck, Notice, ObservedPod, PodNetwork, VethPair};
pub(crate) use kernel::FakeKernel;
pub(crate) use node::FakeNode;
use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard},
};

/// Cookie of the host's network namespace.
pub(crate) const HOST: u64 = 1;

/// A list of objects that is replaced as a whole.
pub(crate) type Objects<T> = Arc<Vec<Arc<T>>>;

/// Damage done to the maps by another program. It takes effect at the engine's next read of the map.
#[derive(Debug, Default)]
pub(crate) struct Spoil {
    /// The IPv4 frontends are deleted.
    pub(crate) services: bool,
    /// A map of which the [`State`] shows no entry is cleared.
    pub(crate) maps: bool,
}

/// State that node and kernel share with the test.
#[derive(Debug, Default)]
pub(crate) struct State {
    // Inputs, set by the test.
    pub(crate) listed: bool,
    pub(crate) runtime: bool,
    /// Whether a self-test has failed.
    pub(crate) doubted: bool,
    pub(crate) services: Objects<Service>,
    pub(crate) slices: Objects<EndpointSlice>,
    pub(crate) wanted: Vec<PodUid>,
    pub(crate) pods: BTreeMap<PodUid, Option<ObservedPod>>,
    pub(crate) devices: BTreeMap<String, Device>,
    pub(crate) devices_told: bool,
    pub(crate) node_ips: Vec<IpAddr>,
    pub(crate) networks: BTreeMap<PodUid, (u64, PodNetwork)>,
    pub(crate) refuse_open: bool,
    /// Whether the pins are gone.
    pub(crate) lost: bool,
    pub(crate) refuse_hooks: bool,
    /// Whether the programs for packets are still being loaded.
    pub(crate) loading: bool,
    pub(crate) refuse_packet_programs: bool,
    pub(crate) shortcomings: Vec<String>,
    pub(crate) spoil: Spoil,
    // Effects of the engine.
    pub(crate) opened: usize,
    pub(crate) hooked: usize,
    pub(crate) attached: BTreeMap<u32, DeviceRole>,
    /// Attached devices, each with the number of table writes before it.
    pub(crate) attached_at: Vec<(u32, usize)>,
    pub(crate) ended: Vec<(BTreeSet<StalePeer>, Vec<PodUid>)>,
    /// The engine's record of stale backends, and the number of table writes before each change of the
    /// record.
    pub(crate) dead: HashSet<StalePeer>,
    pub(crate) noted_at: Vec<usize>,
    pub(crate) looked_at: usize,
    /// Services whose slices the engine asked for.
    pub(crate) made_for: Vec<PodKey>,
    pub(crate) zones: usize,
    pub(crate) files: usize,
    pub(crate) told: Vec<Notice>,
    pub(crate) health: DatapathHealth,
    pub(crate) health_checks: BTreeMap<PodKey, HealthCheck>,
    /// The last published notices.
    pub(crate) notices: Vec<Notice>,
    pub(crate) clients: BTreeMap<u64, Client>,
    pub(crate) pods4: BTreeMap<V4, LocalPod>,
    pub(crate) pod_devices: BTreeMap<u32, PodDevice>,
    pub(crate) nodes4: BTreeMap<V4, NodeAddress>,
    pub(crate) configured: usize,
    pub(crate) masquerade4: Option<V4>,
    /// IPv4 frontends with the number of backends in their cluster set.
    pub(crate) frontends: BTreeMap<(IpAddr, u16), u16>,
    pub(crate) written: usize,
    /// Capacity of the table of IPv4 frontends.
    pub(crate) capacity: Option<usize>,
}

/// Node and kernel of a test. Clones share one state.
#[derive(Debug, Clone, Default)]
pub(crate) struct World {
    state: Arc<Mutex<State>>,
}

impl World {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        // All callers are in one thread, so two guards at a time are a defect of the test.
        self.state.try_lock().unwrap()
    }

    pub(crate) fn node(&self) -> FakeNode {
        FakeNode::new(self)
    }

    pub(crate) fn kernel(&self) -> FakeKernel {
        FakeKernel::new(self)
    }
}

pub(crate) fn uid(name: &str) -> PodUid {
    PodUid::new(name).unwrap()
}

/// A running pod with one label `app`.
pub(crate) fn pod(name: &str, app: &str, ip: &str) -> ObservedPod {
    let pod = Pod {
        labels: [("app".to_owned(), app.to_owned())].into(),
        ..Pod::new(uid(name), key(name), NodeName::new("n").unwrap())
    };
    let status = PodStatus {
        pod_ips: vec![ip.parse().unwrap()],
        ..PodStatus::new(Phase::Running, QosClass::BestEffort)
    };
    ObservedPod { pod: Arc::new(pod), status: Arc::new(status) }
}

/// A pod's network behind that device of the host.
pub(crate) fn network(inode: u64, host_index: u32) -> (u64, PodNetwork) {
    let pair = VethPair { host_index, host_mac: [2; 6], pod_mac: [4; 6], ours: true };
    (inode, PodNetwork { cookie: inode * 10, pair: Some(pair), clear: true })
}
