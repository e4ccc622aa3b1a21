//! Image collection: removes images that nothing uses, as the kubelet does (`pkg/kubelet/images/image_gc_manager.go`).
//!
//! Owns the ages of images. A round begins every [`PERIOD`] and after each pull, once every source has listed and
//! containerd answers: before that nobody knows which images are wanted. Rounds and `berth image prune` come one after the
//! other. Where the high mark is passed, the writable layers of dead containers go first, then unused images, the longest
//! unused first, until the file system is at the low mark. What is removed is measured on the file system itself.
//!
//! A round that cannot free enough reports `FreeDiskSpaceFailed` on the Node, and the second one in a row `ImageGCFailed`;
//! the status page names what holds the bytes.

use super::status_manager::StatusManager;
use berth_api::view::{Health, PruneView};
use berth_cluster::publish::events::Events;
use berth_core::{
    event::Event,
    image::collect::{CollectionPolicy, Disk, Excess, ImageAges, Keep, insufficient},
    plan::Failure,
    sync::lock,
    time::{Boottime, Wall},
};
use berth_executor::{CollectableImage, NodeExecutor, metrics};
use berth_pods::DesiredSet;
use berth_stats::disk;
use berth_sys::clock;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    sync::{Mutex as AsyncMutex, watch},
    time::{sleep, timeout},
};

/// Time between two rounds (`ImageGCPeriod`, `pkg/kubelet/kubelet.go`).
const PERIOD: Duration = Duration::from_secs(300);

/// Time between two looks whether containerd answers, at the agent's start.
const COMING_UP: Duration = Duration::from_secs(1);

/// Deadline of a reading of the file system.
const STATFS: Duration = Duration::from_secs(10);

/// Image collection of this node. Clones share their state.
#[derive(Clone)]
pub(crate) struct ImageCollection(Arc<Inner>);

struct Inner {
    policy: CollectionPolicy,
    executor: Arc<NodeExecutor>,
    status: Arc<StatusManager>,
    desired: watch::Receiver<Arc<DesiredSet>>,
    /// `None` without a control plane.
    events: Option<Events>,
    began: Boottime,
    /// Held for the whole of a round.
    ages: AsyncMutex<ImageAges>,
    health: Mutex<Option<Health>>,
}

/// The parts of the agent that image collection needs.
pub(crate) struct Parts {
    pub(crate) policy: CollectionPolicy,
    pub(crate) executor: Arc<NodeExecutor>,
    pub(crate) status: Arc<StatusManager>,
    pub(crate) desired: watch::Receiver<Arc<DesiredSet>>,
    pub(crate) events: Option<Events>,
}

/// What a round has found and done.
#[derive(Debug, Default)]
struct Round {
    /// Bytes of images that stay, by the reason.
    held: BTreeMap<Keep, u64>,
    freed: u64,
}

impl ImageCollection {
    pub(crate) fn new(parts: Parts) -> ImageCollection {
        let Parts { policy, executor, status, desired, events } = parts;
        ImageCollection(Arc::new(Inner {
            policy,
            executor,
            status,
            desired,
            events,
            began: clock::boottime(),
            ages: AsyncMutex::default(),
            health: Mutex::default(),
        }))
    }

    /// The file system of the images on the status page; `None` before the first round.
    pub(crate) fn health(&self) -> Option<Health> {
        lock(&self.0.health).clone()
    }

    /// Collects images until the task is ended.
    pub(crate) async fn run(self) {
        let inner = &self.0;
        inner.ready().await;
        if let Err(failure) = inner.executor.adopt_pull_records().await {
            tracing::warn!(why = failure.message, "cannot adopt the records of begun image pulls");
        }
        if inner.policy.is_off() {
            tracing::info!("images are never collected: the high threshold is 100 percent");
            return;
        }
        let mut failed = false;
        loop {
            let began = clock::wall();
            let round = inner.round().await;
            if let Err(failure) = inner.executor.prune_pull_records(began).await {
                tracing::debug!(why = failure.message, "cannot prune the records of image pulls");
            }
            match round {
                Ok(()) => failed = false,
                Err(failure) => {
                    tracing::warn!(why = failure.message, "image collection failed");
                    // The kubelet reports repeated failures alone.
                    if failed {
                        inner.report(Event::warning("ImageGCFailed", failure.message));
                    }
                    failed = true;
                }
            }
            tokio::select! {
                () = sleep(PERIOD) => {}
                // A pull fills the disk. One after a failed round changes nothing about its reason.
                () = inner.executor.image_pulled(), if !failed => {}
            }
        }
    }

