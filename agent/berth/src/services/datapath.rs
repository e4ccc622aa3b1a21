//! The kernel's side: programs, tables, devices, stale sockets.

use super::{SeenPod, ServicesConfig, bpffs, node, pods::Pods};
use anyhow::Context as _;
use berth_core::{ids::PodUid, time::Boottime};
use berth_ebpf_loader::{self as loader, Access, Pins, Prepared, Proto, Role};
use berth_services::{Allocator, NodeFacts, Notice, Stale};
use berth_sys::clock;
use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs::File,
    net::SocketAddr,
    time::Duration,
};

/// How long the child that loads the programs may take.
const LOADING: Duration = Duration::from_secs(30);

/// What failed is tried again after this, then after twice as long, and so on.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// Between two looks for connections that are too old; longer while there are none.
const COLLECT: Duration = Duration::from_secs(30);
const COLLECT_SELDOM: Duration = Duration::from_secs(120);

/// So many devices are attached at the same time: each waits for the kernel.
const TOGETHER: usize = 8;

/// Everything that is done to the kernel.
pub(super) struct Datapath {
    cfg: ServicesConfig,
    pins: Pins,
    maps: Option<loader::Datapath>,
    facts: NodeFacts,
    pods: Pods,
    uplinks: BTreeSet<u32>,
    /// Whether this build's programs are pinned.
    prepared: bool,
    attached: bool,
    /// What was said of the last failure, so that it is said once.
    told: Option<String>,
    retry: Option<(Boottime, Duration)>,
    collect_at: Boottime,
}

/// What a round has to tell, also where it failed half way.
#[derive(Debug, Default)]
struct Done {
    notices: Vec<Notice>,
    due: Vec<Boottime>,
}

impl Datapath {
    pub(super) fn new(cfg: ServicesConfig) -> Datapath {
        Datapath {
            pins: Pins::new(&cfg.roots.bpf_pins),
            maps: None,
            facts: node::facts(&cfg),
            pods: Pods::default(),
            uplinks: BTreeSet::new(),
            prepared: false,
            attached: false,
            told: None,
            retry: None,
            collect_at: Boottime::default(),
            cfg,
        }
    }

    /// The node's facts where they are others than before.
    pub(super) fn node_changed(&mut self) -> Option<NodeFacts> {
        let now = node::facts(&self.cfg);
        if now == self.facts {
            return None;
        }
        self.facts = now.clone();
        Some(now)
    }

    /// Brings the kernel to what is wanted. Returns what Services' owners should know, and when to come again.
    pub(super) fn round(
        &mut self,
        allocator: &mut Allocator,
        seen: &BTreeMap<PodUid, SeenPod>,
        now: Boottime,
    ) -> (Vec<Notice>, Vec<Boottime>) {
        let mut done = Done::default();
        match self.try_round(allocator, seen, now, &mut done) {
            Ok(()) => {
                if self.told.take().is_some() {
                    tracing::info!("Services are brought up to date again");
                }
                self.retry = None;
            }
            Err(error) => {
                let text = format!("{error:#}");
                if self.told.as_ref() != Some(&text) {
                    tracing::error!(error = text, "Services are not brought up to date; tried again");
                    self.told = Some(text);
                }
                let pause = match self.retry {
                    // Woken by a change before its time.
                    Some((at, _)) if now < at => None,
                    Some((_, pause)) => Some((pause * 2).min(LONGEST_RETRY)),
                    None => Some(FIRST_RETRY),
                };
                if let Some(pause) = pause {
                    self.retry = Some((clock::boottime() + pause, pause));
                }
                done.due.extend(self.retry.map(|(at, _)| at));
            }
        }
        (done.notices, done.due)
    }

    fn try_round(
        &mut self,
        allocator: &mut Allocator,
        seen: &BTreeMap<PodUid, SeenPod>,
        now: Boottime,
        done: &mut Done,
    ) -> anyhow::Result<()> {
        let mut maps = match self.maps.take() {
            Some(maps) => maps,
            None => self.open(now)?,
        };
        let result = self.with(&mut maps, allocator, seen, now, done);
        self.maps = Some(maps);
        result
    }

    /// The tables first: what fails after them is tried again without holding them up.
    fn with(
        &mut self,
        maps: &mut loader::Datapath,
        allocator: &mut Allocator,
        seen: &BTreeMap<PodUid, SeenPod>,
        now: Boottime,
        done: &mut Done,
    ) -> anyhow::Result<()> {
        let node = node::keep(&self.cfg, &self.facts, maps).context("keep the maps of the node");
        let pods = self.pods.keep(&self.cfg.roots, maps, seen).context("keep the maps of the pods");
        let outcome = allocator.sync(maps, clock::boottime).context("keep the tables of Services")?;
        done.due.extend(outcome.due);
        done.notices = outcome.notices;
        self.destroy_stale(&outcome.stale, seen);
        node.and(pods)?;
        if !self.prepared {
            self.prepare()?;
        }
        if !self.attached {
            let cgroup = self.cfg.cgroup.as_deref().context("the machine has no cgroup2 hierarchy")?;
            let attached = loader::attach(&self.pins, cgroup).context("attach the hooks")?;
            tracing::info!(?attached, cgroup = %cgroup.display(), "Services are answered");
            self.attached = true;
        }
        self.devices()?;
        if now >= self.collect_at {
            let now_s = u32::try_from(monotonic().as_secs()).unwrap_or(u32::MAX);
            let seen =
                loader::collect_flows(&self.pins, maps, now_s).context("collect old connections")?.seen;
            self.collect_at = now + if seen == 0 { COLLECT_SELDOM } else { COLLECT };
        }
        done.due.push(self.collect_at);
        Ok(())
    }

