//! Sub-paths of volumes. Containers can write to the volume while its path is walked. So each step uses a
//! descriptor and the kernel keeps it inside the volume; a checked path is never looked up by name again.

use crate::os;
use berth_sys::{
    failpoint::step,
    fs::{OFlags, make_dir_at, open_beneath},
};
use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    fs::{FileType, Mode},
};
use std::{
    collections::BTreeSet,
    io,
    path::{Component, Path, PathBuf},
};

/// Flags of a descriptor that only identifies its file.
const HANDLE: OFlags = OFlags::PATH;

/// Expands the `$(VAR)` of a `subPathExpr`. Fails with the names, sorted, of variables that are unset or
/// empty.
pub(crate) fn expand(text: &str, env: &[(String, String)]) -> Result<String, Vec<String>> {
    let mut missing = BTreeSet::new();
    let expanded = berth_core::model::expand(text, |name| {
        let value = env.iter().rev().find(|(n, _)| n == name).map_or("", |(_, value)| value.as_str());
        if value.is_empty() {
            missing.insert(name.to_owned());
        }
        Some(value)
    });
    if missing.is_empty() { Ok(expanded) } else { Err(missing.into_iter().collect()) }
}

/// The sub-path in normal form; it may be empty (`.`), which is the volume itself.
pub(crate) fn normal(text: &str) -> Result<PathBuf, &'static str> {
    let mut out = PathBuf::new();
    for component in Path::new(text).components() {
        match component {
            Component::Normal(name) => out.push(name),
            Component::CurDir => {}
            Component::ParentDir => return Err("must not contain '..'"),
            Component::RootDir | Component::Prefix(_) => return Err("must not be an absolute path"),
        }
    }
    if text.contains('\0') {
        return Err("must not contain NUL");
    }
    Ok(out)
}

/// Opens `path` inside the volume with that root. Links are followed as long as they stay inside the volume.
pub(crate) fn resolve(root: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    open_beneath(root, path, HANDLE).map_err(plain)
}

/// Opens `path` like [`resolve`]; missing directories are created with `mode`.
pub(crate) fn resolve_or_make(root: BorrowedFd<'_>, path: &Path, mode: u32) -> io::Result<OwnedFd> {
    match resolve(root, path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        other => return other,
    }
    let mut dir = resolve(root, Path::new(""))?;
    let mut at = PathBuf::new();
    for name in path.components() {
        at.push(name);
        // Starts at the root each time, since a link may lead anywhere in the volume.
        match resolve(root, &at) {
            Ok(next) => dir = next,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let name = name.as_os_str();
                // Whole from its first moment: nobody sets the mode of one that a killed agent left.
                match step("make-sub-path-directory", || make_dir_at(&dir, name, mode & 0o1777)) {
                    Ok(()) => {
                        // Fails if a link was put in its place meanwhile.
                        dir = os::open_dir_at(&dir, name)?;
                        os::set_mode(&dir, mode)?;
                    }
                    // Another process created it, or it is a dangling link, which fails here.
                    Err(e) if e.kind() == io::ErrorKind::AlreadyExists => dir = os::open_dir_at(&dir, name)?,
                    Err(e) => return Err(e),
                }
            }
            Err(e) => return Err(e),
        }
    }
    resolve(root, path)
}

/// The kernel's error itself, so that callers can match its kind.
fn plain(e: berth_sys::Error) -> io::Error {
    match e {
        berth_sys::Error::Open { source, .. } => source,
        other => io::Error::other(other),
    }
}

/// Binds the file of `source` at `target`, below directories that only the node can write. A bind mount of
/// the same file stays; one of another file is replaced.
pub(crate) fn bind(source: impl AsFd, target: &Path) -> io::Result<()> {
    let wanted = rustix::fs::fstat(&source)?;
    // This code never mounts on top of a mount, but an earlier build may have left one.
    for _ in 0..64 {
        if !os::sys(berth_sys::mount::is_mount_point(target))? {
            break;
        }
        let found = rustix::fs::lstat(target)?;
        if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino) {
            return Ok(());
        }
        os::sys(berth_sys::mount::unmount(target))?;
    }
    let is_dir = FileType::from_raw_mode(wanted.st_mode) == FileType::Directory;
    step("make-sub-path", || make_target(target, is_dir))?;
    let options = berth_sys::mount::BindOpts::default();
    os::sys(step("bind-sub-path", || berth_sys::mount::bind_fd(source, target, options)))
}

/// Creates an empty directory or file as the mount point.
fn make_target(target: &Path, is_dir: bool) -> io::Result<()> {
    if let Some(parent) = target.parent() {
        os::make_dirs(parent, crate::layout::NODE_DIR)?;
    }
    match std::fs::symlink_metadata(target) {
        Ok(found) if found.is_dir() == is_dir && !found.is_symlink() => return Ok(()),
        // A mount point of the wrong kind, from before the volume's content changed. Both calls fail if it is
        // not empty.
        Ok(found) if found.is_dir() => std::fs::remove_dir(target)?,
        Ok(_) => std::fs::remove_file(target)?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    if is_dir {
        return Ok(rustix::fs::mkdir(target, Mode::from_raw_mode(crate::layout::NODE_DIR))?);
    }
    std::fs::OpenOptions::new().write(true).create_new(true).open(target).map(drop)
}

#[cfg(test)]
mod tests;
