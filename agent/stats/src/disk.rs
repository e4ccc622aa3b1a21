//! File systems and directories: capacity by statfs, usage of directories by a bounded walk, and its cache.
//!
//! A directory on a shared file system has no counter of its own, so its usage takes a walk. A walk looks at
//! [`MAX_ENTRIES`] entries at most, never leaves the directory's file system, follows no link, and is repeated
//! after [`MAX_AGE`] at the earliest, when somebody asks.

use berth_core::{sync::lock, time::Boottime};
use rustix::{
    fd::OwnedFd,
    fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, StatxFlags, openat, statfs, statx},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Mutex,
    time::Duration,
};

/// The most entries of one walk. A larger directory has no known usage.
pub const MAX_ENTRIES: usize = 200_000;

/// The age of a usage after which a walk is repeated (the kubelet's `volumeStatsAggPeriod`).
pub const MAX_AGE: Duration = Duration::from_secs(60);

/// The deepest directory of a walk.
const MAX_DEPTH: usize = 64;

/// Capacity of a file system.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capacity {
    /// Bytes in total.
    pub bytes: u64,
    /// Bytes that an unprivileged process may still use.
    pub available: u64,
    /// Bytes in use.
    pub used: u64,
    /// Inodes in total; 0 where the file system has no limit.
    pub inodes: u64,
    /// Free inodes.
    pub inodes_free: u64,
}

/// Reads the capacity of the file system at `path`. The call may block as long as the file system does.
pub fn capacity(path: &Path) -> Option<Capacity> {
    let fs = statfs(path).ok()?;
    let size = u64::try_from(fs.f_frsize)
        .ok()
        .filter(|size| *size > 0)
        .or_else(|| u64::try_from(fs.f_bsize).ok())?;
    Some(Capacity {
        bytes: fs.f_blocks.saturating_mul(size),
        available: fs.f_bavail.saturating_mul(size),
        used: fs.f_blocks.saturating_sub(fs.f_bfree).saturating_mul(size),
        inodes: fs.f_files,
        inodes_free: fs.f_ffree,
    })
}

/// What a directory holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DirectoryUse {
    /// Bytes on the disk; a file with several links counts once.
    pub bytes: u64,
    /// Files and directories, the directory itself included.
    pub inodes: u64,
}

/// Walks a directory. `None` where it is missing or too large.
pub fn usage(path: &Path) -> Option<DirectoryUse> {
    let root = open(CWD, path)?;
    let mut walk = Walk { found: DirectoryUse::default(), linked: BTreeSet::new(), device: None };
    walk.count(&root, Path::new(""))?;
    walk.directory(&root, 0)?;
    Some(walk.found)
}

struct Walk {
    found: DirectoryUse,
    /// Inodes of files with several links.
    linked: BTreeSet<u64>,
    device: Option<(u32, u32)>,
}

fn open(dir: impl rustix::fd::AsFd, path: &Path) -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NOATIME;
    let plain = flags - OFlags::NOATIME;
    openat(&dir, path, flags, Mode::empty())
        .or_else(|_not_owner| openat(&dir, path, plain, Mode::empty()))
        .ok()
}

impl Walk {
    /// Counts one entry; `Some(true)` for a directory of the same file system.
    fn count(&mut self, dir: &OwnedFd, name: &Path) -> Option<bool> {
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH | AtFlags::NO_AUTOMOUNT;
        let wanted = StatxFlags::TYPE | StatxFlags::BLOCKS | StatxFlags::NLINK | StatxFlags::INO;
        // An entry that was removed meanwhile counts for nothing.
        let Ok(stat) = statx(dir, name, flags, wanted) else { return Some(false) };
        let device = (stat.stx_dev_major, stat.stx_dev_minor);
        if *self.device.get_or_insert(device) != device {
            return Some(false);
        }
        let is_dir = FileType::from_raw_mode(stat.stx_mode.into()) == FileType::Directory;
        if is_dir || stat.stx_nlink < 2 || self.linked.insert(stat.stx_ino) {
            self.found.bytes = self.found.bytes.saturating_add(stat.stx_blocks.saturating_mul(512));
            self.found.inodes += 1;
        }
        (self.found.inodes <= MAX_ENTRIES as u64).then_some(is_dir)
    }

