//! Attachment of the socket hooks: one cgroup link for each hook, whose program is swapped in place.

use crate::{
    Error, Pins, Result, SocketHook,
    bpffs::release_bpffs,
    device::{self, parse_pin},
    pins::{failed, list, lock, open_link, open_program, pin_over, remove},
    sys::{LinkInfo, Target, info, link_create, link_update},
};
use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::MetadataExt,
    },
    path::Path,
    time::Duration,
};

/// Longest wait for a load in progress.
const LOADED: Duration = Duration::from_secs(30);

const LINK_TYPE_CGROUP: u32 = 3;

/// Counts of one [`attach`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Attached {
    /// Links that were created.
    pub made: usize,
    /// Links whose program was swapped, including those of devices.
    pub swapped: usize,
    /// Links that had the wanted program already.
    pub kept: usize,
    /// Removed pins of devices that no longer exist.
    pub gone: usize,
    /// Schemas whose maps and programs were removed.
    pub retired: Vec<u32>,
}

/// Attaches the prepared programs to `cgroup` and swaps them into the existing links, including those of
/// devices; then removes the directories of other schemas. The maps must be filled before the call: the
/// programs use them from here on. Changes nothing where all links are right.
///
/// # Errors
/// No program is pinned, the cgroup is missing, or the kernel refuses. Links that were not reached keep their
/// program.
pub fn attach(pins: &Pins, cgroup: &Path) -> Result<Attached> {
    let mut attached = attach_sockets(pins, cgroup)?;
    for (name, path) in list(&pins.links())? {
        if SocketHook::ALL.iter().any(|hook| hook.name() == name) {
            continue;
        }
        match parse_pin(&name) {
            Some((ifindex, place)) => match device::adopt(pins, ifindex, place)? {
                device::Adoption::Kept => attached.kept += 1,
                device::Adoption::Swapped => attached.swapped += 1,
                device::Adoption::Gone => {
                    remove(&path)?;
                    attached.gone += 1;
                }
            },
            // An unfinished pin, or a hook that the programs no longer have.
            None => {
                remove(&path)?;
            }
        }
    }
    attached.retired = pins.remove_other_schemas()?;
    Ok(attached)
}

/// Attaches the socket hooks alone: the other programs may not be loaded yet.
///
/// # Errors
/// As for [`attach`].
pub fn attach_sockets(pins: &Pins, cgroup: &Path) -> Result<Attached> {
    let dir = File::open(cgroup).map_err(failed("open", cgroup))?;
    // The kernel's id of a cgroup is the inode number of its directory.
    let id = dir.metadata().map_err(failed("examine", cgroup))?.ino();
    let mut attached = Attached::default();
    for hook in SocketHook::ALL {
        attach_hook(pins, hook, dir.as_fd(), id, &mut attached)?;
    }
    Ok(attached)
}

/// Detaches everything and removes all pins. Removes the BPF file system too if
/// [`ensure_bpffs`](crate::ensure_bpffs) mounted it and no other process keeps pins there. For uninstalling
/// and for tests. Translated connections break. Waits for a load in progress, for example of an agent killed
/// a moment ago.
///
/// # Errors
/// The kernel refuses, or the load takes longer than half a minute.
pub fn detach(pins: &Pins) -> Result<()> {
    if let Some(one_at_a_time) = lock(pins.root(), LOADED)? {
        match std::fs::remove_dir_all(pins.root()) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed("remove", pins.root())(e)),
            _ => {}
        }
        // An open file on the file system keeps it mounted.
        drop(one_at_a_time);
    }
    release_bpffs(pins)
}

fn attach_hook(
    pins: &Pins,
    hook: SocketHook,
    cgroup: BorrowedFd<'_>,
    cgroup_id: u64,
    attached: &mut Attached,
) -> Result<()> {
    let path = pins.links().join(hook.name());
    let failed = |op| move |source| Error::Link { op, link: hook.name().to_owned(), source };
    let (program, id) = open_program(pins, hook.name())?;
    if let Some(link) = open_link(&path)? {
        let found: LinkInfo = info(link.as_fd()).map_err(failed("examine"))?;
        let ours = found.kind == LINK_TYPE_CGROUP
            && found.target == cgroup_id
            && found.cgroup_attach_type == hook.attach_type();
        if ours && found.program == id {
            attached.kept += 1;
            return Ok(());
        }
        if ours {
            link_update(link.as_fd(), program.as_fd()).map_err(failed("update"))?;
            attached.swapped += 1;
            return Ok(());
        }
    }
    let link =
        link_create(program.as_fd(), Target::Cgroup(cgroup), hook.attach_type()).map_err(failed("make"))?;
    pin_over(link.as_fd(), &path)?;
    attached.made += 1;
    Ok(())
}
