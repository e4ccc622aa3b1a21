//! The socket hooks: one cgroup link each, whose program is swapped in place.

use crate::{
    Error, Hook, Pins, Result,
    bpffs::release_bpffs,
    device::{self, parse_pin},
    pins::{failed, list, lock, pin_over, remove},
    sys::{LinkInfo, ProgInfo, Target, info, link_create, link_update, obj_get},
};
use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::Path,
    time::Duration,
};

/// How long a load may take before it is not waited for any more.
const LOADED: Duration = Duration::from_secs(30);

const LINK_TYPE_CGROUP: u32 = 3;

/// What [`attach`] found and did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Attached {
    /// Links that were made.
    pub made: usize,
    /// Links whose program was swapped, those of devices among them.
    pub swapped: usize,
    /// Links that were right already.
    pub kept: usize,
    /// Pins of devices that are gone, which were removed.
    pub gone: usize,
    /// Schemas whose maps and programs were removed.
    pub retired: Vec<u32>,
}

/// Attaches the prepared programs to `cgroup` and swaps them into the links that are there, of devices too; then
/// removes what other schemas left. To be called once the maps are filled: from here on they are asked. Does nothing
/// where all is right.
///
/// # Errors
/// Nothing was prepared, the cgroup is missing, or the kernel refuses. Links that were not reached keep their program.
pub fn attach(pins: &Pins, cgroup: &Path) -> Result<Attached> {
    let dir = File::open(cgroup).map_err(failed("open", cgroup))?;
    // The kernel's id of a cgroup is the inode number of its directory.
    let id = dir.metadata().map_err(failed("examine", cgroup))?.ino();
    let mut attached = Attached::default();
    for hook in Hook::ALL {
        attach_hook(pins, hook, dir.as_fd(), id, &mut attached)?;
    }
    for (name, path) in list(&pins.links())? {
        if Hook::ALL.iter().any(|hook| hook.name() == name) {
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
            // A half-made pin, or a hook that the programs no longer have.
            None => {
                remove(&path)?;
            }
        }
    }
    attached.retired = pins.remove_other_schemas()?;
    Ok(attached)
}

/// Detaches everything and removes all pins, and the BPF file system below them where [`ensure_bpffs`](crate::ensure_bpffs)
/// has mounted it and nobody else keeps anything there: for uninstalling, and for tests. Connections that packets were
/// translated for break. Waits for a load that is under way: that of an agent killed a moment ago may be.
///
/// # Errors
/// The kernel refuses, or the load takes longer than half a minute.
pub fn detach(pins: &Pins) -> Result<()> {
    if let Some(one_at_a_time) = lock(pins.root(), LOADED)? {
        match std::fs::remove_dir_all(pins.root()) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed("remove", pins.root())(e)),
            _ => {}
        }
        // A file that is open in there keeps the file system mounted.
        drop(one_at_a_time);
    }
    release_bpffs(pins)
}

fn attach_hook(
    pins: &Pins,
    hook: Hook,
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

/// A pinned program and its id.
pub(crate) fn open_program(pins: &Pins, name: &str) -> Result<(OwnedFd, u32)> {
    let path = pins.programs().join(name);
    let failed = |source| Error::OpenPin { path: path.clone(), source };
    let program = obj_get(&path, false).map_err(failed)?;
    let found: ProgInfo = info(program.as_fd()).map_err(failed)?;
    Ok((program, found.id))
}

/// A pinned link; `None` where there is none.
pub(crate) fn open_link(path: &Path) -> Result<Option<OwnedFd>> {
    match obj_get(path, false) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        link => link.map(Some).map_err(|source| Error::OpenPin { path: path.into(), source }),
    }
}
