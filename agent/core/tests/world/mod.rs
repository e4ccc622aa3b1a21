//! Simulated world in plain data that carries out what `plan` asks for, with random faults.

mod checks;
mod effects;
mod faults;
mod pods;
mod tally;

pub use berth_harness::rng::Rng;
pub use pods::specs;
pub use tally::Tally;

use berth_core::{
    ids::{ContainerId, ContainerName, SandboxAttempt},
    model::Resources,
    plan::*,
    resize::{Allocation, CpuMemory},
    status::{PodStatus, Truth},
    time::{Boottime, Now, Wall},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    time::Duration,
};

/// The state that the agent keeps between two plans.
struct Agent {
    seen: Observed,
    memory: Memory,
}

pub struct World<'t> {
    pub(crate) desired: Desired,
    tally: &'t mut Tally,
    now: Now,
    /// The true state of the world, as containerd, the kernel and the disk have it.
    truth: Observed,
    agent: Agent,
    /// The pod must be observed, because an action failed and only an observation shows what it left.
    observation_due: bool,
    /// The memory stored before the last actions is lost.
    forgotten: bool,
    plan: Option<Plan>,
    /// The last published status; `None` after the memory of it is lost.
    pub(crate) last_status: Option<PodStatus>,
    /// Actions that the live agent has begun.
    pending: Vec<Action>,
    /// Runs that the history gave a reason to stop.
    pub(crate) condemned: BTreeSet<ContainerId>,
    pub(crate) all_condemned: bool,
    /// Runs whose last readiness result was a failure.
    pub(crate) unready: BTreeSet<ContainerId>,
    /// Runs whose readiness probe has succeeded.
    pub(crate) was_ready: BTreeSet<ContainerId>,
    /// The resources of each allocation so far, and those of the pod when a run began.
    allocations: BTreeMap<CpuMemory, Resources>,
    begun_with: BTreeMap<ContainerId, Resources>,
    /// The allocation when the sandbox was begun, and the one that is set on the pod's cgroup.
    sandbox_with: Option<Allocation>,
    truth_cgroup: Option<Allocation>,
    /// The agent's memory was lost at least once.
    lost_memory: bool,
    pub(crate) finished_inits: BTreeSet<(SandboxAttempt, ContainerName)>,
    pub(crate) calm: bool,
    log: String,
    keep_log: bool,
}

impl<'t> World<'t> {
    pub fn new(desired: Desired, tally: &'t mut Tally) -> Self {
        World {
            desired,
            tally,
            now: Now { boottime: Boottime(Duration::from_secs(1000)), wall: Wall(1_700_000_000_000_000_000) },
            truth: Observed { runtime_answers: true, ..Observed::default() },
            agent: Agent {
                seen: Observed { runtime_answers: true, ..Observed::default() },
                memory: Memory::default(),
            },
            observation_due: false,
            forgotten: false,
            plan: None,
            last_status: None,
            pending: Vec::new(),
            condemned: BTreeSet::new(),
            all_condemned: false,
            unready: BTreeSet::new(),
            was_ready: BTreeSet::new(),
            allocations: BTreeMap::from([(CpuMemory::default(), Resources::default())]),
            begun_with: BTreeMap::new(),
            sandbox_with: None,
            truth_cgroup: None,
            lost_memory: false,
            finished_inits: BTreeSet::new(),
            calm: false,
            log: String::new(),
            keep_log: std::env::var_os("BERTH_SEED").is_some(),
        }
    }

    pub fn log(&self) -> &str {
        if self.keep_log {
            &self.log
        } else {
            "(set BERTH_SEED to the seed and BERTH_HISTORIES=1 for the steps)"
        }
    }

    fn note(&mut self, what: impl FnOnce() -> String) {
        if self.keep_log {
            let _ignored = writeln!(self.log, "{:>7.1}s {}", self.now.boottime.0.as_secs_f64(), what());
        }
    }

    /// Runs one history: some steps with disturbances, then calm steps until nothing changes any more.
    pub fn run(&mut self, rng: &mut Rng) -> Result<(), String> {
        self.decide()?;
        for _ in 0..rng.below(24) + 4 {
            self.disturb(rng)?;
            self.decide()?;
            if self.over() {
                self.tally.finished += 1;
                return self.check_nothing_left();
            }
        }
        self.calm = true;
        self.truth.runtime_answers = true;
        self.note(|| "calm from here".into());
        self.observe();
        self.decide()?;
        for _ in 0..400 {
            if self.over() {
                self.tally.finished += 1;
                return self.check_nothing_left();
            }
            if !self.settle_one(rng)? {
                return self.check_settled();
            }
            self.decide()?;
        }
        Err("does not settle within 400 calm steps".into())
    }

