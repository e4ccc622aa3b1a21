//! The BPF file system below the pins: mounted where the machine has none, and remembered, so that it can be taken away
//! with the node.

use crate::Cause;
use berth_core::roots::Roots;
use berth_ebpf_loader::{self as loader, Pins};
use nix::{
    mount::{MntFlags, umount2},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};
use std::{
    io,
    path::{Path, PathBuf},
};

/// Says that the agent mounted the file system that holds the pins; the mount dies with the boot, as this does.
fn mark(roots: &Roots) -> PathBuf {
    roots.runtime_state.join("bpffs-mounted")
}

fn parent(roots: &Roots) -> &Path {
    roots.bpf_pins.parent().unwrap_or(Path::new("/"))
}

fn is_mounted(dir: &Path) -> bool {
    statfs(dir).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC)
}

/// Sees to it that the pins lie on a BPF file system.
pub(super) fn ensure(roots: &Roots, pins: &Pins) -> Result<(), Cause> {
    if !is_mounted(parent(roots)) {
        // Before the mount: one that is marked and not there is no harm.
        std::fs::write(mark(roots), b"")
            .map_err(failed("note the mount of a BPF file system in", &mark(roots)))?;
    }
    Ok(loader::ensure_bpffs(pins)?)
}

/// Unmounts the file system where the agent has mounted it and nobody else keeps anything there.
pub(super) fn unmount(roots: &Roots) -> Result<(), Cause> {
    let (mark, dir) = (mark(roots), parent(roots));
    if !mark.exists() {
        return Ok(());
    }
    let empty = || std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none());
    if is_mounted(dir) && empty() {
        umount2(dir, MntFlags::empty()).map_err(|e| failed("unmount", dir)(e.into()))?;
    }
    Ok(std::fs::remove_file(&mark).map_err(failed("remove", &mark))?)
}

/// The BPF file system could not be brought or taken away.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {}", path.display())]
struct BpffsError {
    operation: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BpffsError {
    move |source| BpffsError { operation, path: path.to_owned(), source }
}
