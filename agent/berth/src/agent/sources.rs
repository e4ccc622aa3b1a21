//! The sources of pods, merged into one desired set.
//!
//! One task per source passes its snapshots on; the set counts as listed once every source has
//! listed. Who waits for the set hears of pods and their objects only; who wants to hear of
//! Services too waits for [`Sources::changed`].

use berth_core::{
    event::{Event, EventRecord, Involved},
    ids::NodeName,
    model::Objects,
    roots::Roots,
    sync::lock,
};
use berth_pods::{DesiredSet, node::ServiceLister};
use berth_server::WatchCache;
use berth_source::{
    ServiceRanges, Snapshot,
    directory::{DirectoryConfig, DirectorySource},
    manifest::Mode,
};
use berth_sys::clock;
use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
};
use tokio::{sync::watch, task::JoinHandle};

/// The last snapshot of each source.
pub(crate) type Latest = Arc<Mutex<Vec<Arc<Snapshot>>>>;

/// The running sources.
pub(crate) struct Sources {
    dirs: Vec<DirectorySource>,
    tasks: Vec<JoinHandle<()>>,
    /// What each of them shows.
    pub(crate) latest: Latest,
    /// Tells of every change of `latest`.
    pub(crate) changed: watch::Receiver<()>,
}

/// Starts a source for each directory.
pub(crate) fn start(
    roots: &Roots,
    manifests: Option<PathBuf>,
    static_pods: Option<PathBuf>,
    services: ServiceRanges,
    cache: &WatchCache,
) -> (Sources, watch::Receiver<Arc<DesiredSet>>) {
    let (desired, receiver) = watch::channel(Arc::new(DesiredSet::default()));
    let desired = Arc::new(desired);
    let wanted = [(manifests, Mode::Manifests, "manifests"), (static_pods, Mode::StaticPods, "static-pods")];
    let (tell, changed) = watch::channel(());
    let tell = Arc::new(tell);
    let mut sources = Sources { dirs: Vec::new(), tasks: Vec::new(), latest: Latest::default(), changed };
    let mut snapshots = Vec::new();
    for (dir, mode, name) in wanted {
        let Some(dir) = dir else { continue };
        let node: NodeName = roots.node_name.clone();
        let state = roots.lasting_state.join(name);
        // Static pods have no Services.
        let services = (mode == Mode::Manifests).then(|| services.clone());
        let config = DirectoryConfig { services, ..DirectoryConfig::new(dir, node, mode, state) };
        let (source, snapshot) = berth_source::directory::start(config);
        sources.dirs.push(source);
        lock(&sources.latest).push(Arc::new(Snapshot::default()));
        snapshots.push(snapshot);
    }
    for (index, snapshot) in snapshots.into_iter().enumerate() {
        let out = Out {
            latest: Arc::clone(&sources.latest),
            desired: Arc::clone(&desired),
            changed: Arc::clone(&tell),
            cache: cache.clone(),
        };
        sources.tasks.push(tokio::spawn(follow(index, snapshot, out)));
    }
    (sources, receiver)
}

impl Sources {
    /// Ends the sources. What they showed last stays wanted.
    pub(crate) async fn shutdown(self) -> Result<(), berth_source::Error> {
        for task in &self.tasks {
            task.abort();
        }
        for dir in self.dirs {
            dir.shutdown().await?;
        }
        Ok(())
    }
}

/// Where snapshots are passed on to.
struct Out {
    latest: Latest,
    desired: Arc<watch::Sender<Arc<DesiredSet>>>,
    changed: Arc<watch::Sender<()>>,
    cache: WatchCache,
}

/// Passes one source's snapshots on; errors are told once each.
/// The Services of all sources, for the environment of containers.
pub(crate) fn lister(latest: &Latest) -> ServiceLister {
    let latest = Arc::clone(latest);
    ServiceLister::new(move || {
        let all = lock(&latest).clone();
        all.iter().flat_map(|s| s.services.iter().map(|d| Arc::clone(&d.service))).collect()
    })
}

async fn follow(index: usize, mut snapshots: watch::Receiver<Arc<Snapshot>>, out: Out) {
    let mut before: Arc<Snapshot> = Arc::default();
    loop {
        let snapshot = snapshots.borrow_and_update().clone();
        if snapshot.errors != before.errors {
            for error in snapshot.errors.iter().filter(|e| !before.errors.contains(e)) {
                tracing::error!(%error, "manifest refused");
            }
        }
        for lacks in snapshot.unserved.iter().filter(|u| !before.unserved.contains(u)) {
            let involved = Involved::Service { key: lacks.service.clone(), uid: Arc::clone(&lacks.uid) };
            let event = Event::warning("AllocationFailed", lacks.message.clone());
            out.cache.event(EventRecord::once(involved, event, clock::wall()));
        }
        {
            let mut all = lock(&out.latest);
            if let Some(slot) = all.get_mut(index) {
                *slot = Arc::clone(&snapshot);
            }
            // Sent under the lock, so that no later state is overtaken by an earlier one.
            if !same_pods(&snapshot, &before) {
                out.desired.send_replace(Arc::new(merge(&all)));
            }
        }
        out.changed.send_replace(());
        before = snapshot;
        if snapshots.changed().await.is_err() {
            return;
        }
    }
}

/// Whether what pods are made of is the same.
fn same_pods(a: &Snapshot, b: &Snapshot) -> bool {
    a.listed == b.listed && Arc::ptr_eq(&a.pods, &b.pods) && Arc::ptr_eq(&a.objects, &b.objects)
}

fn merge(all: &[Arc<Snapshot>]) -> DesiredSet {
    let pods =
        all.iter().flat_map(|s| s.pods.iter().map(|(uid, d)| (uid.clone(), Arc::clone(&d.pod)))).collect();
    // Only the manifest directory has objects; static pods may not refer to any.
    let objects = all.first().map_or_else(|| Arc::new(Objects::default()), |s| Arc::clone(&s.objects));
    DesiredSet { listed: all.iter().all(|s| s.listed), pods, objects }
}
