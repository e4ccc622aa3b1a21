//! Pulls of images from registries: one for a reference and its credentials, however many containers want it, and a
//! bounded number at once.
//!
//! Owns a task for each pull. A pull goes on where the pod that wanted it is gone, as the kubelet's do; it ends by itself
//! where it makes no progress, and with the executor. Pulls of one reference with different credentials come one after
//! the other, because they share what is fetched.

use berth_core::{
    error::Chain,
    image::{Credential, PullProgress},
    sync::lock,
};
use berth_runtime::{Image, Runtime, STALE_PULL, reference};
use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    sync::{Notify, Semaphore, watch},
    task::JoinSet,
};

/// Pulls at once. The kubelet's default is one after the other; a pull of few large layers leaves a link unused while
/// it unpacks.
const AT_ONCE: usize = 5;
/// Pause between two messages of progress to a person.
const PROGRESS_PAUSE: Duration = Duration::from_millis(200);

/// A reference, and the credentials that are tried in turn.
type Key = (String, Vec<Credential>);

/// How a pull ended: the image, or the reason in words for the user.
type Outcome = Result<PulledImage, String>;

/// A pulled image.
#[derive(Debug, Clone)]
pub struct PulledImage {
    /// The image.
    pub image: Image,
    /// Bytes of the image.
    pub size: u64,
    /// How long the pull took, without the wait for its turn.
    pub took: Duration,
    /// The place of the credential that succeeded among those of the pull; `None`: none was sent.
    pub used: Option<usize>,
}

/// The state of a pull that is under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullState {
    /// The reference in full.
    pub image: String,
    /// The names as containers have them.
    pub wanted: Vec<String>,
    /// How far it is.
    pub progress: PullProgress,
}

/// A view of a pull, which may be one that a person asked for. Dropping it does not end the pull.
#[derive(Debug, Clone)]
pub struct PullByHand {
    outcome: watch::Receiver<Option<Outcome>>,
    progress: watch::Receiver<PullProgress>,
}

impl PullByHand {
    /// The next progress, at most one each [`PROGRESS_PAUSE`]; `None` once the pull has ended. May be dropped and called
    /// again.
    pub async fn progress(&mut self) -> Option<PullProgress> {
        // The end is told at once, whatever was told a moment ago.
        tokio::select! {
            biased;
            _ended = self.outcome.wait_for(Option::is_some) => return None,
            () = tokio::time::sleep(PROGRESS_PAUSE) => {}
        }
        tokio::select! {
            biased;
            changed = self.progress.changed() => {
                changed.ok()?;
                Some(self.progress.borrow_and_update().clone())
            }
            _ended = self.outcome.wait_for(Option::is_some) => None,
        }
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// The reason in words for the user.
    pub async fn end(mut self) -> Result<PulledImage, String> {
        end_of(&mut self.outcome).await
    }
}

async fn end_of(outcome: &mut watch::Receiver<Option<Outcome>>) -> Outcome {
    let ended = outcome.wait_for(Option::is_some).await.map(|o| o.clone());
    ended.ok().flatten().unwrap_or_else(|| Err("the pull ended early".to_owned()))
}

/// A pull that is under way.
struct Running {
    /// The names as containers have them.
    wanted: BTreeSet<String>,
    view: PullByHand,
}

/// The pulls of a node.
pub(crate) struct Pulls(Arc<Shared>);

struct Shared {
    running: Mutex<HashMap<Key, Running>>,
    turns: Mutex<HashMap<String, std::sync::Weak<tokio::sync::Mutex<()>>>>,
    slots: Semaphore,
    tasks: Mutex<JoinSet<()>>,
    /// Whether a task looks for leases of abandoned pulls.
    sweeping: AtomicBool,
    /// Notified when a pull has succeeded.
    pulled: Notify,
}

impl Default for Pulls {
    fn default() -> Pulls {
        Pulls(Arc::new(Shared {
            running: Mutex::default(),
            turns: Mutex::default(),
            slots: Semaphore::new(AT_ONCE),
            tasks: Mutex::default(),
            sweeping: AtomicBool::new(false),
            pulled: Notify::new(),
        }))
    }
}

impl Drop for Pulls {
    fn drop(&mut self) {
        lock(&self.0.tasks).abort_all();
    }
}

impl Pulls {
    /// Pulls an image, or waits for the same pull of another container.
    pub(crate) async fn pull(
        &self,
        runtime: Runtime,
        image: &str,
        credentials: Vec<Credential>,
    ) -> Result<PulledImage, String> {
        end_of(&mut self.join(runtime, image, credentials).outcome).await
    }

    /// The same, with a view of the progress.
    pub(crate) fn join(&self, runtime: Runtime, image: &str, credentials: Vec<Credential>) -> PullByHand {
        let key = (reference::normalise(image), credentials);
        let mut running = lock(&self.0.running);
        if let Some(known) = running.get_mut(&key) {
            known.wanted.insert(image.to_owned());
            return known.view.clone();
        }
        let (outcome, ended) = watch::channel(None);
        let (progress, shown) = watch::channel(PullProgress::default());
        let view = PullByHand { outcome: ended, progress: shown };
        let wanted = BTreeSet::from([image.to_owned()]);
        running.insert(key.clone(), Running { wanted, view: view.clone() });
        let shared = Arc::downgrade(&self.0);
        let mut tasks = lock(&self.0.tasks);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(async move {
            let Some(shared) = shared.upgrade() else { return };
            let end = shared.run(&runtime, &key, &progress).await;
            lock(&shared.running).remove(&key);
            if end.is_err() {
                sweep(&shared, runtime);
            }
            outcome.send_replace(Some(end));
        });
        view
    }

