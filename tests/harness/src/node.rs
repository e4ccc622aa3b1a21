//! A Berth node of the real programs below one directory: a private containerd, the agent and its helpers.
//!
//! The directory records the running processes, so that another program (a second run of the demo) finds and
//! ends them.

use crate::{
    cgroup,
    containerd::{self, Containerd},
    process::{self, Process},
    socket::{Pod, Socket},
    tools,
    wait::{self, PATIENCE},
};
use anyhow::{Context, Result, bail, ensure};
use berth_core::{ids::NodeName, roots::Roots};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

mod test_node;
pub use test_node::TestNode;

/// A node. The processes outlive this value: [`Node::down`] ends them, and a dropped [`TestNode`] calls it.
#[derive(Debug)]
pub struct Node {
    /// Directory of all files of the node that outlast a reboot.
    pub dir: PathBuf,
    /// Roots as the agent reads them from the roots file.
    pub roots: Roots,
    /// Containerd of the node.
    pub containerd: Containerd,
    /// Name of the node's cgroup.
    pub cgroup: String,
    /// Directory of the programs `berth` and `berth-cni`.
    pub programs: PathBuf,
    /// Additional environment variables of the agent.
    pub agent_env: BTreeMap<String, String>,
    /// Additional arguments of the agent.
    pub agent_args: Vec<String>,
}

impl Node {
    /// Describes the node below `dir`, with the state of this boot below `run`. Writes the node's files and
    /// starts nothing. The last part of `dir` becomes the name of the node's cgroup and network.
    ///
    /// # Errors
    /// A file of the node cannot be written.
    pub fn new(dir: &Path, run: &Path, name: &str, programs: PathBuf) -> Result<Node> {
        let cgroup =
            dir.file_name().and_then(|n| n.to_str()).context("a directory without a name")?.to_owned();
        let name = NodeName::new(name).context("the node's name")?;
        let roots = Roots { runtime_state: run.into(), ..Roots::below(dir, name, &cgroup) };
        let containerd_dir = roots.containerd_socket.parent().context("containerd's directory")?;
        let containerd = Containerd::new(containerd_dir, &run.join("s"), &roots.containerd_namespace)?;
        let node = Node {
            dir: dir.into(),
            containerd,
            cgroup,
            programs,
            agent_env: BTreeMap::new(),
            agent_args: Vec::new(),
            roots,
        };
        node.write_files()?;
        Ok(node)
    }

    fn write_files(&self) -> Result<()> {
        for dir in [&self.manifests(), &self.roots.cni_conf, &self.roots.cni_bin, &self.roots.runtime_state] {
            fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        }
        self.write_roots()?;
        let (v4, v6) = self.subnets();
        let conflist = json!({
            "cniVersion": "1.1.0",
            "name": self.cgroup,
            "plugins": [{"type": "berth-cni", "subnets": [v4, v6], "dataDir": self.dir.join("cni/data"), "quarantineSeconds": 1}]
        });
        let path = self.roots.cni_conf.join("10-berth.conflist");
        fs::write(&path, format!("{conflist:#}\n")).with_context(|| format!("write {}", path.display()))?;
        let plugin = self.roots.cni_bin.join("berth-cni");
        if fs::read_link(&plugin).ok().is_none_or(|to| to != self.programs.join("berth-cni")) {
            if plugin.is_symlink() {
                fs::remove_file(&plugin)?;
            }
            symlink(self.programs.join("berth-cni"), &plugin).context("link berth-cni")?;
        }
        Ok(())
    }

    /// Rewrites the roots file after a change of [`Node::roots`].
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_roots(&self) -> Result<()> {
        let text = serde_json::to_vec_pretty(&self.roots)?;
        berth_sys::fs::write_atomic(&self.roots_file(), &text, 0o644).context("write the roots file")
    }

    /// Pod networks, derived from the node's name so that two nodes on one machine rarely collide.
    pub fn subnets(&self) -> (String, String) {
        subnets(&self.cgroup)
    }

    /// Marks of everything that the node makes; each such thing holds one of them. See
    /// [`crate::machine::Scope::marks`].
    pub fn marks(&self) -> Vec<String> {
        let mut marks = marks(&self.cgroup);
        marks.extend([self.dir.display().to_string(), self.roots.runtime_state.display().to_string()]);
        marks
    }

