//! Mounts that wait for a server, each on a thread of its own. Whoever wants the mount waits for a while, is told that the
//! server does not answer, and asks again; meanwhile its pod can end. The mount is made out of sight, so one that comes
//! after its pod has gone is dropped and was never seen.
//!
//! Invariants: at most [`MOST_A_SERVER`] threads wait for one server, and one for one volume of a pod. A mount has one
//! taker at a time, because callers do one piece of work at a time for a pod.

use rustix::fd::OwnedFd;
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        mpsc::{self, Receiver, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

/// Most threads that wait for one server. More would only wait for the same answer.
const MOST_A_SERVER: usize = 16;

/// What a mount is asked for by: where it is wanted, and what it is of with its options.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Wanted {
    /// The root of the volume.
    pub(crate) root: PathBuf,
    /// The server, by whose name threads are counted.
    pub(crate) server: String,
    /// Source and options.
    pub(crate) what: String,
}

/// The mount, or why there is none.
pub(crate) type Mounted = Result<OwnedFd, String>;

/// The mounts that have begun and that nobody has taken yet.
#[derive(Debug, Clone)]
pub(crate) struct PendingMounts {
    shared: Arc<Shared>,
    /// How long a mount's first caller waits: a user is to be told soon.
    first: Duration,
    /// How long later callers wait. The pod that ends meanwhile waits as well.
    again: Duration,
}

#[derive(Debug, Default)]
struct Shared {
    begun: Mutex<HashMap<Wanted, Receiver<Mounted>>>,
    threads: Mutex<HashMap<String, usize>>,
    ended: Condvar,
}

impl Default for PendingMounts {
    fn default() -> Self {
        Self::new(Duration::from_secs(10), Duration::from_secs(30))
    }
}

impl PendingMounts {
    fn new(first: Duration, again: Duration) -> PendingMounts {
        PendingMounts { shared: Arc::default(), first, again }
    }

    /// The mount, from the thread that makes it already or from a new one that does the work.
    ///
    /// # Errors
    /// The work's own; or the server has not answered yet: the work goes on, and the next call may have its result.
    pub(crate) fn mount(&self, wanted: &Wanted, work: impl FnOnce() -> Mounted + Send + 'static) -> Mounted {
        let earlier = held(&self.shared.begun).remove(wanted);
        let (told, patience) = match earlier {
            Some(told) => (told, self.again),
            None => {
                let end = Instant::now() + self.first;
                let slot = Slot::take(&self.shared, &wanted.server, end)
                    .ok_or_else(|| format!("{MOST_A_SERVER} mounts already wait for this server"))?;
                (begin(slot, work)?, end.saturating_duration_since(Instant::now()))
            }
        };
        match told.recv_timeout(patience) {
            Ok(mounted) => mounted,
            Err(RecvTimeoutError::Disconnected) => Err("the mount ended early".into()),
            Err(RecvTimeoutError::Timeout) => {
                held(&self.shared.begun).insert(wanted.clone(), told);
                // The same text each time, so that its events are counted as one.
                Err("the server does not answer".into())
            }
        }
    }

    /// Drops the mounts that were wanted below the directory of a pod that goes. Their threads end as the server answers.
    pub(crate) fn forget(&self, pod_dir: &Path) {
        let gone: Vec<_> =
            held(&self.shared.begun).extract_if(|wanted, _| wanted.root.starts_with(pod_dir)).collect();
        if gone.is_empty() {
            return;
        }
        // A mount that has come meanwhile is unmounted here, and that may ask the server again. Where no thread can be
        // had, the caller waits for it.
        drop(thread::Builder::new().name("unmount".into()).spawn(move || drop(gone)));
    }
}

fn begin(slot: Slot, work: impl FnOnce() -> Mounted + Send + 'static) -> Result<Receiver<Mounted>, String> {
    let (tell, told) = mpsc::channel();
    let started = thread::Builder::new().name("mount".into()).spawn(move || {
        let mounted = work();
        drop(slot);
        // Nobody wants it any more where this fails, and so it is unmounted here.
        drop(tell.send(mounted));
    });
    started.map(|_runs| told).map_err(|e| format!("cannot start a thread: {e}"))
}

/// The right to have one thread wait for a server.
#[derive(Debug)]
struct Slot {
    shared: Arc<Shared>,
    server: String,
}

impl Slot {
    /// `None` where all are taken until `end`.
    fn take(shared: &Arc<Shared>, server: &str, end: Instant) -> Option<Slot> {
        let full = |threads: &mut HashMap<String, usize>| threads.get(server) >= Some(&MOST_A_SERVER);
        let patience = end.saturating_duration_since(Instant::now());
        let waited = shared.ended.wait_timeout_while(held(&shared.threads), patience, full);
        let (mut threads, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if full(&mut threads) {
            return None;
        }
        *threads.entry(server.to_owned()).or_default() += 1;
        Some(Slot { shared: Arc::clone(shared), server: server.to_owned() })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut threads = held(&self.shared.threads);
        if let Some(count) = threads.get_mut(&self.server) {
            *count -= 1;
            if *count == 0 {
                threads.remove(&self.server);
            }
        }
        self.shared.ended.notify_all();
    }
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
