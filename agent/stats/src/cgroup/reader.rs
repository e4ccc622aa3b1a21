//! Reads the files of cgroups: three system calls a file, into buffers that are used again.

use super::{CpuTime, GroupUsage, MemoryUse, Throttling, parse};
use rustix::{
    fd::OwnedFd,
    fs::{CWD, Mode, OFlags, openat},
    io::{Errno, read},
};
use std::path::{Path, PathBuf};

/// Where the controllers are mounted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GroupMounts {
    /// Mount point of the hierarchy of version 2, if it carries the controllers. The other fields are those of
    /// version 1 and unused then.
    pub unified: Option<PathBuf>,
    /// Mount point of `cpu`.
    pub cpu: Option<PathBuf>,
    /// Mount point of `cpuacct`.
    pub cpuacct: Option<PathBuf>,
    /// Mount point of `memory`.
    pub memory: Option<PathBuf>,
    /// Mount point of `blkio`.
    pub blkio: Option<PathBuf>,
    /// Mount point of `pids`.
    pub pids: Option<PathBuf>,
}

/// How much of a group is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Depth {
    /// CPU time, memory usage and working set, swap.
    Basic,
    /// All that [`GroupUsage`] holds.
    Full,
}

/// Longest file that is read. `memory.stat` has 2 KiB, `io.stat` some 100 bytes a device.
const MAX_FILE: usize = 32 << 10;

/// Reader of cgroup files.
#[derive(Debug)]
pub struct GroupReader<'a> {
    mounts: &'a GroupMounts,
    buffer: Vec<u8>,
    second: Vec<u8>,
}

