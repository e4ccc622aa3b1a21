//! Disturbances of a history: failed actions, deaths of the agent, outages, reboots and losses.

use super::{Agent, Rng, World};
use berth_core::{
    model::{Container, Resources},
    plan::*,
    resize::CpuMemory,
    status::{ApiStatus, Condition, PodStatus},
    time::{Boottime, Wall},
};
use std::{sync::Arc, time::Duration};

impl World<'_> {
    pub(super) fn disturb(&mut self, rng: &mut Rng) -> Result<(), String> {
        match rng.below(100) {
            0..=8 if self.observation_due => self.observe(),
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
                (self.forgotten, self.lost_memory) = (true, true);
                let told = self.last_status.clone();
                self.agent_dies(rng)?;
                if rng.below(2) == 0 {
                    self.ask_api_server(told);
                }
            }
            91..=92 => self.outage(rng),
            93 => {
                let told = self.last_status.clone();
                self.reboot();
                if rng.below(2) == 0 {
                    self.ask_api_server(told);
                }
            }
            94 => self.sandbox_suffers(rng),
            95..=96 => {
                let grace = *rng.pick(&[0, 1, 5, 30]);
                self.note(|| format!("the pod shall end, grace {grace}"));
                self.desired.end = Some(self.desired.end.map_or(grace, |g| g.min(grace)));
                self.all_condemned = true;
            }
            97 => self.task_vanishes(rng),
            98 => match rng.below(2) {
                0 => self.debugged(rng),
                _ => self.resized(rng),
            },
            _ if self.observation_due => self.observe(),
            _ => {
                learn(&self.desired.pod, &mut self.agent.memory, Fact::InputsChanged, self.now);
            }
        }
        Ok(())
    }

    /// The node allocates other resources to a container. Some restart for it.
    fn resized(&mut self, rng: &mut Rng) {
        let pod = Arc::make_mut(&mut self.desired.pod);
        let millis = 100 + 100 * rng.below(4);
        let Ok(cpu) = format!("{millis}m").parse() else { return };
        let resources = Resources { requests: [("cpu".to_owned(), cpu)].into(), ..Resources::default() };
        let restarts = rng.below(3) == 0;
        let some = rng.below(u64::try_from(pod.containers.len()).unwrap_or(1));
        let Some(c) = pod.containers.get_mut(usize::try_from(some).unwrap_or(0)) else { return };
        c.resize_policy.cpu_restarts = restarts;
        c.resources = resources.clone();
        let name = c.name.clone();
        self.allocations.insert(CpuMemory::of(&resources), resources);
        if restarts {
            let runs = self.truth.containers.iter().filter(|(_, c)| c.container == name);
            self.condemned.extend(runs.map(|(id, _)| id.clone()));
            let begun = self.pending.iter().filter(|a| a.container() == Some(&name)).filter_map(Action::run);
            self.condemned.extend(begun.cloned());
        }
        self.tally.resized += 1;
        self.note(|| format!("{name} is resized to {millis}m, by a restart: {restarts}"));
        learn(&self.desired.pod, &mut self.agent.memory, Fact::InputsChanged, self.now);
    }

    /// The API server adds an ephemeral container to the pod.
    fn debugged(&mut self, rng: &mut Rng) {
        let pod = Arc::make_mut(&mut self.desired.pod);
        let name = format!("e{}", pod.ephemeral_containers.len());
        let Ok(name) = name.parse() else { return };
        pod.ephemeral_containers.push(Container::new(name, "tools"));
        self.tally.debugged += 1;
        self.note(|| "the pod gets an ephemeral container".into());
        // It mounts a volume that the pod did not mount before.
        // What has begun already needs its own volumes alone.
        let busy = |a: &Action| matches!(a, Action::MountVolumes | Action::Start { .. });
        if rng.below(2) == 0 && !self.pending.iter().any(busy) {
            self.truth.volumes_mounted = false;
            self.agent.seen.volumes_mounted = false;
        }
        learn(&self.desired.pod, &mut self.agent.memory, Fact::InputsChanged, self.now);
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
                self.last_status = None;
                Memory::default()
            }
        };
        self.agent.seen = Observed { runtime_answers: self.truth.runtime_answers, ..Observed::default() };
        self.observation_due = true;
        // No plan is made before the first observation.
        self.truth.runtime_answers = true;
        self.observe();
        Ok(())
    }

    /// The agent that has no memory takes the past of the pod from the API server, which has the last status.
    fn ask_api_server(&mut self, told: Option<PodStatus>) {
        let Some(status) = &told else { return };
        self.note(|| "the API server tells the pod's past".into());
        self.tally.pasts += 1;
        let second = |at: Wall| Wall(at.seconds() * 1_000_000_000);
        let condition = |c: &Condition| (c.kind.name().to_owned(), (c.status, Some(second(c.since))));
        let api = ApiStatus {
            phase: Some(status.phase),
            reason: status.reason.clone(),
            message: status.message.clone(),
            start_time: status.start_time.map(second),
            pod_ips: status.pod_ips.clone(),
            conditions: status.conditions.iter().map(condition).collect(),
            containers: status.all_containers().cloned().collect(),
        };
        self.agent.memory.add_api_status(&self.desired.pod, &api, self.now);
        self.desired.terminal = api.terminal();
        self.last_status = told;
    }

    fn outage(&mut self, rng: &mut Rng) {
        self.tally.outages += 1;
        self.truth.runtime_answers = rng.below(2) == 0;
        let up = self.truth.runtime_answers;
        self.note(|| format!("containerd answers: {up}"));
        if up {
            self.observe();
        } else {
            self.agent.seen.runtime_answers = false;
        }
    }

    /// Reboots the node: every process, namespace and tmpfs is gone, and containerd's records remain.
    fn reboot(&mut self) {
        self.tally.reboots += 1;
        self.note(|| "the node reboots".into());
        self.pending.clear();
        self.last_status = None;
        (self.forgotten, self.lost_memory) = (true, true);
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
        self.was_ready.clear();
        self.agent = Agent { seen: Observed::default(), memory: Memory::default() };
        self.observe();
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
        self.observe();
    }

    /// Removes a task without an exit, as after the death of the shim while containerd was down.
    fn task_vanishes(&mut self, rng: &mut Rng) {
        if let Some(id) = rng.choose(&self.running())
            && let Some(c) = self.truth.containers.get_mut(&id)
        {
            c.state = RunState::NotStarted;
            c.task = false;
            self.note(|| format!("the task of {} vanishes", id.short()));
            self.observe();
        }
    }
}
