//! Tests of sandboxes with real namespaces, cgroups and pause processes, without containerd and without a
//! CNI; and of mutated sandbox records.

use super::*;
use crate::start::PreparedFiles;
use berth_core::{
    ids::{Attempt, NodeName, PodKey, SandboxAttempt},
    model::{Container, NodeLabels, PodNamespaces, PortRef, ProbeAction},
    plan::{ObservedSandbox, SandboxState},
    time::Wall,
};
use berth_harness::mutate::{self, Reached, json::Corpus};
use berth_network::NetworkConfig;
use berth_pods::WorkerMessage;
use berth_probe::ProberConfig;
use berth_sys::process::{self, PidFd};
use serde_json::{Value, json};
use std::{
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
    time::Duration,
};

static NODES: AtomicU32 = AtomicU32::new(0);

struct Node {
    dir: tempfile::TempDir,
    executor: NodeExecutor,
    node_events: mpsc::Receiver<NodeEvent>,
    pod: Arc<Pod>,
}

impl Drop for Node {
    fn drop(&mut self) {
        // Removes what a failed test left.
        let uid = &self.pod.uid;
        let ended = self.executor.cgroups.kill_pod(uid).and_then(|()| self.executor.cgroups.remove_pod(uid));
        let unpinned = berth_sys::ns::unpin(&self.executor.config.roots.sandbox_dir(uid));
        let removed = self.executor.cgroups.remove_all();
        if !std::thread::panicking() {
            ended.unwrap();
            unpinned.unwrap();
            removed.unwrap();
        }
    }
}

impl Node {
    fn new(namespaces: PodNamespaces) -> Node {
        let dir = tempfile::tempdir().unwrap();
        let n = NODES.fetch_add(1, Ordering::Relaxed);
        let cgroup = format!("berth-executor-{}-{n}", std::process::id());
        let roots = Roots::below(dir.path(), NodeName::new("n").unwrap(), &cgroup);
        for d in [&roots.runtime_state, &roots.lasting_state, &roots.pod_state] {
            std::fs::create_dir_all(d).unwrap();
        }
        let cgroups = CgroupTree::open(&roots).unwrap();
        cgroups.prepare().unwrap();
        let (incoming, node_events) = mpsc::channel(16);
        let config = NodeConfig {
            roots: roots.clone(),
            boot: berth_sys::clock::boot_id(&roots.boot_id).unwrap(),
            host_ips: HostIps::new(|| vec!["192.0.2.1".parse().unwrap()]),
            cluster_dns: Vec::new(),
            cluster_domain: None,
            pids_limit: None,
            allocatable: ResourceList::default(),
            labels: NodeLabels::default(),
            host: HostFacts::default(),
            services: ServiceLister::new(Vec::new),
            recursive_read_only: recursive_read_only(),
        };
        let executor = NodeExecutor::new(
            config,
            Arc::new(berth_logd::client::Client::new(roots.logd_socket())),
            Network::open(&roots, NetworkConfig::default()).unwrap(),
            Volumes::new(&roots),
            cgroups.clone(),
            Prober::new(ProberConfig::new("/proc/self/exe", cgroups.roots())).unwrap(),
            incoming,
        );
        let key = PodKey { namespace: "default".parse().unwrap(), name: "p".parse().unwrap() };
        let containers = vec![Container::new("c".parse().unwrap(), "img")];
        let plain = Pod::new("u-1".parse().unwrap(), key, "n".parse().unwrap());
        let pod = Arc::new(Pod { containers, namespaces, ..plain });
        Node { dir, executor, node_events, pod }
    }

    fn context(&self) -> Context {
        Context {
            pod: Arc::clone(&self.pod),
            objects: Arc::default(),
            sandbox: None,
            process: None,
            run: None,
            deadline: None,
        }
    }

    async fn act(&self, action: Action) -> Result<Option<ObservedSandbox>, Failure> {
        let performed = self.executor.perform(self.context(), action).await;
        performed.outcome?;
        match performed.changes.into_iter().next() {
            Some(Change::Sandbox(seen)) => Ok(seen),
            other => panic!("{other:?}"),
        }
    }

    /// Makes a complete sandbox.
    async fn make(&self, sandbox_attempt: u32) -> ObservedSandbox {
        let sandbox_attempt = SandboxAttempt(sandbox_attempt);
        let made = self.act(Action::MakeSandbox(sandbox_attempt)).await.unwrap().unwrap();
        assert_ne!(made.state, SandboxState::Broken);
        assert_eq!(self.state(), Some(made.state));
        self.act(Action::EnsurePause(sandbox_attempt)).await.unwrap().unwrap()
    }

