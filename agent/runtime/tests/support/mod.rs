//! A containerd for one test, with its own root, state, sockets, shims and cgroups, all removed at the end.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    reason = "each test file uses its part of this module, and a failure in it is the test's"
)]

use berth_core::{
    error::Chain,
    ids::{
        Attempt, BootId, ContainerId, ContainerName, Namespace, NodeName, PodKey, PodName, PodUid,
        SandboxAttempt,
    },
    roots::Roots,
};
use berth_harness::oci;
use berth_runtime::{Image, Runtime, RuntimeConfig, RuntimeEvent, StartRequest, Stdio};
use rustix::{
    fs::{CWD, FileType, Mode, mknodat},
    mount::{MountFlags, UnmountFlags, mount, unmount},
    process::{Pid, Signal, kill_process},
};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    fs,
    future::Future,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio as ProcessStdio},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{io::AsyncReadExt, net::unix::pipe, sync::broadcast};

pub const BUSYBOX: &str = "docker.io/library/busybox:latest";
/// Time limit of every wait. It exceeds twice the longest deadline of the adapter, so an operation that is
/// given up once and repeated still ends in time, and only a hang reaches the limit.
pub const PATIENCE: Duration = Duration::from_secs(150);

/// Directory of containerd, runc and the shim.
pub fn tools() -> PathBuf {
    if let Some(dir) = std::env::var_os("BERTH_TOOLS") {
        return dir.into();
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).unwrap_or_else(|| {
        PathBuf::from(std::env::var_os("HOME").expect("HOME or XDG_CACHE_HOME is set")).join(".cache")
    });
    let dir = cache.join("berth/tools/bin");
    if dir.join("containerd").is_file() {
        return dir;
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .find(|d| d.join("containerd").is_file())
        .expect("containerd is in BERTH_TOOLS, the cache or PATH")
}

/// Polls until the condition holds.
pub async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let end = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < end, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn blocking_until(what: &str, mut holds: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        if Instant::now() > end {
            eprintln!("waited in vain until {what}");
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}

/// A node: directories, a containerd, and cgroups below one name.
pub struct Node {
    pub dir: tempfile::TempDir,
    pub roots: Roots,
    pub cgroup: String,
    pub pool: usize,
    containerd: Option<Child>,
    counter: AtomicU32,
}

impl Node {
    /// Starts a containerd with its CRI plugin off.
    pub async fn start() -> Node {
        Node::with(2, false).await
    }

    /// Starts a containerd; `cri` turns its CRI plugin on.
    pub async fn with(pool: usize, cri: bool) -> Node {
        let dir = tempfile::Builder::new().prefix("berth-rt-").tempdir_in("/tmp").unwrap();
        // A tmpfs, because containerd would sync every record and layer to the disk, which no test reads
        // again.
        mount("tmpfs", dir.path(), "tmpfs", MountFlags::empty(), None).unwrap();
        let cgroup = dir.path().file_name().unwrap().to_str().unwrap().to_owned();
        let roots = Roots::below(dir.path(), NodeName::new("node").unwrap(), &cgroup);
        let containerd = dir.path().join("containerd");
        fs::create_dir_all(&containerd).unwrap();
        fs::create_dir_all(&roots.runtime_state).unwrap();
        fs::write(containerd.join("config.toml"), config(&containerd, cri)).unwrap();
        let mut node = Node { dir, roots, cgroup, pool, containerd: None, counter: AtomicU32::new(0) };
        node.start_containerd().await;
        node
    }

    pub async fn start_containerd(&mut self) {
        let dir = self.dir.path().join("containerd");
        let log = fs::OpenOptions::new().create(true).append(true).open(dir.join("log")).unwrap();
        let path = format!("{}:{}", tools().display(), std::env::var("PATH").unwrap_or_default());
        let child = Command::new(tools().join("containerd"))
            .arg("-c")
            .arg(dir.join("config.toml"))
            .env("PATH", path)
            .stdin(ProcessStdio::null())
            .stdout(ProcessStdio::null())
            .stderr(log)
            .process_group(0)
            .spawn()
            .unwrap();
        self.containerd = Some(child);
        let socket = self.roots.containerd_socket.clone();
        until("containerd listens", || async { tokio::net::UnixStream::connect(&socket).await.is_ok() })
            .await;
    }

    pub fn containerd_pid(&self) -> u32 {
        self.containerd.as_ref().unwrap().id()
    }

    /// Kills containerd by SIGKILL.
    pub fn kill_containerd(&mut self) {
        let mut child = self.containerd.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub fn config(&self) -> RuntimeConfig {
        RuntimeConfig {
            shim_binary: Some(tools().join("containerd-shim-runc-v2")),
            shim_pool: self.pool,
            runc_binary: Some(tools().join("runc")),
            runc_root: Some(self.dir.path().join("runc")),
            ..RuntimeConfig::new(self.roots.clone(), BootId::new("boot-1").unwrap())
        }
    }

    /// Connects as an agent does: retries until containerd answers.
    pub async fn connect(&self) -> Runtime {
        let end = Instant::now() + PATIENCE;
        loop {
            match Runtime::connect(self.config()).await {
                Ok(runtime) => return runtime,
                Err(e) if Instant::now() < end && e.is_unknown() => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(e) => panic!("{}", Chain(&e)),
            }
        }
    }

    /// A connected node with the busybox image imported.
    pub async fn ready(&self) -> (Runtime, Image) {
        let runtime = self.connect().await;
        let image = self.busybox(&runtime).await;
        (runtime, image)
    }

    pub async fn busybox(&self, runtime: &Runtime) -> Image {
        static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
        let archive = self.dir.path().join("busybox.tar");
        let bytes = BYTES.get_or_init(|| {
            oci::write_archive(&archive, &[oci::Image::busybox(BUSYBOX).unwrap()]).unwrap();
            fs::read(&archive).unwrap()
        });
        fs::write(&archive, bytes).unwrap();
        assert_eq!(runtime.import(&archive).await.unwrap(), [BUSYBOX]);
        runtime.resolve_image("busybox").await.unwrap().expect("the image was just imported")
    }

    /// A request to run `sh -c script`, whose output is read into memory.
    pub fn request(&self, image: &Image, pod: &str, name: &str, script: &str) -> (StartRequest, Output) {
        self.request_args(image, pod, name, &["sh", "-c", script])
    }

    pub fn request_args(
        &self,
        image: &Image,
        pod: &str,
        name: &str,
        args: &[&str],
    ) -> (StartRequest, Output) {
        let pod = PodUid::new(pod).unwrap();
        let container = ContainerName::new(name).unwrap();
        let attempt = Attempt(self.counter.fetch_add(1, Ordering::Relaxed));
        let id = ContainerId::derive(&pod, SandboxAttempt(0), &container, attempt);
        let output = Output::new(&self.dir.path().join("io"), id.short());
        let request = StartRequest {
            key: PodKey {
                namespace: Namespace::new("default").unwrap(),
                name: PodName::new(pod.as_str()).unwrap(),
            },
            container,
            attempt,
            sandbox_attempt: SandboxAttempt(0),
            image: image.clone(),
            spec: self.spec(&id, pod.as_str(), args),
            extension: json!({"grace": 30, "name": name}),
            stdio: output.stdio.clone(),
            shim_group: pod.to_string(),
            id,
            pod,
        };
        (request, output)
    }

    /// A small OCI spec: own PID, IPC, UTS and mount namespaces, the host's network.
    pub fn spec(&self, id: &ContainerId, group: &str, args: &[&str]) -> Value {
        let mut spec = json!({
            "ociVersion": "1.2.0",
            "process": process(args),
            "root": {"path": "rootfs"},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                 "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                 "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]}
            ],
            "linux": {
                "cgroupsPath": format!("/{}/kubepods/{id}", self.cgroup),
                "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}],
                "resources": {"memory": {"limit": 64 << 20}, "pids": {"limit": 64}}
            },
            "annotations": {}
        });
        spec["annotations"]["io.containerd.runc.v2.group"] = json!(group);
        spec
    }

    /// Pids of this node's shims: processes that were started with this containerd's address.
    pub fn shims(&self) -> BTreeSet<u32> {
        let address = self.roots.containerd_socket.to_str().unwrap().to_owned();
        processes(|cmdline| {
            cmdline.first().is_some_and(|c| c.ends_with("containerd-shim-runc-v2"))
                && cmdline.contains(&address)
        })
    }

    /// This node's cgroups below `kubepods`, in every hierarchy.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for top in hierarchies(&self.cgroup) {
            walk(&top, &mut found);
        }
        found.retain(|p| p.file_name().is_some_and(|n| n.len() == 64));
        found
    }

    /// Mounts below the node's directory.
    pub fn mounts(&self) -> Vec<PathBuf> {
        mounts_below(self.dir.path())
    }

    /// Runs `ctr` against this containerd.
    pub fn ctr(&self, args: &[&str]) -> String {
        let out = Command::new(tools().join("ctr"))
            .args([
                "-a",
                self.roots.containerd_socket.to_str().unwrap(),
                "-n",
                &self.roots.containerd_namespace,
            ])
            .args(args)
            .output()
            .unwrap();
        assert!(out.status.success(), "ctr {args:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }
}

/// An OCI process as root, with CAP_KILL as its only capability.
pub fn process(args: &[&str]) -> Value {
    json!({
        "args": args,
        "cwd": "/",
        "env": ["PATH=/bin"],
        "user": {"uid": 0, "gid": 0},
        "noNewPrivileges": true,
        "capabilities": {"bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"]}
    })
}