impl<'a> GroupReader<'a> {
    /// A reader of these hierarchies.
    pub fn new(mounts: &'a GroupMounts) -> GroupReader<'a> {
        GroupReader { mounts, buffer: vec![0; MAX_FILE], second: vec![0; MAX_FILE] }
    }

    /// What the group at `relative` (below each mount point, empty for the root) has used. `limited`: whether
    /// the group has a CPU quota; without one the kernel counts no waits.
    pub fn read(&mut self, relative: &Path, depth: Depth, limited: bool) -> GroupUsage {
        match &self.mounts.unified {
            Some(mount) => {
                self.read_v2(&mount.join(relative), depth, limited, relative.as_os_str().is_empty())
            }
            None => self.read_v1(relative, depth, limited),
        }
    }

    fn read_v1(&mut self, relative: &Path, depth: Depth, limited: bool) -> GroupUsage {
        let mounts = self.mounts;
        let dir = |mount: &Option<PathBuf>| open_dir(&mount.as_ref()?.join(relative));
        let full = depth == Depth::Full;
        let mut usage = GroupUsage::default();
        if let Some(dir) = dir(&mounts.cpuacct) {
            let total = text(&dir, "cpuacct.usage", &mut self.buffer);
            let stat = if full { text(&dir, "cpuacct.stat", &mut self.second) } else { None };
            usage.cpu = total.and_then(|total| parse::cpu_v1(total, stat));
        }
        if let Some(dir) = dir(&mounts.memory) {
            usage.memory = self.memory_v1(&dir, full);
        }
        if !full {
            return usage;
        }
        if let Some(dir) = limited.then(|| dir(&mounts.cpu)).flatten() {
            usage.throttling = text(&dir, "cpu.stat", &mut self.buffer).and_then(|t| parse::cpu_stat(t).1);
        }
        if let Some(dir) = dir(&mounts.blkio) {
            for (file, bytes) in [
                ("blkio.throttle.io_service_bytes_recursive", true),
                ("blkio.throttle.io_serviced_recursive", false),
            ] {
                if let Some(text) = text(&dir, file, &mut self.buffer) {
                    parse::io_v1(&mut usage.io, text, bytes);
                }
            }
        }
        if let Some(dir) = dir(&mounts.pids) {
            usage.tasks = text(&dir, "pids.current", &mut self.buffer).and_then(parse::number);
        }
        usage
    }

    fn memory_v1(&mut self, dir: &OwnedFd, full: bool) -> Option<MemoryUse> {
        let mut number = |file| text(dir, file, &mut self.buffer).and_then(parse::number);
        let bytes = number("memory.usage_in_bytes")?;
        let (mut max, mut failcnt, mut kernel) = (None, None, None);
        if full {
            max = number("memory.max_usage_in_bytes");
            failcnt = number("memory.failcnt");
            kernel = number("memory.kmem.usage_in_bytes");
        }
        let mut memory = parse::memory_v1(bytes, text(dir, "memory.stat", &mut self.buffer)?);
        (memory.max_usage, memory.failcnt, memory.kernel) = (max, failcnt, kernel.unwrap_or(0));
        if full {
            let control = text(dir, "memory.oom_control", &mut self.buffer);
            memory.oom_kills = control.and_then(|control| parse::value_of(control, "oom_kill"));
        }
        Some(memory)
    }

    fn read_v2(&mut self, dir: &Path, depth: Depth, limited: bool, root: bool) -> GroupUsage {
        let mut usage = GroupUsage::default();
        let Some(dir) = open_dir(dir) else { return usage };
        let (cpu, throttling): (Option<CpuTime>, Option<Throttling>) =
            text(&dir, "cpu.stat", &mut self.buffer).map(parse::cpu_stat).unwrap_or_default();
        usage.cpu = cpu;
        usage.memory = self.memory_v2(&dir, depth, root);
        if depth == Depth::Basic {
            return usage;
        }
        usage.throttling = throttling.filter(|_| limited);
        if let Some(text) = text(&dir, "io.stat", &mut self.buffer) {
            parse::io_v2(&mut usage.io, text);
        }
        usage.tasks = text(&dir, "pids.current", &mut self.buffer).and_then(parse::number);
        let mut pressure = |file| text(&dir, file, &mut self.buffer).and_then(parse::pressure);
        usage.cpu_pressure = pressure("cpu.pressure");
        usage.memory_pressure = pressure("memory.pressure");
        usage.io_pressure = pressure("io.pressure");
        usage
    }

    fn memory_v2(&mut self, dir: &OwnedFd, depth: Depth, root: bool) -> Option<MemoryUse> {
        let mut number = |file| text(dir, file, &mut self.buffer).and_then(parse::number);
        let bytes = number("memory.current");
        let swap = number("memory.swap.current").unwrap_or(0);
        let max = if depth == Depth::Full { number("memory.peak") } else { None };
        let stat = text(dir, "memory.stat", &mut self.buffer)?;
        let bytes = match bytes {
            Some(bytes) => bytes,
            None if root => parse::root_usage_v2(stat),
            None => return None,
        };
        let mut memory = parse::memory_v2(bytes, swap, stat);
        memory.max_usage = max;
        if let Some(events) =
            (depth == Depth::Full).then(|| text(dir, "memory.events", &mut self.buffer)).flatten()
        {
            memory.failcnt = parse::value_of(events, "max");
            memory.oom_kills = parse::value_of(events, "oom_kill");
        }
        Some(memory)
    }
}

/// Opens the directory of a group, so that the paths of its files are short.
fn open_dir(path: &Path) -> Option<OwnedFd> {
    openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok()
}

/// Text of a file in `dir`; `None` where it is missing or is no text. What lies beyond the buffer is cut off.
fn text<'b>(dir: &OwnedFd, name: &str, buffer: &'b mut [u8]) -> Option<&'b str> {
    let file = openat(dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut filled = 0;
    // The kernel gives a short file whole, and the end of the file with the next call; that call is saved where
    // the first one left room.
    while let Some(free) = buffer.get_mut(filled..).filter(|free| !free.is_empty()) {
        let room = free.len();
        match read(&file, free) {
            Ok(0) => break,
            Ok(n) => {
                filled += n;
                if n < room && n < PAGE {
                    break;
                }
            }
            Err(Errno::INTR) => {}
            Err(_gone) => return None,
        }
    }
    std::str::from_utf8(buffer.get(..filled)?).ok()
}

