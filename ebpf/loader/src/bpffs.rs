//! The BPF file system below the pins: mounted where there is none, and unmounted by the last who leaves it.
//!
//! That a mount is ours stands in the mount itself, as its source: it is known after any crash, to every node of the
//! machine, and gone when the mount is. A file system that somebody else mounted is never unmounted.
//!
//! Several processes come and go at the same time, each with a pin directory of its own beside the others'. Whoever
//! mounts makes its pin directory before anybody else may look, and whoever unmounts looks for others' first: both
//! under one lock, of the directory that holds the mount point, which lies outside of what is mounted. An unmount is
//! never a lazy one: where a file is open in there, it stays.

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

/// The source of a mount of ours.
const SOURCE: &str = "berth";

/// What a kernel with `CONFIG_BPF_PRELOAD` puts into each BPF file system: nobody's.
const BY_KERNEL: [&str; 2] = ["maps.debug", "progs.debug"];

/// How long another may mount or unmount.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long somebody who only looks into the file system keeps it from being unmounted.
const LOOK: Duration = Duration::from_millis(200);

/// Sees to it that the pin directory is there and lies on a BPF file system: mounts one over its parent where that is
/// an empty directory of another file system. A missing parent is made.
///
/// # Errors
/// The parent holds other files ([`Error::NotBpffs`]), or the kernel refuses.
pub fn ensure_bpffs(pins: &Pins) -> Result<()> {
    let parent = parent(pins);
    fs::create_dir_all(parent).map_err(failed("make", parent))?;
    let _one_at_a_time = lock_above(parent)?;
    if !on_bpffs(parent)? {
        if !list(parent)?.is_empty() {
            return Err(Error::NotBpffs { path: parent.into() });
        }
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_RELATIME;
        mount(Some(SOURCE), parent, Some("bpf"), flags, Some("mode=0700"))
            .map_err(|e| failed("mount a BPF file system on", parent)(e.into()))?;
    }
    // Under the lock: who unmounts sees by it that somebody is here.
    make_dir(pins.root())
}

/// Unmounts the file system that held the pins, where it is ours and nobody has anything in it.
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
    // Again and again: another may have unmounted it, or begun to use it.
    while is_ours(parent)? && list(parent)?.iter().all(|(name, _)| BY_KERNEL.contains(&name.as_str())) {
        match umount2(parent, MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => return Ok(()),
            Err(Errno::EBUSY) if Instant::now() < end => std::thread::sleep(Duration::from_millis(5)),
            // Somebody has a file open in there, and leaves after us.
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

/// Whether the topmost mount on the directory is a BPF file system that has our source.
fn is_ours(dir: &Path) -> Result<bool> {
    let real = match dir.canonicalize() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        real => real.map_err(failed("examine", dir))?,
    };
    // Of this thread: it may be in a mount namespace of its own.
    let table = Path::new("/proc/thread-self/mountinfo");
    let text = fs::read(table).map_err(failed("read", table))?;
    Ok(source_on(&text, &escaped(&real)) == Some(SOURCE.as_bytes()))
}

/// The source of the last BPF file system in a table of mounts (proc_pid_mountinfo(5)) that is mounted there, where
/// nothing else is mounted over it.
fn source_on<'a>(table: &'a [u8], point: &[u8]) -> Option<&'a [u8]> {
    let words = |line: &'a [u8]| line.split(|b| *b == b' ').collect::<Vec<_>>();
    let mut lines = table.split(|b| *b == b'\n').map(words);
    let last = lines.rfind(|words| words.get(4) == Some(&point))?;
    let mut right = last.into_iter().skip_while(|word| *word != b"-").skip(1);
    (right.next()? == b"bpf").then(|| right.next())?
}

/// A path as it stands in a table of mounts.
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

/// The lock of all who mount on the directory or unmount it.
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
}
