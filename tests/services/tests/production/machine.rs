//! A machine for the node: namespaces that keep the files, cgroups and devices of the default roots apart
//! from the host's.

use super::outside;
use anyhow::{Context, Result, bail, ensure};
use berth_harness::netns::{Netns, run};
use berth_harness::{cgroup, tools};
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

/// Environment variable of the inner process: the directory of the programs.
const PROGRAMS: &str = "BERTH_PRODUCTION_PROGRAMS";

/// Environment variable of the inner process: the socket of the outside.
const OUTSIDE: &str = "BERTH_PRODUCTION_OUTSIDE";

/// Time limit of the whole test, which takes a third of it on a busy machine.
const DEADLINE: Duration = Duration::from_secs(300);

/// Whether this process is the inner one.
pub(crate) fn is_inside() -> bool {
    env::var_os(PROGRAMS).is_some()
}

/// Directory of the tested programs.
pub(crate) fn programs() -> Result<PathBuf> {
    env::var_os(PROGRAMS).map(PathBuf::from).context("the programs are not named")
}

/// Socket of the outside.
pub(crate) fn outside() -> Result<PathBuf> {
    env::var_os(OUTSIDE).map(PathBuf::from).context("the outside is not named")
}

/// Runs the test's own program again, in new namespaces and in a new cgroup of each hierarchy. Fails if that
/// run fails, and ends its remaining processes.
pub(crate) fn run_inside(programs: &Path) -> Result<()> {
    let name = format!("berth-production-{}", std::process::id());
    let dir = tempfile::Builder::new().prefix("berth-production-").tempdir_in("/tmp")?;
    let socket = dir.path().join("outside.sock");
    let netns = Arc::new(Netns::router(&name)?);
    let groups = Groups::make(&name)?;
    let enter = "for g in $GROUPS_OF_IT; do echo $$ > $g/cgroup.procs; done; exec unshare --mount --cgroup --net --propagation private \"$0\" \"$@\"";
    let mut child = Command::new("sh")
        .args(["-c", enter])
        .arg(env::current_exe()?)
        .args(["--nocapture", "--test-threads=1"])
        .env("GROUPS_OF_IT", groups.paths().join(" "))
        .env(PROGRAMS, programs)
        .env(OUTSIDE, &socket)
        .env("BERTH_TOOLS", tools::dir()?)
        .spawn()
        .context("start the part inside")?;
    outside::serve(&socket, Arc::downgrade(&netns), child.id())?;
    let end = Instant::now() + DEADLINE;
    let status = loop {
        match child.try_wait()? {
            Some(status) => break status,
            None if Instant::now() > end => {
                child.kill()?;
                child.wait()?;
                bail!("it did not end within {DEADLINE:?}");
            }
            None => std::thread::sleep(Duration::from_millis(50)),
        }
    };
    ensure!(status.success(), "the part inside ended with {status}");
    groups.remove()
}

/// The cgroups of the machine.
struct Groups {
    name: String,
    made: Vec<PathBuf>,
}

impl Groups {
    fn make(name: &str) -> Result<Groups> {
        let mut groups = Groups { name: name.to_owned(), made: Vec::new() };
        for root in cgroup::hierarchies() {
            let group = root.join(name);
            fs::create_dir(&group).with_context(|| format!("create {}", group.display()))?;
            groups.made.push(group.clone());
            // A new cgroup of the cpuset controller accepts no process before these files are set.
            for file in ["cpuset.cpus", "cpuset.mems"].iter().filter(|f| group.join(f).exists()) {
                fs::write(group.join(file), fs::read(root.join(file))?).context(*file)?;
            }
        }
        Ok(groups)
    }

    fn paths(&self) -> Vec<String> {
        self.made.iter().map(|g| g.display().to_string()).collect()
    }

    fn remove(self) -> Result<()> {
        cgroup::remove(&self.name)
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        // After a successful test the cgroups are already gone.
        if let Err(error) = cgroup::remove(&self.name) {
            crate::support::tell(&format!("{error:#}"));
        }
    }
}

/// Mounts private instances of everything that a node writes to: the cgroup roots, the BPF file system, and
/// the directories of the default roots. They vanish with the mount namespace.
pub(crate) fn make_own() -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let mut again = Vec::new();
    for line in mounts.lines() {
        let (left, right) = line.split_once(" - ").context("a line of mountinfo")?;
        let point = left.split(' ').nth(4).context("a mount point")?;
        let right: Vec<&str> = right.split(' ').collect();
        let [kind, _, options] = right[..] else { bail!("a line of mountinfo: {line}") };
        if ["cgroup", "cgroup2", "bpf"].contains(&kind) {
            again.push((point.to_owned(), kind.to_owned(), options.to_owned()));
        }
    }
    for (point, ..) in again.iter().rev() {
        run(Command::new("umount").args(["--lazy", point]))?;
    }
    for (point, kind, options) in again.iter().filter(|(_, kind, _)| kind != "bpf") {
        let named = options.split(',').find(|o| o.starts_with("name="));
        let controllers: Vec<&str> =
            options.split(',').filter(|o| !["rw", "ro", "xattr"].contains(o)).collect();
        let mut mount = Command::new("mount");
        mount.args(["-t", kind]);
        match (kind.as_str(), named) {
            ("cgroup2", _) => {}
            (_, Some(name)) => drop(mount.args(["-o", &format!("none,{name}")])),
            (_, None) => drop(mount.args(["-o", &controllers.join(",")])),
        }
        run(mount.args([kind, point]))?;
    }
    for dir in ["/run", "/var/lib", "/var/log", "/opt"] {
        run(Command::new("mount").args(["-t", "tmpfs", "-o", "mode=755", "tmpfs", dir]))?;
    }
    for dir in ["/run/upper", "/run/work"] {
        fs::create_dir(dir)?;
    }
    let over = "lowerdir=/etc,upperdir=/run/upper,workdir=/run/work";
    run(Command::new("mount").args(["-t", "overlay", "-o", over, "overlay", "/etc"]))?;
    // The root is a shared mount, as on a real machine.
    run(Command::new("mount").args(["--make-rshared", "/"])).map(drop)
}

/// Index of a device.
pub(crate) fn index(name: &str) -> Result<u32> {
    nix::net::if_::if_nametoindex(name).with_context(|| format!("device {name}"))
}
