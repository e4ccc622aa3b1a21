//! Bind mounts and tmpfs: mount, unmount, and the list of mounts.
//!
//! A bind mount is set up detached and attached in one step, so that no process ever sees a read-only bind
//! writable. An unmount never follows a link at its path.

pub use crate::detached::read_only;
pub use crate::mountinfo::Mount;
pub use crate::tree::{remove_tree_no_xdev, remove_unmounted_tree};
pub use crate::unmount::{Unmounting, begin_unmount_beneath, unmount_beneath};
use crate::{Error, Result, mountinfo};
use rustix::{
    fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
        fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
    },
};
use std::{
    io,
    path::{Path, PathBuf},
};

/// Options of a bind mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BindOpts {
    /// The mount is read-only; with [`BindOpts::recursive`] so is every mount below it.
    pub read_only: bool,
    /// The mounts below the source are bound too.
    pub recursive: bool,
    /// Propagation of the whole bound tree.
    pub propagation: Propagation,
}

/// Propagation of mount events (mount_namespaces(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Propagation {
    /// The kernel's default: shared where the mount point or the source is shared.
    #[default]
    Unchanged,
    /// Mount events do not propagate.
    Private,
    /// Mount events propagate into this mount, but not out of it.
    Slave,
    /// Mount events propagate both ways.
    Shared,
}

impl Propagation {
    fn flag(self) -> u64 {
        match self {
            Propagation::Unchanged => 0,
            Propagation::Private => libc::MS_PRIVATE,
            Propagation::Slave => libc::MS_SLAVE,
            Propagation::Shared => libc::MS_SHARED,
        }
    }
}

/// Binds `src` (a directory or file, links followed) at `dst`. `dst` must exist and be of the same kind.
///
/// # Errors
/// `src` or `dst` is missing, or the kernel refuses; nothing is mounted then.
pub fn bind(src: &Path, dst: &Path, opts: BindOpts) -> Result<()> {
    let tree = clone_tree(CWD, src, OpenTreeFlags::empty(), opts)
        .map_err(failed("clone the source of a bind", src))?;
    attach(tree, dst, opts)
}

/// Binds an open file or directory (`O_PATH` is enough), as [`bind`] does. The descriptor ensures that the
/// mounted file is the file that the caller checked.
///
/// # Errors
/// As [`bind`].
pub fn bind_fd(src: impl AsFd, dst: &Path, opts: BindOpts) -> Result<()> {
    let tree = clone_tree(src.as_fd(), Path::new(""), OpenTreeFlags::AT_EMPTY_PATH, opts)
        .map_err(failed("clone the source of a bind", dst))?;
    attach(tree, dst, opts)
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Mount { what, path, source }
}

pub(crate) fn clone_tree(
    dir: BorrowedFd<'_>,
    path: &Path,
    extra: OpenTreeFlags,
    opts: BindOpts,
) -> io::Result<OwnedFd> {
    let mut flags = extra | OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if opts.recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    let tree = open_tree(dir, path, flags)?;
    // Private first: a clone of a shared mount would stay in the source's peer group.
    let set = if opts.read_only { libc::MOUNT_ATTR_RDONLY } else { 0 };
    set_attr(&tree, set, libc::MS_PRIVATE, opts.recursive)?;
    Ok(tree)
}

