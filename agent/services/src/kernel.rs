//! Linux data path: the loader's programs and maps, devices, and the networks of pods on this machine.
//!
//! Each call blocks for microseconds, with three exceptions: loading takes up to its deadline (mostly only the programs of
//! sockets are waited for, and the others are loaded meanwhile), an attachment
//! to a device waits for an RCU grace period (several devices at a time), and ending sockets takes time in
//! proportion to their number.

mod dead;
mod devices;
mod pod_networks;
mod tables;

use crate::{
    AttachOutcome, Cause, DatapathBackend, FamilyTables, HostNetwork, Net, NodeTables, PodNetwork, veth_pair,
};
use berth_core::{ids::PodUid, roots::Roots};
use berth_ebpf_abi::{Config, Prefix, V4, V6};
use berth_ebpf_loader::{
    self as loader, Access, Datapath, DeviceRole, Loading, Pins, Place, Sizes, StalePeer,
};
pub use devices::{DeviceEvents, read_network};
pub use pod_networks::{KubeletPods, PodNetworks};
use std::{
    collections::{BTreeMap, HashSet},
    fs::File,
    net::SocketAddr,
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

/// Deadline of the child process that loads the programs. Where the deadline is too short, as on an emulated
/// processor, the next child has twice as long, because each child starts again from the first program.
const LOADING: Duration = Duration::from_secs(30);
const LONGEST_LOADING: Duration = Duration::from_secs(480);

/// The host's own network namespace, in which the agent runs.
const HOST_NET: &str = "/proc/self/ns/net";

/// Number of devices that are attached at the same time. Each attachment waits for the kernel.
const TOGETHER: usize = 8;

/// Configuration of the Linux data path.
#[derive(Debug, Clone)]
pub struct LinuxDatapathConfig {
    /// Directories of the pins.
    pub roots: Roots,
    /// Where the network namespaces of pods are found.
    pub networks: PodNetworks,
    /// This program's file, for the child process that loads the eBPF programs.
    pub exe: PathBuf,
    /// The cgroup whose sockets the hooks serve; `None` where the machine has no cgroup2.
    pub cgroup: Option<PathBuf>,
    /// Pods whose packets may bypass the host's stack.
    pub clear: ClearPods,
    /// What else is to be done about UDP connections to backends that serve no more.
    pub stale: OnStale,
    /// Number of entries of maps that are created.
    pub sizes: Sizes,
}

/// Function that is told the backends that serve no more, after their sockets were ended. It may block as long as that.
#[derive(Clone)]
pub struct OnStale(Arc<Tell>);

type Tell = dyn Fn(&HashSet<SocketAddr>) + Send + Sync;

impl OnStale {
    /// The function `tell`.
    pub fn new(tell: impl Fn(&HashSet<SocketAddr>) + Send + Sync + 'static) -> OnStale {
        OnStale(Arc::new(tell))
    }
}

impl Default for OnStale {
    fn default() -> OnStale {
        OnStale::new(|_| ())
    }
}

impl std::fmt::Debug for OnStale {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OnStale")
    }
}

/// Predicate over pods: whether no rule and no queue of the host's stack applies to the pod's packets. By
/// default no pod qualifies.
#[derive(Clone)]
pub struct ClearPods(Arc<dyn Fn(&PodUid) -> bool + Send + Sync>);

impl ClearPods {
    /// Predicate from the function `says`, which may block for as long as reading a few files takes.
    pub fn new(says: impl Fn(&PodUid) -> bool + Send + Sync + 'static) -> ClearPods {
        ClearPods(Arc::new(says))
    }

    fn has(&self, pod: &PodUid) -> bool {
        (self.0)(pod)
    }
}

impl Default for ClearPods {
    fn default() -> ClearPods {
        ClearPods::new(|_| false)
    }
}

impl std::fmt::Debug for ClearPods {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClearPods")
    }
}

/// Failure of the data path that comes from no single system call.
#[derive(Debug, thiserror::Error)]
enum Missing {
    #[error("the machine has no cgroup2 hierarchy")]
    Cgroup,
    #[error("attaching panicked")]
    Panicked,
    #[error("no process of the pod is found")]
    PodNetwork,
}

/// Hooks with this build's programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hooks {
    None,
    /// Those of sockets.
    Sockets,
    All,
}