    fn state(&self) -> Option<SandboxState> {
        self.executor.see_sandbox(&self.pod.uid, None).unwrap().map(|s| s.state)
    }

    /// The state of the sandbox while containers run in it.
    fn state_of_living(&self, sandbox_attempt: u32) -> Option<ObservedSandbox> {
        let lives = Some((self.pod.as_ref(), SandboxAttempt(sandbox_attempt)));
        self.executor.see_sandbox(&self.pod.uid, lives).unwrap()
    }

    fn pause(&self) -> Process {
        let pauses = self.executor.stray_pauses(&self.pod.uid).unwrap();
        assert_eq!(pauses.len(), 1, "{pauses:?}");
        pauses[0]
    }

    fn kill_pause(&self) {
        let fd = PidFd::open(self.pause().pid).unwrap().unwrap();
        fd.signal_number(9).unwrap();
        assert!(fd.poll_exited(Duration::from_secs(10)).unwrap());
    }

    async fn hears_that_pause_died(&mut self) {
        let node_events =
            tokio::time::timeout(Duration::from_secs(10), self.node_events.recv()).await.unwrap();
        let Some(NodeEvent::One(uid, WorkerMessage::PauseDied)) = node_events else {
            panic!("{node_events:?}")
        };
        assert_eq!(uid, self.pod.uid);
    }

    async fn take_down(&self, sandbox_attempt: u32) {
        let pauses = self.executor.stray_pauses(&self.pod.uid).unwrap();
        assert_eq!(self.act(Action::TeardownSandbox(SandboxAttempt(sandbox_attempt))).await.unwrap(), None);
        assert_eq!(self.state(), None);
        assert_eq!(self.executor.sandboxes().len(), 0);
        for p in pauses {
            assert!(!process::alive(p.pid, p.start_time).unwrap());
        }
        assert!(!self.executor.record_path(&self.pod.uid).exists());
        assert!(!self.executor.config.roots.sandbox_dir(&self.pod.uid).exists());
        assert!(self.dir.path().exists());
    }
}

const ALL_OF_THE_HOST: PodNamespaces =
    PodNamespaces { host_network: true, host_pid: false, host_ipc: true, share_pid: false };
const OWN_IPC: PodNamespaces = PodNamespaces { host_ipc: false, ..ALL_OF_THE_HOST };

#[tokio::test]
async fn pause_dies_and_is_restarted_also_where_nothing_is_pinned() {
    for namespaces in [ALL_OF_THE_HOST, OWN_IPC] {
        let mut node = Node::new(namespaces);
        assert_eq!(node.state(), None);
        let made = node.make(3).await;
        assert_eq!(
            (made.state, made.sandbox_attempt, made.ips.len()),
            (SandboxState::Ready, SandboxAttempt(3), 1)
        );
        assert_eq!(node.state(), Some(SandboxState::Ready));
        let first = node.pause();
        node.kill_pause();
        node.hears_that_pause_died().await;
        assert_eq!(node.state(), Some(SandboxState::NoPause));
        let again = node.act(Action::EnsurePause(SandboxAttempt(3))).await.unwrap().unwrap();
        assert_eq!((again.state, again.ips), (SandboxState::Ready, made.ips));
        let second = node.pause();
        assert_ne!(first, second);
        // A late report of the first pause's death starts no third pause.
        let still = node.act(Action::EnsurePause(SandboxAttempt(3))).await.unwrap().unwrap();
        assert_eq!((still.state, node.pause()), (SandboxState::Ready, second));
        // The second pause is watched like the first.
        node.kill_pause();
        node.hears_that_pause_died().await;
        node.take_down(3).await;
    }
}

#[tokio::test]
async fn a_pin_that_is_gone_breaks_the_sandbox() {
    let node = Node::new(OWN_IPC);
    node.make(0).await;
    let pin = node.executor.config.roots.sandbox_dir(&node.pod.uid).join("ipc");
    assert!(berth_sys::mount::unmount(&pin).unwrap());
    assert_eq!(node.state(), Some(SandboxState::Broken), "pause alone does not hold a name for it");
    node.take_down(0).await;
}

#[tokio::test]
async fn the_end_of_a_shared_pid_namespace_is_the_sandboxs_end() {
    let mut node = Node::new(PodNamespaces { share_pid: true, ..OWN_IPC });
    node.make(0).await;
    assert_eq!(node.state(), Some(SandboxState::Ready));
    node.kill_pause();
    node.hears_that_pause_died().await;
    let seen = node.act(Action::EnsurePause(SandboxAttempt(0))).await.unwrap().unwrap();
    assert_eq!(seen.state, SandboxState::Broken);
    assert_eq!(node.state(), Some(SandboxState::Broken), "also for the next agent");
    node.take_down(0).await;
    let made = node.make(1).await;
    assert_eq!(made.state, SandboxState::Ready);
    node.take_down(1).await;
}