fn config(dir: &Path, cri: bool) -> String {
    let mut off: Vec<&str> = vec![
        "io.containerd.nri.v1.nri",
        "io.containerd.snapshotter.v1.blockfile",
        "io.containerd.snapshotter.v1.btrfs",
        "io.containerd.snapshotter.v1.devmapper",
        "io.containerd.snapshotter.v1.erofs",
        "io.containerd.snapshotter.v1.zfs",
    ];
    if !cri {
        off.extend([
            "io.containerd.grpc.v1.cri",
            "io.containerd.cri.v1.images",
            "io.containerd.cri.v1.runtime",
            "io.containerd.podsandbox.controller.v1.podsandbox",
        ]);
    }
    let off: Vec<String> = off.iter().map(|p| format!("{p:?}")).collect();
    let dir = dir.display();
    let mut text = format!(
        "version = 3\nroot = \"{dir}/root\"\nstate = \"{dir}/state\"\ndisabled_plugins = [{}]\n\
         [grpc]\naddress = \"{dir}/containerd.sock\"\n\
         [plugins.\"io.containerd.internal.v1.opt\"]\npath = \"{dir}/opt\"\n\
         [plugins.\"io.containerd.shim.v1.manager\"]\nsocket_dir = \"{dir}/s\"\n",
        off.join(", ")
    );
    if cri {
        text.push_str(&format!(
            "[plugins.\"io.containerd.cri.v1.runtime\"]\nrestrict_oom_score_adj = true\n\
             [plugins.\"io.containerd.cri.v1.runtime\".cni]\nbin_dirs = [\"{dir}/cni\"]\nconf_dir = \"{dir}/cni\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\"]\ndisable_tcp_service = true\n"
        ));
    }
    text
}