/// The kernel gives a longer file in parts of at least this size.
const PAGE: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn write(dir: &Path, files: &[(&str, &str)]) {
        fs::create_dir_all(dir).unwrap();
        for (name, text) in files {
            fs::write(dir.join(name), text).unwrap();
        }
    }

    #[test]
    fn version_1_is_read_from_its_hierarchies() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).join("pods/a");
        write(&at("acct"), &[("cpuacct.usage", "5000\n"), ("cpuacct.stat", "user 1\nsystem 2\n")]);
        write(&at("cpu"), &[("cpu.stat", "nr_periods 4\nnr_throttled 1\nthrottled_time 9\n")]);
        write(
            &at("memory"),
            &[
                ("memory.usage_in_bytes", "100\n"),
                ("memory.max_usage_in_bytes", "200\n"),
                ("memory.failcnt", "3\n"),
                ("memory.stat", "total_inactive_file 40\n"),
                ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"),
            ],
        );
        write(&at("blkio"), &[("blkio.throttle.io_serviced_recursive", "8:0 Read 1\n")]);
        write(&at("pids"), &[("pids.current", "7\n")]);
        let mount = |name: &str| Some(dir.path().join(name));
        let mounts = GroupMounts {
            unified: None,
            cpu: mount("cpu"),
            cpuacct: mount("acct"),
            memory: mount("memory"),
            blkio: mount("blkio"),
            pids: mount("pids"),
        };
        let mut reader = GroupReader::new(&mounts);
        let usage = reader.read("pods/a".as_ref(), Depth::Full, true);
        let memory = usage.memory.unwrap();
        assert_eq!((memory.working_set(), memory.max_usage, memory.failcnt), (60, Some(200), Some(3)));
        assert_eq!((memory.oom_kills, usage.tasks, usage.io.len()), (Some(2), Some(7), 1));
        assert_eq!(usage.cpu.map(|c| (c.total, c.system)), Some((5000, 20_000_000)));
        assert_eq!(usage.throttling.map(|t| t.periods), Some(4));
        assert_eq!(reader.read("pods/a".as_ref(), Depth::Full, false).throttling, None);
        let basic = reader.read("pods/a".as_ref(), Depth::Basic, true);
        assert_eq!(basic.memory.map(|m| (m.working_set(), m.max_usage)), Some((60, None)));
        assert_eq!((basic.tasks, basic.throttling), (None, None));
        assert_eq!(reader.read("pods/gone".as_ref(), Depth::Full, true), GroupUsage::default());
    }

    #[test]
    fn version_2_is_read_from_one_hierarchy_and_its_root_lacks_a_usage() {
        let dir = tempfile::tempdir().unwrap();
        let pressure = "some avg10=0.00 avg60=0.00 avg300=0.00 total=5\n";
        write(
            &dir.path().join("a"),
            &[
                ("cpu.stat", "usage_usec 5\nuser_usec 3\nsystem_usec 2\nnr_periods 4\n"),
                ("memory.current", "100\n"),
                ("memory.swap.current", "10\n"),
                ("memory.peak", "200\n"),
                ("memory.stat", "inactive_file 40\n"),
                ("memory.events", "low 0\nmax 3\noom_kill 2\n"),
                ("io.stat", "8:0 rbytes=1 wbytes=2 rios=3 wios=4\n"),
                ("pids.current", "7\n"),
                ("cpu.pressure", pressure),
                ("memory.pressure", pressure),
            ],
        );
        write(dir.path(), &[("memory.stat", "anon 5\nfile 6\n")]);
        let mounts = GroupMounts { unified: Some(dir.path().into()), ..GroupMounts::default() };
        let mut reader = GroupReader::new(&mounts);
        let usage = reader.read("a".as_ref(), Depth::Full, true);
        let memory = usage.memory.unwrap();
        assert_eq!((memory.working_set(), memory.max_usage, memory.failcnt), (60, Some(200), Some(3)));
        assert_eq!((memory.swap, memory.oom_kills, usage.tasks), (10, Some(2), Some(7)));
        assert_eq!((usage.cpu.map(|c| c.total), usage.throttling.map(|t| t.periods)), (Some(5000), Some(4)));
        assert_eq!(usage.memory_pressure.map(|p| p.some.total), Some(5));
        assert_eq!((usage.io_pressure, usage.io.len()), (None, 1));
        assert_eq!(reader.read("".as_ref(), Depth::Full, true).memory.map(|m| m.usage), Some(11));
    }

    #[test]
    fn a_long_file_is_read_up_to_the_buffers_end() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &[("f", &"x".repeat(3 * PAGE))]);
        let dir = open_dir(dir.path()).unwrap();
        let mut buffer = vec![0; 4 * PAGE];
        assert_eq!(text(&dir, "f", &mut buffer).map(str::len), Some(3 * PAGE));
        let mut buffer = vec![0; PAGE];
        assert_eq!(text(&dir, "f", &mut buffer).map(str::len), Some(PAGE));
        assert_eq!(text(&dir, "none", &mut buffer), None);
    }
}
