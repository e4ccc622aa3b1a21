//! Snapshot of the machine, compared before and after a test. The snapshot reads the kernel and the disk
//! itself, because the agent's own report that nothing is left proves nothing.

use crate::{cgroup, process};
use anyhow::{Context, Result, bail, ensure};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

/// Deadline for things that are still ending.
const SETTLE: Duration = Duration::from_secs(30);

/// What a snapshot covers.
#[derive(Debug, Clone, Default)]
pub struct Scope {
    /// Directories whose files are listed.
    pub dirs: Vec<PathBuf>,
    /// Words that mark a test's things: each path, address, command line or environment of such a thing holds
    /// one. On a machine shared with other work, things without a mark are not counted.
    pub marks: Vec<String>,
}

/// Directories in which a node with default roots would leave files.
const OF_NODES: [&str; 10] = [
    "/etc/cni",
    "/opt/cni",
    "/var/lib/berth",
    "/var/lib/kubelet",
    "/var/lib/cni",
    "/var/log/pods",
    "/var/log/containers",
    "/run/berth",
    "/run/containerd",
    "/run/netns",
];

impl Scope {
    /// Scope for a node that carries one of these marks in everything that the node starts.
    pub fn of_node(marks: Vec<String>) -> Scope {
        Scope { dirs: OF_NODES.iter().map(PathBuf::from).collect(), marks }
    }

    /// Whether this run has the machine alone (`BERTH_ALONE=1`). Then every difference counts, marked or not.
    fn alone() -> bool {
        std::env::var_os("BERTH_ALONE").is_some_and(|v| v == "1")
    }
}

/// Kind that counts without a mark. A BPF file system is shared by all programs and so carries no mark, and a
/// BPF file system without pins has no user.
const UNUSED_BPFFS: &str = "BPF file systems without pins";

/// Kinds whose entries may disappear at any time, such as a process that ran before the test.
const MAY_GO: [&str; 2] = ["processes", UNUSED_BPFFS];

/// Entries that the kernel itself puts into each BPF file system.
const PINNED_BY_KERNEL: [&str; 2] = ["maps.debug", "progs.debug"];

/// Things on the machine at one moment, by kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine(BTreeMap<&'static str, BTreeSet<String>>);

impl Machine {
    /// Takes a snapshot of the machine.
    ///
    /// # Errors
    /// A listing fails.
    pub fn now(scope: &Scope) -> Result<Machine> {
        Ok(Machine(BTreeMap::from([
            ("processes", processes(scope)),
            ("mounts", mounts()?),
            ("BPF pins", bpf_pins()?),
            (UNUSED_BPFFS, unused_bpffs()?),
            ("network namespaces", net_namespaces()),
            ("links", lines("ip", &["-o", "link", "show"], strip_link)?),
            ("addresses", lines("ip", &["-o", "address", "show"], strip_lifetime)?),
            ("IPv4 routes", lines("ip", &["-4", "route", "show", "table", "all"], keep)?),
            ("IPv6 routes", lines("ip", &["-6", "route", "show", "table", "all"], strip_lifetime)?),
            ("rules", lines("ip", &["rule", "show"], keep)?),
            ("nft rules", lines("nft", &["list", "ruleset"], keep)?),
            ("sysctls", sysctls()),
            ("cgroups", cgroups()),
            ("files", files(&scope.dirs)),
        ])))
    }

