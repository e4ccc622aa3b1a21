//! What a driver for tests mounts: directories of its own.

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::{
    fmt::Write,
    fs, io,
    path::{Path, PathBuf},
};

/// The directory with a volume's data. Volume ids are no file names, so it is named by their bytes.
pub(super) fn data(dir: &Path, volume: &str) -> PathBuf {
    let mut name = String::new();
    for byte in volume.bytes() {
        // Writing to a String does not fail.
        write!(name, "{byte:02x}").unwrap_or_default();
    }
    dir.join("data").join(name)
}

/// Makes a volume's data: a directory with a file `block`, which stands for its device.
pub(super) fn make_data(dir: &Path, volume: &str) -> io::Result<PathBuf> {
    let data = data(dir, volume);
    fs::create_dir_all(&data)?;
    fs::OpenOptions::new().create(true).append(true).open(data.join("block"))?;
    Ok(data)
}

/// Makes the target, as a driver does. The parent is the caller's.
pub(super) fn make_target(target: &Path, block: bool) -> io::Result<()> {
    let made = if block {
        fs::OpenOptions::new().create_new(true).write(true).open(target).map(drop)
    } else {
        fs::create_dir(target)
    };
    match made {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// Mounts `from` at `at`.
pub(super) fn bind(from: &Path, at: &Path, readonly: bool) -> io::Result<()> {
    let none = None::<&str>;
    mount(Some(from), at, none, MsFlags::MS_BIND, none)?;
    if readonly {
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(none, at, none, flags, none)?;
    }
    Ok(())
}

/// Unmounts what the driver mounted.
pub(super) fn unmount(at: &Path) -> io::Result<()> {
    Ok(umount2(at, MntFlags::UMOUNT_NOFOLLOW)?)
}

/// Unmounts what is left at the end, also if somebody uses it.
pub(super) fn detach(at: &Path) {
    // A target that the test removed or unmounted is fine.
    umount2(at, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW).unwrap_or_default();
}

/// Removes a target. What the test removed is gone already.
pub(super) fn remove_target(target: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(target) {
        Ok(meta) if meta.is_dir() => fs::remove_dir(target),
        Ok(_) => fs::remove_file(target),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
