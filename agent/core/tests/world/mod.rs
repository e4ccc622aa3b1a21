//! Simulated world in plain data that carries out what `plan` asks for, with random faults.

mod checks;
mod pods;
mod rng;

pub use pods::specs;
pub use rng::Rng;

use berth_core::{
    ids::{ContainerId, ContainerName, SandboxAttempt},
    plan::*,
    status::{PodStatus, Truth},
    time::{Boottime, Now, Wall},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    time::Duration,
};

/// Counts of each kind of event, so that the test can prove that the histories cover them.
#[derive(Debug, Default, Clone)]
pub struct Tally {
    pub plans: u64,
    pub starts: u64,
    pub restarts: u64,
    pub agent_deaths: u64,
    pub memory_losses: u64,
    pub reboots: u64,
    pub sandbox_losses: u64,
    pub outages: u64,
    pub ready: u64,
    pub finished: u64,
    pub terminal: u64,
}

impl Tally {
    pub fn add(&mut self, o: &Tally) {
        self.plans += o.plans;
        self.starts += o.starts;
        self.restarts += o.restarts;
        self.agent_deaths += o.agent_deaths;
        self.memory_losses += o.memory_losses;
        self.reboots += o.reboots;
        self.sandbox_losses += o.sandbox_losses;
        self.outages += o.outages;
        self.ready += o.ready;
        self.finished += o.finished;
        self.terminal += o.terminal;
    }
}

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
    look_due: bool,
    /// The memory stored before the last actions is lost.
    forgotten: bool,
    plan: Option<Plan>,
    /// The last published status; `None` after the memory of it is lost.
    pub(crate) told: Option<PodStatus>,
    /// Actions that the live agent has begun.
    pending: Vec<Action>,
    /// Runs that the history gave a reason to stop.
    pub(crate) condemned: BTreeSet<ContainerId>,
    pub(crate) all_condemned: bool,
    /// Runs whose last readiness result was a failure.
    pub(crate) unready: BTreeSet<ContainerId>,
    /// Runs whose readiness probe has succeeded.
    pub(crate) told_ready: BTreeSet<ContainerId>,
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
            look_due: false,
            forgotten: false,
            plan: None,
            told: None,
            pending: Vec::new(),
            condemned: BTreeSet::new(),
            all_condemned: false,
            unready: BTreeSet::new(),
            told_ready: BTreeSet::new(),
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
        self.think()?;
        for _ in 0..rng.below(24) + 4 {
            self.disturb(rng)?;
            self.think()?;
            if self.over() {
                self.tally.finished += 1;
                return self.check_nothing_left();
            }
        }
        self.calm = true;
        self.truth.runtime_answers = true;
        self.note(|| "calm from here".into());
        self.look();
        self.think()?;
        for _ in 0..400 {
            if self.over() {
                self.tally.finished += 1;
                return self.check_nothing_left();
            }
            if !self.settle_one(rng)? {
                return self.check_settled();
            }
            self.think()?;
        }
        Err("does not settle within 400 calm steps".into())
    }

    fn over(&self) -> bool {
        self.plan.as_ref().is_some_and(|p| p.finished)
    }

    /// The agent plans once and begins the actions of the plan.
    fn think(&mut self) -> Result<(), String> {
        let mut p = plan(&self.desired, &self.agent.seen, &self.agent.memory, self.now);
        self.tally.plans += 1;
        self.check_plan(&p)?;
        self.check_forwards(&p)?;
        self.told = Some(p.status.clone());
        self.agent.memory = p.memory.clone();
        self.forgotten = false;
        for a in std::mem::take(&mut p.actions) {
            self.note(|| format!("begin {a:?}"));
            if self.pending.contains(&a) {
                return Err(format!("{a:?} emitted while in flight"));
            }
            if let Action::Start { attempt, .. } = &a {
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
        if self.look_due {
            self.look();
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

    fn disturb(&mut self, rng: &mut Rng) -> Result<(), String> {
        match rng.below(100) {
            0..=8 if self.look_due => self.look(),
            0..=54 => self.end_some_action(rng)?,
            55..=63 => {
                let d = *rng.pick(&[10, 500, 2_000, 11_000, 35_000, 310_000]);
                self.pass(Duration::from_millis(d));
            }
            64..=75 => self.some_probe(rng),
            76..=82 => {
                let running = self.running();
                if let Some(id) = rng.choose(&running) {
                    let code = *rng.pick(&[0, 0, 1, 137]);
                    self.exit(&id, code);
                }
            }
            83..=89 => self.agent_dies(rng)?,
            90 => {
                self.note(|| "memory is lost".into());
                self.tally.memory_losses += 1;
                self.forgotten = true;
                self.agent_dies(rng)?;
            }
            91..=92 => self.outage(rng),
            93 => self.reboot(),
            94 => self.sandbox_suffers(rng),
            95..=96 => {
                let grace = *rng.pick(&[0, 1, 5, 30]);
                self.note(|| format!("the pod shall end, grace {grace}"));
                self.desired.end = Some(self.desired.end.map_or(grace, |g| g.min(grace)));
                self.all_condemned = true;
            }
            97 => self.task_vanishes(rng),
            _ if self.look_due => self.look(),
            _ => {
                learn(&self.desired.pod, &mut self.agent.memory, Fact::InputsChanged, self.now);
            }
        }
        Ok(())
    }

    pub(crate) fn is_plain_init(&self, name: &ContainerName) -> bool {
        self.desired.pod.init_containers.iter().any(|c| &c.name == name && !c.sidecar)
    }

    fn running(&self) -> Vec<ContainerId> {
        let runs = self.truth.containers.iter().filter(|(_, c)| matches!(c.state, RunState::Running { .. }));
        runs.map(|(id, _)| id.clone()).collect()
    }

    fn end_some_action(&mut self, rng: &mut Rng) -> Result<(), String> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let i = rng.below(self.pending.len() as u64) as usize;
        let a = self.pending.swap_remove(i);
        let needs_runtime =
            !matches!(a, Action::MountVolumes | Action::UnmountVolumes | Action::MakeSandbox(_));
        let fails = rng.below(8) == 0 || (needs_runtime && !self.truth.runtime_answers);
        // A failure may come before the effect, during it or after it.
        match if fails { rng.below(3) } else { 0 } {
            0 => self.apply(&a)?,
            1 => self.apply_half(&a),
            _ => {}
        }
        let outcome = if fails { Err(Failure::new("Oops", "as the history wants")) } else { Ok(()) };
        if fails && let Action::PostStart { id, .. } = &a {
            self.condemned.insert(id.clone());
        }
        self.deliver(a, outcome);
        Ok(())
    }

    /// Reports the end of an action to the agent, as the real executor does: the changes of a successful
    /// action, and nothing but the failure of a failed one.
    fn deliver(&mut self, a: Action, outcome: Result<(), Failure>) {
        self.note(|| format!("end {a:?}: {outcome:?}"));
        match &outcome {
            Ok(()) => self.report(&a),
            Err(_) => {
                self.agent.seen.failed(&a);
                self.look_due |= self.agent.seen.stale;
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
    fn look(&mut self) {
        if !self.truth.runtime_answers {
            return;
        }
        self.note(|| "the agent looks".into());
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
        self.look_due = false;
    }

    /// Carries out an action in the true state.
    fn apply(&mut self, a: &Action) -> Result<(), String> {
        match a {
            Action::MountVolumes => {
                self.truth.volumes_mounted = true;
                self.truth.volumes_present = true;
            }
            Action::UnmountVolumes => {
                self.truth.volumes_mounted = false;
                self.truth.volumes_present = false;
                if self.truth.containers.values().any(|c| matches!(c.state, RunState::Running { .. })) {
                    return Err("volumes unmounted under a running container".into());
                }
            }
            Action::MakeSandbox(i) => {
                if self.truth.sandbox.is_some() {
                    return Err(format!("sandbox {i} made beside {:?}", self.truth.sandbox));
                }
                let ips = vec!["10.0.0.1".parse().map_err(|e| format!("{e}"))?];
                self.truth.sandbox =
                    Some(ObservedSandbox { sandbox_attempt: *i, state: SandboxState::NoPause, ips });
            }
            Action::EnsurePause(_) => {
                if let Some(s) = self.truth.sandbox.as_mut().filter(|s| s.state == SandboxState::NoPause) {
                    s.state = SandboxState::Ready;
                }
            }
            Action::TeardownSandbox(i) => {
                self.check_teardown(&self.truth)?;
                if self.truth.sandbox.as_ref().is_some_and(|s| s.sandbox_attempt == *i) {
                    self.truth.sandbox = None;
                }
            }
            Action::EnsureImage(_) => {}
            Action::Start { container, attempt, sandbox_attempt, id } => {
                self.start(container, *attempt, *sandbox_attempt, id)?
            }
            Action::PostStart { .. } | Action::PreStop { .. } => {}
            Action::Signal { id, .. } | Action::Kill { id, .. } => {
                self.check_stop(a, id)?;
                self.exit(&id.clone(), 137);
            }
            Action::RecordExit { id, exit, .. } => {
                if let Some(c) = self.truth.containers.get_mut(id) {
                    if let RunState::Running { .. } = c.state {
                        return Err(format!("exit of running {id} recorded"));
                    }
                    c.state = RunState::Recorded(exit.0.clone());
                }
            }
            Action::Reap { id, .. } => {
                if let Some(c) = self.truth.containers.get_mut(id) {
                    if !matches!(c.state, RunState::Recorded(_)) {
                        return Err(format!(
                            "task of {id} reaped before its exit was recorded: {:?}",
                            c.state
                        ));
                    }
                    c.task = false;
                }
            }
            Action::Remove { id, .. } => {
                if let Some(RunState::Running { .. }) = self.truth.containers.get(id).map(|c| &c.state) {
                    return Err(format!("running {id} removed"));
                }
                self.truth.containers.remove(id);
            }
            Action::RemovePod => self.check_nothing_left()?,
        }
        Ok(())
    }

    fn start(
        &mut self,
        container: &ContainerName,
        attempt: berth_core::ids::Attempt,
        sandbox_attempt: SandboxAttempt,
        id: &ContainerId,
    ) -> Result<(), String> {
        self.check_start(&self.truth, container, sandbox_attempt, id)?;
        let started_at = self.now.wall;
        self.truth.containers.entry(id.clone()).or_insert_with(|| ObservedContainer {
            container: container.clone(),
            attempt,
            sandbox_attempt,
            image_id: "sha256:1".into(),
            user: None,
            state: RunState::Running { started_at },
            task: true,
        });
        if let Some(c) = self.truth.containers.get_mut(id)
            && c.state == RunState::NotStarted
        {
            c.state = RunState::Running { started_at };
            c.task = true;
        }
        Ok(())
    }

    fn exit(&mut self, id: &ContainerId, code: i32) {
        let at = self.now.wall;
        let Some(c) = self.truth.containers.get_mut(id) else { return };
        let RunState::Running { started_at } = c.state else { return };
        let started_at = Some(started_at);
        c.state = RunState::Ended(Exit { code, at, oom: false, reason: None, message: None, started_at });
        let ended = c.clone();
        let key = (c.sandbox_attempt, c.container.clone());
        if code == 0 && self.is_plain_init(&key.1) {
            self.finished_inits.insert(key);
        }
        self.note(|| format!("{} exits with {code}", id.short()));
        // The exit event. An exit before its start has ended is reported together with the start.
        if self.truth.runtime_answers
            && let Some(known) = self.agent.seen.containers.get_mut(id)
            && matches!(known.state, RunState::Running { .. })
        {
            *known = ended;
        }
    }

    fn probe(&mut self, id: &ContainerId, kind: berth_core::model::ProbeKind, success: bool) {
        use berth_core::model::ProbeKind::*;
        self.note(|| format!("{kind:?} of {} says {success}", id.short()));
        match (kind, success) {
            (Readiness, true) => {
                self.unready.remove(id);
                self.told_ready.insert(id.clone());
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

    fn some_probe(&mut self, rng: &mut Rng) {
        let probes = self.plan.as_ref().map(|p| p.probes.clone()).unwrap_or_default();
        if let Some(p) = rng.choose(&probes) {
            let success = rng.below(4) != 0;
            self.probe(&p.id, p.kind, success);
        }
    }

    /// SIGKILL of the agent: each action in flight has taken effect wholly, partly or not at all, and the
    /// next agent observes the world from the start.
    fn agent_dies(&mut self, rng: &mut Rng) -> Result<(), String> {
        self.tally.agent_deaths += 1;
        self.note(|| "the agent dies".into());
        for a in std::mem::take(&mut self.pending) {
            match rng.below(3) {
                0 => self.apply(&a)?,
                1 => self.apply_half(&a),
                _ => {}
            }
        }
        // The stored memory passes through its serialized form.
        self.agent.memory = match &self.plan {
            Some(plan) if !self.forgotten => {
                let text = serde_json::to_vec(&plan.memory).map_err(|e| e.to_string())?;
                serde_json::from_slice(&text).map_err(|e| e.to_string())?
            }
            _ => {
                self.told = None;
                Memory::default()
            }
        };
        self.agent.seen = Observed { runtime_answers: self.truth.runtime_answers, ..Observed::default() };
        self.look_due = true;
        // No plan is made before the first observation.
        self.truth.runtime_answers = true;
        self.look();
        Ok(())
    }

    /// Carries out a part of an action that was interrupted.
    fn apply_half(&mut self, a: &Action) {
        match a {
            Action::MountVolumes => self.truth.volumes_present = true,
            Action::UnmountVolumes => self.truth.volumes_mounted = false,
            Action::MakeSandbox(i) if self.truth.sandbox.is_none() => {
                self.truth.sandbox = Some(ObservedSandbox {
                    sandbox_attempt: *i,
                    state: SandboxState::Broken,
                    ips: Vec::new(),
                });
            }
            Action::TeardownSandbox(_) => {
                if let Some(s) = &mut self.truth.sandbox {
                    s.state = SandboxState::Broken;
                }
            }
            Action::Start { container, attempt, sandbox_attempt, id } => {
                self.truth.containers.entry(id.clone()).or_insert_with(|| ObservedContainer {
                    container: container.clone(),
                    attempt: *attempt,
                    sandbox_attempt: *sandbox_attempt,
                    image_id: String::new(),
                    user: None,
                    state: RunState::NotStarted,
                    task: false,
                });
            }
            _ => {}
        }
    }

    fn outage(&mut self, rng: &mut Rng) {
        self.tally.outages += 1;
        self.truth.runtime_answers = rng.below(2) == 0;
        let up = self.truth.runtime_answers;
        self.note(|| format!("containerd answers: {up}"));
        if up {
            self.look();
        } else {
            self.agent.seen.runtime_answers = false;
        }
    }

    /// Reboots the node: every process, namespace and tmpfs is gone, and containerd's records remain.
    fn reboot(&mut self) {
        self.tally.reboots += 1;
        self.note(|| "the node reboots".into());
        self.pending.clear();
        self.told = None;
        self.forgotten = true;
        self.now.boottime = Boottime(Duration::from_secs(20));
        self.truth.sandbox = None;
        self.truth.volumes_mounted = false;
        self.truth.runtime_answers = true;
        for c in self.truth.containers.values_mut() {
            if matches!(c.state, RunState::Running { .. } | RunState::Ended(_)) {
                c.state = RunState::NotStarted;
            }
            c.task = false;
        }
        self.unready.clear();
        self.told_ready.clear();
        self.agent = Agent { seen: Observed::default(), memory: Memory::default() };
        self.look();
    }

    fn sandbox_suffers(&mut self, rng: &mut Rng) {
        let Some(s) = self.truth.sandbox.as_mut().filter(|s| s.state != SandboxState::Broken) else { return };
        self.tally.sandbox_losses += 1;
        s.state = if rng.below(2) == 0 { SandboxState::NoPause } else { SandboxState::Broken };
        if s.state == SandboxState::Broken {
            let sandbox_attempt = s.sandbox_attempt;
            for (id, c) in &self.truth.containers {
                if c.sandbox_attempt == sandbox_attempt {
                    self.condemned.insert(id.clone());
                }
            }
        }
        self.note(|| "the sandbox suffers".into());
        self.look();
    }

    /// Removes a task without an exit, as after the death of the shim while containerd was down.
    fn task_vanishes(&mut self, rng: &mut Rng) {
        if let Some(id) = rng.choose(&self.running())
            && let Some(c) = self.truth.containers.get_mut(&id)
        {
            c.state = RunState::NotStarted;
            c.task = false;
            self.note(|| format!("the task of {} vanishes", id.short()));
            self.look();
        }
    }

    /// Readiness of each run in the last published status.
    pub(crate) fn shown_ready(&self) -> BTreeMap<ContainerId, Truth> {
        let status = self.plan.as_ref().map(|p| &p.status);
        let all = status.iter().flat_map(|s| s.containers.iter().chain(&s.init_containers));
        all.filter_map(|c| Some((c.id.clone()?, c.ready))).collect()
    }
}