/// The data path of this machine's kernel. `H` returns the node's present addresses and uplinks and must be
/// cheap.
#[derive(Debug)]
pub struct LinuxDatapath<H> {
    cfg: LinuxDatapathConfig,
    pins: Pins,
    host: H,
    /// The last returned host network.
    last_host: Option<Arc<HostNetwork>>,
    /// Deadline of the next load.
    deadline: Duration,
    /// The load whose programs for packets are not pinned yet. Those of sockets are.
    loading: Option<Loading>,
    /// Whether all of this build's programs are pinned.
    prepared: bool,
    /// The hooks that are attached.
    attached: Hooks,
    /// Whether the log already says that the Services of sockets cannot be read.
    blind: bool,
}

impl<H: FnMut() -> Arc<HostNetwork>> LinuxDatapath<H> {
    /// New data path. The kernel is not changed yet.
    pub fn new(cfg: LinuxDatapathConfig, host: H) -> LinuxDatapath<H> {
        let pins = Pins::new(&cfg.roots.bpf_pins);
        LinuxDatapath {
            cfg,
            pins,
            host,
            last_host: None,
            deadline: LOADING,
            loading: None,
            prepared: false,
            attached: Hooks::None,
            blind: false,
        }
    }

    /// The maps of another build, where their layout is the wanted one. The attached programs answer from
    /// these maps, so they are brought up to date before this build's programs are loaded, which takes most
    /// of a second.
    fn earlier(&self) -> Option<Datapath> {
        let loaded = self.pins.loaded_digest().ok().flatten()?;
        if loaded == loader::digest(loader::OBJECT)
            || loader::check_pinned_maps(&self.pins, loader::OBJECT).is_err()
        {
            return None;
        }
        Datapath::open(&self.pins, Access::Write).ok()
    }

    /// Loads this build's programs as far as sockets need them.
    fn begin(&mut self) -> Result<(), Cause> {
        self.loading = None;
        match loader::begin(&self.pins, &self.cfg.exe, &self.cfg.sizes, self.deadline)? {
            None => self.prepared = true,
            Some(mut loading) => {
                loading.wait_for_sockets().map_err(|error| self.refused(error))?;
                self.loading = Some(loading);
            }
        }
        Ok(())
    }

    /// Waits for the rest of the programs.
    fn finish(&mut self) -> Result<(), Cause> {
        if let Some(mut loading) = self.loading.take() {
            loading.finish().map_err(|error| self.refused(error))?;
            tracing::info!("programs of the Service data plane loaded");
            self.prepared = true;
        }
        Ok(())
    }

    fn refused(&mut self, error: loader::Error) -> Cause {
        if let loader::Error::ChildDeadline(deadline) = error {
            self.deadline = longer(deadline);
            let next = self.deadline;
            tracing::warn!(
                ?deadline,
                ?next,
                "loading the eBPF programs takes long; the next try may take longer"
            );
        }
        error.into()
    }

    fn net(&self, pod: &PodUid) -> Result<PathBuf, Missing> {
        self.cfg.networks.of(pod).ok_or(Missing::PodNetwork)
    }
}

impl<H: FnMut() -> Arc<HostNetwork>> DatapathBackend for LinuxDatapath<H> {
    type Maps = Datapath;

    fn open(&mut self) -> Result<Datapath, Cause> {
        loader::ensure_bpffs(&self.pins)?;
        (self.attached, self.prepared, self.loading) = (Hooks::None, false, None);
        if let Some(maps) = self.earlier() {
            return Ok(maps);
        }
        self.begin()?;
        Ok(Datapath::open(&self.pins, Access::Write)?)
    }

    fn has_packet_programs(&mut self) -> Result<bool, Cause> {
        if let Some(loading) = &mut self.loading {
            if !loading.is_over()? {
                return Ok(false);
            }
            self.finish()?;
        }
        Ok(true)
    }

    fn is_lost(&self) -> bool {
        self.prepared && self.pins.loaded_digest().is_ok_and(|digest| digest.is_none())
    }

    fn shortcomings(&mut self, maps: &Datapath) -> Vec<String> {
        let given = given_sizes(maps, &self.cfg.sizes).into_iter().filter(|(_, has, wanted)| has != wanted);
        let mut short: Vec<String> = given
            .map(|(map, has, wanted)| {
                format!("table {map} has room for {has} entries, not for {wanted}: it keeps its size until `berth reset` or the next boot")
            })
            .collect();
        for (map, count, room) in [
            (maps.affinity4.name(), maps.affinity4.count(), maps.affinity4.max_entries()),
            (maps.affinity6.name(), maps.affinity6.count(), maps.affinity6.max_entries()),
        ] {
            let room = usize::try_from(room).unwrap_or(usize::MAX);
            // A map that cannot be read shows up as a failure elsewhere.
            if count.is_ok_and(|count| crate::engine::is_nearly_full(count, room)) {
                short.push(format!("table {map} is nearly full: clients with affinity that were not seen for longest are given other backends (--max-affinity-entries)"));
            }
        }
        short
    }

