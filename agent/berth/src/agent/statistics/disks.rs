//! Disks of the node and its pods for `/stats/summary`.
//!
//! Capacity comes from statfs at each question. The usage of a directory takes a walk and that of a layer a
//! question to containerd; both are repeated after a minute at the earliest, when somebody asks, and a question
//! waits [`PATIENCE`] for them. What is not known by then is left out and shown by a later answer. Volumes of drivers and
//! servers are asked likewise ([`remote_volumes`](super::remote_volumes)).

use super::{
    pod_volumes::PodVolume,
    remote_volumes::{RemoteVolumes, VolumeNumbers},
};
use crate::agent::status_manager::PodState;
use berth_core::{
    ids::PodUid,
    model::{Medium, VolumeSource},
    roots::Roots,
    status::ContainerStatus,
    sync::lock,
    time::Boottime,
};
use berth_runtime::{LayerUse, LayersUse, Runtime};
use berth_stats::{
    disk::{Capacity, DirectoryUse, MAX_AGE, UsageCache, capacity},
    render::agent::ClaimUse,
    render::summary::{ContainerDisks, DiskReading, FsUse, PodDisks, VolumeUse},
};
use berth_sys::clock;
use berth_volumes::metrics::plugin_name;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{sync::Mutex as AsyncMutex, task::spawn_blocking, time::timeout};

/// The longest wait of a question for walks and for containerd.
const PATIENCE: Duration = Duration::from_secs(2);

/// The longest series of walks.
const WALKS: Duration = Duration::from_secs(30);

/// containerd's own directory, where nothing else is known of it.
const CONTAINERD: &str = "/var/lib/containerd";

/// What is known of disks.
pub(super) struct Disks {
    known: Arc<Known>,
    remote: RemoteVolumes,
    /// File system of the images.
    images: PathBuf,
}

#[derive(Default)]
struct Known {
    directories: UsageCache,
    layers: Mutex<Option<(Boottime, Arc<LayersUse>)>>,
    /// Held by the one task that walks.
    walking: AsyncMutex<()>,
}

/// A directory of which the usage is wanted.
fn directory(usage: Option<DirectoryUse>, capacity: Option<Capacity>) -> Option<FsUse> {
    Some(FsUse { capacity: capacity?, used: Some(usage?) })
}

fn layer(usage: LayerUse) -> DirectoryUse {
    DirectoryUse { bytes: usage.bytes, inodes: usage.inodes }
}

impl Disks {
    pub(super) fn new(roots: &Roots) -> Disks {
        let images = Path::new(CONTAINERD);
        let images = if images.is_dir() { images.to_owned() } else { roots.pod_state.clone() };
        Disks { known: Arc::default(), remote: RemoteVolumes::default(), images }
    }

    /// Reads the disks of the node and these pods.
    pub(super) async fn read(
        &self,
        roots: &Roots,
        pods: Vec<PodState>,
        runtime: Option<Runtime>,
        asked: Vec<PodVolume>,
    ) -> DiskReading {
        let volumes = asked.iter().map(|v| v.volume.clone()).collect();
        tokio::join!(self.refresh(roots, &pods, runtime), self.remote.refresh(volumes, PATIENCE));
        let (known, roots, images) = (Arc::clone(&self.known), roots.clone(), self.images.clone());
        let asked: Vec<(PodUid, VolumeUse)> = asked.into_iter().filter_map(|v| self.asked(v)).collect();
        // A file system that hangs costs this question its disks.
        let reading = spawn_blocking(move || known.reading(&roots, &images, &pods));
        let mut reading = match timeout(PATIENCE, reading).await {
            Ok(Ok(reading)) => reading,
            Ok(Err(_)) | Err(_) => DiskReading::default(),
        };
        for (pod, volume) in asked {
            reading.pods.entry(pod).or_default().volumes.push(volume);
        }
        reading
    }

    /// The use of a volume that was asked for it, as far as it is known.
    fn asked(&self, of: PodVolume) -> Option<(PodUid, VolumeUse)> {
        let VolumeNumbers { capacity, abnormal } = self.remote.get(&of.volume.path)?;
        let fs = FsUse { capacity, used: None };
        Some((of.pod, VolumeUse { name: of.name, fs, ephemeral: false, claim: of.claim, abnormal }))
    }

    /// The claims of these volumes with what is known of their use. What is old is asked for; nothing waits for it.
    pub(super) async fn claims(&self, asked: Vec<PodVolume>) -> BTreeMap<(String, String), ClaimUse> {
        self.remote.refresh(asked.iter().map(|v| v.volume.clone()).collect(), Duration::ZERO).await;
        let claims = asked.into_iter().filter_map(|of| {
            let VolumeNumbers { capacity, abnormal } = self.remote.get(&of.volume.path)?;
            Some((of.claim?, ClaimUse { capacity, abnormal }))
        });
        claims.collect()
    }