    /// Compares the machine with this earlier snapshot. Things that are still ending get some time.
    ///
    /// # Errors
    /// Something is left that was not there before, or something is gone; the message lists both.
    pub fn assert_as_before(&self, scope: &Scope) -> Result<()> {
        let end = Instant::now() + SETTLE;
        loop {
            let mut differences = self.differences(&Machine::now(scope)?);
            if !Scope::alone() {
                differences.retain(|d| {
                    d.contains(UNUSED_BPFFS) || scope.marks.iter().any(|m| d.contains(m.as_str()))
                });
            }
            if differences.is_empty() {
                return Ok(());
            }
            if Instant::now() > end {
                bail!("the machine is not as before:\n{}", differences.join("\n"));
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    fn differences(&self, now: &Machine) -> Vec<String> {
        let mut found = Vec::new();
        let nothing = BTreeSet::new();
        for (kind, before) in &self.0 {
            let now = now.0.get(kind).unwrap_or(&nothing);
            found.extend(now.difference(before).map(|l| format!("  {kind}, left: {l}")));
            if !MAY_GO.contains(kind) {
                found.extend(before.difference(now).map(|l| format!("  {kind}, gone: {l}")));
            }
        }
        found
    }

    /// Number of things of each kind. Shows that the snapshot is not empty.
    pub fn counts(&self) -> BTreeMap<&'static str, usize> {
        self.0.iter().map(|(kind, all)| (*kind, all.len())).collect()
    }
}

fn processes(scope: &Scope) -> BTreeSet<String> {
    let me = std::process::id();
    let mut found = BTreeSet::new();
    for (p, words) in process::all() {
        if p.pid == me || descends_from(p.pid, me) {
            continue;
        }
        let marked = || {
            let file = |name: &str| {
                fs::read(format!("/proc/{}/{name}", p.pid)).map(|b| String::from_utf8_lossy(&b).into_owned())
            };
            let mut texts: Vec<String> = words.clone();
            texts.extend(["environ", "cgroup"].iter().filter_map(|n| file(n).ok()));
            let link = fs::read_link(format!("/proc/{}/cwd", p.pid)).map(|l| l.display().to_string());
            texts.extend(link.ok());
            scope.marks.iter().any(|m| texts.iter().any(|t| t.contains(m.as_str())))
        };
        if Scope::alone() || marked() {
            found.insert(format!("{} (pid {}, started {})", words.join(" "), p.pid, p.start));
        }
    }
    found
}

/// Whether `ancestor` started `pid`, directly or not. The test's own child processes are no leftovers.
fn descends_from(pid: u32, ancestor: u32) -> bool {
    let mut at = pid;
    for _ in 0..64 {
        let text = fs::read_to_string(format!("/proc/{at}/stat")).unwrap_or_default();
        let parent =
            text.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse::<u32>().ok());
        match parent {
            Some(parent) if parent == ancestor => return true,
            Some(parent) if parent > 1 => at = parent,
            _ => return false,
        }
    }
    false
}

fn mounts() -> Result<BTreeSet<String>> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("read the mounts")?;
    let mut found = BTreeSet::new();
    for line in text.lines() {
        // Mount ids and peer groups change; source, target and options of a mount do not.
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let left: Vec<&str> = left.split(' ').skip(3).collect();
        let shared = if left.iter().any(|w| w.starts_with("shared:")) { "shared" } else { "private" };
        let left: Vec<&str> = left.into_iter().take(3).collect();
        found.insert(format!("{} {shared} {right}", left.join(" ")));
    }
    Ok(found)
}

/// Mount points of BPF file systems.
fn bpf_mounts() -> Result<BTreeSet<PathBuf>> {
    let all = berth_sys::mount::mounts().context("read the mounts")?;
    Ok(all.into_iter().filter(|m| m.fs_type == "bpf").map(|m| m.mount_point).collect())
}

fn bpf_pins() -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for dir in bpf_mounts()? {
        below(&dir, 8, &mut |path, _| {
            found.insert(path.display().to_string());
        });
    }
    Ok(found)
}

fn unused_bpffs() -> Result<BTreeSet<String>> {
    let by_kernel = |name: &std::ffi::OsStr| PINNED_BY_KERNEL.iter().any(|n| name == *n);
    let unused = |dir: &PathBuf| {
        // A mount that disappears meanwhile is no leftover.
        fs::read_dir(dir).is_ok_and(|all| all.flatten().all(|e| by_kernel(&e.file_name())))
    };
    Ok(bpf_mounts()?.into_iter().filter(unused).map(|dir| dir.display().to_string()).collect())
}

fn net_namespaces() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        if let Ok(link) = fs::read_link(entry.path().join("ns/net")) {
            found.insert(link.display().to_string());
        }
    }
    found
}