    /// Directory of the manifests.
    pub fn manifests(&self) -> PathBuf {
        self.dir.join("manifests")
    }

    /// Path of the roots file.
    pub fn roots_file(&self) -> PathBuf {
        self.dir.join("roots.json")
    }

    /// Path of the agent's log.
    pub fn agent_log(&self) -> PathBuf {
        self.dir.join("agent.log")
    }

    /// The agent's process; `None` where the agent is not running.
    pub fn agent(&self) -> Option<Process> {
        containerd::recorded(&self.dir.join("agent.json"))
    }

    /// Starts the agent where none is running. Does not wait until the agent answers.
    ///
    /// # Errors
    /// The agent cannot be started.
    pub fn spawn_agent(&self) -> Result<Process> {
        if let Some(process) = self.agent() {
            return Ok(process);
        }
        let mut command = Command::new(self.programs.join("berth"));
        command
            .arg("--roots")
            .arg(self.roots_file())
            .args(["agent", "--standalone", "--manifests"])
            .arg(self.manifests())
            .arg("--shim")
            .arg(tools::find("containerd-shim-runc-v2")?)
            .arg("--runc")
            .arg(tools::find("runc")?)
            .args(&self.agent_args)
            .env("PATH", tools::path_env()?)
            .envs(&self.agent_env);
        let process = containerd::spawn_detached(command, &self.agent_log())?;
        containerd::record(&self.dir.join("agent.json"), process)?;
        Ok(process)
    }

    /// Starts the agent and waits until the agent answers on its socket.
    ///
    /// # Errors
    /// The agent exits or does not answer.
    pub fn start_agent(&self) -> Result<Process> {
        let process = self.spawn_agent()?;
        wait::ok("the agent answers", PATIENCE, || {
            if !process.alive() {
                return Ok(Err(anyhow::anyhow!("the agent ended: {}", self.last_words())));
            }
            self.pods().map(|_| Ok(()))
        })??;
        Ok(process)
    }

    /// Kills the agent alone with SIGKILL.
    ///
    /// # Errors
    /// The agent cannot be ended.
    pub fn kill_agent(&self) -> Result<()> {
        self.agent().map_or(Ok(()), |p| p.kill())
    }

    /// Ends the agent alone with SIGTERM.
    ///
    /// # Errors
    /// The agent cannot be ended.
    pub fn stop_agent(&self) -> Result<()> {
        self.agent().map_or(Ok(()), |p| p.terminate(Duration::from_secs(15)))
    }

    /// The helpers: processes of the program `berth` that name this node's files, without the agent itself.
    pub fn helpers(&self, role: &str) -> Vec<Process> {
        let mut found = process::with_path_below(&self.dir);
        found.extend(process::with_path_below(&self.roots.runtime_state));
        found.into_iter().filter(|(_, words)| words.iter().any(|w| w == role)).map(|(p, _)| p).collect()
    }

    /// The process of logd.
    pub fn logd(&self) -> Option<Process> {
        self.helpers("logd").into_iter().next()
    }

    /// Connects to the agent.
    ///
    /// # Errors
    /// The socket does not accept the connection.
    pub fn socket(&self) -> Result<Socket> {
        Socket::connect(&self.roots.agent_socket())
    }

    /// All pods by `namespace/name`, as the agent reports them.
    ///
    /// # Errors
    /// The agent does not answer.
    pub fn pods(&self) -> Result<BTreeMap<String, Pod>> {
        self.socket()?.pods()
    }

