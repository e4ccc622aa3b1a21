//! A container without a runtime, and queries of the kernel's lists.

use berth_probe::{ExecTarget, Prober, ProberConfig, process_of_spec};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

static COUNT: AtomicU32 = AtomicU32::new(0);

/// First process of the container: its own root with a new /proc, then waits, for orphans too, as a
/// first process should.
const INIT: &str = "set -e
mount --bind \"$1\" \"$1\"
mount -t proc proc \"$1/proc\"
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620 devpts \"$1/dev/pts\"
cd \"$1\"
pivot_root . old
/bin/busybox umount -l /old
/bin/busybox touch /ready
exec /bin/busybox sh -c 'while :; do sleep 100000 & wait; done'";

pub(crate) struct Container {
    child: Child,
    pub(crate) pid: u32,
    _rootfs: tempfile::TempDir,
    pub(crate) cgroups: Vec<PathBuf>,
    /// The test's own directory in each hierarchy, the container's parent.
    pub(crate) roots: Vec<PathBuf>,
    /// The container's own process.
    own: Vec<u32>,
}

impl Container {
    pub(crate) fn start() -> Container {
        let rootfs = rootfs();
        let (roots, cgroups) = cgroups("c");
        let child = Command::new("unshare")
            .args([
                "--fork",
                "--kill-child",
                "--pid",
                "--mount",
                "--net",
                "--ipc",
                "--uts",
                "sh",
                "-c",
                INIT,
                "sh",
            ])
            .arg(rootfs.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let children = format!("/proc/{0}/task/{0}/children", child.id());
        let mut pid = 0;
        until("the container runs", || {
            pid = fs::read_to_string(&children).ok().and_then(|c| c.trim().parse().ok()).unwrap_or(0);
            rootfs.path().join("ready").exists() && comm(pid) == "busybox"
        });
        for dir in &cgroups {
            fs::write(dir.join("cgroup.procs"), pid.to_string()).unwrap();
        }
        let mut container = Container { child, pid, _rootfs: rootfs, cgroups, roots, own: vec![pid] };
        until("it waits", || container.others().iter().any(|p| comm(*p) == "sleep"));
        container.own.extend(container.others());
        container
    }

    pub(crate) fn target(&self, process: &Value, command: &[&str]) -> ExecTarget {
        ExecTarget {
            command: command.iter().map(|&c| c.to_owned()).collect(),
            pid: self.pid,
            start_time: start_time(self.pid),
            process: process_of_spec(&json!({ "process": process })).unwrap(),
            cgroup_dirs: self.cgroups.clone(),
        }
    }

    pub(crate) fn shell(&self, process: &Value, script: &str) -> ExecTarget {
        self.target(process, &["sh", "-c", script])
    }

    /// Every process of the container except its first, from the kernel's lists.
    pub(crate) fn others(&self) -> Vec<u32> {
        let namespace = fs::read_link(format!("/proc/{}/ns/pid", self.pid)).unwrap();
        all_pids()
            .filter(|pid| !self.own.contains(pid))
            .filter(|pid| fs::read_link(format!("/proc/{pid}/ns/pid")).is_ok_and(|ns| ns == namespace))
            .collect()
    }

    /// Every cgroup below the container's.
    pub(crate) fn groups(&self) -> Vec<PathBuf> {
        let entries = self.cgroups.iter().flat_map(|dir| fs::read_dir(dir).unwrap());
        entries.map(|e| e.unwrap().path()).filter(|p| p.is_dir()).collect()
    }

    /// Whether nothing of a command is left.
    pub(crate) fn clean(&self) -> bool {
        self.others().is_empty() && self.groups().is_empty()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        let end = Instant::now() + Duration::from_secs(5);
        for dir in self.cgroups.iter().chain(&self.roots) {
            while dir.exists() && Instant::now() < end && remove_tree(dir).is_err() {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

/// A container made by runc, for comparison.
pub(crate) struct Runc {
    pub(crate) bundle: tempfile::TempDir,
    name: String,
    pid: u32,
}

impl Runc {
    pub(crate) fn start() -> Runc {
        let bundle = tempfile::Builder::new().prefix("berth-probe-").tempdir().unwrap();
        let name = format!("berth-probe-{}", std::process::id());
        let rootfs = rootfs();
        let spec = json!({
            "ociVersion": "1.2.0",
            "process": process_of("/bin/sleep", "100000"),
            "root": {"path": rootfs.path()},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
                {
                    "destination": "/dev/pts", "type": "devpts", "source": "devpts",
                    "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"],
                },
            ],
            "linux": {
                "cgroupsPath": format!("/{name}/c"),
                "namespaces": [
                    {"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}
                ],
            },
        });
        // runc owns the root from here on. It is removed with the bundle.
        std::os::unix::fs::symlink(rootfs.keep(), bundle.path().join("root-of")).unwrap();
        fs::write(bundle.path().join("config.json"), spec.to_string()).unwrap();
        let mut container = Runc { bundle, name, pid: 0 };
        let file = container.bundle.path().join("pid");
        let status = container
            .runc(&["run", "--detach", "--bundle"])
            .arg(container.bundle.path())
            .arg("--pid-file")
            .arg(&file)
            .arg(&container.name)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status();
        assert!(status.unwrap().success());
        container.pid = fs::read_to_string(file).unwrap().trim().parse().unwrap();
        container
    }

    fn runc(&self, arguments: &[&str]) -> Command {
        let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(
            || Path::new(&std::env::var_os("HOME").unwrap_or_default()).join(".cache"),
            PathBuf::from,
        );
        let tools =
            std::env::var_os("BERTH_TOOLS").map_or_else(|| cache.join("berth/tools/bin"), PathBuf::from);
        let runc = tools.join("runc");
        let mut command = Command::new(if runc.exists() { runc } else { "runc".into() });
        command.arg("--root").arg(self.bundle.path().join("state")).args(arguments);
        command
    }

    /// Output of the command of that process, run by runc.
    pub(crate) fn exec(&self, process: &Value) -> String {
        let file = self.bundle.path().join("process.json");
        fs::write(&file, process.to_string()).unwrap();
        let output = self
            .runc(&["exec", "--process"])
            .arg(&file)
            .arg(&self.name)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
    }

    pub(crate) fn target(&self, process: &Value) -> ExecTarget {
        let own = fs::read_to_string(format!("/proc/{}/cgroup", self.pid)).unwrap();
        let mount = Path::new("/sys/fs/cgroup");
        let cgroup_dirs = own.lines().map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (names, path) = (fields.next().unwrap(), fields.next().unwrap().trim_start_matches('/'));
            let hierarchy = match names.trim_start_matches("name=") {
                "" if mount.join("cgroup.procs").exists() => mount.to_owned(),
                "" => mount.join("unified"),
                names => mount.join(names),
            };
            hierarchy.join(path)
        });
        let command =
            process["args"].as_array().unwrap().iter().map(|a| a.as_str().unwrap().to_owned()).collect();
        ExecTarget {
            command,
            pid: self.pid,
            start_time: start_time(self.pid),
            process: process_of_spec(&json!({ "process": process })).unwrap(),
            cgroup_dirs: cgroup_dirs.collect(),
        }
    }
}

impl Drop for Runc {
    fn drop(&mut self) {
        drop(self.runc(&["delete", "--force", &self.name]).status());
        if let Ok(root) = fs::read_link(self.bundle.path().join("root-of")) {
            drop(fs::remove_dir_all(root));
        }
        for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            drop(fs::remove_dir(hierarchy.path().join(&self.name)));
        }
        drop(fs::remove_dir(Path::new("/sys/fs/cgroup").join(&self.name)));
    }
}

fn process_of(program: &str, argument: &str) -> Value {
    let mut process = process();
    process["args"] = json!([program, argument]);
    process["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 1000, "hard": 2000}]);
    process
}

/// Attributes that this process itself may pass on.
pub(crate) fn held_capabilities() -> Vec<String> {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let bits = status.lines().find_map(|l| l.strip_prefix("CapBnd:")).unwrap();
    let bits = u64::from_str_radix(bits.trim(), 16).unwrap();
    let names = DEFAULT_CAPS.iter().chain(&["CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_SYS_PTRACE"]);
    assert_ne!(bits & (1 << 21), 0, "the tests run as root");
    names.map(|n| (*n).to_owned()).collect()
}

fn remove_tree(dir: &Path) -> std::io::Result<()> {
    for child in fs::read_dir(dir)?.flatten().map(|e| e.path()).filter(|p| p.is_dir()) {
        for pid in fs::read_to_string(child.join("cgroup.procs"))?.lines() {
            drop(Command::new("kill").args(["-9", pid]).status());
        }
        remove_tree(&child)?;
    }
    fs::remove_dir(dir)
}

pub(crate) fn rootfs() -> tempfile::TempDir {
    let root = tempfile::Builder::new().prefix("berth-probe-").tempdir().unwrap();
    for dir in ["bin", "proc", "old", "etc", "dev", "tmp", "srv/data", "dev/pts"] {
        fs::create_dir_all(root.path().join(dir)).unwrap();
    }
    let busybox = root.path().join("bin/busybox");
    let found = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|p| Path::new(p).exists()).unwrap();
    fs::copy(found, &busybox).unwrap();
    for tool in [
        "sh", "cat", "sleep", "true", "false", "id", "ls", "yes", "readlink", "pwd", "env", "head", "kill",
        "grep", "sort", "stty", "tty", "touch", "ln", "mkfifo",
    ] {
        std::os::unix::fs::symlink("busybox", root.path().join("bin").join(tool)).unwrap();
    }
    fs::write(
        root.path().join("etc/passwd"),
        "root:x:0:0:r:/root:/bin/sh\nweb:x:1000:1000::/home/web:/bin/sh\n",
    )
    .unwrap();
    for (device, minor) in [("null", "3"), ("tty", "0")] {
        let major = if device == "null" { "1" } else { "5" };
        let path = root.path().join("dev").join(device);
        let made = Command::new("mknod").arg(path).args(["-m", "666", "c", major, minor]).status();
        assert!(made.unwrap().success());
    }
    fs::write(root.path().join("bin/script"), "#!/bin/sh\nexit 4\n").unwrap();
    set_mode(&root.path().join("bin/script"), 0o755);
    fs::write(root.path().join("bin/forbidden"), "").unwrap();
    set_mode(root.path(), 0o755);
    root
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
}

/// `(roots, containers)` in every hierarchy.
fn cgroups(container: &str) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let name = format!("berth-probe-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let mount = Path::new("/sys/fs/cgroup");
    let hierarchies: Vec<PathBuf> = if mount.join("cgroup.procs").exists() {
        vec![mount.to_owned()]
    } else {
        fs::read_dir(mount)
            .unwrap()
            .flatten()
            .filter(|e| e.file_type().unwrap().is_dir())
            .map(|e| e.path())
            .collect()
    };
    let roots: Vec<PathBuf> = hierarchies.iter().map(|h| h.join(&name)).collect();
    let dirs: Vec<PathBuf> = roots.iter().map(|r| r.join(container)).collect();
    for dir in roots.iter().chain(&dirs) {
        fs::create_dir(dir).unwrap();
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if dir.join(file).exists() && hierarchies.len() > 1 {
                fs::write(dir.join(file), fs::read(dir.parent().unwrap().join(file)).unwrap()).unwrap();
            }
        }
    }
    (roots, dirs)
}

