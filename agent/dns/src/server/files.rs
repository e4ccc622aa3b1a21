//! The zone file and resolv.conf, read again when they change.
//!
//! Directories are watched, as both files are replaced by rename. Where resolv.conf is a link, the directory of its
//! target is watched too.

use super::Server;
use crate::{
    error::{Error, chain},
    index::Index,
    publish, resolv,
};
use berth_sys::memory;
use rustix::{
    fd::OwnedFd,
    fs::inotify::{self, CreateFlags, WatchFlags},
    io::Errno,
};
use std::{
    io,
    mem::MaybeUninit,
    path::Path,
    sync::{Arc, PoisonError},
    time::Duration,
};
use tokio::{io::unix::AsyncFd, task::JoinSet, time::timeout};

/// When nothing has changed for so long, memory is given back.
const REST: Duration = Duration::from_secs(1);

/// A larger resolv.conf is not read, in bytes.
const RESOLV_MAX: usize = 64 * 1024;

/// A zone file up to this many bytes is read at once, in well under a millisecond; a larger one by another thread.
const SMALL: u64 = 64 * 1024;

/// Reads both and begins to watch.
pub(super) async fn start(server: &Arc<Server>, tasks: &mut JoinSet<()>) -> Result<(), Error> {
    let kernel = |what| move |source: io::Error| Error::Kernel { what, source };
    let events = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)
        .map_err(|e| kernel("make an inotify instance")(e.into()))?;
    let (zone, resolv) = (server.cfg.roots.zone_file(), server.cfg.roots.resolv_conf.clone());
    let flags = WatchFlags::MOVED_TO | WatchFlags::CLOSE_WRITE | WatchFlags::CREATE | WatchFlags::DELETE;
    let watch = |file: &Path| {
        let dir = file.parent().unwrap_or(Path::new("/"));
        inotify::add_watch(&events, dir, flags).map_err(io::Error::from)
    };
    // Before the first reading, so that no change falls between the two.
    let zone_watch = watch(&zone).map_err(kernel("watch the zone's directory"))?;
    for file in [Some(resolv.clone()), resolv.canonicalize().ok()].into_iter().flatten() {
        if let Err(error) = watch(&file) {
            tracing::warn!(path = %file.display(), %error, "changes of upstreams are not seen");
        }
    }
    #[expect(
        deprecated,
        reason = "an OwnedFd stays the same descriptor and open, which is what the other one asks for"
    )]
    let events = AsyncFd::new(events).map_err(kernel("wait for file events"))?;
    read_upstreams(server);
    read_zone(server).await;
    let server = Arc::clone(server);
    tasks.spawn(async move {
        let mut tidy = false;
        loop {
            let next = wait(&events, zone_watch, &zone);
            let changed = if tidy {
                next.await
            } else {
                let Ok(changed) = timeout(REST, next).await else {
                    // What a zone took while it was read, and what of the program only ran for it.
                    memory::give_back();
                    memory::let_go_of_text();
                    tidy = true;
                    continue;
                };
                changed
            };
            let changed = match changed {
                Ok(changed) => changed,
                Err(error) => {
                    tracing::error!(error = %chain(&error), "file events cannot be read");
                    return;
                }
            };
            tidy = false;
            if changed.zone {
                read_zone(&server).await;
            }
            if changed.other {
                read_upstreams(&server);
            }
        }
    });
    Ok(())
}

#[derive(Debug, Default)]
struct Changed {
    zone: bool,
    other: bool,
}

/// Waits for changes and takes all that are there.
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
                        // The temporary names beside it mean nothing.
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

/// Puts the zone in use that the file has; a file that cannot be read changes nothing.
async fn read_zone(server: &Arc<Server>) {
    let path = server.cfg.roots.zone_file();
    let length = match std::fs::metadata(&path) {
        Ok(metadata) => metadata.len(),
        // Not published yet, or taken away: the last one stays.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return,
        Err(_told_by_the_reader) => 0,
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
    let mut state = server.zone.lock().unwrap_or_else(PoisonError::into_inner);
    match loaded {
        Ok(index) => {
            tracing::debug!(serial = index.serial(), services = index.services(), "zone");
            state.index = Some(Arc::new(index));
            state.error = None;
        }
        Err(error) => {
            let error = chain(&error);
            tracing::warn!(%error, "zone not taken; the last one stays");
            state.error = Some(error);
        }
    }
}

/// Takes the upstreams of resolv.conf; where it cannot be read they stay.
fn read_upstreams(server: &Server) {
    let path = &server.cfg.roots.resolv_conf;
    match berth_sys::fs::read_limited(path, RESOLV_MAX) {
        Ok(text) => {
            let servers = resolv::upstreams(&String::from_utf8_lossy(&text), &server.cfg.addresses);
            if server.upstreams.set(servers) {
                tracing::info!(upstreams = ?server.upstreams.servers(), "upstreams");
                server.cache().clear();
            }
        }
        Err(error) => tracing::warn!(error = %chain(&error), "upstreams not read; the last ones stay"),
    }
}