    /// Waits until a pod (`namespace/name`) is as wanted, and returns the pod. Uses a watch, so even a
    /// short-lived state is seen while the agent lives.
    ///
    /// # Errors
    /// The pod does not become as wanted in time; the message holds the pod's last state.
    pub fn pod(
        &self,
        what: &str,
        name: &str,
        patience: Duration,
        wanted: impl Fn(&Pod) -> bool,
    ) -> Result<Pod> {
        let end = std::time::Instant::now() + patience;
        let mut last = None;
        loop {
            let found = self.socket().and_then(Socket::watch).and_then(|mut watch| {
                while let Some(change) = watch.next(end)? {
                    if let crate::socket::Change::Pod(pod) = change
                        && pod.name() == name
                    {
                        if wanted(&pod) {
                            return Ok(Some(*pod));
                        }
                        last = Some(*pod);
                    }
                }
                Ok(None)
            });
            match found {
                Ok(Some(pod)) => return Ok(pod),
                // The agent may be restarting.
                Err(_) if std::time::Instant::now() < end => std::thread::sleep(Duration::from_millis(20)),
                other => {
                    let last = last.map_or_else(
                        || "never seen".to_owned(),
                        |p: Pod| format!("waiting for {:?}, status {}", p.waiting_for(), p.status()),
                    );
                    let error = other.err().map(|e| format!(" ({e:#})")).unwrap_or_default();
                    bail!("waited {} s in vain until {name} {what}{error}; last: {last}", patience.as_secs());
                }
            }
        }
    }

    /// Waits until a pod is Ready and the agent has observed the pod's processes. An agent that has just
    /// started reports the pod's remembered status before the first observation.
    ///
    /// # Errors
    /// As [`Node::pod`].
    pub fn ready(&self, name: &str) -> Result<Pod> {
        self.pod("is Ready", name, PATIENCE, |p| p.ready() && p.waiting_for().is_empty())
    }

    /// Waits until nothing of a pod is left.
    ///
    /// # Errors
    /// Something of the pod is still there at the deadline.
    pub fn gone(&self, name: &str, patience: Duration) -> Result<()> {
        wait::ok(&format!("{name} is gone"), patience, || {
            ensure!(!self.pods()?.contains_key(name), "it is there");
            Ok(())
        })
    }

    /// Writes a manifest whole, by rename.
    ///
    /// # Errors
    /// The manifest cannot be written.
    pub fn apply(&self, file: &str, text: &str) -> Result<()> {
        // The source ignores names that begin with a dot.
        let (new, path) = (self.manifests().join(format!(".{file}.new")), self.manifests().join(file));
        fs::write(&new, text).with_context(|| format!("write {}", new.display()))?;
        fs::rename(&new, &path).with_context(|| format!("rename to {}", path.display()))
    }

    /// Removes a manifest.
    ///
    /// # Errors
    /// The manifest cannot be removed.
    pub fn remove(&self, file: &str) -> Result<()> {
        fs::remove_file(self.manifests().join(file)).with_context(|| format!("remove {file}"))
    }