    fn open(&mut self, now: Boottime) -> anyhow::Result<loader::Datapath> {
        // Loading is dear: a change alone does not try it again.
        if let Some((at, _)) = self.retry
            && now < at
        {
            anyhow::bail!("{}", self.told.as_deref().unwrap_or("the programs are not loaded"));
        }
        bpffs::ensure(&self.cfg.roots, &self.pins)?;
        (self.attached, self.prepared) = (false, false);
        if let Some(maps) = self.earlier() {
            return Ok(maps);
        }
        self.prepare()?;
        loader::Datapath::open(&self.pins, Access::Write).context("open the maps")
    }

    /// The maps of another build, where they are the wanted ones: what is attached answers by them, so they are brought
    /// up to date before this build's programs, whose loading takes the better part of a second.
    fn earlier(&self) -> Option<loader::Datapath> {
        let loaded = self.pins.loaded_digest().ok().flatten()?;
        if loaded == loader::digest(loader::OBJECT)
            || loader::check_pinned_maps(&self.pins, loader::OBJECT).is_err()
        {
            return None;
        }
        loader::Datapath::open(&self.pins, Access::Write).ok()
    }

    fn prepare(&mut self) -> anyhow::Result<()> {
        let prepared = loader::prepare(&self.pins, &self.cfg.exe, LOADING).context("load the programs")?;
        if prepared == Prepared::Loaded {
            tracing::info!("programs of the Service data plane loaded");
        }
        self.prepared = true;
        Ok(())
    }

    /// Attaches what is new; what is gone took its links along.
    fn devices(&mut self) -> anyhow::Result<()> {
        let pods = self.pods.devices();
        let uplinks = node::uplinks(&self.cfg, &pods);
        let mut wanted: Vec<(u32, Role)> = self.pods.unattached().map(|i| (i, Role::Pod)).collect();
        wanted.extend(uplinks.difference(&self.uplinks).map(|i| (*i, Role::Uplink)));
        for part in wanted.chunks(TOGETHER) {
            let pins = &self.pins;
            let done: Vec<_> = std::thread::scope(|scope| {
                let attach = |(index, role): (u32, Role)| {
                    let spawned = std::thread::Builder::new()
                        .spawn_scoped(scope, move || loader::attach_device(pins, index, role));
                    (index, role, spawned)
                };
                let running: Vec<_> = part.iter().copied().map(attach).collect();
                running
                    .into_iter()
                    .map(|(i, r, s)| (i, r, s.map(std::thread::ScopedJoinHandle::join)))
                    .collect()
            });
            for (index, role, done) in done {
                match done {
                    Ok(Ok(Ok(()))) if role == Role::Pod => self.pods.attached(index),
                    Ok(Ok(Ok(()))) => drop(self.uplinks.insert(index)),
                    // It went away meanwhile.
                    _ if nix::net::if_::if_indextoname(index).is_err() => {}
                    Ok(Ok(Err(error))) => return Err(error).context(format!("attach to device {index}")),
                    Ok(Err(_panicked)) => anyhow::bail!("attaching to device {index} panicked"),
                    Err(error) => return Err(error).context("start a thread for a device"),
                }
            }
        }
        for index in self.uplinks.difference(&uplinks) {
            loader::detach_device(&self.pins, *index).context("detach from a device")?;
        }
        self.uplinks = uplinks;
        for index in self.pods.gone() {
            loader::detach_device(&self.pins, index).context("detach from a pod's device")?;
        }
        Ok(())
    }

    /// Ends connected UDP sockets whose backend is gone, in every pod and on the host.
    fn destroy_stale(&self, stale: &[Stale], seen: &BTreeMap<PodUid, SeenPod>) {
        if stale.is_empty() {
            return;
        }
        let dead: HashSet<SocketAddr> = stale.iter().map(|s| SocketAddr::new(s.address, s.port)).collect();
        let pods = seen.keys().map(|uid| self.cfg.roots.sandbox_dir(uid).join("net"));
        let mut destroyed = 0;
        for netns in pods.chain(["/proc/self/ns/net".into()]) {
            // A pod without a network of its own, or one that is gone.
            let Ok(file) = File::open(&netns) else { continue };
            match loader::destroy_sockets(&file, Proto::Udp, &dead) {
                Ok(count) => destroyed += count,
                Err(error) => {
                    tracing::warn!(netns = %netns.display(), %error, "sockets to backends that are gone may be left");
                }
            }
        }
        if destroyed > 0 {
            tracing::info!(destroyed, backends = dead.len(), "ended UDP sockets to backends that are gone");
        }
    }
}

/// The clock that the programs note times by.
fn monotonic() -> Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default()
}