    /// Releases what pulls without success have left, once they are not tried again.
    pub(crate) fn sweep(&self, runtime: Runtime) {
        sweep(&self.0, runtime);
    }

    /// Waits until a pull has succeeded. One that succeeded before the call counts, once.
    pub(crate) async fn pulled(&self) {
        self.0.pulled.notified().await;
    }

    /// The pulls that are under way, by reference.
    pub(crate) fn list(&self) -> Vec<PullState> {
        let running = lock(&self.0.running);
        let state = |((image, _), r): (&Key, &Running)| PullState {
            image: image.clone(),
            wanted: r.wanted.iter().cloned().collect(),
            progress: r.view.progress.borrow().clone(),
        };
        let mut list: Vec<PullState> = running.iter().map(state).collect();
        list.sort_by(|a, b| a.image.cmp(&b.image));
        list
    }
}

/// Starts the one task that looks for leases of abandoned pulls until there are none.
fn sweep(shared: &Arc<Shared>, runtime: Runtime) {
    if shared.sweeping.swap(true, Ordering::Relaxed) {
        return;
    }
    let weak = Arc::downgrade(shared);
    lock(&shared.tasks).spawn(async move {
        loop {
            let Some(shared) = weak.upgrade() else { return };
            let busy: Vec<String> = lock(&shared.running).keys().map(|(image, _)| image.clone()).collect();
            match runtime.release_stale_pulls(&busy).await {
                Ok(false) if busy.is_empty() => {
                    shared.sweeping.store(false, Ordering::Relaxed);
                    return;
                }
                Ok(_) => {}
                Err(e) => tracing::debug!(why = %Chain(&e), "cannot look for abandoned image pulls"),
            }
            drop(shared);
            tokio::time::sleep(STALE_PULL / 3).await;
        }
    });
}

impl Shared {
    async fn run(&self, runtime: &Runtime, key: &Key, progress: &watch::Sender<PullProgress>) -> Outcome {
        let (reference, credentials) = key;
        let turn = self.turn(reference);
        let _turn = turn.lock().await;
        // The semaphore is never closed.
        let _slot = self.slots.acquire().await;
        let begun = Instant::now();
        tracing::info!(image = reference, credentials = credentials.len(), "pulling");
        let mut candidates: Vec<(Option<usize>, Option<&Credential>)> =
            credentials.iter().enumerate().map(|(n, credential)| (Some(n), Some(credential))).collect();
        if candidates.is_empty() {
            candidates.push((None, None));
        }
        let mut failures: Vec<String> = Vec::new();
        for (used, credential) in candidates {
            match runtime.pull(reference, credential, progress).await {
                Ok(pulled) => {
                    let took = begun.elapsed();
                    tracing::info!(
                        image = reference,
                        size = pulled.size,
                        took_ms = took.as_millis(),
                        "pulled"
                    );
                    self.pulled.notify_one();
                    return Ok(PulledImage { image: pulled.image, size: pulled.size, took, used });
                }
                Err(e) => {
                    tracing::warn!(image = reference, why = %Chain(&e), "cannot pull");
                    let text = format!("failed to pull and unpack image {reference:?}: {}", e.cause());
                    // The kubelet joins the errors of all credentials, each distinct one once.
                    if !failures.contains(&text) {
                        failures.push(text);
                    }
                    if e.is_unknown() {
                        break;
                    }
                }
            }
        }
        Err(match failures.as_slice() {
            [one] => one.clone(),
            all => format!("[{}]", all.join(", ")),
        })
    }

    /// The lock of a reference.
    fn turn(&self, reference: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = lock(&self.turns);
        turns.retain(|_, turn| turn.strong_count() > 0);
        if let Some(turn) = turns.get(reference).and_then(std::sync::Weak::upgrade) {
            return turn;
        }
        let turn = Arc::default();
        turns.insert(reference.to_owned(), Arc::downgrade(&turn));
        turn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_end_of_a_pull_is_told_at_once_and_progress_in_its_time() {
        tokio::time::pause();
        let (ended, outcome) = watch::channel(None);
        let (moved, progress) = watch::channel(PullProgress::default());
        let mut pull = PullByHand { outcome, progress };
        let begun = tokio::time::Instant::now();
        moved.send_replace(PullProgress::default());
        assert_eq!(pull.progress().await, Some(PullProgress::default()));
        let first = begun.elapsed();
        assert!(first >= PROGRESS_PAUSE, "{first:?}");
        let (told, ()) = tokio::join!(pull.progress(), async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            ended.send_replace(Some(Err("refused".to_owned())));
        });
        let then = begun.elapsed() - first;
        assert!(told.is_none() && then < PROGRESS_PAUSE / 2, "{told:?} after {then:?}");
        assert_eq!(pull.end().await.map(drop), Err("refused".to_owned()));
    }
}