#[tokio::test]
async fn a_sandbox_whose_record_is_torn_or_gone_is_told_by_what_is_there() {
    let node = Node::new(OWN_IPC);
    let made = node.make(2).await;
    let pause = node.pause();
    let path = node.executor.record_path(&node.pod.uid);
    let whole = std::fs::read(&path).unwrap();
    for torn in [Some(&whole[..whole.len() / 2]), Some(b"".as_slice()), None] {
        match torn {
            Some(text) => std::fs::write(&path, text).unwrap(),
            None => std::fs::remove_file(&path).unwrap(),
        }
        // No container runs in the sandbox, so the sandbox is torn down.
        assert_eq!(node.state(), Some(SandboxState::Broken));
        assert_eq!(
            path.with_extension("bad").exists(),
            torn.is_some() || path.with_extension("bad").exists()
        );
        // Containers run in the sandbox, and a torn file does not affect them.
        let seen = node.state_of_living(2).unwrap();
        assert_eq!(seen, made);
        assert_eq!(
            serde_json::from_slice::<Value>(&std::fs::read(&path).unwrap()).unwrap(),
            serde_json::from_slice::<Value>(&whole).unwrap()
        );
        assert_eq!(node.pause(), pause);
    }
    assert!(path.with_extension("bad").exists());
    node.take_down(2).await;
    assert!(!path.with_extension("bad").exists());
}

#[tokio::test]
async fn a_pause_that_nobody_wrote_down_is_ended_by_the_next_and_by_the_taking_down() {
    let node = Node::new(OWN_IPC);
    node.make(0).await;
    let mut pauses = vec![node.pause()];
    for _ in 0..3 {
        node.executor.start_pause(&node.pod).await.unwrap();
        pauses.push(node.pause());
    }
    pauses.dedup();
    assert_eq!(pauses.len(), 4, "each try has its own, and one lives at a time");
    node.take_down(0).await;
    node.executor.cleanup_pod(&node.pod.uid).await.unwrap();
    assert!(node.executor.cgroups.pods().unwrap().is_empty());
}

#[tokio::test]
async fn a_making_that_failed_is_seen_as_broken_and_cleaned_away() {
    // The pod has its own network, and no CNI configuration exists to attach it.
    let node = Node::new(PodNamespaces::default());
    for _ in 0..2 {
        let failure = node.act(Action::MakeSandbox(SandboxAttempt(0))).await.unwrap_err();
        assert_eq!(failure.reason, "FailedCreatePodSandBox", "{failure}");
        assert_eq!(node.state(), Some(SandboxState::Broken));
    }
    // Cleanup knows no sandbox attempt.
    node.executor.cleanup_pod(&node.pod.uid).await.unwrap();
    assert_eq!((node.state(), node.executor.sandboxes().len()), (None, 0));
    assert!(node.executor.cgroups.pods().unwrap().is_empty());
}

#[tokio::test]
async fn a_question_that_cannot_be_put_is_unknown_and_no_failure() {
    let node = Node::new(PodNamespaces::default());
    let ask = |port: PortRef, ips: &[&str]| {
        let ips = ips.iter().map(|ip| ip.parse().unwrap()).collect();
        let seen = ObservedSandbox { sandbox_attempt: SandboxAttempt(0), state: SandboxState::Ready, ips };
        let context = Context { sandbox: Some(seen), ..node.context() };
        let probe = Probe {
            action: ProbeAction::Tcp { host: None, port },
            initial_delay_seconds: 0,
            timeout_seconds: 1,
            period_seconds: 1,
            success_threshold: 1,
            failure_threshold: 1,
            grace_seconds: None,
        };
        let of = node.pod.containers[0].name.clone();
        let id = ContainerId::derive(&node.pod.uid, SandboxAttempt(0), &of, Attempt(0));
        node.executor.probe(context, id, probe, of)
    };
    for (port, ips) in [
        (PortRef::Name("nosuch".into()), &["127.0.0.2"][..]),
        (PortRef::Number(80), &[]),
        (PortRef::Name("nosuch".into()), &[]),
    ] {
        let answer = ask(port, ips).await;
        assert!(matches!(answer, ProbeResult::Unknown(_)), "{answer:?}");
    }
}