    /// Removes the images that no pod uses; without `all` those below the minimum age stay.
    ///
    /// # Errors
    /// containerd does not answer, or not every source has listed.
    pub(crate) async fn prune(&self, all: bool) -> Result<PruneView, Failure> {
        let inner = &self.0;
        if !inner.desired.borrow().all_listed() {
            let text = "cannot prune images: it is not known yet which pods this node has to run";
            return Err(Failure::new("SourcesNotListed", text));
        }
        let mut ages = inner.ages.lock().await;
        let runtime = inner.executor.runtime()?;
        let used = |e: berth_runtime::Error| Failure::new("ImageGCFailed", berth_core::error::Chain(&e));
        let before = runtime.store_use().await.map_err(used)?;
        let images = inner.observe(&mut ages).await?;
        let (mut view, mut kept) = (PruneView::default(), BTreeMap::<Keep, u32>::new());
        for CollectableImage { image, candidate } in &images {
            let young =
                image.created_at.is_some_and(|at| is_young(at, clock::wall(), inner.policy.minimum_age));
            match candidate.kept().or((young && !all).then_some(Keep::Young)) {
                Some(keep) => *kept.entry(keep).or_default() += 1,
                None if inner.is_wanted_now(&image.id).await? => *kept.entry(Keep::InUse).or_default() += 1,
                None => {
                    inner.executor.remove_image(image).await?;
                    tracing::info!(images = ?image.names, "pruned");
                    view.removed.extend(image.names.iter().cloned());
                }
            }
        }
        let after = runtime.store_use().await.map_err(used)?;
        view.freed = before.bytes().saturating_sub(after.bytes());
        view.kept = kept.into_iter().map(|(keep, n)| (keep.words().to_owned(), n)).collect();
        Ok(view)
    }
}

impl Inner {
    /// Waits until every source has listed and containerd answers.
    async fn ready(&self) {
        let mut desired = self.desired.clone();
        if desired.wait_for(|set| set.all_listed()).await.is_err() {
            // The sources have ended, and with them the agent.
            std::future::pending::<()>().await;
        }
        while self.executor.runtime().is_err() {
            sleep(COMING_UP).await;
        }
    }

    /// The images of all pods that are to run here, as the pods name them.
    fn wanted(&self) -> BTreeSet<String> {
        let desired = self.desired.borrow().clone();
        let states = self.status.pod_states();
        let pods = desired.pods.values().map(|d| &d.pod).chain(states.iter().map(|state| &state.pod));
        pods.flat_map(|pod| pod.all_containers()).map(|c| c.image.clone()).collect()
    }

    async fn observe(&self, ages: &mut ImageAges) -> Result<Vec<CollectableImage>, Failure> {
        let images = self.executor.collectable_images(&self.wanted()).await?;
        let candidates: Vec<_> = images.iter().map(|i| i.candidate.clone()).collect();
        ages.observe(&candidates, clock::boottime());
        Ok(images)
    }

    /// Whether the image must stay by what is known at this moment.
    async fn is_wanted_now(&self, id: &str) -> Result<bool, Failure> {
        let images = self.executor.collectable_images(&self.wanted()).await?;
        Ok(images.iter().any(|i| i.image.id == id && i.candidate.kept().is_some()))
    }

    async fn round(&self) -> Result<(), Failure> {
        let mut ages = self.ages.lock().await;
        let images = self.observe(&mut ages).await?;
        let candidates: Vec<_> = images.iter().map(|i| i.candidate.clone()).collect();
        let now = clock::boottime();
        let removals = ages.removals(&candidates, &self.policy, self.began, now);
        let find = |id: &str| images.iter().find(|i| i.image.id == id).map(|i| &i.image);
        let mut round = Round::default();
        for kept in images.iter().filter_map(|i| Some((i.candidate.kept()?, i.image.size))) {
            *round.held.entry(kept.0).or_default() += kept.1;
        }
        for removal in removals.iter().filter(|r| r.too_old) {
            if let Some(image) = find(&removal.id)
                && !self.is_wanted_now(&image.id).await?
            {
                self.remove(image, true).await?;
            }
        }
        let dir = self.executor.image_dir().await?;
        let dir = dir.ok_or_else(|| Failure::new("ImageGCFailed", "cannot find the images' file system"))?;
        let Some(excess) = self.excess(&dir).await? else {
            self.show(&dir, None).await;
            return Ok(());
        };
        let (used, wanted) = (excess.used_percent, excess.bytes);
        tracing::info!(used_percent = used, bytes = wanted, "the images' file system is over the high mark");
        let layers = self.executor.remove_dead_layers().await?;
        let mut left = self.left(&dir, wanted, &mut round).await?;
        if layers > 0 {
            tracing::info!(layers, freed = round.freed, "writable layers of dead containers removed");
        }
        for removal in removals.iter().filter(|r| !r.too_old) {
            if left == 0 {
                break;
            }
            let Some(image) = find(&removal.id) else { continue };
            let keep = match ages.is_young(&image.id, &self.policy, now) {
                true => Some(Keep::Young),
                false => self.is_wanted_now(&image.id).await?.then_some(Keep::InUse),
            };
            if let Some(keep) = keep {
                *round.held.entry(keep).or_default() += image.size;
                continue;
            }
            self.remove(image, false).await?;
            left = self.left(&dir, wanted, &mut round).await?;
        }
        if left == 0 {
            self.show(&dir, None).await;
            return Ok(());
        }
        let capacity = disk_of(&dir).await?.capacity;
        let message = insufficient(used, capacity, round.freed);
        self.report(Event::warning("FreeDiskSpaceFailed", message.clone()));
        self.show(&dir, Some((used, round))).await;
        Err(Failure::new("ImageGCFailed", message))
    }

