//! The zone file and resolv.conf, read again when they change.
//!
//! The directories are watched, because both files are replaced by rename. If resolv.conf is a
//! link, the directories of each link on the way and of the file itself are watched too. The set of
//! directories is determined again after each change.

use super::Server;
use crate::{error::Error, index::Index, publish, resolv};
use berth_core::{error::Chain, sync::lock};
use berth_sys::memory;
use rustix::{
    fd::OwnedFd,
    fs::inotify::{self, CreateFlags, WatchFlags},
    io::Errno,
};
use std::{
    collections::BTreeSet,
    io,
    mem::MaybeUninit,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{io::unix::AsyncFd, task::JoinSet, time::timeout};

/// After this long without a change, memory is released.
const IDLE: Duration = Duration::from_secs(1);

/// The largest resolv.conf in bytes that is read.
const RESOLV_MAX: usize = 64 * 1024;

/// The most links that are followed, the same number as in the kernel.
const LINKS: usize = 40;

/// Directory events after which a file may have changed.
const FLAGS: WatchFlags =
    WatchFlags::MOVED_TO.union(WatchFlags::CLOSE_WRITE).union(WatchFlags::CREATE).union(WatchFlags::DELETE);

/// A zone file of at most this many bytes is read on the server's thread, in well under a
/// millisecond. A larger one is read on another thread.
const SMALL: u64 = 64 * 1024;

/// Reads both files and starts watching.
pub(super) async fn start(server: &Arc<Server>, tasks: &mut JoinSet<()>) -> Result<(), Error> {
    let kernel = |what| move |source: io::Error| Error::Kernel { what, source };
    let events = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)
        .map_err(|e| kernel("make an inotify instance")(e.into()))?;
    let (zone, resolv) = (server.cfg.roots.zone_file(), server.cfg.roots.resolv_conf.clone());
    // The watch starts before the first read, so that no change is missed in between.
    let dir = zone.parent().unwrap_or(Path::new("/"));
    let zone_watch = inotify::add_watch(&events, dir, FLAGS)
        .map_err(|e| kernel("watch the zone's directory")(e.into()))?;
    let mut watched = BTreeSet::new();
    follow(&events, zone_watch, &mut watched, &resolv);
    #[expect(
        deprecated,
        reason = "an OwnedFd stays the same descriptor and open, which is what the other one asks for"
    )]
    let events = AsyncFd::new(events).map_err(kernel("wait for file events"))?;
    read_upstreams(server);
    read_zone(server).await;
    let server = Arc::clone(server);
    tasks.spawn(async move {
        let mut released = false;
        loop {
            let next = wait(&events, zone_watch, &zone);
            let changed = if released {
                next.await
            } else {
                let Ok(changed) = timeout(IDLE, next).await else {
                    // Memory for parsing the zone, and program text that only ran for it, are
                    // released.
                    memory::give_back();
                    memory::let_go_of_text();
                    released = true;
                    continue;
                };
                changed
            };
            let changed = match changed {
                Ok(changed) => changed,
                Err(error) => {
                    tracing::error!(error = %Chain(&error), "cannot read file events; changes of the zone and of resolv.conf are not seen any more");
                    return;
                }
            };
            released = false;
            if changed.zone {
                read_zone(&server).await;
            }
            if changed.other {
                follow(events.get_ref(), zone_watch, &mut watched, &resolv);
                read_upstreams(&server);
            }
        }
    });
    Ok(())
}

/// Watches the directories that determine resolv.conf, and no others.
fn follow(events: &OwnedFd, zone_watch: i32, watched: &mut BTreeSet<i32>, resolv: &Path) {
    let mut now = BTreeSet::new();
    for dir in directories(resolv) {
        match inotify::add_watch(events, &dir, FLAGS) {
            Ok(watch) => drop(now.insert(watch)),
            Err(error) => {
                tracing::warn!(dir = %dir.display(), %error, "cannot watch a directory of resolv.conf; its changes are not seen")
            }
        }
    }
    for removed in watched.difference(&now).filter(|watch| **watch != zone_watch) {
        // The kernel removed the watch together with its directory.
        inotify::remove_watch(events, *removed).unwrap_or_default();
    }
    *watched = now;
}

/// The directories of a file and of its links' targets.
fn directories(file: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut file = file.to_owned();
    for _ in 0..LINKS {
        let dir = file.parent().unwrap_or(Path::new("/")).to_owned();
        let target = std::fs::read_link(&file);
        found.push(dir.clone());
        match target {
            Ok(target) => file = dir.join(target),
            Err(_no_link) => break,
        }
    }
    found
}

#[derive(Debug, Default)]
struct Changed {
    zone: bool,
    other: bool,
}

/// Waits for changes and takes all pending ones.
async fn wait(events: &AsyncFd<OwnedFd>, zone_watch: i32, zone: &Path) -> io::Result<Changed> {
    let mut changed = Changed::default();
    while !changed.zone && !changed.other {
        let mut ready = events.readable().await?;
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(events.get_ref(), &mut buffer);
        loop {
            match reader.next() {
                Ok(event) => {
                    let is_zone = event.file_name().map(|n| n.to_bytes())
                        == zone.file_name().map(|n| n.as_encoded_bytes());
                    if event.events().contains(inotify::ReadFlags::QUEUE_OVERFLOW) {
                        changed = Changed { zone: true, other: true };
                    } else if event.wd() == zone_watch {
                        // Temporary files beside the zone are ignored.
                        changed.zone |= is_zone;
                    } else {
                        changed.other = true;
                    }
                }
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        ready.clear_ready();
    }
    Ok(changed)
}

/// Loads the zone file. A file that cannot be read changes nothing.
async fn read_zone(server: &Arc<Server>) {
    let path = server.cfg.roots.zone_file();
    let length = match std::fs::metadata(&path) {
        Ok(metadata) => metadata.len(),
        // The zone is not published yet, or was removed: the last one stays in use.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return,
        Err(_reported_by_the_read) => 0,
    };
    let addresses = server.cfg.addresses.clone();
    let load = move || -> Result<Index, Error> {
        let zone = publish::read(&path)?;
        Index::new(zone, &addresses).map_err(|reason| Error::Zone { path, reason })
    };
    let loaded = if length <= SMALL {
        load()
    } else {
        match tokio::task::spawn_blocking(load).await {
            Ok(loaded) => loaded,
            Err(error) => Err(Error::Kernel { what: "read the zone", source: io::Error::other(error) }),
        }
    };
    let mut state = lock(&server.zone);
    match loaded {
        Ok(index) => {
            tracing::debug!(serial = index.serial(), services = index.services(), "zone loaded");
            state.index = Some(Arc::new(index));
            state.error = None;
        }
        Err(error) => {
            let error = Chain(&error).to_string();
            tracing::warn!(%error, "cannot load the zone; the last one stays in use");
            state.error = Some(error);
        }
    }
}

/// Loads the upstreams of resolv.conf. A file that cannot be read changes nothing.
fn read_upstreams(server: &Server) {
    let path = &server.cfg.roots.resolv_conf;
    match berth_sys::fs::read_limited(path, RESOLV_MAX) {
        Ok(text) => {
            let servers = resolv::upstreams(&String::from_utf8_lossy(&text), &server.cfg.addresses);
            if server.upstreams.set(servers) {
                tracing::info!(upstreams = ?server.upstreams.servers(), "upstreams changed");
                server.cache().clear();
            }
        }
        Err(error) => {
            tracing::warn!(error = %Chain(&error), "cannot read the upstreams; the last ones stay in use")
        }
    }
}
