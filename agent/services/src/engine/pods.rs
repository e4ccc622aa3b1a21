//! Maps of this node's pods: as clients by the cookie of their network namespace, and as destinations by
//! address. The host is in the client map too.
//!
//! The socket hooks leave the sockets of a pod with annotation [`SOCKET_HOOKS`] `off` alone. Its connections
//! to Services are translated packet by packet at its device, so that programs in it (a sidecar proxy, for
//! example) see the addresses of Services.

use crate::{DatapathBackend, Net, NodeTables, ObservedPod, Table, TableError};
use berth_core::{error::Chain, ids::PodUid, status::Phase};
use berth_ebpf_abi::{Client, LocalPod, PodDevice, V4, V6, client, local_pod};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

/// Annotation by which a pod opts out of the socket hooks, with the value `off`.
const SOCKET_HOOKS: &str = "berth.dev/socket-hooks";

/// The host's entry in the client map.
const HOST: Client = Client { v4: 0, v6: [0; 4], flags: client::HOST };

/// The map entries of one pod.
#[derive(Debug, Clone, PartialEq, Eq)]
struct PodEntries {
    /// The namespace's inode. Where inode, addresses and flags are the same, the other fields are too.
    inode: u64,
    ips: Vec<IpAddr>,
    cookie: u64,
    client: Client,
    device: Option<LocalPod>,
}

/// The pods in the maps, with the changes that are still to be written.
#[derive(Debug, Default)]
pub(super) struct Pods {
    held: BTreeMap<PodUid, PodEntries>,
    /// Pods to observe: they changed, or their network was not found last time.
    again: BTreeSet<PodUid>,
    /// Entries of gone or changed pods that are still in the maps.
    leaving: Vec<PodEntries>,
    /// The host-side devices of all pods.
    devices: BTreeSet<u32>,
    /// Whether the maps were read once. The first read deletes the entries that belong to no pod.
    read: bool,
    /// Whether networks are read again even where the inode is the same.
    reread: bool,
    /// Number of pods for which the maps have space.
    capacity: Option<usize>,
    /// Cookie of the host's own network namespace, once its entry is in the maps.
    host: Option<u64>,
}

impl Pods {
    /// Marks a pod as new, changed or gone.
    pub(super) fn changed(&mut self, uid: &PodUid) {
        self.again.insert(uid.clone());
    }

    /// Marks all pods for observation, also pods without a visible change: a pod's pair of devices may have
    /// been created again in the same namespace.
    pub(super) fn all_changed(&mut self, seen: &BTreeMap<PodUid, ObservedPod>) {
        self.reread = true;
        self.again.extend(seen.keys().chain(self.held.keys()).cloned());
    }

    /// Brings the maps to the present pods.
    pub(super) fn keep(
        &mut self,
        kernel: &impl DatapathBackend,
        maps: &mut impl NodeTables,
        seen: &BTreeMap<PodUid, ObservedPod>,
    ) -> Result<(), TableError> {
        self.keep_host(kernel, maps)?;
        let (mut found, mut later) = (Vec::new(), BTreeSet::new());
        for uid in &self.again {
            let own = seen.get(uid).filter(|pod| has_own_network(pod));
            let Some(pod) = own else {
                found.push((uid.clone(), None));
                continue;
            };
            match self.look(kernel, uid, pod) {
                Ok(held) => found.push((uid.clone(), Some(held))),
                Err(error) => {
                    // The pod's sandbox is being removed or created again.
                    tracing::debug!(pod = %pod.pod.key, error = %Chain(&*error), "not in the maps");
                    later.insert(uid.clone());
                    found.push((uid.clone(), None));
                }
            }
        }
        for (uid, held) in &found {
            if let Some(held) = held.as_ref().filter(|held| self.held.get(uid) != Some(held)) {
                put(maps, held)?;
            }
        }
        self.again = later;
        self.reread = false;
        for (uid, now) in found {
            let before = match &now {
                Some(held) if self.held.get(&uid) == Some(held) => continue,
                Some(held) => self.held.insert(uid, held.clone()),
                None => self.held.remove(&uid),
            };
            self.leaving.extend(before);
            self.devices = self.held.values().filter_map(|h| Some(h.device?.ifindex)).collect();
        }
        if !self.read {
            self.capacity = Some(maps.clients().capacity());
            self.sweep(maps)?;
            self.read = true;
        }
        for at in (0..self.leaving.len()).rev() {
            if let Some(held) = self.leaving.get(at) {
                self.take_out(maps, held)?;
            }
            self.leaving.truncate(at);
        }
        Ok(())
    }

