//! `fsGroup` of a volume whose files exist already: group and permissions of all files, by descriptors. Containers may
//! change the volume meanwhile: no link is followed, and no mount is crossed. Large trees are walked by several threads
//! ([`walk`]).

mod walk;

use crate::{Error, os};
use rustix::{
    fd::{AsFd, OwnedFd},
    fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Stat},
    io::Errno,
    path::DecInt,
};
use std::{ffi::CStr, io, path::Path};
use walk::Walk;

/// Permissions that the group gets on files, and those that it gets on directories beside them
/// (`pkg/volume/volume_linux.go`).
const FILE: u32 = 0o660;
const DIRECTORY: u32 = 0o110 | SETGID;
const SETGID: u32 = 0o2000;

/// Files that did not get the group: a server that maps root to nobody, a file that is immutable. As in the kubelet they are
/// told of and left as they are.
#[derive(Debug, Default)]
struct Refused {
    files: usize,
    first: Option<io::Error>,
}

impl Refused {
    fn note(&mut self, done: io::Result<()>) {
        if let Err(error) = done {
            self.files = self.files.saturating_add(1);
            self.first.get_or_insert(error);
        }
    }
}

/// Gives the group all files of the volume with that root; `path` is for errors. With `on_mismatch` nothing is done
/// where the root has the group already. Files that cannot be changed are logged.
///
/// # Errors
///
/// The root cannot be read.
pub(crate) fn apply(root: impl AsFd, path: &Path, gid: u32, on_mismatch: bool) -> Result<(), Error> {
    let refused = walk(root, gid, on_mismatch).map_err(Error::io("set the fsGroup of", path))?;
    if let Some(error) = refused.first {
        let volume = path.display();
        tracing::warn!(%volume, gid, files = refused.files, %error, "files of a volume did not get its group");
    }
    Ok(())
}

fn walk(root: impl AsFd, gid: u32, on_mismatch: bool) -> io::Result<Refused> {
    let found = rustix::fs::fstat(&root)?;
    let wanted = FILE | DIRECTORY;
    if on_mismatch && found.st_gid == gid && found.st_mode & wanted == wanted {
        return Ok(Refused::default());
    }
    // The descriptor may be one that only names the directory.
    let root = os::open_dir_at(&root, c".")?;
    let group = Group::new(gid)?;
    // The root goes last: as long as it is not changed the walk has not ended.
    let mut refused = Walk::new(&group).below(&root)?;
    refused.note(group.change(&root, &found));
    Ok(refused)
}

/// The group that files get.
struct Group {
    gid: u32,
    /// The directory of this process's descriptors.
    descriptors: OwnedFd,
}

