//! Claims in a directory of manifests, and a driver that makes their volumes.

use super::*;
use berth_core::{
    model::{NodeInfo, NodeLabels},
    roots::Roots,
    value::Value,
    volume::{Resolved, resolve},
};
use berth_csi_client::{
    Call, Code, Deadlines, DriverName, NodeCapabilities, Observer,
    registration::{Plugins, RegisteredDriver, Version},
    testing::{Answer, Fault, Options, TestDriver},
};
use berth_server::WatchCache;
use berth_source::{ServiceRanges, provisioned::ProvisionedVolumes};
use berth_volumes::CsiDrivers;
use std::{future::Future, path::Path};
use tokio::{sync::watch, task::JoinHandle, time::timeout};

const LONG: Duration = Duration::from_secs(20);

struct Node {
    dir: tempfile::TempDir,
    driver: TestDriver,
    plugins: watch::Sender<Arc<Plugins>>,
    running: Option<Running>,
}

/// An agent's parts; another one follows after a restart.
struct Running {
    sources: super::super::sources::RunningSources,
    task: JoinHandle<()>,
}

fn class(policy: &str) -> String {
    format!(
        "{{apiVersion: storage.k8s.io/v1, kind: StorageClass, metadata: {{name: fast}}, provisioner: test.csi.example, reclaimPolicy: {policy}, parameters: {{colour: red}}}}"
    )
}

const CLAIM: &str = "{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: data}, spec: {storageClassName: fast, accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}}";
const POD: &str = "{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {containers: [{name: c, image: i, volumeMounts: [{name: v, mountPath: /v}]}], volumes: [{name: v, persistentVolumeClaim: {claimName: data}}]}}";

impl Node {
    fn new() -> Node {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("manifests")).unwrap();
        std::fs::create_dir(dir.path().join("driver")).unwrap();
        let driver = TestDriver::start(&dir.path().join("driver"), Options::default()).unwrap();
        let plugins = watch::channel(Arc::default()).0;
        Node { dir, driver, plugins, running: None }
    }

    fn register(&self) {
        let short = Duration::from_millis(500);
        let deadlines = Deadlines { volume: short, info: short, stats: short };
        let registered = RegisteredDriver {
            driver: self.driver.client().unwrap().with_deadlines(deadlines).observed_by(Observer::default()),
            version: Version::parse("1.0.0").unwrap(),
            info: berth_csi_client::NodeInfo {
                node_id: "n".into(),
                max_volumes: None,
                topology: Default::default(),
            },
            capabilities: NodeCapabilities::default(),
            socket: "/r".into(),
        };
        let name = DriverName::parse("test.csi.example").unwrap();
        let drivers = [(name, Arc::new(registered))].into();
        self.plugins.send_replace(Arc::new(Plugins { drivers, ..Plugins::default() }));
    }

    fn write(&self, file: &str, text: &str) {
        let path = self.dir.path().join("manifests").join(file);
        std::fs::write(path.with_extension("tmp"), text).unwrap();
        std::fs::rename(path.with_extension("tmp"), path).unwrap();
    }

    fn remove(&self, file: &str) {
        std::fs::remove_file(self.dir.path().join("manifests").join(file)).unwrap();
    }

    fn start(&mut self) {
        let roots = roots(self.dir.path());
        std::fs::create_dir_all(&roots.lasting_state).unwrap();
        let (out, reader) = ProvisionedVolumes::new().unwrap();
        let ranges = ServiceRanges {
            networks: Vec::new(),
            node_ports: berth_core::ports::NODE_PORTS,
            reserved: vec![],
        };
        let (sources, _desired) = super::super::sources::start(
            &roots,
            (Some(self.dir.path().join("manifests")), None),
            ranges,
            &NodeLabels::new(),
            Some(reader),
            None,
            &WatchCache::default(),
        );
        let volumes = Volumes::new(&roots).with_drivers(CsiDrivers::default());
        let parts = Parts {
            state: roots.lasting_state.clone(),
            latest: sources.latest.clone(),
            plugins: self.plugins.subscribe(),
            volumes,
            out,
        };
        self.running = Some(Running { task: tokio::spawn(run(parts)), sources });
    }

    async fn stop(&mut self) {
        let Running { sources, task } = self.running.take().unwrap();
        task.abort();
        task.await.unwrap_err();
        sources.shutdown().await.unwrap();
    }

    fn latest(&self) -> Latest {
        self.running.as_ref().unwrap().sources.latest.clone()
    }

    /// What the claim waits for; empty once it is bound.
    async fn pending(&self, so: impl Fn(&str) -> bool) -> String {
        let mut latest = self.latest();
        let now = |sources: &berth_source::Sources| {
            let objects = sources.objects();
            let Value::Known(claim) = objects.claim(&"default".parse().unwrap(), "data") else { return None };
            Some(if claim.bound { String::new() } else { claim.pending.clone().unwrap_or_default() })
        };
        let found = latest.wait_for(|sources| now(sources).is_some_and(|text| so(&text)));
        let found = timeout(LONG, found).await.expect("the claim does not come that far").unwrap();
        now(&found).unwrap()
    }

    async fn made(&self, count: usize) {
        until(|| self.driver.made().len() == count).await;
    }

    fn data(&self) -> std::path::PathBuf {
        let id = self.driver.made().into_values().next().unwrap();
        TestDriver::data_in(&self.dir.path().join("driver"), &id)
    }
}