    fn attach_hooks(&mut self, look: bool) -> Result<(), Cause> {
        if !self.prepared && self.loading.is_none() {
            self.begin()?;
            self.finish()?;
        }
        let cgroup = || self.cfg.cgroup.as_deref().ok_or(Missing::Cgroup);
        if self.loading.is_some() {
            if self.attached == Hooks::None {
                let attached = loader::attach_sockets(&self.pins, cgroup()?)?;
                tracing::info!(
                    ?attached,
                    "Services are answered at sockets; programs for packets are loaded"
                );
                self.attached = Hooks::Sockets;
            }
        } else if self.attached != Hooks::All || look {
            let cgroup = cgroup()?;
            let attached = loader::attach(&self.pins, cgroup)?;
            if self.attached != Hooks::All {
                tracing::info!(?attached, cgroup = %cgroup.display(), "Services are answered");
            } else if attached.made > 0 || attached.swapped > 0 {
                tracing::warn!(?attached, cgroup = %cgroup.display(), "hooks were missing and are attached again");
            }
            self.attached = Hooks::All;
        }
        Ok(())
    }

    fn host_network(&mut self) -> Option<Arc<HostNetwork>> {
        let now = (self.host)();
        if self.last_host.as_ref() == Some(&now) {
            return None;
        }
        self.last_host = Some(Arc::clone(&now));
        Some(now)
    }

    fn attached(&mut self) -> Result<BTreeMap<u32, Option<DeviceRole>>, Cause> {
        let mut places: BTreeMap<u32, HashSet<Place>> = BTreeMap::new();
        for link in loader::devices(&self.pins)?.into_iter().filter(|link| link.live) {
            places.entry(link.ifindex).or_default().insert(link.place);
        }
        let role = |places: HashSet<Place>| {
            [DeviceRole::Pod, DeviceRole::Uplink].into_iter().find(|role| places == role.places().into())
        };
        Ok(places.into_iter().map(|(index, places)| (index, role(places))).collect())
    }

    fn attach(&mut self, devices: &[(u32, DeviceRole)]) -> Vec<(u32, DeviceRole, AttachOutcome)> {
        let mut done = Vec::with_capacity(devices.len());
        for part in devices.chunks(TOGETHER) {
            let pins = &self.pins;
            std::thread::scope(|scope| {
                let start = |(index, role): (u32, DeviceRole)| {
                    let attach = move || loader::attach_device(pins, index, role);
                    (index, role, std::thread::Builder::new().spawn_scoped(scope, attach))
                };
                let running: Vec<_> = part.iter().copied().map(start).collect();
                done.extend(running.into_iter().map(|(index, role, started)| {
                    let attached = match started.map(std::thread::ScopedJoinHandle::join) {
                        Ok(Ok(attached)) => attached.map_err(Cause::from),
                        Ok(Err(_panicked)) => Err(Missing::Panicked.into()),
                        Err(error) => Err(error.into()),
                    };
                    (index, role, attached)
                }));
            });
        }
        let there = |index| devices::name(index).is_some();
        let judge = |(index, role, attached): (u32, DeviceRole, Result<(), Cause>)| {
            let attachment = match attached {
                Ok(()) => AttachOutcome::Done,
                Err(_) if !there(index) => AttachOutcome::Gone,
                Err(cause) => AttachOutcome::Failed(cause),
            };
            (index, role, attachment)
        };
        done.into_iter().map(judge).collect()
    }

    fn detach(&mut self, index: u32) -> Result<(), Cause> {
        // A device without programs is fine too.
        let _was = loader::detach_device(&self.pins, index)?;
        Ok(())
    }

    fn host_cookie(&self) -> Result<u64, Cause> {
        Ok(loader::netns_cookie(&File::open(HOST_NET)?)?)
    }

    fn network_inode(&self, pod: &PodUid) -> Result<u64, Cause> {
        Ok(std::fs::metadata(self.net(pod)?)?.ino())
    }

    fn network(&self, pod: &PodUid) -> Result<PodNetwork, Cause> {
        let netns = self.net(pod)?;
        let cookie = loader::netns_cookie(&File::open(&netns)?)?;
        Ok(PodNetwork { cookie, pair: veth_pair(&netns)?, clear: self.cfg.clear.has(pod) })
    }

