//! [`Node`]: an executor with real namespaces, cgroups and pause processes, without containerd and without a
//! CNI configuration.

use crate::{NodeConfig, NodeExecutor, ServiceLister, recursive_read_only};
use berth_core::{
    ids::{NodeName, PodKey, SandboxAttempt},
    model::{Container, NodeInfo, Pod, PodNamespaces},
    plan::{Action, Failure, ObservedSandbox, SandboxState},
    roots::Roots,
};
use berth_network::{Network, NetworkConfig};
use berth_node::cgroup::CgroupTree;
use berth_pods::{Context, Executor as _, NodeEvent, NodeProcess, ObservedChange, WorkerMessage};
use berth_probe::{Prober, ProberConfig};
use berth_runtime::spec::HostFacts;
use berth_sys::process::{self, PidFd};
use berth_volumes::Volumes;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};
use tokio::sync::{mpsc, watch};

pub(crate) const ALL_OF_THE_HOST: PodNamespaces =
    PodNamespaces { host_network: true, host_pid: false, host_ipc: true, share_pid: false };
pub(crate) const OWN_IPC: PodNamespaces = PodNamespaces { host_ipc: false, ..ALL_OF_THE_HOST };

static NODES: AtomicU32 = AtomicU32::new(0);

pub(crate) struct Node {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) executor: NodeExecutor,
    pub(crate) node_events: mpsc::Receiver<NodeEvent>,
    pub(crate) pod: Arc<Pod>,
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
    pub(crate) fn new(namespaces: PodNamespaces) -> Node {
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
            node: watch::channel(Arc::new(NodeInfo {
                ips: vec!["192.0.2.1".parse().unwrap()],
                recursive_read_only: recursive_read_only(),
                ..NodeInfo::new(roots.node_name.clone())
            }))
            .1,
            pids_limit: None,
            host: HostFacts::default(),
            services: ServiceLister::new(|| Some(Vec::new())),
            plugins: crate::CredentialPlugins::default(),
            verification: Default::default(),
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

    pub(crate) fn context(&self) -> Context {
        Context {
            pod: Arc::clone(&self.pod),
            objects: Arc::default(),
            sandbox: None,
            process: None,
            run: None,
            target: None,
            deadline: None,
            ending: false,
        }
    }

    pub(crate) async fn act(&self, action: Action) -> Result<Option<ObservedSandbox>, Failure> {
        let performed = self.executor.perform(self.context(), action).await;
        performed.outcome?;
        match performed.changes.into_iter().next() {
            Some(ObservedChange::Sandbox(seen)) => Ok(seen),
            other => panic!("{other:?}"),
        }
    }

    /// Makes a complete sandbox.
    pub(crate) async fn make(&self, sandbox_attempt: u32) -> ObservedSandbox {
        let sandbox_attempt = SandboxAttempt(sandbox_attempt);
        let made = self.act(Action::MakeSandbox(sandbox_attempt)).await.unwrap().unwrap();
        assert_ne!(made.state, SandboxState::Broken);
        assert_eq!(self.state(), Some(made.state));
        self.act(Action::EnsurePause(sandbox_attempt)).await.unwrap().unwrap()
    }

    pub(crate) fn state(&self) -> Option<SandboxState> {
        self.executor.see_sandbox(&self.pod.uid, None).unwrap().map(|s| s.state)
    }

    /// The state of the sandbox while containers run in it.
    pub(crate) fn state_of_living(&self, sandbox_attempt: u32) -> Option<ObservedSandbox> {
        let lives = Some((self.pod.as_ref(), SandboxAttempt(sandbox_attempt)));
        self.executor.see_sandbox(&self.pod.uid, lives).unwrap()
    }

    pub(crate) fn pause(&self) -> NodeProcess {
        let pauses = self.executor.stray_pauses(&self.pod.uid).unwrap();
        assert_eq!(pauses.len(), 1, "{pauses:?}");
        pauses[0]
    }

    pub(crate) fn kill_pause(&self) {
        let fd = PidFd::open(self.pause().pid).unwrap().unwrap();
        fd.signal_number(9).unwrap();
        assert!(fd.poll_exited(Duration::from_secs(10)).unwrap());
    }

    pub(crate) async fn hears_that_pause_died(&mut self) {
        let node_events =
            tokio::time::timeout(Duration::from_secs(10), self.node_events.recv()).await.unwrap();
        let Some(NodeEvent::One(uid, WorkerMessage::PauseDied)) = node_events else {
            panic!("{node_events:?}")
        };
        assert_eq!(uid, self.pod.uid);
    }

    pub(crate) async fn take_down(&self, sandbox_attempt: u32) {
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