fn attach(tree: OwnedFd, dst: &Path, opts: BindOpts) -> Result<()> {
    move_mount(tree.as_fd(), "", CWD, dst, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(|e| failed("bind", dst)(e.into()))?;
    // A shared mount point makes the attached mount shared, so the propagation is set after attaching.
    if opts.propagation != Propagation::Unchanged
        && let Err(source) = set_attr(&tree, 0, opts.propagation.flag(), opts.recursive)
    {
        unmount(dst)?;
        return Err(failed("set the propagation", dst)(source));
    }
    Ok(())
}

/// `mount_setattr(2)` on the mount that `fd` is the root of.
fn set_attr(fd: impl AsFd, set: u64, propagation: u64, recursive: bool) -> io::Result<()> {
    let attr = libc::mount_attr { attr_set: set, attr_clr: 0, propagation, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a NUL-terminated literal, `attr` lives through the call and the size is its own.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    if ret == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Mounts a new tmpfs at `dst` of at most `size` bytes (`None`: the kernel's default, half of the memory),
/// with its root in mode `mode`. The tmpfs is kept out of swap where the kernel supports that.
///
/// # Errors
/// `dst` is not a directory, or the kernel refuses.
pub fn tmpfs(dst: &Path, size: Option<u64>, mode: u32) -> Result<()> {
    let mounted = match new_tmpfs(size, mode, true) {
        // Kernels before 6.4 and kernels without swap do not know the option.
        Err(Errno::INVAL) => new_tmpfs(size, mode, false),
        other => other,
    }
    .map_err(|e| failed("mount a tmpfs", dst)(e.into()))?;
    move_mount(mounted.as_fd(), "", CWD, dst, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(|e| failed("mount a tmpfs", dst)(e.into()))
}

fn new_tmpfs(size: Option<u64>, mode: u32, noswap: bool) -> Result<OwnedFd, Errno> {
    let fs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(fs.as_fd(), "source", "tmpfs")?;
    fsconfig_set_string(fs.as_fd(), "mode", format!("{:o}", mode & 0o7777))?;
    if let Some(size) = size {
        fsconfig_set_string(fs.as_fd(), "size", size.to_string())?;
    }
    if noswap {
        fsconfig_set_flag(fs.as_fd(), "noswap")?;
    }
    fsconfig_create(fs.as_fd())?;
    fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
}

/// Unmounts the topmost mount at `dst` and all mounts below it at once, even while they are in use
/// (`MNT_DETACH`). A link at `dst` is not followed. `Ok(false)` where nothing is mounted at `dst` or `dst` is
/// missing.
///
/// # Errors
/// The kernel refuses.
pub fn unmount(dst: &Path) -> Result<bool> {
    match rustix::mount::unmount(dst, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(true),
        Err(Errno::INVAL | Errno::NOENT) => Ok(false),
        Err(e) => Err(Error::Unmount { path: dst.into(), source: e.into() }),
    }
}

/// Whether `path` itself is a mount point (a link is not followed). A missing path is none.
///
/// # Errors
/// The kernel refuses to read the path's attributes.
pub fn is_mount_point(path: &Path) -> Result<bool> {
    // Without a question to a server of the file system, which may be away.
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    match statx(CWD, path, flags, StatxFlags::empty()) {
        Ok(x) => Ok(x.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
        Err(e) => Err(Error::Read { path: path.into(), source: e.into() }),
    }
}

/// Makes mount events at `path` propagate both ways: every mount namespace that holds `path` sees a later
/// mount below it, and a mount made there is seen here. A directory on a shared mount has that already;
/// systemd makes all mounts shared. Elsewhere a directory that is no mount point is bound onto itself. A
/// second call changes nothing.
///
/// # Errors
/// `path` is missing or the kernel refuses.
pub fn make_rshared(path: &Path) -> Result<()> {
    if is_mount_point(path)? {
        return share(path);
    }
    if is_on_shared_mount(path)? {
        // No bind mount here: a service manager would try to unmount it at shutdown while pods still use it.
        return mounts_below(path)?
            .iter()
            .filter(|m| m.shared.is_none())
            .try_for_each(|m| share(&m.mount_point));
    }
    let shared = BindOpts { recursive: true, propagation: Propagation::Shared, ..BindOpts::default() };
    bind(path, path, shared)
}

/// Makes the topmost mount at `path` and all mounts below it shared.
fn share(path: &Path) -> Result<()> {
    let fd = open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLOEXEC)
        .map_err(|e| Error::Open { path: path.into(), source: e.into() })?;
    set_attr(fd, 0, libc::MS_SHARED, true).map_err(failed("make a shared mount", path))
}

/// Whether the mount that holds `path` is shared.
fn is_on_shared_mount(path: &Path) -> Result<bool> {
    let x = statx(CWD, path, AtFlags::NO_AUTOMOUNT, StatxFlags::MNT_ID)
        .map_err(|e| Error::Read { path: path.into(), source: e.into() })?;
    Ok(mounts()?.iter().any(|m| u64::from(m.id) == x.stx_mnt_id && m.shared.is_some()))
}

/// Every mount of this process's mount namespace, in the order of `/proc/self/mountinfo`: a mount follows the
/// mount that it is mounted on.
///
/// # Errors
/// The file cannot be read or parsed.
pub fn mounts() -> Result<Vec<Mount>> {
    read_mountinfo(mountinfo::parse)
}

/// Reads `/proc/self/mountinfo` and parses it.
fn read_mountinfo(
    parse: impl FnOnce(&[u8]) -> std::result::Result<Vec<Mount>, (usize, String)>,
) -> Result<Vec<Mount>> {
    let path = Path::new("/proc/self/mountinfo");
    // /proc returns whole lines, a page at a time; the file of a node with a thousand pods has about 1 MB.
    let bytes = crate::fs::read_limited(path, 256 << 20)?;
    parse(&bytes).map_err(|(line, text)| Error::Malformed {
        path: path.into(),
        reason: format!("line {line} is not understood: {text:?}"),
    })
}

/// The mounts at or below `dir`. A mount follows the mount that it is mounted on, so callers unmount in
/// reverse order. `dir` is resolved first, because the kernel lists real paths; a missing `dir` has no
/// mounts.
///
/// # Errors
/// As [`mounts`].
pub fn mounts_below(dir: &Path) -> Result<Vec<Mount>> {
    let real: PathBuf = match dir.canonicalize() {
        Ok(real) => real,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(Error::Read { path: dir.into(), source }),
    };
    read_mountinfo(|text| mountinfo::parse_below(text, &real))
}
