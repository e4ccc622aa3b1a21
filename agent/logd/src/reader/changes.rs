//! Changes of log directories for many readers of one program. All share one inotify instance: a user of the kernel has
//! few of them (128 by default), and whoever uses them up breaks every other program of that user.
//!
//! A task hands the events on; it ends with the last value that uses it. Where the kernel gives no instance or no watch,
//! the reader learns that and has to look by itself.

use super::Follow;
use berth_core::sync::lock;
use rustix::{
    fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    fs::inotify,
    io::Errno,
};
use std::{
    collections::BTreeMap,
    io,
    mem::MaybeUninit,
    sync::{Arc, Mutex},
};
use tokio::{io::unix::AsyncFd, sync::watch, task::AbortHandle};

/// A new inotify instance.
pub(super) fn instance() -> Result<OwnedFd, Errno> {
    inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)
}

/// Watches a log directory. The same directory has the same number.
pub(super) fn add(instance: BorrowedFd<'_>, dir: BorrowedFd<'_>) -> Result<i32, Errno> {
    let what = inotify::WatchFlags::MODIFY
        | inotify::WatchFlags::CREATE
        | inotify::WatchFlags::MOVE
        | inotify::WatchFlags::DELETE_SELF;
    inotify::add_watch(instance, format!("/proc/self/fd/{}", dir.as_raw_fd()), what)
}

/// Takes the events that are there and names their directories; -1 where events were lost.
pub(super) fn take(instance: BorrowedFd<'_>, mut of: impl FnMut(i32)) {
    let mut space = [MaybeUninit::uninit(); 4096];
    let mut events = inotify::Reader::new(instance, &mut space);
    // The events only say that something changed; the files say what.
    while let Ok(event) = events.next() {
        of(event.wd());
    }
}

#[derive(Debug)]
struct Watched {
    readers: usize,
    changed: watch::Sender<()>,
}

#[derive(Debug)]
struct Shared {
    instance: OwnedFd,
    watched: Mutex<BTreeMap<i32, Watched>>,
}

/// The one instance, and its task.
#[derive(Debug)]
pub struct LogChanges {
    shared: Arc<Shared>,
    task: AbortHandle,
}

impl LogChanges {
    /// Makes the instance and starts the task; to be called within a Tokio runtime.
    ///
    /// # Errors
    /// The user has no instance left.
    pub fn start() -> io::Result<LogChanges> {
        let shared = Arc::new(Shared { instance: instance()?, watched: Mutex::default() });
        #[expect(
            deprecated,
            reason = "an OwnedFd stays the same descriptor and open, which is what the other one asks for"
        )]
        let events = AsyncFd::new(shared.instance.try_clone()?)?;
        let task = tokio::spawn(hand_on(events, Arc::clone(&shared))).abort_handle();
        Ok(LogChanges { shared, task })
    }

    /// Watches the directory of a log from now on.
    ///
    /// # Errors
    /// The user has no watch left.
    pub fn of(&self, follow: &Follow) -> io::Result<DirChanges> {
        let mut watched = lock(&self.shared.watched);
        let number = add(self.shared.instance.as_fd(), follow.directory())?;
        let new = || Watched { readers: 0, changed: watch::Sender::new(()) };
        let entry = watched.entry(number).or_insert_with(new);
        entry.readers = entry.readers.saturating_add(1);
        let changed = entry.changed.subscribe();
        Ok(DirChanges { shared: Arc::clone(&self.shared), number, changed })
    }
}

impl Drop for LogChanges {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn hand_on(events: AsyncFd<OwnedFd>, shared: Arc<Shared>) {
    // Without a driver the runtime has ended.
    while let Ok(mut ready) = events.readable().await {
        // Before the events are taken: an event after that is ready again.
        ready.clear_ready();
        let watched = lock(&shared.watched);
        take(shared.instance.as_fd(), |number| match watched.get(&number) {
            Some(one) => one.changed.send_replace(()),
            None if number < 0 => watched.values().for_each(|one| one.changed.send_replace(())),
            None => {}
        });
    }
}

/// The changes of one directory. Dropped, it takes the watch away unless others have it.
#[derive(Debug)]
pub struct DirChanges {
    shared: Arc<Shared>,
    number: i32,
    changed: watch::Receiver<()>,
}

impl DirChanges {
    /// Forgets the changes so far. To be called before a read, so that a change after it is not missed.
    pub fn forget(&mut self) {
        self.changed.mark_unchanged();
    }

    /// Waits for a change. May be dropped and called again.
    pub async fn changed(&mut self) {
        // The sender is there as long as this value.
        self.changed.changed().await.ok();
    }
}

impl Drop for DirChanges {
    fn drop(&mut self) {
        let mut watched = lock(&self.shared.watched);
        let Some(entry) = watched.get_mut(&self.number) else { return };
        entry.readers = entry.readers.saturating_sub(1);
        if entry.readers == 0 {
            watched.remove(&self.number);
            // The kernel has taken it away by itself where the directory was removed.
            inotify::remove_watch(&self.shared.instance, self.number).ok();
        }
    }
}