    /// Writes the host's entry. Without it the host counts as any client on this machine: Services answer it,
    /// but its loopback has no node ports.
    fn keep_host(
        &mut self,
        kernel: &impl DatapathBackend,
        maps: &mut impl NodeTables,
    ) -> Result<(), TableError> {
        if self.host.is_none() {
            match kernel.host_cookie() {
                Ok(cookie) => {
                    maps.clients().put(&[(cookie, HOST)])?;
                    self.host = Some(cookie);
                }
                Err(error) => {
                    tracing::warn!(
                        error = %Chain(&*error),
                        "cannot tell the host's network namespace: its loopback has no node ports"
                    );
                }
            }
        }
        Ok(())
    }

    fn look(
        &self,
        kernel: &impl DatapathBackend,
        uid: &PodUid,
        pod: &ObservedPod,
    ) -> Result<PodEntries, crate::Cause> {
        let (inode, ips) = (kernel.network_inode(uid)?, &pod.status.pod_ips);
        let out = pod.pod.annotations.get(SOCKET_HOOKS).is_some_and(|value| value == "off");
        let flags = if out { local_pod::NO_SOCKET_HOOKS } else { 0 };
        let same = |h: &&PodEntries| h.inode == inode && h.ips == *ips && h.client.flags == flags;
        if let Some(held) = self.held.get(uid).filter(same).filter(|_| !self.reread) {
            return Ok(held.clone());
        }
        let network = kernel.network(uid)?;
        let client = Client {
            v4: ips.iter().find_map(|ip| V4::of(*ip)).unwrap_or_default(),
            v6: ips.iter().find_map(|ip| V6::of(*ip)).unwrap_or_default(),
            flags,
        };
        // Direct delivery and the source check are only for pods of `berth-cni`. Pods of other plugins may
        // send with further sources: some route for others, some have more addresses.
        let device = network.pair.map(|p| LocalPod {
            ifindex: p.host_index,
            flags: flags
                | if p.ours { local_pod::OWN_SOURCE } else { 0 }
                | if p.ours && network.clear { local_pod::DIRECT } else { 0 },
            mac: p.pod_mac,
            host_mac: p.host_mac,
        });
        Ok(PodEntries { inode, ips: ips.clone(), cookie: network.cookie, client, device })
    }

    /// Deletes a pod's entries, except those that another pod has by now.
    fn take_out(&self, maps: &mut impl NodeTables, held: &PodEntries) -> Result<(), TableError> {
        if self.held.values().all(|w| w.cookie != held.cookie) {
            maps.clients().delete(&[held.cookie])?;
        }
        let index = held.device.map(|device| device.ifindex);
        if let Some(index) = index.filter(|index| !self.devices.contains(index)) {
            maps.pod_devices().delete(&[index])?;
        }
        for ip in held.ips.iter().filter(|ip| self.held.values().all(|w| !w.ips.contains(ip))) {
            if let Some(v4) = V4::of(*ip) {
                maps.pods4().delete(&[v4])?;
            }
            if let Some(v6) = V6::of(*ip) {
                maps.pods6().delete(&[v6])?;
            }
        }
        Ok(())
    }

    /// Deletes the entries that an earlier agent left and that no pod has now.
    fn sweep(&self, maps: &mut impl NodeTables) -> Result<(), TableError> {
        fn all<K: Copy, V>(table: &mut dyn Table<K, V>, keep: impl Fn(&K) -> bool) -> Result<(), TableError> {
            let left: Vec<K> = table.read()?.into_iter().map(|(k, _)| k).filter(|k| !keep(k)).collect();
            if left.is_empty() { Ok(()) } else { table.delete(&left) }
        }
        let with_device = || self.held.values().filter(|h| h.device.is_some()).flat_map(|h| &h.ips);
        let cookies: BTreeSet<u64> = self.held.values().map(|h| h.cookie).chain(self.host).collect();
        let ips: BTreeSet<IpAddr> = with_device().copied().collect();
        all(maps.clients(), |cookie| cookies.contains(cookie))?;
        all(maps.pod_devices(), |index| self.devices.contains(index))?;
        all(maps.pods4(), |ip| ips.contains(&ip.ip()))?;
        all(maps.pods6(), |ip| ips.contains(&ip.ip()))
    }

