//! Single decisions, compared with the kubelet's values (`pkg/kubelet/kuberuntime`, `pkg/kubelet/status`).

use berth_core::{
    event::Event,
    ids::*,
    model::*,
    plan::*,
    status::{ConditionType, ContainerState, Phase, Truth},
    time::{Boottime, Now, Wall},
};
use std::{sync::Arc, time::Duration};

fn container(name: &str) -> Container {
    Container::new(ContainerName::new(name).expect("as the case has it"), "img:1")
}

fn sidecar(name: &str) -> Container {
    Container { sidecar: true, ..container(name) }
}

fn probe() -> Probe {
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

fn pod(init: Vec<Container>, mains: Vec<Container>) -> Pod {
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
struct Case {
    desired: Desired,
    seen: Observed,
    memory: Memory,
    now: Now,
    events: Vec<Event>,
    /// Every action begun, with the time in seconds.
    log: Vec<(u64, Action)>,
    /// Kinds of actions that stay in flight.
    held: Vec<&'static str>,
    plan: Option<Plan>,
}

impl Case {
    fn new(pod: Pod) -> Case {
        Case {
            desired: Desired { pod: Arc::new(pod), end: None },
            seen: Observed { runtime_answers: true, ..Observed::default() },
            memory: Memory::default(),
            now: Now { boottime: Boottime(Duration::from_secs(1000)), wall: Wall(1_700_000_000_000_000_000) },
            events: Vec::new(),
            log: Vec::new(),
            held: Vec::new(),
            plan: None,
        }
    }

    fn up(pod: Pod) -> Case {
        let mut case = Case::new(pod);
        case.settle();
        case
    }

    fn seconds(&self) -> u64 {
        self.now.boottime.0.as_secs() - 1000
    }

    /// Plans and acts until no action begins any more.
    fn settle(&mut self) -> Plan {
        let mut rounds = 0;
        loop {
            rounds += 1;
            assert!(rounds < 200, "does not come to rest: {:?}", self.log.last());
            let p = plan(&self.desired, &self.seen, &self.memory, self.now);
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

    fn finish(&mut self, a: Action, outcome: Result<(), Failure>) {
        if outcome.is_err() {
            self.seen.failed(&a);
        }
        self.learn(Fact::Finished(a, outcome));
    }

    fn learn(&mut self, fact: Fact) {
        let told = learn(&self.desired.pod, &mut self.memory, fact, self.now);
        self.events.extend(told);
    }

    fn in_flight(&self, kind: &str) -> Option<Action> {
        self.memory.in_flight.iter().find(|a| a.kind() == kind).cloned()
    }

    fn act(&mut self, a: &Action) {
        match a {
            Action::MountVolumes => (self.seen.volumes_mounted, self.seen.volumes_present) = (true, true),
            Action::UnmountVolumes => (self.seen.volumes_mounted, self.seen.volumes_present) = (false, false),
            Action::MakeSandbox(sandbox_attempt) | Action::EnsurePause(sandbox_attempt) => {
                let ips = vec!["10.0.0.1".parse().expect("as the case has it")];
                let state = SandboxState::Ready;
                self.seen.sandbox = Some(ObservedSandbox { sandbox_attempt: *sandbox_attempt, state, ips });
            }
            Action::TeardownSandbox(_) => self.seen.sandbox = None,
            Action::Start { container, attempt, sandbox_attempt, id } => {
                let run = ObservedContainer {
                    container: container.clone(),
                    attempt: *attempt,
                    sandbox_attempt: *sandbox_attempt,
                    image_id: String::new(),
                    user: None,
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

    fn running(&self, name: &str) -> Option<ContainerId> {
        let mut runs = self.seen.containers.iter();
        let run =
            runs.find(|(_, c)| c.container.as_str() == name && matches!(c.state, RunState::Running { .. }));
        run.map(|(id, _)| id.clone())
    }

    fn exit(&mut self, name: &str, code: i32, oom: bool) {
        let id = self.running(name).expect("it runs");
        let exit = Exit { code, at: self.now.wall, oom, reason: None, message: None, started_at: None };
        self.seen.containers.get_mut(&id).expect("as the case has it").state = RunState::Ended(exit);
    }

    fn probe(&mut self, name: &str, kind: ProbeKind, success: bool) {
        let id = self.running(name).expect("it runs");
        self.learn(Fact::Probe { id, kind, success });
    }

    fn pass(&mut self, seconds: u64) {
        let time = Duration::from_secs(seconds);
        self.now.boottime = self.now.boottime + time;
        self.now.wall.0 += i64::try_from(time.as_nanos()).expect("as the case has it");
    }

    /// The times in seconds at which actions of a kind were begun for a container.
    fn begun(&self, kind: &str, name: &str) -> Vec<u64> {
        let of = self
            .log
            .iter()
            .filter(|(_, a)| a.kind() == kind && a.container().is_some_and(|c| c.as_str() == name));
        of.map(|(at, _)| *at).collect()
    }

    fn state(&self, name: &str) -> ContainerState {
        let status = &self.plan.as_ref().expect("as the case has it").status;
        let mut all = status.init_containers.iter().chain(&status.containers);
        all.find(|c| c.name.as_str() == name).expect("as the case has it").state.clone()
    }

    fn waits(&self, name: &str) -> Option<String> {
        match self.state(name) {
            ContainerState::Waiting { reason, .. } => Some(reason),
            _ => None,
        }
    }

    fn told(&self, reason: &str) -> Vec<&str> {
        self.events.iter().filter(|e| e.reason == reason).map(|e| e.message.as_str()).collect()
    }
}

#[test]
fn a_pod_that_has_ended_stays_so_past_its_deadline_and_without_its_records() {
    for (code, phase) in [(0, Phase::Succeeded), (1, Phase::Failed)] {
        let mut case = Case::up(Pod {
            restart_policy: RestartPolicy::Never,
            active_deadline_seconds: Some(8),
            ..pod(vec![], vec![container("a")])
        });
        case.exit("a", code, false);
        assert_eq!(case.settle().status.phase, phase);
        case.pass(60);
        let status = case.settle().status;
        assert_eq!((status.phase, status.reason), (phase, None));
        assert!(case.told("DeadlineExceeded").is_empty());
        // The records of the ended pod are removed from outside.
        case.seen.containers.clear();
        assert_eq!(case.settle().status.phase, phase);
        assert_eq!(case.begun("Start", "a").len(), 1, "and nothing of it runs again");
    }
}

#[test]
fn nothing_of_an_ended_pod_waits() {
    let on_failure =
        Pod { restart_policy: RestartPolicy::OnFailure, ..pod(vec![sidecar("s")], vec![container("a")]) };
    let mut case = Case::up(on_failure);
    for _ in 0..2 {
        case.exit("s", 3, false);
        case.settle();
    }
    assert_eq!(case.waits("s").as_deref(), Some("CrashLoopBackOff"));
    case.exit("a", 0, false);
    assert_eq!(case.settle().status.phase, Phase::Succeeded);
    assert!(
        matches!(case.state("s"), ContainerState::Terminated(t) if t.exit_code == 3),
        "{:?}",
        case.state("s")
    );

    // A container whose image was never present.
    let mut case = Case::new(Pod {
        active_deadline_seconds: Some(5),
        ..pod(vec![], vec![container("a"), container("b")])
    });
    case.held = vec!["EnsureImage"];
    case.settle();
    let [a, b] = ["a", "b"].map(|n| Action::EnsureImage(ContainerName::new(n).expect("as the case has it")));
    case.finish(a, Ok(()));
    case.finish(b, Err(Failure::new("ErrImageNeverPull", "not there")));
    case.settle();
    case.pass(6);
    case.settle();
    case.exit("a", 137, false);
    assert_eq!(case.settle().status.phase, Phase::Failed);
    let ContainerState::Terminated(t) = case.state("b") else { panic!("{:?}", case.state("b")) };
    assert_eq!((t.exit_code, t.reason.as_str()), (137, "ContainerStatusUnknown"));
}

#[test]
fn a_restarting_sidecar_takes_no_care_from_the_main_ones() {
    let slow = Container { startup: Some(probe()), ..sidecar("s") };
    let main = Container { liveness: Some(probe()), ..container("a") };
    let mut case = Case::up(pod(vec![slow], vec![main, container("b")]));
    case.probe("s", ProbeKind::Startup, true);
    case.settle();
    assert!(case.running("b").is_some());
    case.exit("s", 1, false);
    let status = case.settle().status;
    assert_eq!(status.condition(ConditionType::Initialized).expect("as the case has it").status, Truth::True);
    assert!(case.running("s").is_some(), "its startup probe has not succeeded yet");
    // A main container that ends is restarted, and one whose liveness probe fails is stopped.
    case.exit("b", 1, false);
    case.settle();
    assert_eq!(case.begun("Start", "b"), [0, 0]);
    case.probe("a", ProbeKind::Liveness, false);
    case.settle();
    assert_eq!(case.begun("Signal", "a"), [0]);
    case.pass(30);
    case.settle();
    assert_eq!(case.begun("Kill", "a"), [30]);
}

#[test]
fn a_container_that_cannot_be_started_holds_up_nobody() {
    let hooked = Container { post_start: Some(Hook::Sleep(1)), ..container("a") };
    let mut case = Case::new(pod(vec![], vec![hooked, container("b")]));
    case.held = vec!["EnsureImage"];
    case.settle();
    assert!(case.begun("EnsureImage", "b").is_empty(), "its turn comes after the hook");
    let a = case.in_flight("EnsureImage").expect("as the case has it");
    case.held.clear();
    case.finish(a, Err(Failure::new("ErrImageNeverPull", "not there")));
    case.settle();
    assert!(case.running("b").is_some());
    assert_eq!(case.told("ErrImageNeverPull"), ["not there"]);
    assert_eq!(case.told("Failed"), ["Error: ErrImageNeverPull"]);
}

#[test]
fn sidecars_have_their_signal_at_the_end_of_the_main_ones_or_of_the_grace() {
    let three = || pod(vec![sidecar("s"), sidecar("t")], vec![container("a")]);
    let mut case = Case::up(three());
    case.desired.end = Some(5);
    case.settle();
    for _ in 0..7 {
        case.pass(1);
        case.settle();
    }
    assert_eq!((case.begun("Signal", "a"), case.begun("Kill", "a")), (vec![0], vec![5]));
    for name in ["s", "t"] {
        assert_eq!((case.begun("Signal", name), case.begun("Kill", name)), (vec![5], vec![7]), "{name}");
    }

    let mut case = Case::up(three());
    case.desired.end = Some(5);
    case.settle();
    case.pass(1);
    case.exit("a", 0, false);
    case.settle();
    assert_eq!((case.begun("Signal", "s"), case.begun("Signal", "t")), (vec![], vec![1]));
}

#[test]
fn a_grace_of_nothing_is_a_second_for_the_hook() {
    let hooked = Container { pre_stop: Some(Hook::Sleep(9)), ..container("a") };
    let mut case = Case::up(pod(vec![], vec![hooked]));
    case.held = vec!["PreStop"];
    case.desired.end = Some(0);
    case.settle();
    assert_eq!((case.begun("PreStop", "a"), case.begun("Signal", "a")), (vec![0], vec![]));
    case.pass(1);
    case.settle();
    assert_eq!(case.begun("Signal", "a"), [1]);
}

#[test]
fn after_probe_kills_the_back_off_begins_one_restart_later() {
    let main = Container { liveness: Some(probe()), ..container("a") };
    let mut case = Case::up(pod(vec![], vec![main]));
    for _ in 0..40 {
        if case.running("a").is_some() {
            case.probe("a", ProbeKind::Liveness, false);
            case.settle();
            case.pass(1);
            case.exit("a", 137, false);
        }
        case.settle();
        case.pass(1);
        case.settle();
    }
    let starts = case.begun("Start", "a");
    let gaps: Vec<u64> = starts.iter().zip(starts.iter().skip(1)).map(|(a, b)| b - a).collect();
    assert!(gaps[0] <= 2 && gaps[1] <= 2, "two at once: {gaps:?}");
    assert!((10..=13).contains(&gaps[2]), "and then 10 s: {gaps:?}");
}

#[test]
fn another_image_ends_a_run_and_begins_the_next() {
    let change = |case: &mut Case, name: &str, change: &dyn Fn(&mut Container)| {
        let mut pod = Pod::clone(&case.desired.pod);
        let mut all = pod.init_containers.iter_mut().chain(&mut pod.containers);
        change(all.find(|c| c.name.as_str() == name).expect("as the case has it"));
        case.desired.pod = Arc::new(pod);
    };
    for policy in [RestartPolicy::Always, RestartPolicy::OnFailure, RestartPolicy::Never] {
        let mains = vec![container("a"), container("b")];
        let mut case = Case::up(Pod { restart_policy: policy, ..pod(vec![sidecar("s")], mains) });
        // A change of any other field takes effect with the next run.
        change(&mut case, "a", &|c| {
            c.env.push(EnvVar { name: "A".into(), value: EnvValue::Text("b".into()) })
        });
        case.settle();
        assert!(case.begun("Signal", "a").is_empty());
        for name in ["a", "s"] {
            change(&mut case, name, &|c| c.image = "img:2".into());
            case.settle();
            assert_eq!(case.begun("Signal", name), [0], "{policy:?}");
            case.settle();
            case.exit(name, 0, false);
            let status = case.settle().status;
            assert_eq!((status.phase, case.begun("Start", name)), (Phase::Running, vec![0, 0]), "{policy:?}");
        }
        assert_eq!(
            case.told("Killing"),
            ["Container a definition changed, will be restarted", "Init container s definition changed"]
        );
        assert_eq!(case.begun("Start", "b"), [0], "the others run on");
        case.settle();
        assert_eq!(case.begun("Signal", "a"), [0], "once");
    }

    // A changed image ends the back-off of the old one.
    let mut case = Case::up(pod(vec![], vec![container("a")]));
    for _ in 0..2 {
        case.exit("a", 1, false);
        case.settle();
    }
    assert_eq!(case.waits("a").as_deref(), Some("CrashLoopBackOff"));
    change(&mut case, "a", &|c| c.image = "img:2".into());
    case.settle();
    assert_eq!(case.begun("Start", "a"), [0, 0, 0]);

    // An image that is not remembered is not compared.
    let mut case = Case::up(pod(vec![], vec![container("a")]));
    case.memory = Memory::default();
    change(&mut case, "a", &|c| c.image = "img:2".into());
    case.settle();
    assert!(case.begun("Signal", "a").is_empty());
}

#[test]
fn an_init_container_of_which_a_process_was_killed_for_memory_has_failed() {
    let two = || pod(vec![container("i")], vec![container("a")]);
    let mut case = Case::up(two());
    case.exit("i", 0, true);
    case.settle();
    assert_eq!((case.begun("Start", "i").len(), case.begun("Start", "a").len()), (2, 0));
    case.exit("i", 0, false);
    case.settle();
    assert_eq!(case.begun("Start", "a").len(), 1);

    let mut case = Case::up(Pod { restart_policy: RestartPolicy::Never, ..two() });
    case.exit("i", 0, true);
    assert_eq!(case.settle().status.phase, Phase::Failed);
}

#[test]
fn an_end_that_nobody_saw_is_one_record_however_often_it_is_tried() {
    let mut case = Case::up(pod(vec![], vec![container("a")]));
    let id = case.running("a").expect("as the case has it");
    case.seen.containers.get_mut(&id).expect("as the case has it").state = RunState::NotStarted;
    case.held = vec!["RecordExit"];
    let mut tries = Vec::new();
    for _ in 0..600 {
        case.settle();
        if let Some(action) = case.in_flight("RecordExit") {
            tries.push(case.seconds());
            case.learn(Fact::Finished(action, Err(Failure::new("FailedSync", "disk full"))));
        }
        case.pass(1);
    }
    assert_eq!(case.memory.retries.len(), 1, "{:?}", case.memory.retries);
    assert!(tries.len() > 5 && tries.len() < 25, "ever later: {tries:?}");
}

#[test]
fn a_stray_that_does_not_die_is_killed_again_at_a_pace() {
    let mut case = Case::up(pod(vec![], vec![container("a")]));
    let stray = ObservedContainer {
        container: ContainerName::new("other").expect("as the case has it"),
        attempt: Attempt(0),
        sandbox_attempt: SandboxAttempt(0),
        image_id: String::new(),
        user: None,
        state: RunState::Running { started_at: case.now.wall },
        task: true,
    };
    let id = ContainerId::derive(&case.desired.pod.uid, SandboxAttempt(0), &stray.container, Attempt(0));
    case.seen.containers.insert(id, stray);
    case.desired.end = Some(30);
    assert!(case.settle().wake_at.is_some());
    for _ in 0..25 {
        case.pass(1);
        case.settle();
    }
    assert_eq!(case.begun("Kill", "other"), [0, 10, 20]);
}

#[test]
fn what_failed_in_an_earlier_sandbox_is_not_shown_of_this_one() {
    let mut case = Case::up(pod(vec![], vec![container("a")]));
    case.exit("a", 1, false);
    case.held = vec!["Start"];
    case.settle();
    let start = case.in_flight("Start").expect("as the case has it");
    case.finish(start, Err(Failure::new("CreateContainerConfigError", "no such ConfigMap")));
    assert_eq!(case.told("Failed"), ["Error: no such ConfigMap"]);
    case.held.clear();
    // The next observation shows that nothing was created.
    case.seen.stale = false;
    case.settle();
    assert_eq!(case.waits("a").as_deref(), Some("CreateContainerConfigError"));
    case.seen.sandbox.as_mut().expect("as the case has it").state = SandboxState::Broken;
    case.settle();
    assert!(case.memory.retries.keys().all(|a| a.kind() != "Start"), "{:?}", case.memory.retries);
    assert_ne!(case.waits("a").as_deref(), Some("CreateContainerConfigError"));
}

#[test]
fn a_pod_with_init_containers_is_initializing_until_they_run() {
    let mut case = Case::new(pod(vec![container("i")], vec![container("a")]));
    case.held = vec!["EnsureImage"];
    case.settle();
    for name in ["i", "a"] {
        assert_eq!(case.waits(name).as_deref(), Some("PodInitializing"));
    }
}

#[test]
fn while_volumes_are_not_mounted_no_container_may_start() {
    let mut case = Case::new(pod(vec![], vec![container("zero"), container("one")]));
    case.held = vec!["MountVolumes"];
    let p = case.settle();
    let condition = |p: &Plan, kind| p.status.condition(kind).expect("as the case has it").clone();
    assert_eq!(condition(&p, ConditionType::PodReadyToStartContainers).status, Truth::False);
    let message = condition(&p, ConditionType::Ready).message;
    assert_eq!(message.as_deref(), Some("containers with unready status: [zero one]"), "in the spec's order");
    // The sandbox and the images are there already; the kubelet would not have looked for them yet.
    assert!(case.seen.sandbox.as_ref().is_some_and(|s| !s.ips.is_empty()) && p.status.pod_ips.is_empty());
    assert!(case.begun("EnsureImage", "one").len() == 1 && case.told("Pulled").is_empty());
    case.held.clear();
    case.act(&Action::MountVolumes);
    case.finish(Action::MountVolumes, Ok(()));
    let p = case.settle();
    assert_eq!(condition(&p, ConditionType::PodReadyToStartContainers).status, Truth::True);
    assert_eq!(p.status.pod_ips.len(), 1);
    let told = "Container image \"img:1\" already present on machine and can be accessed by the pod";
    assert_eq!(case.told("Pulled"), [told; 2]);
}

#[test]
fn an_image_that_is_not_here_is_told_as_the_kubelet_tells_it() {
    let mut case = Case::new(pod(vec![], vec![container("a")]));
    case.held = vec!["EnsureImage"];
    for _ in 0..2 {
        case.settle();
        let image = case.in_flight("EnsureImage").expect("as the case has it");
        case.finish(image, Err(Failure::new("ErrImagePull", "no registry")));
        case.pass(60);
    }
    case.held.clear();
    assert_eq!(case.told("BackOff"), ["Back-off pulling image \"img:1\""]);
    assert_eq!(
        case.told("Failed"),
        ["Failed to pull image \"img:1\": no registry", "Error: ErrImagePull", "Error: ImagePullBackOff"]
    );
    case.held = vec!["EnsureImage"];
    case.settle();
    let ContainerState::Waiting { reason, message } = case.state("a") else { panic!("it waits") };
    assert_eq!(reason, "ImagePullBackOff");
    assert_eq!(message.as_deref(), Some("Back-off pulling image \"img:1\": ErrImagePull: no registry"));
}

#[test]
fn what_follows_an_init_container_is_begun_once_its_end_is_told() {
    let mut case = Case::new(pod(vec![container("i")], vec![container("a")]));
    case.held = vec!["RecordExit"];
    case.settle();
    case.exit("i", 0, false);
    let at = case.now.wall;
    for run in case.seen.containers.values_mut() {
        if let RunState::Ended(exit) = &mut run.state {
            exit.started_at = Some(at);
        }
    }
    case.settle();
    assert!(matches!(case.state("i"), ContainerState::Running { .. }), "{:?}", case.state("i"));
    assert_eq!(case.begun("Start", "a"), []);
    let record = case.in_flight("RecordExit").expect("as the case has it");
    case.act(&record);
    case.finish(record, Ok(()));
    case.settle();
    assert!(matches!(case.state("i"), ContainerState::Terminated(_)), "{:?}", case.state("i"));
    assert_eq!(case.begun("Start", "a"), [0]);
}

#[test]
fn readiness_gates_are_named() {
    let gated = Pod { readiness_gates: vec!["a.b/c".to_owned()], ..pod(vec![], vec![container("a")]) };
    let ready = Case::up(gated).settle().status.condition(ConditionType::Ready).cloned();
    let message = ready.expect("as the case has it").message;
    let told = "corresponding condition of pod readiness gate \"a.b/c\" does not exist.";
    assert_eq!(message.as_deref(), Some(told));
}

#[test]
fn a_failed_hook_is_told_and_kills() {
    let hooked = Container { post_start: Some(Hook::Sleep(1)), ..container("a") };
    let mut case = Case::new(pod(vec![], vec![hooked]));
    case.held = vec!["PostStart"];
    case.settle();
    let hook = case.in_flight("PostStart").expect("as the case has it");
    case.finish(hook, Err(Failure::new("FailedPostStartHook", "exit code 1")));
    case.settle();
    assert_eq!(case.told("Killing"), ["FailedPostStartHook"]);
    assert_eq!(case.begun("Signal", "a"), [0]);
}

#[test]
fn probe_kills_are_told_in_the_kubelets_words() {
    use RestartPolicy::{Always, Never, OnFailure};
    let alive = |c: Container| Container { liveness: Some(probe()), ..c };
    for (policy, sidecars, mains, who, said) in [
        (Always, vec![], vec!["a"], "a", "Container a failed liveness probe, will be restarted"),
        (OnFailure, vec![], vec!["a"], "a", "Container a failed liveness probe, will be restarted"),
        (Never, vec![], vec!["a"], "a", "Stopping container a"),
        (Never, vec![], vec!["a", "b"], "a", "Container a failed liveness probe"),
        (Never, vec!["s"], vec!["a"], "s", "Init container s failed liveness probe"),
    ] {
        let init = sidecars.into_iter().map(|n| alive(sidecar(n))).collect();
        let mains = mains.into_iter().map(|n| alive(container(n))).collect();
        let mut case = Case::up(Pod { restart_policy: policy, ..pod(init, mains) });
        case.probe(who, ProbeKind::Liveness, false);
        let status = case.settle().status;
        let mut shown = status.init_containers.iter().chain(&status.containers);
        let of = shown.find(|c| c.name.as_str() == who).expect("as the case has it");
        assert_eq!(of.ready, Truth::True, "ready until it is dead");
        assert_eq!(case.told("Killing"), [said]);
    }
}