    fn over(&self) -> bool {
        self.plan.as_ref().is_some_and(|p| p.finished)
    }

    /// The agent plans once and begins the actions of the plan.
    fn decide(&mut self) -> Result<(), String> {
        let mut p = plan(&self.desired, &self.agent.seen, &self.agent.memory, self.now);
        self.tally.plans += 1;
        self.check_plan(&p)?;
        self.check_forwards(&p)?;
        self.last_status = Some(p.status.clone());
        self.agent.memory = p.memory.clone();
        self.forgotten = false;
        for a in std::mem::take(&mut p.actions) {
            self.note(|| format!("begin {a:?}"));
            if self.pending.contains(&a) {
                return Err(format!("{a:?} emitted while in flight"));
            }
            if let Action::MakeSandbox(_) = &a {
                self.sandbox_with = Some(Allocation::of(&self.desired.pod));
            }
            if let Action::Start { attempt, container, id, .. } = &a {
                let spec = self.desired.pod.container(container);
                let resources = spec.map(|c| c.resources.clone()).unwrap_or_default();
                self.begun_with.insert(id.clone(), resources);
                self.tally.starts += 1;
                self.tally.restarts += u64::from(attempt.0 > 0);
            }
            self.pending.push(a);
        }
        if p.status.is_ready() {
            self.tally.ready += 1;
        }
        self.plan = Some(p);
        Ok(())
    }

    /// One calm step: the pod is observed, an action succeeds, a probe succeeds, an init container finishes,
    /// or time passes to the next wake. False where nothing is left to happen.
    fn settle_one(&mut self, rng: &mut Rng) -> Result<bool, String> {
        if self.observation_due {
            self.observe();
            return Ok(true);
        }
        if !self.pending.is_empty() {
            let i = rng.below(self.pending.len() as u64) as usize;
            let a = self.pending.swap_remove(i);
            self.apply(&a)?;
            self.deliver(a, Ok(()));
            return Ok(true);
        }
        let probes = self.plan.as_ref().map(|p| p.probes.clone()).unwrap_or_default();
        for probe in probes {
            use berth_core::model::ProbeKind::*;
            let run = self.agent.memory.containers.get(&probe.container).and_then(|m| m.run.clone());
            let open = match probe.kind {
                Startup => true,
                Readiness => {
                    run.is_some_and(|r| r.readiness != berth_core::plan::Readiness::Yes && r.stop.is_none())
                }
                Liveness => false,
            };
            if open {
                self.probe(&probe.id, probe.kind, true);
                return Ok(true);
            }
        }
        // Init containers finish.
        let ending: Vec<ContainerId> = self
            .truth
            .containers
            .iter()
            .filter(|(_, c)| matches!(c.state, RunState::Running { .. }) && self.is_plain_init(&c.container))
            .map(|(id, _)| id.clone())
            .collect();
        if let Some(id) = ending.first() {
            self.exit(id, 0);
            return Ok(true);
        }
        match self.plan.as_ref().and_then(|p| p.wake_at) {
            // A crash loop never ends, so the world is settled once only a long back-off is left to wait for.
            Some(at) => {
                if at.since(self.now.boottime) > Duration::from_secs(400) {
                    return Ok(false);
                }
                self.pass(at.since(self.now.boottime) + Duration::from_millis(1));
                Ok(true)
            }
            None => Ok(false),
        }
    }

    fn pass(&mut self, d: Duration) {
        self.note(|| format!("{d:?} pass"));
        self.now.boottime = self.now.boottime + d;
        self.now.wall.0 += d.as_nanos() as i64;
    }

    pub(crate) fn is_plain_init(&self, name: &ContainerName) -> bool {
        self.desired.pod.init_containers.iter().any(|c| &c.name == name && !c.sidecar)
    }

    fn running(&self) -> Vec<ContainerId> {
        let runs = self.truth.containers.iter().filter(|(_, c)| matches!(c.state, RunState::Running { .. }));
        runs.map(|(id, _)| id.clone()).collect()
    }

