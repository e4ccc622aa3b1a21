//! The sockets below the registration directory, and inotify on it and its sub-directories.
//!
//! Reading the directory is blocking work on a thread of its own kind; a file system that hangs delays the registration
//! alone. A name that begins with a dot does not count, as with the kubelet: plugins bind there and rename.

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use std::{
    collections::BTreeMap,
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, RawFd},
        unix::fs::{FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};
use tokio::{
    io::unix::AsyncFd,
    time::{sleep, timeout},
};

/// The most sockets, and the most directories, that count.
pub(super) const MAX: usize = 128;

/// The most levels of directories.
const DEPTH: usize = 8;

/// The most entries that one reading looks at.
const ENTRIES: usize = 4096;

/// Changes within this time are one. A plugin binds, listens and sets modes in a row.
const SETTLE: Duration = Duration::from_millis(10);

/// Time until the directory is read again where the kernel has no watch left.
const POLL: Duration = Duration::from_secs(1);

/// One file, also among those that had its path before and after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SocketId {
    device: u64,
    inode: u64,
    /// Inode numbers are used again.
    born: Option<SystemTime>,
}

/// inotify as tokio waits for it.
#[derive(Debug)]
struct Watch(Inotify);

impl AsRawFd for Watch {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// The directory and its watch.
#[derive(Debug)]
pub(super) struct Sockets {
    dir: PathBuf,
    inotify: Option<AsyncFd<Watch>>,
    /// Whether it was logged that there are too many files.
    too_many: AtomicBool,
}

impl Sockets {
    /// The directory; nothing is read yet.
    pub(super) fn new(dir: PathBuf) -> Sockets {
        let flags = InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC;
        #[expect(
            deprecated,
            reason = "the inotify instance keeps its one descriptor open, which is what is asked for"
        )]
        let inotify = Inotify::init(flags).map_err(io::Error::from).and_then(|i| AsyncFd::new(Watch(i)));
        let inotify = inotify.inspect_err(|error| {
            tracing::warn!(%error, "cannot watch the plugin directory; it is read every second instead");
        });
        Sockets { dir, inotify: inotify.ok(), too_many: AtomicBool::new(false) }
    }

    /// The directory.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Reads the directory, which is made where it is missing, and watches all of it.
    pub(super) async fn scan(self: &Arc<Sockets>) -> io::Result<BTreeMap<PathBuf, SocketId>> {
        let sockets = Arc::clone(self);
        tokio::task::spawn_blocking(move || sockets.read()).await.map_err(io::Error::other)?
    }

    fn read(&self) -> io::Result<BTreeMap<PathBuf, SocketId>> {
        fs::create_dir_all(&self.dir)?;
        let (mut found, mut entries, mut dirs) = (BTreeMap::new(), 0, 0);
        let mut left = vec![(self.dir.clone(), 0)];
        while let Some((dir, depth)) = left.pop() {
            dirs += 1;
            // The watch comes first, so that a change while the directory is read is seen afterwards.
            self.watch(&dir);
            let listed = match fs::read_dir(&dir) {
                Ok(listed) => listed,
                // Another one than the directory itself may go at any time.
                Err(_) if depth > 0 => continue,
                Err(error) => return Err(error),
            };
            for entry in listed.flatten() {
                entries += 1;
                if entries > ENTRIES {
                    left.clear();
                    break;
                }
                let path = entry.path();
                if entry.file_name().as_encoded_bytes().first() == Some(&b'.') {
                    continue;
                }
                let Ok(kind) = entry.file_type() else { continue };
                if kind.is_dir() && depth < DEPTH && dirs + left.len() < MAX {
                    left.push((path, depth + 1));
                } else if let Some(id) = socket(&path) {
                    found.insert(path, id);
                }
            }
        }
        let too_many = entries > ENTRIES || found.len() > MAX;
        // The first by name, so that it is the same ones each time.
        while found.len() > MAX {
            found.pop_last();
        }
        if too_many && !self.too_many.swap(true, Ordering::Relaxed) {
            tracing::warn!(dir = %self.dir.display(), "too many files in the plugin directory; the rest does not count");
        }
        Ok(found)
    }

    /// A second watch of the same directory is the first.
    fn watch(&self, dir: &Path) {
        let flags = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        if let Some(inotify) = &self.inotify
            && let Err(error) = inotify.get_ref().0.add_watch(dir, flags)
        {
            tracing::debug!(dir = %dir.display(), %error, "cannot watch a plugin directory");
        }
    }

    /// Waits for a change, at most this long.
    pub(super) async fn changed(&self, at_most: Duration) {
        let Some(inotify) = &self.inotify else { return sleep(at_most.min(POLL)).await };
        // After the time the directory is read in any case.
        if let Ok(Ok(mut ready)) = timeout(at_most, inotify.readable()).await {
            sleep(SETTLE).await;
            // Which events they are does not matter. The kernel bounds their queue.
            while inotify.get_ref().0.read_events().is_ok_and(|events| !events.is_empty()) {}
            ready.clear_ready();
        }
    }
}

/// The identity of a socket; `None` for anything else.
fn socket(path: &Path) -> Option<SocketId> {
    let meta = fs::metadata(path).ok()?;
    let id = || SocketId { device: meta.dev(), inode: meta.ino(), born: meta.created().ok() };
    meta.file_type().is_socket().then(id)
}
