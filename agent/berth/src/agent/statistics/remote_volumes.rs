//! Numbers of volumes that may not answer: those of CSI drivers and of remote file systems.
//!
//! A volume is asked at most once a minute, when somebody wants its numbers, by a task that outlives the question: the
//! question waits a little and shows what is known. One task a driver asks its volumes one after the other and gives up
//! at the first that gets no answer, so a driver that hangs has one call at a time. A file system that hangs keeps one
//! thread, because it is not asked again before it has answered.
//!
//! Numbers are shown for three minutes, then they are too old.

use berth_core::{sync::lock, time::Boottime};
use berth_csi_client::{Driver, DriverName, GetVolumeStats, Usage, VolumeStats};
use berth_stats::disk::{Capacity, MAX_AGE, capacity};
use berth_sys::{clock, mount::is_mount_point};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{task::spawn_blocking, time::timeout};

/// Numbers of this age are shown no more.
const SHOWN: Duration = Duration::from_secs(180);

/// A volume whose numbers are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RemoteVolume {
    /// Where it is mounted.
    pub(super) path: PathBuf,
    /// Who knows its numbers.
    pub(super) asked: Asked,
}

/// Who knows a volume's numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Asked {
    /// The kernel.
    FileSystem,
    /// The driver, in this way.
    Driver(Driver, GetVolumeStats),
}

/// What is known of a volume.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct VolumeNumbers {
    pub(super) capacity: Capacity,
    /// Whether its driver says that something is wrong; `None` if it does not say.
    pub(super) abnormal: Option<bool>,
}

/// What is known of all volumes. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct RemoteVolumes(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    entries: BTreeMap<PathBuf, Entry>,
    /// What a task asks now.
    running: BTreeSet<Work>,
}

#[derive(Debug, Default)]
struct Entry {
    asked: Option<Boottime>,
    numbers: Option<(Boottime, VolumeNumbers)>,
}

/// What has one task at most.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Work {
    Driver(DriverName),
    FileSystem(PathBuf),
}

impl RemoteVolume {
    fn work(&self) -> Work {
        match &self.asked {
            Asked::FileSystem => Work::FileSystem(self.path.clone()),
            Asked::Driver(driver, _) => Work::Driver(driver.name().clone()),
        }
    }
}

impl RemoteVolumes {
    /// What is known of the volume at that path and not too old.
    pub(super) fn get(&self, path: &PathBuf) -> Option<VolumeNumbers> {
        let state = lock(&self.0);
        let (at, numbers) = state.entries.get(path)?.numbers?;
        (clock::boottime().since(at) < SHOWN).then_some(numbers)
    }

    /// Has the numbers of these volumes asked for where they are old, and waits for that this long. All others are
    /// forgotten.
    pub(super) async fn refresh(&self, volumes: Vec<RemoteVolume>, patience: Duration) {
        let asking: Vec<_> = self
            .due(volumes, clock::boottime())
            .into_iter()
            .map(|(work, volumes)| tokio::spawn(self.clone().ask(work, volumes)))
            .collect();
        let all = async {
            for task in asking {
                if let Err(error) = task.await {
                    tracing::warn!(%error, "cannot ask for the use of volumes");
                }
            }
        };
        // A task that takes longer goes on by itself.
        timeout(patience, all).await.unwrap_or_default();
    }

    /// The volumes to ask now, by task. They count as asked, and their tasks as running.
    fn due(&self, volumes: Vec<RemoteVolume>, now: Boottime) -> BTreeMap<Work, Vec<RemoteVolume>> {
        let mut state = lock(&self.0);
        let State { entries, running } = &mut *state;
        let wanted: BTreeSet<&PathBuf> = volumes.iter().map(|v| &v.path).collect();
        entries.retain(|path, _| wanted.contains(path));
        let mut due = BTreeMap::<Work, Vec<RemoteVolume>>::new();
        for volume in volumes {
            let entry = entries.entry(volume.path.clone()).or_default();
            let old = entry.asked.is_none_or(|at| now.since(at) >= MAX_AGE);
            let work = volume.work();
            if old && !running.contains(&work) {
                entry.asked = Some(now);
                due.entry(work).or_default().push(volume);
            }
        }
        running.extend(due.keys().cloned());
        due
    }

    async fn ask(self, work: Work, volumes: Vec<RemoteVolume>) {
        // Also if this task panics, another one may follow.
        let _running = Running { volumes: &self, work };
        for volume in volumes {
            let numbers = match volume.asked {
                Asked::FileSystem => {
                    let path = volume.path.clone();
                    // What is not mounted yet would have the numbers of the node's disk. A panic of the thread leaves
                    // the numbers unknown.
                    let mounted = move || is_mount_point(&path).unwrap_or(false).then(|| capacity(&path));
                    let capacity = spawn_blocking(mounted).await.ok().flatten().flatten();
                    capacity.map(|capacity| VolumeNumbers { capacity, abnormal: None })
                }
                Asked::Driver(driver, question) => match driver.volume_stats(&question).await {
                    Ok(stats) => Some(numbers(&stats)),
                    Err(error) => {
                        tracing::debug!("{error}");
                        if error.code().is_none() {
                            // The others would not be answered either.
                            return;
                        }
                        None
                    }
                },
            };
            if let Some(numbers) = numbers {
                let mut state = lock(&self.0);
                if let Some(entry) = state.entries.get_mut(&volume.path) {
                    entry.numbers = Some((clock::boottime(), numbers));
                }
            }
        }
    }
}

/// A task's claim on its work.
struct Running<'a> {
    volumes: &'a RemoteVolumes,
    work: Work,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        lock(&self.volumes.0).running.remove(&self.work);
    }
}

/// What a driver says, in the words of a file system.
fn numbers(stats: &VolumeStats) -> VolumeNumbers {
    let none = Usage { available: 0, total: 0, used: 0 };
    let (bytes, inodes) = (stats.bytes.unwrap_or(none), stats.inodes.unwrap_or(none));
    VolumeNumbers {
        capacity: Capacity {
            bytes: bytes.total,
            available: bytes.available,
            used: bytes.used,
            inodes: inodes.total,
            inodes_free: inodes.available,
        },
        abnormal: stats.condition.as_ref().map(|c| c.abnormal),
    }
}

#[cfg(test)]
mod tests;
