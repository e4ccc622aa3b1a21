//! The cluster's own namespaces and cgroup, and the programs in them.
//!
//! Mounts, processes, network, host name and IPC are the cluster's own, so no port and no file system of this
//! machine is taken, and nothing outlives the first process in there (`init.sh`). A veth pair leads in.

use super::{berth, place::Place};
use crate::setup::succeed;
use anyhow::{Context, Result, ensure};
use berth_harness::{
    cgroup,
    containerd::{record, recorded, spawn_detached, tail},
    netns,
    process::Process,
    tools,
    wait::{self, PATIENCE},
};
use std::{
    ffi::OsStr,
    fs::{self, File},
    path::Path,
    process::{Command, ExitStatus, Stdio},
};

const INIT: &str = include_str!("init.sh");

/// Shell text that moves the shell into the groups of its first argument and becomes the rest.
const IN_GROUPS: &str = "for g in $0; do echo 0 > \"$g/cgroup.procs\" || exit 1; done; exec \"$@\"";

/// Running namespaces.
#[derive(Debug)]
pub(super) struct World {
    place: Place,
    init: Process,
}

impl World {
    /// Makes the namespaces, the cgroup and the way in: from the namespaces of `beside`, or from this machine.
    ///
    /// # Errors
    /// The kernel or a tool refuses.
    pub(super) fn make(place: &Place, beside: Option<&World>) -> Result<World> {
        cgroup::make(&format!("{}/system", place.cgroup))?;
        let script = place.write("init.sh", INIT)?;
        let said = place.dir.join("init.pid");
        let mut unshare = in_groups(place);
        unshare.args([
            "unshare",
            "--mount",
            "--net",
            "--pid",
            "--uts",
            "--ipc",
            "--fork",
            "--kill-child",
            "sh",
        ]);
        unshare.args([script.as_os_str(), said.as_os_str(), OsStr::new(&place.node)]);
        let unshared = spawn_detached(unshare, &place.log("init"))?;
        let init = wait::some("the namespaces are there", PATIENCE, || {
            let text = fs::read_to_string(&said).ok();
            let init = text.and_then(|t| t.trim().parse().ok()).and_then(Process::of);
            (init.is_some() || !unshared.alive()).then_some(init)
        })?;
        let init = init.with_context(|| {
            format!("cannot make namespaces, which takes root: {}", tail(&place.log("init"), 10).trim())
        })?;
        record(&place.process("init"), init)?;
        let world = World { place: place.clone(), init };
        world.network(beside)?;
        Ok(world)
    }

    /// The world that an earlier call made in this place; `None` where it does not run.
    pub(super) fn running(place: &Place) -> Option<World> {
        recorded(&place.process("init")).map(|init| World { place: place.clone(), init })
    }

    fn network(&self, beside: Option<&World>) -> Result<()> {
        let place = &self.place;
        let here = |args: &[&str]| succeed(Command::new("ip").args(args));
        let ip = |args: &[&str]| match beside {
            Some(beside) => beside.run(&[&["ip"], args].concat()).map(drop),
            None => here(args),
        };
        let pid = self.init.pid.to_string();
        here(&["link", "add", &place.device, "type", "veth", "peer", "name", "eth0", "netns", &pid])?;
        if let Some(beside) = beside {
            here(&["link", "set", &place.device, "netns", &beside.init.pid.to_string()])?;
        }
        ip(&["addr", "add", &format!("{}/30", place.host), "dev", &place.device])?;
        ip(&["link", "set", &place.device, "up"])?;
        self.run(&["ip", "addr", "add", &format!("{}/30", place.address), "dev", "eth0"])?;
        self.run(&["ip", "link", "set", "eth0", "up"])?;
        self.run(&["ip", "route", "add", "default", "via", &place.host]).map(drop)
    }

    /// A command that runs in the namespaces and in the cgroup; its program and arguments are to be added.
    pub(super) fn enter(&self) -> Result<Command> {
        let mut command = in_groups(&self.place);
        command.args(["nsenter", "--target", &self.init.pid.to_string()]);
        command.args(["--mount", "--net", "--pid", "--uts", "--ipc", "--"]);
        command.env("PATH", tools::path_env()?);
        Ok(command)
    }

