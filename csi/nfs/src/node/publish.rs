//! Publishing: a mount made out of sight on a thread, then attached at the pod's path.

use super::Node;
use crate::{
    capability::Usage,
    error::{Error, Result},
    handle::VolumeHandle,
    location::Location,
    mountinfo,
    options::Options,
    parameters,
};
use berth_csi_proto::csi::NodePublishVolumeRequest;
use rustix::{
    fd::{AsFd, OwnedFd},
    fs::{CWD, Mode, OFlags, fchmod, fstat, open, openat},
    io::Errno,
};
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tracing::info;

/// How long a mount may take. The kubelet waits for two minutes.
const MOUNT: Duration = Duration::from_secs(90);

/// Mounts that are being made, by the path of the pod.
#[derive(Debug, Default, Clone)]
pub(super) struct Attempts {
    running: Arc<Mutex<HashMap<PathBuf, Attempt>>>,
}

#[derive(Debug, Clone)]
struct Attempt {
    volume: String,
    of_one_pod: bool,
    /// Whether the mount is not wanted any more. Held while the mount is attached.
    abandoned: Arc<Mutex<bool>>,
}

/// A running attempt; its end is the end of this value.
struct Running {
    target: PathBuf,
    abandoned: Arc<Mutex<bool>>,
    all: Attempts,
}

/// The call's side of an attempt. A call that ends without the mount, also because its caller went away, leaves nobody
/// who would unmount it: the mount is not attached any more.
struct Wanted(Arc<Mutex<bool>>);

impl Drop for Wanted {
    fn drop(&mut self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.all.lock().remove(&self.target);
    }
}

impl Attempts {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<PathBuf, Attempt>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, target: &Path, volume: &str, of_one_pod: bool) -> Result<Running> {
        let mut running = self.lock();
        let busy =
            |reason: &str| Error::Busy { what: format!("publish volume {volume}"), reason: reason.into() };
        if running.contains_key(target) {
            return Err(busy("an earlier mount at that path still waits for the server"));
        }
        if running.values().any(|other| other.volume == volume && (of_one_pod || other.of_one_pod)) {
            return Err(busy("it is being mounted for another pod"));
        }
        let abandoned = Arc::new(Mutex::new(false));
        let attempt = Attempt { volume: volume.to_owned(), of_one_pod, abandoned: Arc::clone(&abandoned) };
        running.insert(target.to_owned(), attempt);
        Ok(Running { target: target.to_owned(), abandoned, all: self.clone() })
    }

    /// Ensures that a mount that is still being made is not attached to this path.
    pub(super) fn abandon(&self, target: &Path) {
        let attempt = self.lock().get(target).cloned();
        if let Some(attempt) = attempt {
            *attempt.abandoned.lock().unwrap_or_else(PoisonError::into_inner) = true;
        }
    }
}

/// The place of the volume that a request names: its attributes, or else its id.
fn place(request: &NodePublishVolumeRequest) -> Result<(Location, Option<u32>)> {
    let (location, mode) = parameters::of_context(&request.volume_context)?;
    match location {
        Some(location) => Ok((location, mode)),
        None => match VolumeHandle::parse(&request.volume_id) {
            Some(handle) => Ok((handle.location, mode)),
            None => {
                let reason = "neither the volume's attributes nor its id name a server and a share";
                Err(Error::field("volume_context", reason))
            }
        },
    }
}