impl Group {
    fn new(gid: u32) -> io::Result<Group> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Group { gid, descriptors: rustix::fs::open("/proc/self/fd", flags, Mode::empty())? })
    }

    /// Changes a file. Returns a directory to enter, which is not changed yet.
    fn entry(&self, dir: &OwnedFd, name: &CStr) -> io::Result<Option<OwnedFd>> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV;
        let fd = match rustix::fs::openat2(dir, name, flags, Mode::empty(), resolve) {
            // A mount point, also of the same file system: what is mounted there is not the volume's.
            Err(Errno::XDEV) => return Ok(None),
            other => other?,
        };
        let found = rustix::fs::fstat(&fd)?;
        match FileType::from_raw_mode(found.st_mode) {
            FileType::Directory => Ok(Some(os::open_dir_at(&fd, c".")?)),
            FileType::Symlink => self.own(&fd, &found).map(|()| None),
            _ => self.change(&fd, &found).map(|()| None),
        }
    }

    fn own(&self, fd: &OwnedFd, found: &Stat) -> io::Result<()> {
        if found.st_gid == self.gid {
            return Ok(());
        }
        Ok(rustix::fs::chownat(fd, c"", None, Some(Gid::from_raw(self.gid)), AtFlags::EMPTY_PATH)?)
    }

    /// Changes group and permissions where they differ. A change of the group may take away a set-group-ID bit, so the
    /// permissions come second.
    fn change(&self, fd: &OwnedFd, found: &Stat) -> io::Result<()> {
        self.own(fd, found)?;
        let mut wanted = found.st_mode & 0o7777 | FILE;
        if FileType::from_raw_mode(found.st_mode) == FileType::Directory {
            wanted |= DIRECTORY;
        }
        if wanted == found.st_mode & 0o7777 {
            return Ok(());
        }
        // A descriptor that only names a file has no fchmod(2); this path names that very file.
        let path = DecInt::from_fd(fd);
        match rustix::fs::chmodat(&self.descriptors, path, Mode::from_raw_mode(wanted), AtFlags::empty()) {
            // A file on a read-only part, or of a kind without permissions.
            Err(Errno::NOTSUP) => Ok(()),
            other => Ok(other?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{walk::DEEPEST, *};
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt, symlink};

    fn state(path: &Path) -> (u32, u32) {
        let found = std::fs::symlink_metadata(path).unwrap();
        (found.gid(), found.permissions().mode() & 0o7777)
    }

    #[test]
    fn all_files_get_the_group_and_no_link_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (root, outside) = (dir.path().join("root"), dir.path().join("outside"));
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        std::fs::write(root.join("a/b/file"), "x").unwrap();
        std::fs::write(&outside, "x").unwrap();
        for path in [root.join("a/b/file"), outside.clone()] {
            std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).unwrap();
        }
        std::fs::set_permissions(&root, PermissionsExt::from_mode(0o700)).unwrap();
        symlink(&outside, root.join("link")).unwrap();
        symlink("/", root.join("a/slash")).unwrap();
        let open = || os::open_dir(&root).unwrap();
        apply(open(), &root, 4711, false).unwrap();
        assert_eq!(state(&root), (4711, 0o2770));
        assert_eq!(state(&root.join("a/b")).0, 4711);
        assert_eq!(state(&root.join("a/b")).1 & 0o2770, 0o2770);
        assert_eq!(state(&root.join("a/b/file")), (4711, 0o660));
        assert_eq!(state(&root.join("link")).0, 4711, "the link itself");
        assert_eq!(state(&outside), (0, 0o600), "and not its file");
        // With OnRootMismatch the root tells that all is done.
        std::fs::write(root.join("later"), "x").unwrap();
        std::os::unix::fs::chown(root.join("later"), None, Some(0)).unwrap();
        apply(open(), &root, 4711, true).unwrap();
        assert_eq!(state(&root.join("later")).0, 0);
        apply(open(), &root, 4712, true).unwrap();
        assert_eq!(state(&root.join("later")).0, 4712);
    }

    #[test]
    fn a_mount_below_is_left_alone_and_a_deep_tree_is_changed_as_far_as_it_is_entered() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let inner = root.join("mount");
        std::fs::create_dir(&inner).unwrap();
        let _guard = crate::testing::Unmounting(inner.clone());
        berth_sys::mount::tmpfs(&inner, None, 0o700).unwrap();
        std::fs::write(inner.join("file"), "x").unwrap();
        apply(os::open_dir(root).unwrap(), root, 4711, false).unwrap();
        assert_eq!((state(&inner).0, state(&inner.join("file")).0), (0, 0));
        let deep: std::path::PathBuf = std::iter::repeat_n("d", DEEPEST + 1).collect();
        std::fs::create_dir_all(root.join(&deep)).unwrap();
        apply(os::open_dir(root).unwrap(), root, 4712, false).unwrap();
        assert_eq!((state(root).0, state(&root.join("d/d/d")).0), (4712, 4712));
        let beyond = root.join(&deep);
        assert_eq!(state(&beyond).0, 4711, "what is too deep keeps the group of its directory");
    }

    #[test]
    fn a_bind_mount_of_the_same_file_system_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (root, outside) = (dir.path().join("root"), dir.path().join("outside"));
        std::fs::create_dir_all(root.join("mount")).unwrap();
        std::fs::create_dir_all(outside.join("below")).unwrap();
        for file in [root.join("single"), outside.join("below/file"), outside.join("single")] {
            std::fs::write(file, "x").unwrap();
        }
        let _guards = [root.join("mount"), root.join("single")].map(crate::testing::Unmounting);
        let options = berth_sys::mount::BindOpts::default();
        berth_sys::mount::bind(&outside, &root.join("mount"), options).unwrap();
        berth_sys::mount::bind(&outside.join("single"), &root.join("single"), options).unwrap();
        let before = ["", "below", "below/file", "single"].map(|name| state(&outside.join(name)));
        apply(os::open_dir(&root).unwrap(), &root, 4711, false).unwrap();
        assert_eq!(state(&root).0, 4711);
        assert_eq!(before, ["", "below", "below/file", "single"].map(|name| state(&outside.join(name))));
    }

    #[test]
    fn a_file_that_cannot_be_changed_keeps_no_other_and_no_pod_out() {
        let dir = tempfile::tempdir().unwrap();
        let (root, read_only) = (dir.path(), dir.path().join("read-only"));
        std::fs::create_dir(&read_only).unwrap();
        std::fs::write(read_only.join("inside"), "x").unwrap();
        std::fs::write(root.join("file"), "x").unwrap();
        let _guard = crate::testing::Unmounting(read_only.clone());
        let options = berth_sys::mount::BindOpts { read_only: true, ..Default::default() };
        berth_sys::mount::bind_fd(os::open_dir(&read_only).unwrap(), &read_only, options).unwrap();
        apply(os::open_dir(root).unwrap(), root, 4711, false).unwrap();
        assert_eq!((state(&root.join("file")).0, state(root).0), (4711, 4711));
        assert_eq!(state(&read_only.join("inside")).0, 0);
    }
}