    /// Runs `work` on a thread in the network namespace.
    ///
    /// # Errors
    /// The world has ended.
    pub(super) fn in_its_network<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        netns::of_process(self.init.pid, work)
    }

    /// Runs a command to its end and returns its standard output.
    ///
    /// # Errors
    /// The command fails.
    pub(super) fn run(&self, args: &[&str]) -> Result<String> {
        let out = self.enter()?.args(args).stdin(Stdio::null()).output().context("cannot run nsenter")?;
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        ensure!(out.status.success(), "{}: {} {}", args.join(" "), out.status, said.trim());
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }

    /// Runs a command to its end with its output in a file, and returns how it ended.
    ///
    /// # Errors
    /// The command cannot be run, or the file cannot be written.
    pub(super) fn run_logged(&self, args: &[&str], log: &Path) -> Result<ExitStatus> {
        let dir = log.parent().unwrap_or(log);
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let file = File::create(log).with_context(|| format!("cannot make {}", log.display()))?;
        let mut command = self.enter()?;
        command.args(args).stdin(Stdio::null()).stderr(file.try_clone().context("cannot share a log")?);
        command.stdout(file).status().context("cannot run nsenter")
    }

    /// Starts a daemon and remembers its command. Its output goes to its log.
    ///
    /// # Errors
    /// The program does not start.
    pub(super) fn spawn(&self, name: &str, program: &Path, args: &[String]) -> Result<()> {
        let mut words = vec![program.to_string_lossy().into_owned()];
        words.extend_from_slice(args);
        self.place.write(&commands(name), &serde_json::to_string(&words)?)?;
        self.start(name)
    }

    /// Starts a daemon with the command of its first start; does nothing where it runs.
    ///
    /// # Errors
    /// No daemon of this name was ever started here, or the program does not start.
    pub(super) fn start(&self, name: &str) -> Result<()> {
        if self.process(name).is_some() {
            return Ok(());
        }
        let file = self.place.dir.join(commands(name));
        let text =
            fs::read_to_string(&file).with_context(|| format!("this cluster has no program {name:?}"))?;
        let words: Vec<String> = serde_json::from_str(&text).context("cannot read a daemon's command")?;
        let mut command = self.enter()?;
        command.args(words);
        let log = self.place.log(name);
        let entered = spawn_detached(command, &log)?;
        // nsenter stays outside as the parent, because only a child is in the new PID namespace.
        let daemon = wait::some(&format!("{name} starts"), PATIENCE, || {
            if !entered.alive() {
                return Some(None);
            }
            let children = format!("/proc/{0}/task/{0}/children", entered.pid);
            let text = fs::read_to_string(children).ok()?;
            text.split_whitespace().next()?.parse().ok().and_then(Process::of).map(Some)
        })?;
        let daemon = daemon.with_context(|| format!("{name} ended at once:\n{}", tail(&log, 15)))?;
        record(&self.place.process(name), daemon)
    }

    /// Starts a daemon that does not run with a flag of its command set to another value.
    ///
    /// # Errors
    /// The command has no such flag, or as [`World::start`].
    pub(super) fn start_with(&self, name: &str, flag: &str, value: &str) -> Result<()> {
        let file = commands(name);
        let text = fs::read_to_string(self.place.dir.join(&file))
            .with_context(|| format!("this cluster has no program {name:?}"))?;
        let mut words: Vec<String> = serde_json::from_str(&text).context("cannot read a daemon's command")?;
        let begin = format!("--{flag}=");
        let word = words.iter_mut().find(|word| word.starts_with(&begin));
        *word.with_context(|| format!("{name} has no flag {flag}"))? = begin + value;
        self.place.write(&file, &serde_json::to_string(&words)?)?;
        self.start(name)
    }

    /// The first process of the namespaces.
    pub(super) fn init(&self) -> Process {
        self.init
    }

    /// The process of a daemon; `None` where it does not run.
    pub(super) fn process(&self, name: &str) -> Option<Process> {
        recorded(&self.place.process(name))
    }

    /// Waits until an attempt succeeds while the daemon runs.
    ///
    /// # Errors
    /// The daemon ended, or no attempt succeeded in time; the message holds the end of its log.
    pub(super) fn ready(&self, name: &str, mut attempt: impl FnMut() -> Result<()>) -> Result<()> {
        let log =
            || format!("the end of {}:\n{}", self.place.log(name).display(), tail(&self.place.log(name), 15));
        wait::ok(&format!("{name} is ready"), 2 * PATIENCE, || {
            if self.process(name).is_none() {
                return Ok(None);
            }
            attempt().map(Some)
        })
        .with_context(log)?
        .with_context(|| format!("{name} ended; {}", log()))
    }

    /// Kills a daemon with SIGKILL; does nothing where it does not run.
    ///
    /// # Errors
    /// No daemon of this name was ever started here, or it does not end.
    pub(super) fn kill(&self, name: &str) -> Result<()> {
        let known = self.place.dir.join(commands(name)).exists();
        ensure!(known, "this cluster has no program {name:?}");
        self.process(name).map_or(Ok(()), |daemon| daemon.kill())
    }

    /// Ends every process of the namespaces; mounts and network go with them.
    ///
    /// # Errors
    /// The first process does not end.
    pub(super) fn end(&self) -> Result<()> {
        self.init.kill()
    }
}

/// File of a daemon's command.
fn commands(name: &str) -> String {
    format!("processes/{name}.command")
}

/// Removes what is left of the cluster in this place: processes, device, cgroup and files.
///
/// # Errors
/// Something cannot be removed.
pub(super) fn remove(place: &Place) -> Result<()> {
    for node in place.nodes()? {
        remove(&node)?;
    }
    if let Some(world) = World::running(place) {
        world.end()?;
    }
    // Also ends what was started before the first process was recorded.
    cgroup::remove(&place.cgroup)?;
    berth::remove(place)?;
    // The device goes with its namespace, which the kernel takes down on its own time.
    let device = Path::new("/sys/class/net").join(&place.device);
    wait::ok("the device is gone", PATIENCE, || {
        if device.exists() {
            // Fails where the kernel comes first, which the next look shows.
            let out = Command::new("ip").args(["link", "del", &place.device]).output();
            let out = out.context("cannot run ip")?;
            ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr).trim());
        }
        Ok(())
    })?;
    place.remove_files()
}

fn in_groups(place: &Place) -> Command {
    let groups: Vec<String> = cgroup::groups(&format!("{}/system", place.cgroup))
        .iter()
        .map(|g| g.to_string_lossy().into_owned())
        .collect();
    let mut command = Command::new("sh");
    command.args(["-c", IN_GROUPS, &groups.join(" ")]);
    command
}