/// The spec of the node's container after `change`, with an image that sets nothing.
fn spec_of(node: &Node, change: impl FnOnce(&mut berth_core::model::Container)) -> Value {
    let mut pod = Pod::clone(&node.pod);
    change(&mut pod.containers[0]);
    let container = &pod.containers[0];
    let id = ContainerId::derive(&pod.uid, SandboxAttempt(0), &container.name, Attempt(0));
    let image = berth_runtime::Image {
        name: "i".into(),
        image_id: "sha256:0".into(),
        config: berth_runtime::ImageConfig { cmd: vec!["true".into()], ..Default::default() },
        chain_id: "sha256:0".into(),
        target_digest: "sha256:0".into(),
    };
    let (prepared, files) =
        (PreparedFiles::default(), berth_runtime::spec::UserFiles { passwd: None, group: None });
    let spec = node.executor.spec(&pod, container, &id, &image, &prepared, files).unwrap();
    serde_json::to_value(spec).unwrap()
}

#[tokio::test]
async fn a_privileged_container_gets_the_devices_that_are_there_when_it_starts() {
    let node = Node::new(ALL_OF_THE_HOST);
    assert!(node.executor.config.host.devices.is_empty(), "none was there when the agent started");
    let devices = |spec: &Value| {
        let all = spec["linux"]["devices"].as_array().cloned().unwrap_or_default();
        all.iter().map(|d| d["path"].as_str().unwrap_or_default().to_owned()).collect::<BTreeSet<_>>()
    };
    let privileged = devices(&spec_of(&node, |c| c.security.privileged = true));
    assert!(privileged.contains("/dev/null") && privileged.contains("/dev/zero"), "{privileged:?}");
    assert_eq!(devices(&spec_of(&node, |_| {})), BTreeSet::new());
}

#[tokio::test]
async fn a_pod_of_the_hosts_network_has_the_hosts_name_and_not_the_nodes() {
    let node = Node::new(ALL_OF_THE_HOST);
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim().to_owned();
    assert_ne!(host, node.executor.config.roots.node_name.as_str());
    let spec = spec_of(&node, |_| {});
    let names = spec["process"]["env"].as_array().unwrap();
    let names: Vec<_> =
        names.iter().filter(|v| v.as_str().is_some_and(|v| v.starts_with("HOSTNAME="))).collect();
    assert_eq!(names, [&json!(format!("HOSTNAME={host}"))]);
}

#[tokio::test]
async fn mutated_records_are_set_aside_or_borne() {
    let node = Node::new(OWN_IPC);
    let boot = node.executor.config.boot.as_str();
    let me = std::process::id();
    let start_time = process::start_time(me).unwrap().unwrap();
    let record = |sandbox_attempt: u32, boot: &str, complete: bool, pause: Value, pins: Value| {
        let ips = json!(["10.0.0.1", "fd00::1"]);
        json!({"incarnation": sandbox_attempt, "boot": boot, "complete": complete, "ips": ips, "pause": pause, "pins": pins})
    };
    let corpus = Corpus::new(
        vec![
            record(0, boot, true, json!([me, start_time]), json!([])),
            record(1, boot, true, json!([me, 1]), json!(["net", "ipc", "uts"])),
            record(2, boot, false, Value::Null, json!(["net", "uts", "pid"])),
            record(u32::MAX, "another", true, json!([u32::MAX, u64::MAX]), json!(["ipc"])),
        ],
        &["net", "ipc", "uts", "pid", boot],
    );
    let path = node.executor.record_path(&node.pod.uid);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let read = AtomicU64::new(0);
    let attempt = |text: &mutate::Bytes| {
        std::fs::write(&path, &text.0).unwrap();
        let seen = node.executor.see_sandbox(&node.pod.uid, None).unwrap();
        let aside = path.with_extension("bad");
        assert_eq!(seen.is_some(), path.exists());
        assert_eq!(seen.is_none(), aside.exists());
        if aside.exists() {
            std::fs::remove_file(aside).unwrap();
        }
        let is_json = serde_json::from_slice::<serde::de::IgnoredAny>(&text.0).is_ok();
        let reached = match (&seen, is_json) {
            (Some(_), _) => Reached::Taken,
            (None, true) => Reached::Checks,
            (None, false) => Reached::Syntax,
        };
        read.fetch_add(u64::from(seen.is_some()), Ordering::Relaxed);
        // Whatever the record shows, the plan accepts.
        let seen = berth_core::plan::Observed { runtime_answers: true, sandbox: seen, ..Default::default() };
        let desired = berth_core::plan::Desired { pod: Arc::clone(&node.pod), end: None };
        let now = berth_core::time::Now { boottime: berth_sys::clock::boottime(), wall: Wall(0) };
        berth_core::plan::plan(&desired, &seen, &berth_core::plan::Memory::default(), now);
        reached
    };
    mutate::run("sandbox records", |rng| corpus.text(rng), attempt);
    let (read, count) = (read.into_inner(), mutate::count());
    assert!(read * 10 >= count && read < count, "read: {read} of {count}");
}