    fn directory(&mut self, dir: &OwnedFd, depth: usize) -> Option<()> {
        if depth > MAX_DEPTH {
            return None;
        }
        let Ok(entries) = Dir::read_from(dir) else { return Some(()) };
        for entry in entries {
            let Ok(entry) = entry else { break };
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            let name = Path::new(std::ffi::OsStr::from_bytes(name));
            if self.count(dir, name)?
                && let Some(inner) = open(dir, name)
            {
                self.directory(&inner, depth + 1)?;
            }
        }
        Some(())
    }
}

use std::os::unix::ffi::OsStrExt as _;

/// The last known usage of directories.
#[derive(Debug, Default)]
pub struct UsageCache {
    known: Mutex<BTreeMap<PathBuf, (Boottime, Option<DirectoryUse>)>>,
}

impl UsageCache {
    /// The last known usage of a directory.
    pub fn get(&self, path: &Path) -> Option<DirectoryUse> {
        lock(&self.known).get(path).and_then(|(_, usage)| *usage)
    }

    /// Walks those of `paths` whose usage is unknown or too old, until `deadline`, and forgets all directories
    /// outside `paths`. `now` reads the clock. The lock is not held during a walk.
    pub fn refresh(&self, paths: &BTreeSet<PathBuf>, deadline: Boottime, now: impl Fn() -> Boottime) {
        let due: Vec<&PathBuf> = {
            let mut known = lock(&self.known);
            known.retain(|path, _| paths.contains(path));
            let begun = now();
            let fresh = |path: &PathBuf| known.get(path).is_some_and(|(at, _)| begun.since(*at) < MAX_AGE);
            let mut due: Vec<(Option<Boottime>, &PathBuf)> = paths
                .iter()
                .filter(|path| !fresh(path))
                .map(|path| (known.get(path).map(|(at, _)| *at), path))
                .collect();
            // The oldest first, so that a short deadline starves none.
            due.sort();
            due.into_iter().map(|(_, path)| path).collect()
        };
        for path in due {
            if now() >= deadline {
                return;
            }
            let found = usage(path);
            lock(&self.known).insert(path.clone(), (now(), found));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{cell::Cell, fs, os::unix::fs::symlink};

    #[test]
    fn a_walk_counts_each_file_once_and_follows_no_link() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("r");
        fs::create_dir_all(root.join("a/b")).unwrap();
        let empty = usage(&root).unwrap();
        assert_eq!(empty.inodes, 3);
        fs::write(root.join("a/f"), vec![1; 100_000]).unwrap();
        fs::hard_link(root.join("a/f"), root.join("a/b/g")).unwrap();
        fs::write(dir.path().join("out"), vec![1; 1 << 20]).unwrap();
        symlink("../out", root.join("l")).unwrap();
        symlink("..", root.join("up")).unwrap();
        let full = usage(&root).unwrap();
        assert_eq!(full.inodes, 6);
        assert!((100_000..200_000).contains(&(full.bytes - empty.bytes)), "{full:?}");
        assert_eq!(usage(&root.join("l")), None);
        assert_eq!(usage(&root.join("none")), None);
    }

    #[test]
    fn a_walk_stays_on_its_file_system() {
        // /proc is another file system than its mount point's parent.
        let found = usage(Path::new("/proc/self/ns")).unwrap();
        assert!(found.inodes >= 1);
        let of_root = capacity(Path::new("/proc")).unwrap();
        assert_eq!(of_root.bytes, 0);
        assert!(capacity(Path::new("/")).unwrap().bytes > 0);
        assert_eq!(capacity(Path::new("/none")), None);
    }

    #[test]
    fn a_cache_walks_again_after_a_minute_and_forgets() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_owned();
        let clock = Cell::new(Boottime(Duration::from_secs(1000)));
        let cache = UsageCache::default();
        let paths = BTreeSet::from([path.clone()]);
        let refresh = |left: u64| {
            cache.refresh(&paths, clock.get() + Duration::from_secs(left), || clock.get());
        };
        refresh(0);
        assert_eq!(cache.get(&path), None, "no time for a walk");
        refresh(1);
        let inodes = || cache.get(&path).map(|usage| usage.inodes);
        assert_eq!(inodes(), Some(1));
        fs::write(path.join("f"), "").unwrap();
        refresh(1);
        assert_eq!(inodes(), Some(1));
        clock.set(clock.get() + MAX_AGE);
        refresh(1);
        assert_eq!(inodes(), Some(2));
        cache.refresh(&BTreeSet::new(), clock.get(), || clock.get());
        assert_eq!(inodes(), None);
    }
}