fn processes(wanted: impl Fn(&[String]) -> bool) -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        let Ok(bytes) = fs::read(entry.path().join("cmdline")) else { continue };
        let words: Vec<String> =
            bytes.split(|b| *b == 0).map(|w| String::from_utf8_lossy(w).into_owned()).collect();
        if wanted(&words) {
            found.insert(pid);
        }
    }
    found
}

fn hierarchies(name: &str) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let mut tops: BTreeSet<PathBuf> = BTreeSet::from([root.join(name)]);
    for entry in fs::read_dir(root).unwrap().flatten() {
        if let Ok(real) = entry.path().canonicalize() {
            tops.insert(real.join(name));
        }
    }
    tops.into_iter().filter(|p| p.is_dir()).collect()
}

/// Appends all directories of the tree at `top`, deepest first.
fn walk(top: &Path, found: &mut Vec<PathBuf>) {
    if let Ok(entries) = fs::read_dir(top) {
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                walk(&entry.path(), found);
            }
        }
    }
    found.push(top.to_path_buf());
}

fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
    text.lines()
        .filter_map(|l| l.split(' ').nth(4))
        .map(PathBuf::from)
        .filter(|p| p.starts_with(dir) && p != dir)
        .collect()
}

fn end(pid: u32) {
    if let Some(pid) = Pid::from_raw(i32::try_from(pid).unwrap()) {
        // The process may have ended already.
        kill_process(pid, Signal::KILL).unwrap_or_default();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.dir.path().join("containerd/log")).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(40).collect();
            eprintln!("containerd's last words:");
            tail.iter().rev().for_each(|l| eprintln!("  {l}"));
        }
        // containerd ends first, so that it starts no more processes; then the shims, then the processes in
        // the test's cgroups.
        if let Some(mut child) = self.containerd.take() {
            drop(child.kill());
            drop(child.wait());
        }
        self.shims().into_iter().for_each(end);
        blocking_until("the node's cgroups are removed", || {
            let mut groups = Vec::new();
            hierarchies(&self.cgroup).iter().for_each(|top| walk(top, &mut groups));
            for group in &groups {
                let procs = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
                procs.lines().filter_map(|l| l.parse().ok()).for_each(end);
                drop(fs::remove_dir(group));
            }
            groups.is_empty()
        });
        for mount in self.mounts().iter().rev() {
            unmount(mount, UnmountFlags::DETACH).unwrap_or_else(|e| eprintln!("{}: {e}", mount.display()));
        }
        unmount(self.dir.path(), UnmountFlags::DETACH)
            .unwrap_or_else(|e| eprintln!("the node's directory: {e}"));
    }
}