    fn end_sockets(&mut self, dead: &HashSet<StalePeer>, pods: &mut dyn Iterator<Item = &PodUid>) -> usize {
        let pods = pods.filter_map(|pod| self.cfg.networks.of(pod));
        let namespaces: Vec<PathBuf> = pods.chain([HOST_NET.into()]).collect();
        let ended = dead::end_sockets(&self.pins, dead, &namespaces, &mut self.blind);
        (self.cfg.stale.0)(&dead.iter().map(|stale| stale.backend).collect());
        ended
    }

    fn record_stale(&mut self, dead: &HashSet<StalePeer>) -> Result<(), Cause> {
        dead::note(&self.cfg.roots.stale_backends_file(), dead)
    }

    fn recorded_stale(&mut self) -> Result<HashSet<StalePeer>, Cause> {
        Ok(dead::noted(&self.cfg.roots.stale_backends_file())?)
    }

    fn collect_flows(&mut self, maps: &Datapath) -> Result<bool, Cause> {
        let now_s = u32::try_from(berth_sys::clock::monotonic().as_secs()).unwrap_or(u32::MAX);
        Ok(loader::collect_flows(&self.pins, maps, now_s)?.seen > 0)
    }
}

/// Maps with a configured size: name, present number of entries, and configured number.
fn given_sizes(maps: &Datapath, wanted: &Sizes) -> [(&'static str, u32, u32); 6] {
    let both = |connections: u32| connections.saturating_mul(2);
    [
        (maps.service4.name(), maps.service4.max_entries(), wanted.services[0]),
        (maps.member4.name(), maps.member4.max_entries(), wanted.members[0]),
        (maps.affinity4.name(), maps.affinity4.max_entries(), wanted.affinity[0]),
        (maps.assured4.name(), maps.assured4.max_entries(), both(wanted.assured[0])),
        (maps.unassured4.name(), maps.unassured4.max_entries(), both(wanted.unassured[0])),
        (maps.udp4.name(), maps.udp4.max_entries(), both(wanted.udp[0])),
    ]
}

/// Deadline of the next load after a deadline that was too short.
fn longer(deadline: Duration) -> Duration {
    deadline.saturating_mul(2).min(LONGEST_LOADING)
}

/// The cgroup whose sockets the hooks serve; `None` where the machine has no cgroup2.
pub fn hooks_group(roots: &Roots) -> Result<Option<PathBuf>, berth_sys::Error> {
    let mounts = berth_sys::mount::mounts()?;
    let v2 = mounts.iter().find(|m| m.fs_type == "cgroup2" && m.mount_point.starts_with(&roots.cgroup_mount));
    Ok(v2.map(|v2| v2.mount_point.join(&roots.cgroup_hooks)))
}

/// Leaves new connections to the host's stack, while those that the programs translate go on. Returns whether any Service
/// was answered until then.
///
/// # Errors
/// The maps cannot be opened or written.
pub fn drain(roots: &Roots) -> Result<bool, Cause> {
    let pins = Pins::new(&roots.bpf_pins);
    if !pins.root().is_dir() {
        return Ok(false);
    }
    let mut maps = Datapath::open(&pins, Access::Write)?;
    // An address of a Service range without an entry would be dropped.
    let config = NodeTables::config(&mut maps);
    let written = config.read()?;
    let without_ranges = written.into_iter().map(|(key, config)| {
        (key, Config { service4: [Prefix::default(); 2], service6: [Prefix::default(); 2], ..config })
    });
    config.put(&without_ranges.collect::<Vec<_>>())?;
    let v4 = no_services::<V4>(&mut maps)?;
    let v6 = no_services::<V6>(&mut maps)?;
    Ok(v4 || v6)
}

/// Deletes the frontends of a family. Returns whether there were any.
fn no_services<A: Net>(tables: &mut dyn FamilyTables<A>) -> Result<bool, Cause> {
    let services = tables.services();
    let keys: Vec<_> = services.read()?.into_iter().map(|(key, _)| key).collect();
    services.delete(&keys)?;
    Ok(!keys.is_empty())
}

/// Removes all programs, maps, links and the record of stale backends. The BPF file system is unmounted where
/// the agent mounted it.
///
/// # Errors
/// The kernel rejects a step. The error names what is left.
pub fn detach(roots: &Roots) -> Result<(), Cause> {
    loader::detach(&Pins::new(&roots.bpf_pins))?;
    Ok(berth_sys::fs::remove_if_there(&roots.stale_backends_file())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_that_was_cut_off_has_longer_the_next_time() {
        let tries: Vec<u64> =
            std::iter::successors(Some(LOADING), |d| Some(longer(*d))).take(6).map(|d| d.as_secs()).collect();
        assert_eq!(tries, [30, 60, 120, 240, 480, 480]);
    }
}
