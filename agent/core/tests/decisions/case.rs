//! [`Case`]: one pod and its plans, in a world in which every action succeeds at once.

use berth_core::{
    event::Event,
    ids::*,
    model::*,
    plan::*,
    status::ContainerState,
    time::{Boottime, Now, Wall},
};
use std::{sync::Arc, time::Duration};

pub(crate) fn container(name: &str) -> Container {
    Container::new(ContainerName::new(name).expect("as the case has it"), "img:1")
}

pub(crate) fn sidecar(name: &str) -> Container {
    Container { sidecar: true, ..container(name) }
}

pub(crate) fn probe() -> Probe {
    Probe {
        action: ProbeAction::Tcp { host: None, port: PortRef::Number(80) },
        initial_delay_seconds: 0,
        timeout_seconds: 1,
        period_seconds: 1,
        success_threshold: 1,
        failure_threshold: 3,
        grace_seconds: None,
    }
}

pub(crate) fn pod(init: Vec<Container>, mains: Vec<Container>) -> Pod {
    let key = PodKey {
        namespace: Namespace::new("default").expect("as the case has it"),
        name: PodName::new("p").expect("as the case has it"),
    };
    let pod = Pod::new(
        PodUid::new("u-1").expect("as the case has it"),
        key,
        NodeName::new("n").expect("as the case has it"),
    );
    Pod { init_containers: init, containers: mains, ..pod }
}

/// A pod in a world in which every action succeeds at once, except for held kinds.
pub(crate) struct Case {
    pub(crate) desired: Desired,
    pub(crate) seen: Observed,
    pub(crate) memory: Memory,
    pub(crate) now: Now,
    events: Vec<Event>,
    /// Every action begun, with the time in seconds.
    log: Vec<(u64, Action)>,
    /// Kinds of actions that stay in flight.
    pub(crate) held: Vec<&'static str>,
    plan: Option<Plan>,
}

impl Case {
    pub(crate) fn new(pod: Pod) -> Case {
        Case {
            desired: Desired::new(Arc::new(pod), None),
            seen: Observed { runtime_answers: true, ..Observed::default() },
            memory: Memory::default(),
            now: Now { boottime: Boottime(Duration::from_secs(1000)), wall: Wall(1_700_000_000_000_000_000) },
            events: Vec::new(),
            log: Vec::new(),
            held: Vec::new(),
            plan: None,
        }
    }

    pub(crate) fn up(pod: Pod) -> Case {
        let mut case = Case::new(pod);
        case.settle();
        case
    }

    /// The seconds of the wall clock since the case began.
    pub(crate) fn seconds(&self) -> u64 {
        u64::try_from(self.now.wall.seconds() - 1_700_000_000).expect("as the case has it")
    }

    /// Plans and acts until no action begins any more.
    pub(crate) fn settle(&mut self) -> Plan {
        let mut rounds = 0;
        loop {
            rounds += 1;
            assert!(rounds < 200, "does not come to rest: {:?}", self.log.last());
            let p = plan(&self.desired, &self.seen, &self.memory, self.now);
            let again = plan(&self.desired, &self.seen, &self.memory, self.now);
            assert_eq!(again, p, "the same inputs make the same decision");
            self.memory = p.memory.clone();
            self.events.extend(p.events.clone());
            if p.actions.is_empty() {
                self.plan = Some(p.clone());
                return p;
            }
            for a in p.actions {
                self.log.push((self.seconds(), a.clone()));
                if !self.held.contains(&a.kind()) {
                    self.act(&a);
                    self.finish(a, Ok(()));
                }
            }
        }
    }

    pub(crate) fn finish(&mut self, a: Action, outcome: Result<(), Failure>) {
        if outcome.is_err() {
            self.seen.failed(&a);
        }
        self.learn(Fact::Finished(a, outcome));
    }

    pub(crate) fn learn(&mut self, fact: Fact) {
        let events = learn(&self.desired.pod, &mut self.memory, fact, self.now);
        self.events.extend(events);
    }

    pub(crate) fn in_flight(&self, kind: &str) -> Option<Action> {
        self.memory.in_flight.iter().find(|a| a.kind() == kind).cloned()
    }

