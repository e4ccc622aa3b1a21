//! Links to log files, and removal of logs.

use crate::{dirs, error::Error, rotated::Rotated};
use berth_api::logd::StreamSpec;
use berth_core::{
    ids::{PodKey, PodUid},
    roots::Roots,
};
use std::{
    io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

/// Creates the link `<pod>_<namespace>_<container>-<id>.log` to the log file.
pub(super) fn link(roots: &Roots, spec: &StreamSpec) -> Result<(), Error> {
    let dir = &roots.container_log_links;
    let path = dir.join(spec.link_name());
    let target = spec.log_path(roots);
    let make = || {
        std::fs::create_dir_all(dir)?;
        match symlink(&target, &path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            done => return done,
        }
        if std::fs::read_link(&path).is_ok_and(|old| old == target) {
            return Ok(());
        }
        std::fs::remove_file(&path)?;
        symlink(&target, &path)
    };
    make().map_err(|source| Error::Link { path: path.clone(), source })
}

/// Ignores missing files. A file whose name would be too long cannot exist.
fn ignore_missing(path: PathBuf, result: io::Result<()>) -> Result<(), Error> {
    match result {
        Err(source) if !matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidFilename) => {
            Err(Error::Remove { path, source })
        }
        _ => Ok(()),
    }
}

/// Removes one attempt's log files, rotated ones too, and its link.
pub(super) fn remove_attempt(roots: &Roots, spec: &StreamSpec) -> Result<(), Error> {
    let link = roots.container_log_links.join(spec.link_name());
    if std::fs::read_link(&link).is_ok_and(|target| target == spec.log_path(roots)) {
        berth_sys::fs::remove_if_there(&link).map_err(|source| Error::Remove { path: link, source })?;
    }
    let remove = || {
        let root = dirs::open_root(&roots.pod_logs)?;
        let dir = dirs::open_dir(root, &[&spec.pod_dir_name(), spec.container.as_str()])?;
        for name in dirs::names(&dir)? {
            let plain = name.strip_suffix(".gz.tmp").unwrap_or(&name);
            if plain == spec.log_name() || Rotated::parse(spec.attempt, plain).is_some() {
                dirs::unlink(&dir, &name)?;
            }
        }
        Ok(())
    };
    ignore_missing(spec.log_dir(roots), remove())
}

/// Removes a pod's log directory and every link that leads into it.
pub(super) fn remove_pod(roots: &Roots, key: &PodKey, uid: &PodUid) -> Result<(), Error> {
    let dir = roots.pod_log_dir(key, uid);
    let prefix = format!("{}_{}_", key.name, key.namespace);
    let links = || {
        for entry in std::fs::read_dir(&roots.container_log_links)? {
            let path = entry?.path();
            let ours = path.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with(&prefix));
            if ours && leads_into(&path, &dir) {
                std::fs::remove_file(&path)?;
            }
        }
        Ok(())
    };
    ignore_missing(roots.container_log_links.clone(), links())?;
    let remove =
        || dirs::remove_tree(dirs::open_root(&roots.pod_logs)?, &Roots::pod_log_dir_name(key, uid), 3);
    ignore_missing(dir.clone(), remove())
}

fn leads_into(link: &Path, dir: &Path) -> bool {
    std::fs::read_link(link).is_ok_and(|target| target.starts_with(dir))
}