    /// Compares the maps with the written entries and repairs them. Returns the number of entries that
    /// differed.
    pub(super) fn reconcile(&mut self, maps: &mut impl NodeTables) -> Result<usize, TableError> {
        fn mend<K: Ord + Copy, V: PartialEq + Copy>(
            table: &mut dyn Table<K, V>,
            wanted: &BTreeMap<K, V>,
        ) -> Result<usize, TableError> {
            let there: BTreeMap<K, V> = table.read()?.into_iter().collect();
            let lost: Vec<(K, V)> =
                wanted.iter().filter(|(k, v)| there.get(k) != Some(v)).map(|(k, v)| (*k, *v)).collect();
            let strange: Vec<K> = there.keys().filter(|key| !wanted.contains_key(key)).copied().collect();
            if !lost.is_empty() {
                table.put(&lost)?;
            }
            if !strange.is_empty() {
                table.delete(&strange)?;
            }
            Ok(lost.len().saturating_add(strange.len()))
        }
        if !self.read || !self.leaving.is_empty() {
            return Ok(0);
        }
        let host = self.host.map(|cookie| (cookie, HOST));
        let clients = self.held.values().map(|h| (h.cookie, h.client)).chain(host).collect();
        let mut found = mend(maps.clients(), &clients)?;
        let with_device = || self.held.values().filter_map(|h| Some((h.device?, &h.ips)));
        let of = || with_device().flat_map(|(device, ips)| ips.iter().map(move |ip| (*ip, device)));
        let v4 = of().filter_map(|(ip, device)| Some((V4::of(ip)?, device))).collect();
        found = found.saturating_add(mend(maps.pods4(), &v4)?);
        let v6 = of().filter_map(|(ip, device)| Some((V6::of(ip)?, device))).collect();
        found = found.saturating_add(mend(maps.pods6(), &v6)?);
        let devices = self.held.values().filter_map(pod_device).collect();
        Ok(found.saturating_add(mend(maps.pod_devices(), &devices)?))
    }

    /// Fill level of the client map: name, entries, capacity.
    pub(super) fn fill_level(&self) -> Option<(&'static str, usize, usize)> {
        self.capacity.map(|capacity| (berth_ebpf_abi::maps::CLIENT, self.held.len(), capacity))
    }

    /// The host-side devices of all pods.
    pub(super) fn devices(&self) -> &BTreeSet<u32> {
        &self.devices
    }

    /// The host-side devices of the pods that `of` accepts.
    pub(super) fn devices_of(&self, of: impl Fn(&PodUid) -> bool) -> impl Iterator<Item = u32> {
        self.held.iter().filter(move |(uid, _)| of(uid)).filter_map(|(_, h)| Some(h.device?.ifindex))
    }
}

fn has_own_network(pod: &ObservedPod) -> bool {
    !pod.pod.namespaces.host_network
        && !pod.status.pod_ips.is_empty()
        && !matches!(pod.status.phase, Phase::Succeeded | Phase::Failed)
}

/// The host-side device of a pod, with the pod's addresses.
fn pod_device(held: &PodEntries) -> Option<(u32, PodDevice)> {
    let Client { v4, v6, .. } = held.client;
    held.device.map(|device| (device.ifindex, PodDevice { v4, v6, flags: device.flags }))
}

fn put(maps: &mut impl NodeTables, held: &PodEntries) -> Result<(), TableError> {
    maps.clients().put(&[(held.cookie, held.client)])?;
    maps.pod_devices().put(pod_device(held).as_slice())?;
    let Some(device) = held.device else { return Ok(()) };
    for ip in &held.ips {
        if let Some(v4) = V4::of(*ip) {
            maps.pods4().put(&[(v4, device)])?;
        }
        if let Some(v6) = V6::of(*ip) {
            maps.pods6().put(&[(v6, device)])?;
        }
    }
    Ok(())
}