    /// Has what is too old counted again, and waits a while for that. The counting goes on after the wait.
    async fn refresh(&self, roots: &Roots, pods: &[PodState], runtime: Option<Runtime>) {
        let paths: BTreeSet<PathBuf> = pods.iter().flat_map(|state| walked(roots, state)).collect();
        let known = Arc::clone(&self.known);
        let counting = tokio::spawn(async move {
            let Ok(_walking) = known.walking.try_lock() else { return };
            let deadline = clock::boottime() + WALKS;
            let directories = Arc::clone(&known);
            let walks =
                spawn_blocking(move || directories.directories.refresh(&paths, deadline, clock::boottime));
            let stale =
                lock(&known.layers).as_ref().is_none_or(|(at, _)| clock::boottime().since(*at) >= MAX_AGE);
            if let Some(runtime) = runtime.filter(|_| stale) {
                match runtime.layers_use().await {
                    Ok(layers) => {
                        *lock(&known.layers) = Some((clock::boottime(), Arc::new(layers)));
                    }
                    Err(error) => tracing::debug!(%error, "cannot ask for the usage of layers"),
                }
            }
            if let Err(error) = walks.await {
                tracing::warn!(%error, "cannot count the usage of directories");
            }
        });
        // A longer count ends by itself; its result is for the next question.
        if let Ok(Err(error)) = timeout(PATIENCE, counting).await {
            tracing::warn!(%error, "cannot count the usage of disks");
        }
    }
}

/// The directories of a pod that take a walk: volumes on the node's disk, and the output files.
fn walked(roots: &Roots, state: &PodState) -> Vec<PathBuf> {
    let pod = &state.pod;
    let volumes = pod
        .volumes
        .iter()
        .filter(|v| on_disk(&v.source))
        .map(|v| volume_dir(roots, state, v.name.as_str(), &v.source));
    let logs = counted(state).map(|c| log_dir(roots, state, c.name.as_str()));
    volumes.chain(logs).collect()
}

/// The containers whose disks count: main and ephemeral ones.
fn counted(state: &PodState) -> impl Iterator<Item = &ContainerStatus> {
    state.status.containers.iter().chain(&state.status.ephemeral_containers)
}

fn volume_dir(roots: &Roots, state: &PodState, name: &str, source: &VolumeSource) -> PathBuf {
    let plugin = plugin_name(source).replace('/', "~");
    roots.pod_dir(&state.pod.uid).join("volumes").join(plugin).join(name)
}

fn log_dir(roots: &Roots, state: &PodState, container: &str) -> PathBuf {
    roots.pod_log_dir(&state.pod.key, &state.pod.uid).join(container)
}

/// Whether a volume is a directory on the node's disk and no file system of its own.
fn on_disk(source: &VolumeSource) -> bool {
    matches!(source, VolumeSource::EmptyDir { medium: Medium::Disk, .. } | VolumeSource::ConfigMap(_))
}

impl Known {
    fn reading(&self, roots: &Roots, images: &Path, pods: &[PodState]) -> DiskReading {
        let node = capacity(&roots.pod_state);
        let images = capacity(images);
        let layers = lock(&self.layers).as_ref().map(|(_, layers)| Arc::clone(layers));
        let logs = capacity(&roots.pod_logs);
        let pods = pods.iter().map(|state| {
            let containers = counted(state).map(|c| {
                let rootfs = c.id.as_ref().and_then(|id| layers.as_ref()?.writable.get(id.as_str()).copied());
                let disks = ContainerDisks {
                    rootfs: directory(rootfs.map(layer), images),
                    logs: directory(self.directories.get(&log_dir(roots, state, c.name.as_str())), logs),
                };
                (c.name.to_string(), disks)
            });
            let disks =
                PodDisks { volumes: self.volumes(roots, state, node), containers: containers.collect() };
            (state.pod.uid.clone(), disks)
        });
        let whole = |capacity: Option<Capacity>| Some(FsUse { capacity: capacity?, used: None });
        let writable = layers.as_ref().map(|layers| {
            layers.writable.values().fold(DirectoryUse::default(), |sum, used| DirectoryUse {
                bytes: sum.bytes.saturating_add(used.bytes),
                inodes: sum.inodes.saturating_add(used.inodes),
            })
        });
        DiskReading {
            node: whole(node),
            images: directory(layers.as_ref().map(|layers| layer(layers.images)), images),
            containers: directory(writable, images),
            pods: pods.collect(),
        }
    }

    fn volumes(&self, roots: &Roots, state: &PodState, node: Option<Capacity>) -> Vec<VolumeUse> {
        let volumes = state.pod.volumes.iter().filter_map(|volume| {
            let dir = volume_dir(roots, state, volume.name.as_str(), &volume.source);
            let fs = match &volume.source {
                // The kubelet has no numbers of a path of the node either.
                VolumeSource::HostPath { .. } | VolumeSource::NotYet { .. } => return None,
                // These are asked by tasks of their own.
                VolumeSource::Nfs(_)
                | VolumeSource::Csi(_)
                | VolumeSource::PersistentVolumeClaim { .. }
                | VolumeSource::Ephemeral => return None,
                source if on_disk(source) => directory(self.directories.get(&dir), node)?,
                // The others are file systems of their own.
                _ => FsUse { capacity: capacity(&dir)?, used: None },
            };
            let (name, ephemeral) = (volume.name.to_string(), on_disk(&volume.source));
            Some(VolumeUse { name, fs, ephemeral, claim: None, abnormal: None })
        });
        volumes.collect()
    }
}
