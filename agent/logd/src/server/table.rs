//! The table of streams on disk: `<runtime_state>/logd/streams/<id>.json`, one file a stream.

use crate::error::Error;
use berth_api::logd::StreamSpec;
use berth_core::{ids::ContainerId, roots::Roots};
use serde::{Deserialize, Serialize};
use std::{
    fmt::Display,
    io,
    path::{Path, PathBuf},
};

#[derive(Serialize, Deserialize)]
struct Row<S> {
    v: u32,
    spec: S,
}

fn dir(roots: &Roots) -> PathBuf {
    roots.logd_state_dir().join("streams")
}

fn path(roots: &Roots, id: &ContainerId) -> PathBuf {
    dir(roots).join(format!("{id}.json"))
}

/// Creates the directories.
pub(super) fn prepare(roots: &Roots) -> Result<(), Error> {
    for path in [dir(roots), roots.logd_state_dir().join("carry")] {
        std::fs::create_dir_all(&path).map_err(|source| Error::Directory { path, source })?;
    }
    Ok(())
}

/// Writes a row atomically.
pub(super) fn save(roots: &Roots, spec: &StreamSpec) -> Result<(), Error> {
    let path = path(roots, &spec.id);
    let tmp = path.with_extension("tmp");
    let write = || {
        std::fs::write(&tmp, serde_json::to_vec(&Row { v: 1, spec })?)?;
        std::fs::rename(&tmp, &path)
    };
    write().map_err(|source| Error::State { path: path.clone(), source })
}

/// Removes a row. A missing row is no error.
pub(super) fn remove(roots: &Roots, id: &ContainerId) -> Result<(), Error> {
    let path = path(roots, id);
    berth_sys::fs::remove_if_there(&path).map_err(|source| Error::State { path, source })
}

/// Loads all rows. A row that cannot be read, or whose container does not match its file name and
/// so could never be removed, is renamed to `<name>.bad`.
pub(super) fn load(roots: &Roots) -> Result<Vec<StreamSpec>, Error> {
    let dir = dir(roots);
    let fail = |source| Error::State { path: dir.clone(), source };
    let mut specs = Vec::new();
    for entry in std::fs::read_dir(&dir).map_err(fail)? {
        let file = entry.map_err(fail)?.path();
        if file.extension().is_none_or(|e| e != "json") {
            continue;
        }
        match read(&file) {
            Ok(spec) if path(roots, &spec.id) == file => specs.push(spec),
            Ok(spec) => set_aside(file, &format_args!("it belongs to container {}", spec.id))?,
            Err(error) => set_aside(file, &error)?,
        }
    }
    Ok(specs)
}

fn read(file: &Path) -> io::Result<StreamSpec> {
    Ok(serde_json::from_slice::<Row<StreamSpec>>(&std::fs::read(file)?)?.spec)
}

fn set_aside(path: PathBuf, why: &dyn Display) -> Result<(), Error> {
    tracing::warn!(path = %path.display(), error = %why, "cannot use the state of a stream; the file is renamed to .bad");
    std::fs::rename(&path, path.with_extension("bad")).map_err(|source| Error::State { path, source })
}