/// The lines of a listing.
fn lines(program: &str, args: &[&str], clean: fn(&str) -> String) -> Result<BTreeSet<String>> {
    let out = Command::new(program).args(args).output().with_context(|| format!("run {program}"))?;
    ensure!(out.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8_lossy(&out.stdout);
    // A line may occur twice (a closing brace); each repetition counts as a line of its own.
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    let mut found = BTreeSet::new();
    for line in text.lines().map(clean) {
        let n = seen.entry(line.clone()).or_default();
        *n += 1;
        found.insert(if *n == 1 { line } else { format!("{line} (number {n})") });
    }
    Ok(found)
}

fn keep(line: &str) -> String {
    line.trim_end().to_owned()
}

/// The line without its leading running number.
fn strip_link(line: &str) -> String {
    line.split_once(": ").map_or(line, |(_, rest)| rest).trim_end().to_owned()
}

/// The line without its countdown values and without the device's number.
fn strip_lifetime(line: &str) -> String {
    let line = line.split_once(": ").map_or(line, |(_, rest)| rest);
    let mut words = Vec::new();
    let mut all = line.split_whitespace();
    while let Some(word) = all.next() {
        if ["valid_lft", "preferred_lft", "expires"].contains(&word) {
            all.next();
        } else {
            words.push(word);
        }
    }
    words.join(" ")
}

fn sysctls() -> BTreeSet<String> {
    let mut paths = vec![PathBuf::from("/proc/sys/net/ipv4/ip_forward")];
    let leaves = [
        "forwarding",
        "accept_ra",
        "accept_redirects",
        "send_redirects",
        "rp_filter",
        "proxy_arp",
        "proxy_ndp",
        "arp_ignore",
        "arp_announce",
        "route_localnet",
        "accept_local",
    ];
    for family in ["/proc/sys/net/ipv4/conf", "/proc/sys/net/ipv6/conf"] {
        for device in fs::read_dir(family).into_iter().flatten().flatten() {
            paths.extend(leaves.iter().map(|leaf| device.path().join(leaf)));
        }
    }
    let mut found = BTreeSet::new();
    for path in paths {
        if let Ok(value) = fs::read_to_string(&path) {
            found.insert(format!("{} = {}", path.display(), value.trim()));
        }
    }
    found
}

fn cgroups() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for root in cgroup::hierarchies() {
        below(&root, 12, &mut |path, kind| {
            if kind.is_dir() {
                found.insert(path.display().to_string());
            }
        });
    }
    found
}

fn files(dirs: &[PathBuf]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for dir in dirs {
        below(dir, 24, &mut |path, kind| {
            let Ok(meta) = fs::symlink_metadata(path) else { return };
            let size = if kind.is_file() { meta.size() } else { 0 };
            found.insert(format!(
                "{} mode {:o} owner {}:{} size {size}",
                path.display(),
                meta.mode(),
                meta.uid(),
                meta.gid()
            ));
        });
    }
    found
}

fn below(dir: &Path, depth: u32, visit: &mut dyn FnMut(&Path, fs::FileType)) {
    let Some(depth) = depth.checked_sub(1) else { return };
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        visit(&entry.path(), kind);
        if kind.is_dir() {
            below(&entry.path(), depth, visit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_and_what_is_gone_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let scope = Scope { dirs: vec![dir.path().into()], marks: vec!["berth-no-such-mark".into()] };
        fs::write(dir.path().join("old"), "").unwrap();
        let before = Machine::now(&scope).unwrap();
        assert!(
            before.counts()["mounts"] > 0 && before.counts()["cgroups"] > 0 && before.counts()["sysctls"] > 0
        );
        assert_eq!(before.counts()["files"], 1);
        fs::rename(dir.path().join("old"), dir.path().join("new")).unwrap();
        let told = before.differences(&Machine::now(&scope).unwrap()).join("\n");
        assert!(told.contains("files, left: ") && told.contains("/new mode"), "{told}");
        assert!(told.contains("files, gone: ") && told.contains("/old mode"), "{told}");
    }

    #[test]
    fn what_counts_down_is_no_difference() {
        assert_eq!(
            strip_lifetime("default via fe80::1 dev eth0 expires 1790sec pref medium"),
            "default via fe80::1 dev eth0 pref medium"
        );
        assert_eq!(strip_link("17: veth1: <UP> mtu 1500"), "veth1: <UP> mtu 1500");
    }
}
