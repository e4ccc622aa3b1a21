//! The kernel of this machine: the loader's programs and maps, devices, networks of pods.
//!
//! Every call blocks for microseconds, but for loading (its deadline), the attachment to devices (an RCU grace period
//! each, some at a time), and the ending of sockets (their number).

mod dead;
mod devices;
mod tables;

use crate::{Attachment, Cause, Device, Kernel, PodNetwork, veth_pair};
use berth_core::{ids::PodUid, roots::Roots};
use berth_ebpf_loader::{self as loader, Access, Datapath, Lost, Pins, Prepared, Role, Sizes};
pub use devices::DeviceEvents;
use std::{
    collections::{BTreeMap, HashSet},
    fs::File,
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
    time::{Duration, Instant},
};

/// How long the child that loads the programs may take.
const LOADING: Duration = Duration::from_secs(30);

/// So many devices are attached at the same time: each waits for the kernel.
const TOGETHER: usize = 8;

/// Where nothing tells of devices they are looked at this often at most.
const UNTOLD: Duration = Duration::from_secs(1);

/// What the kernel's side is told once.
#[derive(Debug, Clone)]
pub struct LinuxConfig {
    /// Where pins, and the network namespaces of pods, are.
    pub roots: Roots,
    /// This program, for the child that loads the programs.
    pub exe: PathBuf,
    /// The cgroup whose sockets the hooks serve; `None` where the machine has no cgroup2.
    pub cgroup: Option<PathBuf>,
    /// The devices that bring what comes from outside, where they are named.
    pub uplinks: Vec<String>,
}

/// Something of the kernel's side that is no single call's failure.
#[derive(Debug, thiserror::Error)]
enum Missing {
    #[error("the machine has no cgroup2 hierarchy")]
    Cgroup,
    #[error("attaching panicked")]
    Panicked,
}

/// The kernel.
#[derive(Debug)]
pub struct Linux {
    cfg: LinuxConfig,
    pins: Pins,
    /// Tells of devices, where that could be had.
    events: Option<DeviceEvents>,
    /// When the devices were last looked at.
    looked: Option<Instant>,
    /// Whether this build's programs are pinned.
    prepared: bool,
    attached: bool,
    /// It was said that which Service sockets came by cannot be read.
    blind: bool,
}

impl Linux {
    /// Nothing is touched yet. Without `events`, which the wiring also waits on, devices are looked at whenever the
    /// engine is awake, once a second at most.
    pub fn new(cfg: LinuxConfig, events: Option<DeviceEvents>) -> Linux {
        let pins = Pins::new(&cfg.roots.bpf_pins);
        Linux { cfg, pins, events, looked: None, prepared: false, attached: false, blind: false }
    }

    /// The maps of another build, where they are the wanted ones: what is attached answers by them, so they are brought
    /// up to date before this build's programs, whose loading takes the better part of a second.
    fn earlier(&self) -> Option<Datapath> {
        let loaded = self.pins.loaded_digest().ok().flatten()?;
        if loaded == loader::digest(loader::OBJECT)
            || loader::check_pinned_maps(&self.pins, loader::OBJECT).is_err()
        {
            return None;
        }
        Datapath::open(&self.pins, Access::Write).ok()
    }

    fn prepare(&mut self) -> Result<(), Cause> {
        if loader::prepare(&self.pins, &self.cfg.exe, &Sizes::default(), LOADING)? == Prepared::Loaded {
            tracing::info!("programs of the Service data plane loaded");
        }
        self.prepared = true;
        Ok(())
    }

    fn net(&self, pod: &PodUid) -> PathBuf {
        self.cfg.roots.sandbox_dir(pod).join("net")
    }
}

impl Kernel for Linux {
    type Maps = Datapath;

    fn open(&mut self) -> Result<Datapath, Cause> {
        loader::ensure_bpffs(&self.pins)?;
        (self.attached, self.prepared) = (false, false);
        if let Some(maps) = self.earlier() {
            return Ok(maps);
        }
        self.prepare()?;
        Ok(Datapath::open(&self.pins, Access::Write)?)
    }