    pub(crate) fn act(&mut self, a: &Action) {
        match a {
            Action::MountVolumes => (self.seen.volumes_mounted, self.seen.volumes_present) = (true, true),
            Action::UnmountVolumes => (self.seen.volumes_mounted, self.seen.volumes_present) = (false, false),
            Action::MakeSandbox(sandbox_attempt) | Action::EnsurePause(sandbox_attempt) => {
                let ips = vec!["10.0.0.1".parse().expect("as the case has it")];
                let state = SandboxState::Ready;
                self.seen.sandbox = Some(ObservedSandbox { sandbox_attempt: *sandbox_attempt, state, ips });
            }
            Action::ResizePod(resize) => {
                for update in &resize.0.updates {
                    let pod = &self.desired.pod;
                    let wanted =
                        pod.container(&update.container).expect("as the case has it").resources.clone();
                    self.seen.containers.get_mut(&update.id).expect("as the case has it").resources =
                        Some(wanted);
                }
            }
            Action::TeardownSandbox(_) => self.seen.sandbox = None,
            Action::Start { container, attempt, sandbox_attempt, id } => {
                let run = ObservedContainer {
                    container: container.clone(),
                    attempt: *attempt,
                    sandbox_attempt: *sandbox_attempt,
                    image_id: String::new(),
                    user: None,
                    resources: self.desired.pod.container(container).map(|c| c.resources.clone()),
                    state: RunState::Running { started_at: self.now.wall },
                    task: true,
                };
                self.seen.containers.insert(id.clone(), run);
            }
            Action::RecordExit { id, exit, .. } => {
                self.seen.containers.get_mut(id).expect("as the case has it").state =
                    RunState::Recorded(exit.0.clone());
            }
            Action::Reap { id, .. } => {
                self.seen.containers.get_mut(id).expect("as the case has it").task = false
            }
            Action::Remove { id, .. } => drop(self.seen.containers.remove(id)),
            _ => {}
        }
    }

    pub(crate) fn running(&self, name: &str) -> Option<ContainerId> {
        let mut runs = self.seen.containers.iter();
        let run =
            runs.find(|(_, c)| c.container.as_str() == name && matches!(c.state, RunState::Running { .. }));
        run.map(|(id, _)| id.clone())
    }

    pub(crate) fn exit(&mut self, name: &str, code: i32, oom: bool) {
        let id = self.running(name).expect("it runs");
        let exit = Exit { code, at: self.now.wall, oom, reason: None, message: None, started_at: None };
        self.seen.containers.get_mut(&id).expect("as the case has it").state = RunState::Ended(exit);
    }

    pub(crate) fn probe(&mut self, name: &str, kind: ProbeKind, success: bool) {
        let id = self.running(name).expect("it runs");
        self.learn(Fact::Probe { id, kind, success });
    }

    pub(crate) fn pass(&mut self, seconds: u64) {
        let time = Duration::from_secs(seconds);
        self.now.boottime = self.now.boottime + time;
        self.now.wall.0 += i64::try_from(time.as_nanos()).expect("as the case has it");
    }

    /// The times in seconds at which actions of a kind were begun for a container.
    pub(crate) fn begun(&self, kind: &str, name: &str) -> Vec<u64> {
        let of = self
            .log
            .iter()
            .filter(|(_, a)| a.kind() == kind && a.container().is_some_and(|c| c.as_str() == name));
        of.map(|(at, _)| *at).collect()
    }

    pub(crate) fn state(&self, name: &str) -> ContainerState {
        let status = &self.plan.as_ref().expect("as the case has it").status;
        status.all_containers().find(|c| c.name.as_str() == name).expect("as the case has it").state.clone()
    }

    pub(crate) fn waits(&self, name: &str) -> Option<String> {
        match self.state(name) {
            ContainerState::Waiting { reason, .. } => Some(reason),
            _ => None,
        }
    }

    /// The messages of the events with this reason, in order.
    pub(crate) fn messages(&self, reason: &str) -> Vec<&str> {
        self.events.iter().filter(|e| e.reason == reason).map(|e| e.message.as_str()).collect()
    }
}