pub(crate) fn prober(container: &Container) -> Prober {
    Prober::new(ProberConfig::new(std::env::current_exe().unwrap(), container.roots.clone())).unwrap()
}

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// The process of an ordinary container of containerd's CRI plugin.
pub(crate) const DEFAULT_CAPS: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

pub(crate) fn process() -> Value {
    json!({
        "user": {"uid": 0, "gid": 0, "additionalGids": [0, 10]},
        "env": ["PATH=/usr/bin:/bin", "HELLO=a b"],
        "cwd": "/",
        "capabilities": {"bounding": DEFAULT_CAPS, "effective": DEFAULT_CAPS, "permitted": DEFAULT_CAPS},
    })
}

pub(crate) fn start_time(pid: u32) -> u64 {
    berth_sys::process::start_time(pid).unwrap().unwrap()
}

pub(crate) fn all_pids() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse().ok())
}

pub(crate) fn comm(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

/// The helper: a child of this program with its role.
pub(crate) fn helper() -> Option<u32> {
    let threads = fs::read_dir("/proc/self/task").unwrap().flatten();
    let children = threads.map(|t| fs::read_to_string(t.path().join("children")).unwrap_or_default());
    let children: Vec<u32> =
        children.collect::<String>().split_whitespace().filter_map(|p| p.parse().ok()).collect();
    children.into_iter().find(|pid| {
        fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|c| c.windows(10).any(|w| w == b"probe-exec"))
    })
}

/// Waits for a condition, up to 5 s.
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(5);
    while !condition() {
        assert!(Instant::now() < end, "not within 5 s: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Kills a process.
pub(crate) fn kill(pid: u32) {
    assert!(Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success(), "{pid}");
}
