//! BPF file system below the pins: mounted where it is missing, and unmounted by its last user.
//!
//! The mount's source marks a mount of this agent. The mark is readable after any crash, for every node of
//! the machine, and disappears with the mount. A file system mounted by another program is never unmounted.
//!
//! Several processes use one file system at the same time, each with a pin directory of its own. A mounting
//! process creates its pin directory, and an unmounting process looks for other pin directories, under one
//! lock. The lock is on the directory that holds the mount point, which lies outside of the mounted file
//! system. An unmount is never lazy: a file system with an open file stays mounted.

use crate::{
    Error, Pins, Result,
    pins::{failed, list, lock, make_dir},
};
use nix::{
    errno::Errno,
    fcntl::Flock,
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};
use std::{
    fs::{self, File},
    io,
    os::unix::ffi::OsStrExt,
    path::Path,
    time::{Duration, Instant},
};

/// The source of this agent's mounts.
const SOURCE: &str = "berth";

/// Entries that a kernel with `CONFIG_BPF_PRELOAD` puts into each BPF file system. They belong to no process.
const BY_KERNEL: [&str; 2] = ["maps.debug", "progs.debug"];

/// Longest wait for another process that mounts or unmounts.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long an unmount is retried while another process only reads the file system.
const LOOK: Duration = Duration::from_millis(200);

/// Ensures that the pin directory exists and lies on a BPF file system. Mounts one over the parent directory
/// if that is an empty directory of another file system. Creates a missing parent.
///
/// # Errors
/// The parent holds other files ([`Error::NotBpffs`]), the mount would end with this container
/// ([`Error::BpffsOfContainer`]), or the kernel refuses.
pub fn ensure_bpffs(pins: &Pins) -> Result<()> {
    let parent = parent(pins);
    fs::create_dir_all(parent).map_err(failed("make", parent))?;
    let _one_at_a_time = lock_above(parent)?;
    if !on_bpffs(parent)? {
        if !list(parent)?.is_empty() {
            return Err(Error::NotBpffs { path: parent.into() });
        }
        if ends_with_container(parent)? {
            return Err(Error::BpffsOfContainer { path: parent.into() });
        }
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_RELATIME;
        mount(Some(SOURCE), parent, Some("bpf"), flags, Some("mode=0700"))
            .map_err(|e| failed("mount a BPF file system on", parent)(e.into()))?;
    }
    // Under the lock: an unmounting process recognises a user by its pin directory.
    make_dir(pins.root())
}

/// Unmounts the file system that held the pins, if the mount is this agent's and holds no other entries.
///
/// # Errors
/// The kernel refuses.
pub(crate) fn release_bpffs(pins: &Pins) -> Result<()> {
    let parent = parent(pins);
    if !is_ours(parent)? {
        return Ok(());
    }
    let _one_at_a_time = lock_above(parent)?;
    let end = Instant::now() + LOOK;
    // Checked in each round: another process may have unmounted the file system, or begun to use it.
    while is_ours(parent)? && list(parent)?.iter().all(|(name, _)| BY_KERNEL.contains(&name.as_str())) {
        match umount2(parent, MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => return Ok(()),
            Err(Errno::EBUSY) if Instant::now() < end => std::thread::sleep(Duration::from_millis(5)),
            // Another process has a file open on the file system, and leaves later.
            Err(Errno::EBUSY) => return Ok(()),
            Err(e) => return Err(failed("unmount", parent)(e.into())),
        }
    }
    Ok(())
}

fn parent(pins: &Pins) -> &Path {
    pins.root().parent().unwrap_or(Path::new("/"))
}

fn on_bpffs(path: &Path) -> Result<bool> {
    let found = statfs(path).map_err(|e| failed("examine", path)(e.into()))?;
    Ok(found.filesystem_type() == BPF_FS_MAGIC)
}