    fn attach_hooks(&mut self) -> Result<(), Cause> {
        if !self.prepared {
            self.prepare()?;
        }
        if !self.attached {
            let cgroup = self.cfg.cgroup.as_deref().ok_or(Missing::Cgroup)?;
            let attached = loader::attach(&self.pins, cgroup)?;
            tracing::info!(?attached, cgroup = %cgroup.display(), "Services are answered");
            self.attached = true;
        }
        Ok(())
    }

    fn devices(&mut self) -> Option<BTreeMap<String, Device>> {
        let changed = match &self.events {
            Some(events) => events.take(),
            None => self.looked.is_none_or(|at| at.elapsed() >= UNTOLD),
        };
        if !changed && self.looked.is_some() {
            return None;
        }
        self.looked = Some(Instant::now());
        Some(devices::list(&self.cfg.uplinks))
    }

    fn attach(&mut self, devices: &[(u32, Role)]) -> Vec<(u32, Role, Attachment)> {
        let mut done = Vec::with_capacity(devices.len());
        for part in devices.chunks(TOGETHER) {
            let pins = &self.pins;
            std::thread::scope(|scope| {
                let start = |(index, role): (u32, Role)| {
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
        let judge = |(index, role, attached): (u32, Role, Result<(), Cause>)| {
            let attachment = match attached {
                Ok(()) => Attachment::Done,
                Err(_) if !there(index) => Attachment::Gone,
                Err(cause) => Attachment::Failed(cause),
            };
            (index, role, attachment)
        };
        done.into_iter().map(judge).collect()
    }

    fn detach(&mut self, index: u32) -> Result<(), Cause> {
        // Whether there was anything.
        let _was = loader::detach_device(&self.pins, index)?;
        Ok(())
    }

    fn network_inode(&self, pod: &PodUid) -> Result<u64, Cause> {
        Ok(std::fs::metadata(self.net(pod))?.ino())
    }

    fn network(&self, pod: &PodUid) -> Result<PodNetwork, Cause> {
        let netns = self.net(pod);
        let cookie = loader::netns_cookie(&File::open(&netns)?)?;
        Ok(PodNetwork { cookie, pair: veth_pair(&netns)? })
    }

    fn end_sockets(&mut self, dead: &HashSet<Lost>, pods: &mut dyn Iterator<Item = &PodUid>) -> usize {
        let pods = pods.map(|pod| self.net(pod));
        let namespaces: Vec<PathBuf> = pods.chain(["/proc/self/ns/net".into()]).collect();
        dead::end_sockets(&self.pins, dead, &namespaces, &mut self.blind)
    }

    fn note_dead(&mut self, dead: &HashSet<Lost>) -> Result<(), Cause> {
        dead::note(&dead_note(&self.cfg.roots), dead)
    }

    fn noted_dead(&mut self) -> Result<HashSet<Lost>, Cause> {
        Ok(dead::noted(&dead_note(&self.cfg.roots))?)
    }

    fn collect_flows(&mut self, maps: &Datapath) -> Result<bool, Cause> {
        let now_s = u32::try_from(berth_sys::clock::monotonic().as_secs()).unwrap_or(u32::MAX);
        Ok(loader::collect_flows(&self.pins, maps, now_s)?.seen > 0)
    }
}

/// Backends whose sockets an agent began to end.
fn dead_note(roots: &Roots) -> PathBuf {
    roots.runtime_state.join("dead-backends")
}

/// The cgroup whose sockets the hooks serve; `None` where the machine has no cgroup2.
///
/// # Errors
/// The table of mounts cannot be read.
pub fn hooks_group(roots: &Roots) -> Result<Option<PathBuf>, berth_sys::Error> {
    let mounts = berth_sys::mount::mounts()?;
    let v2 = mounts.iter().find(|m| m.fs_type == "cgroup2" && m.mount_point.starts_with(&roots.cgroup_mount));
    Ok(v2.map(|v2| v2.mount_point.join(&roots.cgroup_hooks)))
}

/// Takes away all that was loaded and attached, and the BPF file system where the agent has mounted it.
///
/// # Errors
/// The kernel refuses; what is left is what it names.
pub fn detach(roots: &Roots) -> Result<(), Cause> {
    loader::detach(&Pins::new(&roots.bpf_pins))?;
    Ok(berth_sys::fs::remove_if_there(&dead_note(roots))?)
}
