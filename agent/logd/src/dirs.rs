//! File access below a directory that containers may be able to write to (a pod with a writable
//! hostPath over `/var/log`): no symbolic link is followed, nothing above the root is reached, and
//! only regular files are used.

use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags},
    io::Errno,
};
use std::{
    ffi::CStr,
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

const BENEATH: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Opens the root directory by its path. The root belongs to the node's owner, so links in its path
/// are followed.
pub(crate) fn open_root(root: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(root, DIRECTORY, Mode::empty())?)
}

/// Opens the directory `root/names...`.
pub(crate) fn open_dir(root: impl AsFd, names: &[&str]) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat2(root, names.join("/"), DIRECTORY, Mode::empty(), BENEATH)?)
}

/// Creates and opens the directory `root/names...`, each part with mode 0755.
pub(crate) fn make_dirs(root: &Path, names: &[&str]) -> io::Result<OwnedFd> {
    std::fs::create_dir_all(root)?;
    let mut dir = open_root(root)?;
    for name in names {
        match rustix::fs::mkdirat(&dir, *name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => dir = open_dir(&dir, &[name])?,
            Err(e) => return Err(e.into()),
        }
    }
    Ok(dir)
}

/// Opens a regular file for reading.
pub(crate) fn open_read(dir: impl AsFd, name: &str) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    regular(rustix::fs::openat2(dir, name, flags, Mode::empty(), BENEATH)?)
}

/// Opens a file for appending, mode 0640, and creates the file if it does not exist. Names in a log
/// directory belong to logd: a name that is not a regular file with one link is removed first,
/// because it may lead anywhere.
pub(crate) fn open_append(dir: impl AsFd, name: &str) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(0o640);
    let opened = rustix::fs::openat2(&dir, name, flags | OFlags::CREATE, mode, BENEATH);
    match opened.map_err(io::Error::from).and_then(regular) {
        Ok(file) if rustix::fs::fstat(&file)?.st_nlink == 1 => return Ok(file),
        Ok(_) => {}
        Err(e) if foreign(&e) => {}
        Err(e) => return Err(e),
    }
    rustix::fs::unlinkat(&dir, name, AtFlags::empty())?;
    regular(rustix::fs::openat2(&dir, name, flags | OFlags::CREATE | OFlags::EXCL, mode, BENEATH)?)
}

/// Whether opening failed because the name belongs to something other than a regular file.
fn foreign(e: &io::Error) -> bool {
    let errno = Errno::from_io_error(e);
    e.kind() == io::ErrorKind::InvalidInput || matches!(errno, Some(Errno::LOOP | Errno::NXIO))
}

fn regular(fd: OwnedFd) -> io::Result<File> {
    if FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) == FileType::RegularFile {
        Ok(File::from(fd))
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "is not a regular file"))
    }
}

/// The names in a directory, without `.`, `..` and names that are not UTF-8.
pub(crate) fn names(dir: impl AsFd) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        match CStr::to_str(entry.file_name()) {
            Ok("." | "..") | Err(_) => {}
            Ok(name) => names.push(name.to_owned()),
        }
    }
    Ok(names)
}

/// Removes a name. A missing name is no error.
pub(crate) fn unlink(dir: impl AsFd, name: &str) -> io::Result<()> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Removes `name` and its content, at most `depth` directories deep and never across a mount.
pub(crate) fn remove_tree(dir: impl AsFd, name: &str, depth: u32) -> io::Result<()> {
    let dir = dir.as_fd();
    let beneath = BENEATH | ResolveFlags::NO_XDEV;
    match rustix::fs::openat2(dir, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty(), beneath) {
        Ok(inner) => {
            let deeper = depth.checked_sub(1).ok_or_else(|| io::Error::other("is nested too deeply"))?;
            for entry in names(&inner)? {
                remove_tree(&inner, &entry, deeper)?;
            }
            match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => Ok(()),
                Err(e) => Err(e.into()),
            }
        }
        Err(Errno::NOENT) => Ok(()),
        Err(Errno::NOTDIR | Errno::LOOP) => unlink(dir, name),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{io::Write, os::unix::fs::symlink};

    #[test]
    fn links_fifos_and_directories_are_neither_read_nor_written() {
        let tmp = tempfile::tempdir().unwrap();
        let secret = tmp.path().join("secret");
        std::fs::write(&secret, "s").unwrap();
        let root = tmp.path().join("logs");
        let dir = make_dirs(&root, &["pod", "c"]).unwrap();
        let at = root.join("pod/c");
        symlink(&secret, at.join("link.log")).unwrap();
        std::fs::hard_link(&secret, at.join("hard.log")).unwrap();
        rustix::fs::mkfifoat(&dir, "fifo.log", Mode::from_raw_mode(0o600)).unwrap();
        std::fs::create_dir(at.join("dir.log")).unwrap();
        for name in ["link.log", "fifo.log", "dir.log", "../../../secret"] {
            assert!(open_read(&dir, name).is_err(), "{name}");
        }
        for name in ["link.log", "hard.log", "fifo.log"] {
            open_append(&dir, name).unwrap().write_all(b"out").unwrap();
            assert_eq!(std::fs::read(at.join(name)).unwrap(), b"out", "{name}");
        }
        assert!(open_append(&dir, "../x.log").is_err());
        assert_eq!(std::fs::read(&secret).unwrap(), b"s");
        symlink(tmp.path(), root.join("evil")).unwrap();
        assert!(open_dir(open_root(&root).unwrap(), &["evil", "logs"]).is_err());
        assert!(make_dirs(&root, &["evil", "x"]).is_err());
    }

    #[test]
    fn removing_a_tree_spares_the_targets_of_its_links() {
        let tmp = tempfile::tempdir().unwrap();
        std::fs::write(tmp.path().join("kept"), "s").unwrap();
        let root = tmp.path().join("logs");
        make_dirs(&root, &["pod", "c"]).unwrap();
        symlink(tmp.path(), root.join("pod/c/up")).unwrap();
        std::fs::write(root.join("pod/c/0.log"), "").unwrap();
        remove_tree(open_root(&root).unwrap(), "pod", 3).unwrap();
        remove_tree(open_root(&root).unwrap(), "pod", 3).unwrap();
        assert!(!root.join("pod").exists() && tmp.path().join("kept").exists());
    }
}