impl Node {
    /// Mounts a volume at a pod's path. A repetition finds the mount of the first call.
    ///
    /// # Errors
    /// The request is wrong; the server does not answer in time or refuses; the path is taken.
    pub(super) async fn publish(
        &self,
        request: NodePublishVolumeRequest,
        target: PathBuf,
        usage: Usage,
    ) -> Result<()> {
        let (location, mode) = place(&request)?;
        let read_only = request.readonly || usage.reads_only();
        let texts = request.volume_context.get("mountOptions").into_iter().chain(&usage.options);
        let options = Options::parse(texts.map(String::as_str))?.read_only(read_only);
        let running = self.attempts.begin(&target, &request.volume_id, usage.of_one_pod())?;
        let mounts = mountinfo::all()?;
        if let Some(there) = mounts.iter().rfind(|m| m.point == target) {
            let same = self.mounter.is_of(there, &location);
            let wanted = options.attributes.contains(rustix::mount::MountAttrFlags::MOUNT_ATTR_RDONLY);
            return match (same, there.read_only == wanted) {
                (true, true) => Ok(()),
                (true, false) => Err(taken(
                    &target,
                    "the volume is mounted there, but not as read-only or writable as wanted",
                )),
                (false, _) => {
                    Err(taken(&target, &format!("{} is mounted there", there.source.to_string_lossy())))
                }
            };
        }
        if usage.of_one_pod()
            && let Some(other) = mounts.iter().find(|m| self.mounter.is_of(m, &location))
        {
            let reason = format!("it is for one pod, and is mounted at {}", other.point.display());
            return Err(Error::State { what: format!("publish volume {}", request.volume_id), reason });
        }
        let _wanted = Wanted(Arc::clone(&running.abandoned));
        let server = location.server.as_str().to_owned();
        let mounter = Arc::clone(&self.mounter);
        let source = location.source();
        let work = move || {
            let running = running;
            let mount = mounter.mount(&location, &options)?;
            if let Some(mode) = mode.filter(|_| !read_only) {
                set_mode(&mount, mode)?;
            }
            let abandoned = running.abandoned.lock().unwrap_or_else(PoisonError::into_inner);
            if *abandoned {
                return Err(Error::Cancelled("the mount"));
            }
            let directory = directory(&running.target)?;
            mounter.attach(mount.as_fd(), directory.as_fd(), &running.target, &options)?;
            info!(source = location.source(), target = %running.target.display(), "mounted");
            Ok(())
        };
        let overdue = move |seconds| Error::Deadline { what: format!("mount {source}"), seconds };
        self.threads.run(&server, MOUNT, work, overdue).await
    }
}

fn taken(target: &Path, reason: &str) -> Error {
    Error::Exists { what: format!("a mount at {}", target.display()), reason: reason.into() }
}

/// The directory at a pod's path, made where it is missing. Never a link.
fn directory(target: &Path) -> Result<OwnedFd> {
    let failed = |e: Errno| Error::file("make the directory", target.display().to_string(), e);
    match rustix::fs::mkdirat(CWD, target, Mode::RWXU | Mode::RGRP | Mode::XGRP) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(e) => return Err(failed(e)),
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    open(target, flags, Mode::empty()).map_err(failed)
}

/// Sets the mode of the volume's directory where it is another.
fn set_mode(mount: &OwnedFd, mode: u32) -> Result<()> {
    let failed = |e: Errno| Error::file("set the mode of", "the volume's directory", e);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(mount, ".", flags, Mode::empty()).map_err(failed)?;
    if fstat(&root).map_err(failed)?.st_mode & 0o7777 == mode {
        return Ok(());
    }
    fchmod(&root, Mode::from_raw_mode(mode)).map_err(failed)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn one_attempt_a_path_and_none_beside_a_pod_that_wants_the_volume_alone() {
        let attempts = Attempts::default();
        let first = attempts.begin(Path::new("/a"), "v", false).unwrap();
        assert!(attempts.begin(Path::new("/a"), "w", false).is_err());
        assert!(attempts.begin(Path::new("/b"), "v", true).is_err());
        let second = attempts.begin(Path::new("/b"), "v", false).unwrap();
        attempts.abandon(Path::new("/a"));
        assert!(*first.abandoned.lock().unwrap() && !*second.abandoned.lock().unwrap());
        drop(first);
        assert!(attempts.begin(Path::new("/a"), "w", false).is_ok());
        attempts.abandon(Path::new("/nobody"));
    }

    #[test]
    fn attributes_name_the_place_or_the_id_does() {
        let id = format!("v1#h#/s#a#delete#{}", crate::handle::Key::of("a").as_str());
        let request = |id: &str, context: &[(&str, &str)]| NodePublishVolumeRequest {
            volume_id: id.into(),
            volume_context: context.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            ..Default::default()
        };
        assert_eq!(place(&request(&id, &[])).unwrap().0.source(), "h:/s/a");
        let context = [("server", "o"), ("share", "/t"), ("mountPermissions", "0770")];
        let (location, mode) = place(&request("anything", &context)).unwrap();
        assert_eq!((location.source().as_str(), mode), ("o:/t", Some(0o770)));
        assert!(place(&request("anything", &[])).is_err());
        assert!(place(&request(&id, &[("share", "/s")])).is_err());
    }
}
