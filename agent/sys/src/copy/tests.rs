use super::*;
use std::{
    fs::{self, Permissions},
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, lchown, symlink},
    time::{Duration, SystemTime},
};

fn copied(source: &Path, target: &Path) -> Result<()> {
    fs::create_dir(target).unwrap();
    copy_dir(File::open(source).unwrap(), File::open(target).unwrap())
}

/// All visible attributes of an entry except its inode.
fn seen(path: &Path) -> (u32, u32, u32, u64, i64, i64, u64) {
    let m = fs::symlink_metadata(path).unwrap();
    (m.mode(), m.uid(), m.gid(), m.nlink(), m.mtime(), m.mtime_nsec(), m.rdev())
}

#[test]
fn everything_that_a_file_is_comes_along() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    fs::create_dir_all(from.join("d/empty")).unwrap();
    fs::write(from.join("d/f"), "content").unwrap();
    fs::write(from.join("setuid"), vec![7; 300_000]).unwrap();
    chown(from.join("setuid"), Some(5), Some(6)).unwrap();
    fs::set_permissions(from.join("setuid"), Permissions::from_mode(0o4751)).unwrap();
    fsetxattr(File::open(from.join("setuid")).unwrap(), "user.note", b"kept", XattrFlags::empty()).unwrap();
    // `cap_net_raw=ep`; a change of owner after it would clear it.
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let file = File::open(from.join("setuid")).unwrap();
    fsetxattr(&file, "security.capability", &capability, XattrFlags::empty()).unwrap();
    fs::hard_link(from.join("d/f"), from.join("again")).unwrap();
    symlink("/etc/passwd", from.join("out")).unwrap();
    symlink("d", from.join("to-d")).unwrap();
    lchown(from.join("out"), Some(3), Some(4)).unwrap();
    mknodat(File::open(&from).unwrap(), "fifo", FileType::Fifo, Mode::from_raw_mode(0o620), 0).unwrap();
    let null = rustix::fs::makedev(1, 3);
    mknodat(File::open(&from).unwrap(), "null", FileType::CharacterDevice, Mode::from_raw_mode(0o666), null)
        .unwrap();
    drop(std::os::unix::net::UnixListener::bind(from.join("socket")).unwrap());
    fs::set_permissions(from.join("d"), Permissions::from_mode(0o1777)).unwrap();
    fs::set_permissions(&from, Permissions::from_mode(0o2510)).unwrap();
    let old = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 123_000_000);
    for path in ["d/f", "d", "setuid", "."] {
        File::open(from.join(path)).unwrap().set_modified(old).unwrap();
    }
    chown(&from, Some(1), Some(2)).unwrap();

    copied(&from, &to).unwrap();
    let all = [".", "d", "d/empty", "d/f", "setuid", "again", "out", "to-d", "fifo", "null", "socket"]
        .map(Path::new);
    for path in all {
        assert_eq!(seen(&to.join(path)), seen(&from.join(path)), "{}", path.display());
    }
    assert_eq!(fs::read_dir(&to).unwrap().count(), 8);
    assert_eq!(fs::read(to.join("setuid")).unwrap(), vec![7; 300_000]);
    assert_eq!(fs::read_to_string(to.join("again")).unwrap(), "content");
    let inode = |path: &str| fs::metadata(to.join(path)).unwrap().ino();
    assert_eq!(inode("again"), inode("d/f"), "one file with two names");
    assert_eq!(fs::read_link(to.join("out")).unwrap(), Path::new("/etc/passwd"));
    assert!(fs::symlink_metadata(to.join("fifo")).unwrap().file_type().is_fifo());
    let file = File::open(to.join("setuid")).unwrap();
    let mut value = [0; 64];
    assert_eq!(fgetxattr(&file, "user.note", &mut value[..]).unwrap(), 4);
    assert_eq!(fgetxattr(&file, "security.capability", &mut value[..]).unwrap(), capability.len());
    assert_eq!(&value[..capability.len()], capability);
}

#[test]
fn depth_costs_no_descriptors() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    let deep: PathBuf = (0..1500).map(|_| "d").collect();
    fs::create_dir_all(from.join(&deep)).unwrap();
    fs::write(from.join(&deep).join("f"), "down here").unwrap();
    copied(&from, &to).unwrap();
    assert_eq!(fs::read_to_string(to.join(&deep).join("f")).unwrap(), "down here");
    crate::mount::remove_tree_no_xdev(&from).unwrap();
    crate::mount::remove_tree_no_xdev(&to).unwrap();
}

#[test]
fn what_is_there_already_is_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    fs::create_dir(&from).unwrap();
    fs::write(from.join("f"), "new").unwrap();
    fs::create_dir(&to).unwrap();
    symlink("elsewhere", to.join("f")).unwrap();
    let error = copy_dir(File::open(&from).unwrap(), File::open(&to).unwrap()).unwrap_err();
    assert!(matches!(&error, Error::Copy { path, .. } if path == Path::new("f")), "{error:?}");
    assert!(!to.join("elsewhere").exists());
}