/// Whether a file system that is mounted on the directory would be this mount namespace's alone: the directory itself is
/// mounted from elsewhere and passes no mount on. A volume of a container is such a mount. The pins would end with the
/// container, and the programs with the pins.
fn ends_with_container(dir: &Path) -> Result<bool> {
    let real = dir.canonicalize().map_err(failed("examine", dir))?;
    Ok(passes_no_mount_on(&table()?, &escaped(&real)))
}

/// Whether the topmost mount on the directory is a BPF file system with this agent's source.
fn is_ours(dir: &Path) -> Result<bool> {
    let real = match dir.canonicalize() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        real => real.map_err(failed("examine", dir))?,
    };
    Ok(source_on(&table()?, &escaped(&real)) == Some(SOURCE.as_bytes()))
}

/// The mount table of this thread, which may be in a mount namespace of its own.
fn table() -> Result<Vec<u8>> {
    let table = Path::new("/proc/thread-self/mountinfo");
    fs::read(table).map_err(failed("read", table))
}

/// The words of the mount on top at `point`, from a mount table (proc_pid_mountinfo(5)): the last line for the mount point.
fn mount_on<'a>(table: &'a [u8], point: &[u8]) -> Option<Vec<&'a [u8]>> {
    let words = |line: &'a [u8]| line.split(|b| *b == b' ').collect::<Vec<_>>();
    table.split(|b| *b == b'\n').map(words).rfind(|words| words.get(4) == Some(&point))
}

/// Whether the mount on top at `point` has no peers (`shared:N`). Nothing mounted there: no.
fn passes_no_mount_on(table: &[u8], point: &[u8]) -> bool {
    let Some(mount) = mount_on(table, point) else { return false };
    let mut tags = mount.into_iter().skip(6).take_while(|word| *word != b"-");
    !tags.any(|tag| tag.starts_with(b"shared:"))
}

/// The source of the BPF file system mounted at `point`; `None` if that is no BPF file system.
fn source_on<'a>(table: &'a [u8], point: &[u8]) -> Option<&'a [u8]> {
    let mut right = mount_on(table, point)?.into_iter().skip_while(|word| *word != b"-").skip(1);
    (right.next()? == b"bpf").then(|| right.next())?
}

/// A path in the escaped form of a mount table.
fn escaped(path: &Path) -> Vec<u8> {
    let mut out = Vec::new();
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' => out.extend(format!("\\{byte:03o}").bytes()),
            byte => out.push(*byte),
        }
    }
    out
}

/// Lock of all processes that mount on the directory or unmount it.
fn lock_above(dir: &Path) -> Result<Flock<File>> {
    let above = dir.parent().unwrap_or(dir);
    lock(above, PATIENCE)?.ok_or_else(|| failed("lock", above)(io::ErrorKind::NotFound.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_on_top_counts_and_spaces_are_written_in_octal() {
        let table = b"25 1 0:20 / /sys/fs/bpf rw shared:9 - bpf berth rw,mode=700\n\
                      26 1 0:21 / /a\\040b rw - bpf bpf rw\n\
                      27 1 0:22 / /top rw - bpf berth rw\n\
                      28 1 0:23 / /top rw - tmpfs berth rw\n";
        assert_eq!(source_on(table, b"/sys/fs/bpf"), Some(&b"berth"[..]));
        assert_eq!(source_on(table, &escaped(Path::new("/a b"))), Some(&b"bpf"[..]));
        assert_eq!((source_on(table, b"/top"), source_on(table, b"/sys/fs")), (None, None));
    }

    #[test]
    fn a_volume_of_a_container_passes_no_mount_on() {
        let table = b"30 1 0:20 /fs/bpf /sys/fs/bpf rw,nosuid - sysfs sysfs rw\n\
                      31 1 0:20 /fs/bpf /passed/on rw,nosuid shared:7 - sysfs sysfs rw\n";
        assert!(passes_no_mount_on(table, b"/sys/fs/bpf"));
        assert!(!passes_no_mount_on(table, b"/passed/on") && !passes_no_mount_on(table, b"/no/mount"));
    }
}
