//! In-memory kernel: devices, hooks and sockets.

use super::{HOST, World, maps::FakeMaps};
use berth_core::ids::PodUid;
use berth_ebpf_loader::{DeviceRole, StalePeer};
use berth_services::{
    AttachOutcome, Cause, DatapathBackend, HostNetwork, HostNetworkConfig, KernelNetwork, PodNetwork,
};
use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

/// Kernel of a test.
pub(crate) struct FakeKernel {
    world: World,
    asked: bool,
}

impl FakeKernel {
    pub(super) fn new(world: &World) -> FakeKernel {
        FakeKernel { world: world.clone(), asked: false }
    }
}

impl DatapathBackend for FakeKernel {
    type Maps = FakeMaps;

    fn open(&mut self) -> Result<FakeMaps, Cause> {
        let mut state = self.world.state();
        state.opened += 1;
        state.lost = false;
        if state.refuse_open {
            return Err("no BPF file system".into());
        }
        drop(state);
        Ok(FakeMaps::new(&self.world))
    }

    fn has_packet_programs(&mut self) -> Result<bool, Cause> {
        let state = self.world.state();
        if state.refuse_packet_programs {
            return Err("refused".into());
        }
        Ok(!state.loading)
    }

    fn is_lost(&self) -> bool {
        self.world.state().lost
    }

    fn shortcomings(&mut self, _maps: &FakeMaps) -> Vec<String> {
        self.world.state().shortcomings.clone()
    }

    fn attach_hooks(&mut self, _look: bool) -> Result<(), Cause> {
        let mut state = self.world.state();
        if state.refuse_hooks {
            return Err("no cgroup".into());
        }
        state.hooked += 1;
        Ok(())
    }

    fn host_network(&mut self) -> Option<Arc<HostNetwork>> {
        let mut state = self.world.state();
        let told = std::mem::take(&mut state.devices_told) || !std::mem::replace(&mut self.asked, true);
        let cfg = HostNetworkConfig {
            node_ips: state.node_ips.clone(),
            whole_machine: true,
            ..HostNetworkConfig::default()
        };
        let kernel = KernelNetwork { devices: state.devices.clone(), routes: Vec::new() };
        told.then(|| Arc::new(HostNetwork::choose(&cfg, &kernel)))
    }

    fn attached(&mut self) -> Result<BTreeMap<u32, Option<DeviceRole>>, Cause> {
        Ok(self.world.state().attached.iter().map(|(index, role)| (*index, Some(*role))).collect())
    }

    fn attach(&mut self, devices: &[(u32, DeviceRole)]) -> Vec<(u32, DeviceRole, AttachOutcome)> {
        let mut state = self.world.state();
        state.attached.extend(devices.iter().copied());
        let written = state.written;
        state.attached_at.extend(devices.iter().map(|(index, _)| (*index, written)));
        devices.iter().map(|(index, role)| (*index, *role, AttachOutcome::Done)).collect()
    }

    fn detach(&mut self, index: u32) -> Result<(), Cause> {
        self.world.state().attached.remove(&index).map(drop).ok_or_else(|| "not attached".into())
    }

    fn host_cookie(&self) -> Result<u64, Cause> {
        Ok(HOST)
    }

    fn network_inode(&self, pod: &PodUid) -> Result<u64, Cause> {
        let mut state = self.world.state();
        state.looked_at += 1;
        state.networks.get(pod).map(|(inode, _)| *inode).ok_or_else(|| "no network".into())
    }

    fn network(&self, pod: &PodUid) -> Result<PodNetwork, Cause> {
        self.world.state().networks.get(pod).map(|(_, network)| *network).ok_or_else(|| "no network".into())
    }

    fn end_sockets(&mut self, dead: &HashSet<StalePeer>, pods: &mut dyn Iterator<Item = &PodUid>) -> usize {
        self.world.state().ended.push((dead.iter().copied().collect(), pods.cloned().collect()));
        0
    }

    fn record_stale(&mut self, dead: &HashSet<StalePeer>) -> Result<(), Cause> {
        let mut state = self.world.state();
        state.dead.clone_from(dead);
        let written = state.written;
        state.noted_at.push(written);
        Ok(())
    }

    fn recorded_stale(&mut self) -> Result<HashSet<StalePeer>, Cause> {
        Ok(self.world.state().dead.clone())
    }

    fn collect_flows(&mut self, _maps: &FakeMaps) -> Result<bool, Cause> {
        Ok(false)
    }
}
