//! The maps of this node's pods: as clients by the cookie of their network namespace, as destinations by address.

use super::SeenPod;
use anyhow::Context as _;
use berth_core::{
    ids::PodUid,
    roots::Roots,
    status::{Phase, PodStatus},
};
use berth_ebpf_abi::{Client, LocalPod, V4, V6};
use berth_ebpf_loader::{Datapath, Map, Plain, netns_cookie};
use berth_services::{Net, veth_pair};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::File,
    hash::Hash,
    net::IpAddr,
    os::unix::fs::MetadataExt,
    path::Path,
};

/// What stands in the maps for one pod.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Held {
    /// The namespace's inode and the addresses: where they are the same, so is the rest.
    inode: u64,
    ips: Vec<IpAddr>,
    cookie: u64,
    client: Client,
    device: Option<LocalPod>,
}

/// The pods in the maps.
#[derive(Debug, Default)]
pub(super) struct Pods {
    held: BTreeMap<PodUid, Held>,
    attached: BTreeSet<u32>,
    /// Whether the maps were read: what stands there for nobody goes then.
    read: bool,
}

impl Pods {
    /// Brings the maps to the pods that there are.
    pub(super) fn keep(
        &mut self,
        roots: &Roots,
        maps: &Datapath,
        seen: &BTreeMap<PodUid, SeenPod>,
    ) -> anyhow::Result<()> {
        let mut wanted: BTreeMap<PodUid, Held> = BTreeMap::new();
        for (uid, pod) in seen.iter().filter(|(_, p)| has_own_network(p)) {
            let netns = roots.sandbox_dir(uid).join("net");
            match self.held(uid, &netns, &pod.status) {
                Ok(held) => drop(wanted.insert(uid.clone(), held)),
                Err(error) => {
                    // Its sandbox is being taken down, or made anew.
                    tracing::debug!(pod = %pod.pod.key, error = format!("{error:#}"), "not in the maps");
                }
            }
        }
        let changed = wanted.iter().filter(|(uid, held)| self.held.get(*uid) != Some(held));
        for held in changed.map(|(_, held)| held).collect::<Vec<_>>() {
            put(maps, held)?;
        }
        if self.read {
            let gone = self.held.iter().filter(|(uid, held)| wanted.get(*uid) != Some(held));
            for (_, held) in gone {
                take_out(maps, held, &wanted)?;
            }
        } else {
            sweep(maps, &wanted)?;
            self.read = true;
        }
        self.held = wanted;
        Ok(())
    }

    fn held(&self, uid: &PodUid, netns: &Path, status: &PodStatus) -> anyhow::Result<Held> {
        let inode = std::fs::metadata(netns).context("look at the pod's network")?.ino();
        if let Some(held) = self.held.get(uid).filter(|h| h.inode == inode && h.ips == status.pod_ips) {
            return Ok(held.clone());
        }
        let file = File::open(netns).context("open the pod's network")?;
        let cookie = netns_cookie(&file)?;
        let pair = veth_pair(netns)?;
        let client = Client {
            v4: status.pod_ips.iter().find_map(|ip| V4::of(*ip)).unwrap_or_default(),
            v6: status.pod_ips.iter().find_map(|ip| V6::of(*ip)).unwrap_or_default(),
            flags: 0,
        };
        let device =
            pair.map(|p| LocalPod { ifindex: p.host_index, flags: 0, mac: p.pod_mac, host_mac: p.host_mac });
        Ok(Held { inode, ips: status.pod_ips.clone(), cookie, client, device })
    }

    /// The host's devices of all pods.
    pub(super) fn devices(&self) -> BTreeSet<u32> {
        self.held.values().filter_map(|h| Some(h.device?.ifindex)).collect()
    }

    /// Those that no program is attached to yet.
    pub(super) fn unattached(&self) -> impl Iterator<Item = u32> {
        self.devices().into_iter().filter(|i| !self.attached.contains(i)).collect::<Vec<_>>().into_iter()
    }

    /// The programs are attached.
    pub(super) fn attached(&mut self, index: u32) {
        self.attached.insert(index);
    }

    /// Devices that are no pod's any more; told once.
    pub(super) fn gone(&mut self) -> Vec<u32> {
        let devices = self.devices();
        let gone: Vec<u32> = self.attached.difference(&devices).copied().collect();
        self.attached.retain(|i| devices.contains(i));
        gone
    }
}

fn has_own_network(pod: &SeenPod) -> bool {
    !pod.pod.namespaces.host_network
        && !pod.status.pod_ips.is_empty()
        && !matches!(pod.status.phase, Phase::Succeeded | Phase::Failed)
}

fn put(maps: &Datapath, held: &Held) -> anyhow::Result<()> {
    maps.client.put(&held.cookie, &held.client)?;
    let Some(device) = held.device else { return Ok(()) };
    for ip in &held.ips {
        if let Some(v4) = V4::of(*ip) {
            maps.pod4.put(&v4, &device)?;
        }
        if let Some(v6) = V6::of(*ip) {
            maps.pod6.put(&v6, &device)?;
        }
    }
    Ok(())
}

/// Takes a pod out, but for what another has by now.
fn take_out(maps: &Datapath, held: &Held, wanted: &BTreeMap<PodUid, Held>) -> anyhow::Result<()> {
    if wanted.values().all(|w| w.cookie != held.cookie) {
        maps.client.delete(&held.cookie)?;
    }
    for ip in held.ips.iter().filter(|ip| wanted.values().all(|w| !w.ips.contains(ip))) {
        if let Some(v4) = V4::of(*ip) {
            maps.pod4.delete(&v4)?;
        }
        if let Some(v6) = V6::of(*ip) {
            maps.pod6.delete(&v6)?;
        }
    }
    Ok(())
}

/// Takes out everything that an earlier agent left and nobody has now.
fn sweep(maps: &Datapath, wanted: &BTreeMap<PodUid, Held>) -> anyhow::Result<()> {
    fn all<K: Plain + Eq + Hash, V: Plain>(map: &Map<K, V>, keep: impl Fn(&K) -> bool) -> anyhow::Result<()> {
        let there: HashMap<K, V> = map.entries()?.into_iter().collect();
        for key in there.keys().filter(|k| !keep(k)) {
            map.delete(key)?;
        }
        Ok(())
    }
    let with_device = || wanted.values().filter(|h| h.device.is_some()).flat_map(|h| &h.ips);
    all(&maps.client, |cookie| wanted.values().any(|h| h.cookie == *cookie))?;
    all(&maps.pod4, |ip| with_device().any(|w| *w == ip.ip()))?;
    all(&maps.pod6, |ip| with_device().any(|w| *w == ip.ip()))
}
