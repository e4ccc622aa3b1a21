//! The sources of pods, followed and merged into one desired set.
//!
//! One task per source takes its snapshots into [`Sources`]. Subscribers of the desired set are woken
//! by changes of pods and their objects only; subscribers of the sources also by changes of Services.

use berth_core::{
    event::{Event, EventRecord, Involved},
    model::NodeLabels,
    plan::Desired,
    roots::Roots,
};
use berth_executor::ServiceLister;
use berth_pods::DesiredSet;
use berth_server::WatchCache;
use berth_source::{
    DesiredPod, ServiceRanges, Snapshot, Source as _, SourceKind, Sources,
    directory::{DirectoryConfig, DirectorySource},
    manifest::Mode,
    provisioned::ProvisionedReader,
};
use berth_sys::clock;
use std::{path::PathBuf, sync::Arc};
use tokio::{sync::watch, task::JoinHandle};

/// The newest snapshots of the sources.
pub(crate) type Latest = watch::Receiver<Sources>;

/// The running sources and the tasks that follow them.
pub(crate) struct RunningSources {
    directories: Vec<DirectorySource>,
    tasks: Vec<JoinHandle<()>>,
    /// The newest snapshot of each source.
    pub(crate) latest: Latest,
}

/// Starts a source for each directory (of manifests, of static pods), and follows that of a control plane.
pub(crate) fn start(
    roots: &Roots,
    (manifests, static_pods): (Option<PathBuf>, Option<PathBuf>),
    services: ServiceRanges,
    labels: &NodeLabels,
    provisioned: Option<ProvisionedReader>,
    cluster: Option<watch::Receiver<Arc<Snapshot>>>,
    cache: &WatchCache,
) -> (RunningSources, watch::Receiver<Arc<DesiredSet>>) {
    let wanted = [
        (manifests, Mode::Manifests, "manifests", Some(services)),
        // Static pods have no Services.
        (static_pods, Mode::StaticPods, "static-pods", None),
    ];
    let (mut sources, mut directories, mut followed) = (Sources::default(), Vec::new(), Vec::new());
    for (dir, mode, name, services) in wanted {
        let Some(dir) = dir else { continue };
        sources.add(name, SourceKind::Directory { dir: dir.clone(), mode });
        // Static pods have no claims.
        let provisioned = provisioned.clone().filter(|_| mode == Mode::Manifests);
        let config = DirectoryConfig::new(dir, roots.node_name.clone(), mode, roots.source_state(name));
        let directory = DirectorySource::start(DirectoryConfig {
            services,
            labels: labels.clone(),
            provisioned,
            ..config
        });
        followed.push((name, directory.snapshots()));
        directories.push(directory);
    }
    if let Some(snapshots) = cluster {
        sources.add("cluster", SourceKind::Cluster);
        followed.push(("cluster", snapshots));
    }
    let (latest, receiver) = watch::channel(sources);
    let (desired, desired_receiver) = watch::channel(Arc::new(DesiredSet::default()));
    let out = Out { latest: Arc::new(latest), desired: Arc::new(desired), cache: cache.clone() };
    let follow = |(name, snapshots)| tokio::spawn(follow(name, snapshots, out.clone()));
    let tasks = followed.into_iter().map(follow).collect();
    (RunningSources { directories, tasks, latest: receiver }, desired_receiver)
}

impl RunningSources {
    /// Ends the sources. Their last snapshots stay desired.
    pub(crate) async fn shutdown(self) -> Result<(), berth_source::Error> {
        for task in &self.tasks {
            task.abort();
        }
        for directory in self.directories {
            directory.shutdown().await?;
        }
        Ok(())
    }
}

/// The Services of all sources, for the environment of containers.
pub(crate) fn lister(latest: &Latest) -> ServiceLister {
    let latest = latest.clone();
    ServiceLister::new(move || {
        let sources = latest.borrow();
        // Before its first list a control plane has the Services that an earlier agent kept, or none.
        let untold = sources.cluster().is_some_and(|s| !s.listed && s.services.is_empty());
        (!untold).then(|| sources.services().cloned().collect())
    })
}

/// The channels into which snapshots are merged.
#[derive(Clone)]
struct Out {
    latest: Arc<watch::Sender<Sources>>,
    desired: Arc<watch::Sender<Arc<DesiredSet>>>,
    cache: WatchCache,
}

/// Follows one source. Each error of a manifest is logged once, each Service without an address gets an event once.
async fn follow(name: &'static str, mut snapshots: watch::Receiver<Arc<Snapshot>>, out: Out) {
    let mut before: Arc<Snapshot> = Arc::default();
    loop {
        let snapshot = snapshots.borrow_and_update().clone();
        if snapshot.errors != before.errors {
            for error in snapshot.errors.iter().filter(|e| !before.errors.contains(e)) {
                tracing::error!(%error, "manifest rejected: its last good version stays; correct the file");
            }
        }
        for short in snapshot.unallocated.iter().filter(|u| !before.unallocated.contains(u)) {
            let involved = Involved::Service { key: short.service.clone(), uid: Arc::clone(&short.uid) };
            let event = Event::warning("AllocationFailed", short.message.clone());
            out.cache.event(EventRecord::once(involved, event, clock::wall()));
        }
        let pods_changed = !same_pods(&snapshot, &before);
        out.latest.send_modify(|sources| {
            sources.update(name, Arc::clone(&snapshot));
            // Sent within the lock of `latest`, so that a task with an older state of the sources cannot send it later.
            if pods_changed {
                out.desired.send_replace(Arc::new(desired_set(sources)));
            }
        });
        before = snapshot;
        if snapshots.changed().await.is_err() {
            return;
        }
    }
}

/// Whether both snapshots give the same pods with the same objects.
fn same_pods(a: &Snapshot, b: &Snapshot) -> bool {
    a.listed == b.listed && Arc::ptr_eq(&a.pods, &b.pods) && Arc::ptr_eq(&a.objects, &b.objects)
}

fn desired_set(sources: &Sources) -> DesiredSet {
    let desired = |pod: &DesiredPod| Desired {
        terminal: pod.api.terminal(),
        gates: pod.api.gates(&pod.pod),
        ..Desired::new(Arc::clone(&pod.pod), pod.end)
    };
    let all = sources.pods();
    let reported = all.iter().filter(|(_, pod)| pod.api.is_reported());
    let past = reported.map(|(uid, pod)| (uid.clone(), Arc::clone(&pod.api))).collect();
    let pods = all.into_iter().map(|(uid, pod)| (uid, desired(&pod))).collect();
    DesiredSet { listed: sources.listed(), pods, past, objects: sources.objects() }
}
