//! File access below a directory that containers may be able to write to (a pod with a writable
//! hostPath over `/var/log`): no symbolic link is followed, nothing above the root is reached, and
//! only regular files are used.

use berth_sys::fs::reopen_regular;
use rustix::{
    fs::{AtFlags, Dir, Mode, OFlags, ResolveFlags},
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
/// Of a descriptor that only names a file, so that neither a device nor a FIFO is opened.
const NAME: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
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
    reopen_regular(rustix::fs::openat2(dir, name, NAME, Mode::empty(), BENEATH)?, OFlags::RDONLY)
}

/// Opens a file for appending, mode 0640, and creates the file if it does not exist. Names in a log
/// directory belong to logd: a name that is not a regular file with one link is removed first,
/// because it may lead anywhere.
pub(crate) fn open_append(dir: impl AsFd, name: &str) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::APPEND;
    match rustix::fs::openat2(&dir, name, NAME, Mode::empty(), BENEATH) {
        Ok(found) => match reopen_regular(found, flags) {
            Ok(file) if rustix::fs::fstat(&file)?.st_nlink == 1 => return Ok(file),
            Ok(_) => rustix::fs::unlinkat(&dir, name, AtFlags::empty())?,
            // It is something else.
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => {
                rustix::fs::unlinkat(&dir, name, AtFlags::empty())?;
            }
            Err(e) => return Err(e),
        },
        Err(Errno::NOENT) => {}
        Err(e) => return Err(e.into()),
    }
    let make = flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::openat2(&dir, name, make, Mode::from_raw_mode(0o640), BENEATH)?))
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

    /// A pod that can write to the directory of logs exchanges a log for other files. `BERTH_ATTACKS` is the number of rounds.
    #[test]
    fn attack_on_logs_by_exchanges() {
        use berth_harness::race::{race_until, rounds};
        use std::io::Read;
        let tmp = tempfile::tempdir_in("/dev/shm").unwrap();
        let outside = tmp.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("secret"), "precious").unwrap();
        let dir = make_dirs(&tmp.path().join("logs"), &["pod", "c"]).unwrap();
        let at = tmp.path().join("logs/pod/c");
        let attack = |n: u32| {
            // The server removes what is no log, so that each attack brings its own.
            _ = match n % 5 {
                0 => symlink(outside.join("secret"), at.join("evil")).is_ok(),
                1 => symlink(outside.join("new"), at.join("evil")).is_ok(),
                2 => rustix::fs::mkfifoat(&dir, "evil", Mode::from_raw_mode(0o600)).is_ok(),
                3 => std::fs::hard_link(at.join("other"), at.join("evil")).is_ok(),
                _ => {
                    let null = rustix::fs::FileType::CharacterDevice;
                    rustix::fs::mknodat(&dir, "evil", null, Mode::from_raw_mode(0o600), 0x103).is_ok()
                }
            };
            rustix::fs::renameat_with(&dir, "evil", &dir, "0.log", rustix::fs::RenameFlags::EXCHANGE).is_ok()
        };
        std::fs::write(at.join("other"), "").unwrap();
        let (mut read, mut written) = (0u32, 0u32);
        let (rounds, exchanges) = race_until(rounds(2_000), attack, |_| {
            if let Ok(mut file) = open_append(&dir, "0.log") {
                file.write_all(b"x").unwrap();
                written += 1;
            }
            if let Ok(file) = open_read(&dir, "0.log") {
                let mut text = String::new();
                file.take(100).read_to_string(&mut text).unwrap();
                assert!(!text.contains("precious"));
                read += 1;
            }
            read > 10 && written > 10
        });
        println!("{rounds} rounds, {exchanges} exchanges, {read} reads, {written} writes");
        assert!(read > 10 && written > 10, "no race: {exchanges} {read} {written}");
        assert_eq!(std::fs::read_to_string(outside.join("secret")).unwrap(), "precious");
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1, "nothing was made outside");
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
