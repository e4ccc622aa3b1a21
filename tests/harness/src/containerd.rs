//! A private containerd: own root, state, sockets and shims, with the CRI plugin disabled.

use crate::{
    process::{self, Process},
    tools, wait,
};
use anyhow::{Context, Result, ensure};
use std::{
    fs,
    os::unix::{net::UnixStream, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

/// A containerd below one directory. The process outlives this value; [`Containerd::stop`] ends the process.
#[derive(Debug)]
pub struct Containerd {
    dir: PathBuf,
    namespace: String,
}

impl Containerd {
    /// Describes the containerd below `dir`, running or not, with the shims' sockets below `sockets`.
    /// Containerd's client keeps pods in `namespace`.
    ///
    /// # Errors
    /// The configuration cannot be written, or `sockets` is too long for socket names of 64 digits.
    pub fn new(dir: &Path, sockets: &Path, namespace: &str) -> Result<Containerd> {
        ensure!(sockets.as_os_str().len() <= 40, "{} is too long for sockets below it", sockets.display());
        fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        fs::write(dir.join("config.toml"), config(dir, sockets))
            .context("write containerd's configuration")?;
        Ok(Containerd { dir: dir.into(), namespace: namespace.into() })
    }

    /// Path of containerd's socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("containerd.sock")
    }

    /// Process of containerd; `None` where containerd is not running.
    pub fn process(&self) -> Option<Process> {
        recorded(&self.dir.join("process.json"))
    }

    /// Starts containerd where none is running, and waits until containerd answers.
    ///
    /// # Errors
    /// Containerd is not installed or does not come up.
    pub fn start(&self) -> Result<Process> {
        let process = match self.process() {
            Some(process) => process,
            None => {
                let mut command = Command::new(tools::find("containerd")?);
                command.arg("--config").arg(self.dir.join("config.toml")).env("PATH", tools::path_env()?);
                let process = spawn_detached(command, &self.dir.join("log"))?;
                record(&self.dir.join("process.json"), process)?;
                process
            }
        };
        wait::until("containerd answers", wait::PATIENCE, || {
            UnixStream::connect(self.socket()).is_ok() && self.ctr(&["tasks", "ls"]).is_ok()
        })?;
        Ok(process)
    }

    /// Kills containerd with SIGKILL. Shims and containers keep running.
    ///
    /// # Errors
    /// Containerd cannot be ended.
    pub fn kill(&self) -> Result<()> {
        self.process().map_or(Ok(()), |p| p.kill())
    }

    /// Ends containerd and the remaining shims.
    ///
    /// # Errors
    /// A process cannot be ended.
    pub fn stop(&self) -> Result<()> {
        if let Some(process) = self.process() {
            process.terminate(Duration::from_secs(10))?;
        }
        for shim in self.shims() {
            shim.kill()?;
        }
        Ok(())
    }

    /// The shims that report to this containerd.
    pub fn shims(&self) -> Vec<Process> {
        let socket = self.socket();
        let of_ours = |words: &[String]| {
            words.first().is_some_and(|w| w.ends_with("containerd-shim-runc-v2"))
                && words.iter().any(|w| Path::new(w) == socket)
        };
        process::all().into_iter().filter(|(_, words)| of_ours(words)).map(|(p, _)| p).collect()
    }

    /// Runs `ctr` against this containerd, in the namespace of the pods.
    ///
    /// # Errors
    /// The command fails or takes longer than a minute.
    pub fn ctr(&self, args: &[&str]) -> Result<String> {
        let socket = self.socket();
        let out = Command::new(tools::find("ctr")?)
            .arg("--address")
            .arg(&socket)
            .args(["--namespace", &self.namespace, "--timeout", "60s"])
            .args(args)
            .output()
            .context("run ctr")?;
        anyhow::ensure!(
            out.status.success(),
            "ctr {args:?}: {}",
            String::from_utf8_lossy(&out.stderr).trim()
        );
        String::from_utf8(out.stdout).context("ctr's output")
    }

    /// Imports an image archive.
    ///
    /// # Errors
    /// As [`Containerd::ctr`].
    pub fn import(&self, archive: &Path) -> Result<()> {
        self.ctr(&["images", "import", &archive.to_string_lossy()]).map(drop)
    }

    /// The last lines of containerd's log.
    pub fn last_words(&self, lines: usize) -> String {
        tail(&self.dir.join("log"), lines)
    }
}

/// The last lines of a file; empty where the file does not exist.
pub fn tail(path: &Path, lines: usize) -> String {
    let text = fs::read(path).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all.iter().skip(all.len().saturating_sub(lines)).map(|l| format!("{l}\n")).collect()
}

/// Starts a program that outlives the caller, in its own process group, with the output appended to `log`.
///
/// # Errors
/// The log cannot be opened, or the program does not start.
pub fn spawn_detached(mut command: Command, log: &Path) -> Result<Process> {
    let log = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("open {}", log.display()))?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .spawn()
        .with_context(|| format!("start {}", command.get_program().display()))?;
    let process = Process::of(child.id()).context("it ended at once")?;
    // A thread reaps the child while the caller lives; afterwards init does.
    std::thread::spawn(move || child.wait());
    Ok(process)
}

/// Writes a process to a file, for [`recorded`].
///
/// # Errors
/// The file cannot be written.
pub fn record(path: &Path, process: Process) -> Result<()> {
    let text = serde_json::to_vec(&process)?;
    berth_sys::fs::write_atomic(path, &text, 0o600).context("record a process")
}

/// The recorded process, where that process is still running.
pub fn recorded(path: &Path) -> Option<Process> {
    let process: Process = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    process.alive().then_some(process)
}

fn config(dir: &Path, sockets: &Path) -> String {
    let off = [
        "io.containerd.cri.v1.images",
        "io.containerd.cri.v1.runtime",
        "io.containerd.grpc.v1.cri",
        "io.containerd.nri.v1.nri",
        "io.containerd.podsandbox.controller.v1.podsandbox",
        "io.containerd.snapshotter.v1.blockfile",
        "io.containerd.snapshotter.v1.btrfs",
        "io.containerd.snapshotter.v1.devmapper",
        "io.containerd.snapshotter.v1.erofs",
        "io.containerd.snapshotter.v1.zfs",
    ];
    let off: Vec<String> = off.iter().map(|p| format!("{p:?}")).collect();
    let dir = dir.display();
    format!(
        "version = 3\nroot = \"{dir}/root\"\nstate = \"{dir}/state\"\ndisabled_plugins = [{}]\n\
         [grpc]\naddress = \"{dir}/containerd.sock\"\n\
         [plugins.\"io.containerd.internal.v1.opt\"]\npath = \"{dir}/opt\"\n\
         [plugins.\"io.containerd.shim.v1.manager\"]\nsocket_dir = \"{}\"\n",
        off.join(", "),
        sockets.display()
    )
}