    /// Reports the end of an action to the agent, as the real executor does: the changes of a successful
    /// action, and nothing but the failure of a failed one.
    fn deliver(&mut self, a: Action, outcome: Result<(), Failure>) {
        self.note(|| format!("end {a:?}: {outcome:?}"));
        match &outcome {
            Ok(()) => self.report(&a),
            Err(_) => {
                self.agent.seen.failed(&a);
                self.observation_due |= self.agent.seen.stale;
            }
        }
        learn(&self.desired.pod, &mut self.agent.memory, Fact::Finished(a, outcome), self.now);
    }

    /// Reports the changes of a successful action, and no others.
    fn report(&mut self, a: &Action) {
        let (truth, seen) = (&self.truth, &mut self.agent.seen);
        match a {
            Action::MountVolumes | Action::UnmountVolumes => {
                seen.volumes_mounted = truth.volumes_mounted;
                seen.volumes_present = truth.volumes_present;
            }
            Action::MakeSandbox(_) | Action::EnsurePause(_) | Action::TeardownSandbox(_) => {
                seen.sandbox = truth.sandbox.clone();
            }
            Action::Start { id, .. }
            | Action::RecordExit { id, .. }
            | Action::Reap { id, .. }
            | Action::Remove { id, .. } => match truth.containers.get(id) {
                Some(c) => drop(seen.containers.insert(id.clone(), c.clone())),
                None => drop(seen.containers.remove(id)),
            },
            Action::ResizePod(resize) => {
                for update in &resize.0.updates {
                    if let (Some(c), Some(now)) =
                        (seen.containers.get_mut(&update.id), truth.containers.get(&update.id))
                    {
                        c.resources = now.resources.clone();
                    }
                }
            }
            // The end of the process is reported by an event.
            Action::Signal { .. }
            | Action::Kill { .. }
            | Action::EnsureImage(_)
            | Action::PostStart { .. }
            | Action::PreStop { .. }
            | Action::RemovePod => {}
        }
    }

    /// Observes the pod, where containerd answers. An observation never newly shows the volumes as mounted,
    /// so an agent that has not mounted them in its own life mounts them again. What an action in flight
    /// changes keeps its known state.
    fn observe(&mut self) {
        if !self.truth.runtime_answers {
            return;
        }
        self.note(|| "the agent observes the pod".into());
        let old = std::mem::take(&mut self.agent.seen);
        let mut seen = self.truth.clone();
        seen.volumes_mounted = old.volumes_mounted && seen.volumes_present;
        for a in &self.pending {
            match a {
                Action::MountVolumes | Action::UnmountVolumes => {
                    seen.volumes_mounted = old.volumes_mounted;
                    seen.volumes_present = old.volumes_present;
                }
                Action::MakeSandbox(_) | Action::EnsurePause(_) | Action::TeardownSandbox(_) => {
                    seen.sandbox = old.sandbox.clone();
                }
                Action::Start { id, .. }
                | Action::RecordExit { id, .. }
                | Action::Reap { id, .. }
                | Action::Remove { id, .. } => match old.containers.get(id) {
                    Some(c) => drop(seen.containers.insert(id.clone(), c.clone())),
                    None => drop(seen.containers.remove(id)),
                },
                _ => {}
            }
        }
        self.agent.seen = seen;
        self.observation_due = false;
    }

    fn probe(&mut self, id: &ContainerId, kind: berth_core::model::ProbeKind, success: bool) {
        use berth_core::model::ProbeKind::*;
        self.note(|| format!("{kind:?} of {} says {success}", id.short()));
        match (kind, success) {
            (Readiness, true) => {
                self.unready.remove(id);
                self.was_ready.insert(id.clone());
            }
            (Readiness, false) => {
                self.unready.insert(id.clone());
            }
            (_, false) => {
                self.condemned.insert(id.clone());
            }
            _ => {}
        }
        let fact = Fact::Probe { id: id.clone(), kind, success };
        learn(&self.desired.pod, &mut self.agent.memory, fact, self.now);
    }

    /// Readiness of each run in the last published status.
    pub(crate) fn shown_ready(&self) -> BTreeMap<ContainerId, Truth> {
        let status = self.plan.as_ref().map(|p| &p.status);
        let all = status.iter().flat_map(|s| s.containers.iter().chain(&s.init_containers));
        all.filter_map(|c| Some((c.id.clone()?, c.ready))).collect()
    }
}