fn roots(dir: &Path) -> Roots {
    Roots::below(dir, "n1".parse().unwrap(), "test")
}

async fn until(so: impl Fn() -> bool) {
    let look = async {
        while !so() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    within(look).await;
}

async fn within<T>(work: impl Future<Output = T>) -> T {
    timeout(LONG, work).await.expect("it takes too long")
}

fn journal_is_empty(dir: &Path) -> bool {
    Journal::open(&roots(dir).lasting_state).is_ok_and(|journal| journal.names().is_empty())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_gets_a_volume_which_goes_with_it_or_stays_as_its_class_says() {
    for policy in ["Delete", "Retain"] {
        let mut node = Node::new();
        node.write("class.yaml", &class(policy));
        node.write("claim.yaml", CLAIM);
        node.write("pod.yaml", POD);
        node.start();
        let waits = node.pending(|text| text.contains("not registered")).await;
        assert_eq!(waits, "CSI driver test.csi.example is not registered with this node");
        node.register();
        node.pending(str::is_empty).await;
        let asked = node.driver.journal().into_iter().find(|e| e.call == Call::CreateVolume).unwrap();
        assert_eq!(
            (asked.request.required_bytes, asked.request.parameters["colour"].as_str()),
            (1 << 30, "red")
        );
        std::fs::write(node.data().join("file"), "precious").unwrap();
        {
            let latest = node.latest();
            let sources = latest.borrow();
            let pod = sources.pods().into_values().next().unwrap().pod.clone();
            let of = NodeInfo::new(pod.node.clone());
            let found = resolve(&pod, &pod.volumes[0], &sources.objects(), &of);
            let Ok(Resolved::Persistent(found)) = found else { panic!("{found:?}") };
            assert!(found.attachment.is_none());
        }
        // A restart asks for nothing more.
        node.stop().await;
        node.start();
        node.pending(str::is_empty).await;
        // While a pod has the claim its volume stays.
        node.remove("claim.yaml");
        let mut latest = node.latest();
        within(latest.wait_for(|s| s.snapshots().all(|s| s.storage.claims.is_empty()))).await.unwrap();
        node.made(1).await;
        node.write("claim.yaml", CLAIM);
        node.pending(str::is_empty).await;
        assert_eq!(std::fs::read_to_string(node.data().join("file")).unwrap(), "precious");
        node.remove("pod.yaml");
        node.remove("claim.yaml");
        if policy == "Delete" {
            node.made(0).await;
            until(|| journal_is_empty(node.dir.path())).await;
        } else {
            within(latest.wait_for(|s| s.snapshots().all(|s| s.storage.used.is_empty()))).await.unwrap();
            node.write("claim.yaml", CLAIM);
            node.pending(str::is_empty).await;
            assert_eq!(std::fs::read_to_string(node.data().join("file")).unwrap(), "precious");
        }
        node.stop().await;
        let calls = |call| node.driver.journal().iter().filter(|e| e.call == call).count();
        assert_eq!(calls(Call::CreateVolume), 1);
        assert_eq!(calls(Call::DeleteVolume), usize::from(policy == "Delete"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_fault_loses_a_volume_or_makes_two() {
    for effect in [true, false] {
        for answer in [Answer::Never, Answer::Code(Code::Unavailable), Answer::Garbage, Answer::Twice] {
            let what = format!("{effect} {answer:?}");
            let mut node = Node::new();
            for call in [Call::CreateVolume, Call::DeleteVolume] {
                node.driver.fault(call, Fault { effect, answer: answer.clone() });
            }
            node.register();
            node.write("class.yaml", &class("Delete"));
            node.write("claim.yaml", CLAIM);
            node.start();
            node.pending(str::is_empty).await;
            assert_eq!(node.driver.made().len(), 1, "{what}");
            node.remove("claim.yaml");
            until(|| journal_is_empty(node.dir.path())).await;
            assert!(node.driver.made().is_empty(), "{what}");
            node.stop().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_may_have_been_made_goes_with_a_claim_that_went_meanwhile() {
    let mut node = Node::new();
    node.driver.fault(Call::CreateVolume, Fault::after(Answer::Never));
    node.register();
    node.write("class.yaml", &class("Delete"));
    node.write("claim.yaml", CLAIM);
    node.start();
    node.made(1).await;
    node.stop().await;
    node.remove("claim.yaml");
    node.start();
    until(|| journal_is_empty(node.dir.path())).await;
    assert!(node.driver.made().is_empty());
    // What the driver refuses is told, and nothing stays of it.
    node.driver.fault(Call::CreateVolume, Fault::instead(Answer::Code(Code::InvalidArgument)));
    node.driver.fault(Call::CreateVolume, Fault::instead(Answer::Never));
    node.write("claim.yaml", CLAIM);
    let why = node.pending(|text| text.contains("InvalidArgument")).await;
    assert!(why.contains("by driver test.csi.example"), "{why}");
    node.stop().await;
}