    /// Runs a user command of `berth` and returns its output.
    ///
    /// # Errors
    /// The command cannot be run.
    pub fn berth(&self, args: &[&str]) -> Result<Output> {
        Command::new(self.programs.join("berth"))
            .arg("--roots")
            .arg(self.roots_file())
            .args(args)
            .env("PATH", tools::path_env()?)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("run berth {args:?}"))
    }

    /// Runs a command in a container (`namespace/pod/container`) and returns its standard output.
    ///
    /// # Errors
    /// The command fails.
    pub fn exec(&self, container: &str, command: &[&str]) -> Result<String> {
        let mut args = vec!["exec", container, "--"];
        args.extend(command);
        let out = self.berth(&args)?;
        ensure!(
            out.status.success(),
            "berth exec {container} {command:?}: {} {}",
            out.status,
            String::from_utf8_lossy(&out.stderr).trim()
        );
        String::from_utf8(out.stdout).context("its output")
    }

    /// Runs a command on the host, in a cgroup whose sockets use this node's Services, and returns the
    /// command's standard output.
    ///
    /// # Errors
    /// The command fails.
    pub fn on_host(&self, command: &[&str]) -> Result<String> {
        let root = cgroup::v2().context("this machine has no cgroup2 hierarchy")?;
        let group = root.join(&self.roots.cgroup_hooks).join("clients");
        fs::create_dir_all(&group).with_context(|| format!("create {}", group.display()))?;
        let out = Command::new("sh")
            .args(["-c", "echo $$ > \"$0\" && exec \"$@\""])
            .arg(group.join("cgroup.procs"))
            .args(command)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("run {command:?}"))?;
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        ensure!(out.status.success(), "{command:?} on the host: {} {}", out.status, said.trim());
        String::from_utf8(out.stdout).context("its output")
    }

    /// Network of the node's Services and address of the DNS Service in it, derived from the name as pod
    /// networks are.
    pub fn services(&self) -> (String, String) {
        let third = self.subnets().0.split('.').nth(2).unwrap_or("0").to_owned();
        (format!("10.252.{third}.0/24"), format!("10.252.{third}.10"))
    }

    /// Directory of a container's log files.
    pub fn log_dir(&self, pod: &Pod, container: &str) -> PathBuf {
        let name = pod.name().replace('/', "_");
        self.roots.pod_logs.join(format!("{name}_{}", pod.uid())).join(container)
    }

    /// The last lines of the agent's log.
    pub fn last_words(&self) -> String {
        containerd::tail(&self.agent_log(), 30)
    }

    /// Mounts a tmpfs on a directory, as systemd does on `/run`. [`Node::down`] unmounts those in the node's
    /// own directory.
    ///
    /// # Errors
    /// The directory cannot be made or the tmpfs cannot be mounted.
    pub fn tmpfs(dir: &Path) -> Result<()> {
        fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        berth_sys::mount::tmpfs(dir, None, 0o755).context("mount a tmpfs")
    }

    /// Ends all pods through the agent, then the agent, its helpers and containerd. Removes everything that
    /// the node made on the machine, by force where the orderly way fails.
    ///
    /// # Errors
    /// A process cannot be ended or a file cannot be removed.
    pub fn down(&self) -> Result<()> {
        if let Err(error) = self.end_pods() {
            tell(&format!("the pods did not end by themselves, they are ended by force: {error:#}"));
        }
        self.stop_agent()?;
        let reset = self.berth(&["reset"])?;
        ensure!(reset.status.success(), "berth reset: {}", String::from_utf8_lossy(&reset.stderr).trim());
        for role in ["agent", "probe-exec", "logd", "dns"] {
            for helper in self.helpers(role) {
                helper.terminate(Duration::from_secs(5))?;
            }
        }
        self.containerd.stop()?;
        cgroup::remove(&self.cgroup)?;
        for dir in [&self.dir, &self.roots.runtime_state] {
            for mount in berth_sys::mount::mounts_below(dir)?.iter().rev() {
                berth_sys::mount::unmount(&mount.mount_point)?;
            }
            berth_sys::mount::remove_tree_no_xdev(dir)
                .or_else(|e| if dir.exists() { Err(e) } else { Ok(()) })
                .with_context(|| format!("remove {}", dir.display()))?;
        }
        Ok(())
    }

    /// Removes all manifests and waits until the agent has ended every pod.
    ///
    /// # Errors
    /// A pod is still there at the deadline.
    pub fn end_pods(&self) -> Result<()> {
        for entry in fs::read_dir(self.manifests()).context("list the manifests")? {
            fs::remove_file(entry?.path())?;
        }
        if self.containerd.process().is_none() {
            self.containerd.start()?;
        }
        self.start_agent()?;
        wait::ok("all pods are gone", Duration::from_secs(120), || {
            let pods = self.pods()?;
            ensure!(pods.is_empty(), "left: {:?}", pods.keys());
            Ok(())
        })
    }
}

fn subnets(name: &str) -> (String, String) {
    let d = Sha256::digest(name);
    let (a, b) = (d.first().copied().unwrap_or(0), d.get(1).copied().unwrap_or(0));
    // 10.96.0.0/12 has the ClusterIPs by default: a pod there could not be reached.
    let second = 64 + u16::from(a % 112);
    let second = if second < 96 { second } else { second + 16 };
    (format!("10.{second}.{b}.0/24"), format!("fd42:{a:x}:{b:x}::/64"))
}

/// Marks of a node with this name: the name and the node's addresses. Known before the node exists.
pub fn marks(name: &str) -> Vec<String> {
    let (v4, v6) = subnets(name);
    vec![name.to_owned(), v4.replace("0/24", ""), v6.replace(":/64", "")]
}

#[expect(clippy::print_stderr, reason = "the user of a suite or of the demo reads it there")]
fn tell(text: &str) {
    eprintln!("{text}");
}