    async fn remove(&self, image: &berth_runtime::StoredImage, too_old: bool) -> Result<(), Failure> {
        self.executor.remove_image(image).await?;
        metrics::count_collected_image(too_old);
        let why = if too_old { "its age" } else { "space" };
        tracing::info!(images = ?image.names, size = image.size, why, "image removed");
        Ok(())
    }

    async fn excess(&self, dir: &std::path::Path) -> Result<Option<Excess>, Failure> {
        let disk = disk_of(dir).await?;
        if disk.capacity == 0 {
            let text = "invalid capacity 0 on image filesystem";
            self.report(Event::warning("InvalidDiskCapacity", text));
            return Err(Failure::new("InvalidDiskCapacity", text));
        }
        Ok(self.policy.excess(disk))
    }

    /// How many bytes are still to be freed; counts what is freed by now.
    async fn left(&self, dir: &std::path::Path, wanted: u64, round: &mut Round) -> Result<u64, Failure> {
        let disk = disk_of(dir).await?;
        let target = u128::from(disk.capacity) * u128::from(100 - self.policy.low_percent.min(100)) / 100;
        let target = u64::try_from(target).unwrap_or(u64::MAX);
        let left = target.saturating_sub(disk.available);
        round.freed = wanted.saturating_sub(left);
        Ok(left)
    }

    fn report(&self, event: Event) {
        if let Some(events) = &self.events {
            events.report_of_node(event);
        }
    }

    /// Shows the file system on the status page; `failed`: the usage at the beginning of a round that freed too little.
    async fn show(&self, dir: &std::path::Path, failed: Option<(u8, Round)>) {
        let Ok(disk) = disk_of(dir).await else { return };
        let used =
            100_u128.saturating_sub(u128::from(disk.available) * 100 / u128::from(disk.capacity.max(1)));
        let size = mebibytes(disk.capacity);
        let mut health = lock(&self.health);
        *health = Some(match failed {
            None => Health::good(format!("{used}% of {size} used")),
            Some((before, round)) => {
                let held: Vec<String> = round
                    .held
                    .iter()
                    .map(|(keep, n)| format!("{} {}", mebibytes(*n), keep.words()))
                    .collect();
                let held = if held.is_empty() { "none".to_owned() } else { held.join(", ") };
                let since = health.as_ref().filter(|h| !h.ok).and_then(|h| h.since);
                Health {
                    since: since.or_else(|| Some(clock::wall())),
                    ..Health::bad(format!(
                        "file system {} is {used}% full of {size} ({before}% before {} were freed); images that stay: {held}; \
                         the rest is other data",
                        dir.display(),
                        mebibytes(round.freed),
                    ))
                }
            }
        });
    }
}

fn is_young(created: Wall, now: Wall, minimum: Duration) -> bool {
    // A wall clock that was set back makes an image old.
    u64::try_from(now.0.saturating_sub(created.0)).is_ok_and(|age| Duration::from_nanos(age) < minimum)
}

fn mebibytes(bytes: u64) -> String {
    format!("{}.{} MiB", bytes >> 20, ((bytes >> 10) % 1024) * 10 / 1024)
}

/// Reads the file system. One that hangs costs this round.
async fn disk_of(dir: &std::path::Path) -> Result<Disk, Failure> {
    let path: PathBuf = dir.to_owned();
    let reading = timeout(STATFS, tokio::task::spawn_blocking(move || disk::capacity(&path))).await;
    let found = reading.ok().and_then(Result::ok).flatten();
    let found = found.ok_or_else(|| {
        Failure::new("ImageGCFailed", format!("cannot read the size of the file system at {}", dir.display()))
    })?;
    Ok(Disk { capacity: found.bytes, available: found.available })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_young_by_the_wall_clock() {
        let at = |s: i64| Wall(s * 1_000_000_000);
        let minimum = Duration::from_secs(120);
        assert!(is_young(at(1000), at(1119), minimum) && !is_young(at(1000), at(1120), minimum));
        assert!(!is_young(at(1000), at(900), minimum), "the clock was set back");
        assert_eq!(mebibytes((3 << 30) + (512 << 10)), "3072.5 MiB");
    }
}