/// The output of a container, read into memory.
pub struct Output {
    pub stdio: Stdio,
    text: Arc<Mutex<Vec<u8>>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Output {
    fn new(dir: &Path, name: &str) -> Output {
        fs::create_dir_all(dir).unwrap();
        let text = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        let mut fifo = |suffix: &str| {
            let path = dir.join(format!("{name}.{suffix}"));
            mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
            let mut end = pipe::OpenOptions::new().read_write(true).open_receiver(&path).unwrap();
            let text = Arc::clone(&text);
            tasks.push(tokio::spawn(async move {
                let mut buffer = vec![0; 4096];
                while let Ok(n) = end.read(&mut buffer).await {
                    text.lock().unwrap().extend_from_slice(&buffer[..n]);
                }
            }));
            path
        };
        let stdio = Stdio { stdout: fifo("out"), stderr: fifo("err"), stdin: None, terminal: false };
        Output { stdio, text, tasks }
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.text.lock().unwrap()).into_owned()
    }

    pub async fn has(&self, part: &str) {
        until(&format!("the output has {part:?}"), || async { self.text().contains(part) }).await;
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

/// Waits for the exit of a container's own process and returns its code.
pub async fn exit_of(events: &mut broadcast::Receiver<RuntimeEvent>, wanted: &ContainerId) -> i32 {
    let wait = async {
        loop {
            if let RuntimeEvent::Exit { id, exec_id: None, code, .. } = events.recv().await.unwrap()
                && id == *wanted
            {
                return code;
            }
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("the exit is reported")
}
