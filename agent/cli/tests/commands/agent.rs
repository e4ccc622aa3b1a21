//! A node below a temporary directory, its agent in a thread.

use berth_api::{
    message::{ErrorCode, ExecPaths, ExecSpec, Size},
    view::{Health, ImageDetails, ImageView, NodeView, PodView, PullView},
};
use berth_core::{
    ids::NodeName,
    image::{LayerProgress, LayerState, PullProgress},
    roots::Roots,
    time::Wall,
};
use berth_server::{ApiError, Backend, ExecSession, PullSession, Server, WatchCache, bind, status_files};
use nix::{sys::stat::Mode, unistd::mkfifo};
use std::{
    fs::{File, OpenOptions},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{Arc, Mutex},
    thread::JoinHandle,
    time::{Duration, Instant},
};
use tokio::sync::oneshot;

/// Waits until a condition holds, at most 10 s.
pub(crate) fn until(what: &str, mut so: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !so() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub(crate) struct Node {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) roots: Roots,
    pub(crate) cache: WatchCache,
    pub(crate) sizes: Arc<Mutex<Vec<Size>>>,
    agent: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Node {
    pub(crate) fn new() -> Node {
        let dir = tempfile::Builder::new().prefix("berth-cli-").tempdir().unwrap();
        let roots = Roots::below(dir.path(), NodeName::new("n1").unwrap(), "unused");
        std::fs::create_dir_all(&roots.runtime_state).unwrap();
        std::fs::write(dir.path().join("roots.json"), serde_json::to_vec(&roots).unwrap()).unwrap();
        Node { dir, roots, cache: WatchCache::default(), sizes: Arc::default(), agent: None }
    }

    /// Starts the agent; it answers once this returns.
    pub(crate) fn start(&mut self, healthy: bool) {
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let (roots, cache) = (self.roots.clone(), self.cache.clone());
        let backend = Agent { roots: roots.clone(), healthy, sizes: Arc::clone(&self.sizes) };
        let thread = std::thread::spawn(move || {
            let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            tokio.block_on(async move {
                status_files::prepare(&roots).unwrap();
                status_files::write_node(&roots, &backend.status().await).unwrap();
                let (stop_files, files_stopped) = oneshot::channel();
                let files = tokio::spawn(status_files::keep(cache.clone(), roots.clone(), files_stopped));
                let listener = bind(&roots.agent_socket()).unwrap();
                // The files' task listens before anything is published.
                tokio::task::yield_now().await;
                ready.send(()).unwrap();
                Server { cache, backend: Arc::new(backend) }.run(listener, stopped).await;
                drop(stop_files);
                files.await.unwrap();
            });
        });
        is_ready.recv().unwrap();
        self.agent = Some((stop, thread));
    }

    /// Ends the agent; its socket and files stay.
    pub(crate) fn stop(&mut self) {
        if let Some((stop, thread)) = self.agent.take() {
            drop(stop);
            thread.join().unwrap();
        }
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg("--as-command").arg("--roots").arg(self.dir.path().join("roots.json")).args(args);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs the command to its end.
    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        Ran::of(self.command(args).output().unwrap())
    }

    pub(crate) fn spawn(&self, args: &[&str]) -> Child {
        self.command(args).stdin(Stdio::piped()).spawn().unwrap()
    }

    /// Writes a container's output as logd does.
    pub(crate) fn write_log(&self, pod: &PodView, container: &str, attempt: u32, lines: &str) {
        let dir = self.roots.pod_log_dir(&pod.key, &pod.uid).join(container);
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join(format!("{attempt}.log"));
        let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
        std::io::Write::write_all(&mut file, lines.as_bytes()).unwrap();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Result of a command.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    pub(crate) fn of(output: Output) -> Ran {
        let text = |b: Vec<u8>| String::from_utf8(b).unwrap();
        Ran { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }

    /// Exit code, and a text that standard output and one that standard error must hold.
    #[track_caller]
    pub(crate) fn is(&self, code: i32, out: &str, err: &str) {
        let fits =
            |text: &str, part: &str| if part.is_empty() { text.is_empty() } else { text.contains(part) };
        assert!(self.code == Some(code) && fits(&self.out, out) && fits(&self.err, err), "{self:#?}");
    }
}

struct Agent {
    roots: Roots,
    healthy: bool,
    sizes: Arc<Mutex<Vec<Size>>>,
}

/// A pull of one layer in two steps.
struct FakePull {
    image: String,
    steps: u64,
}

impl PullSession for FakePull {
    async fn progress(&mut self) -> Option<PullProgress> {
        self.steps = self.steps.checked_sub(1)?;
        let digest = "sha256:0123456789abcdef".to_owned();
        let state = if self.steps > 0 { LayerState::Downloading } else { LayerState::Extracted };
        let layers = vec![LayerProgress { digest, state, done: 2048 - 1024 * self.steps, total: 2048 }];
        Some(PullProgress { layers })
    }
    async fn end(self) -> Result<ImageView, ApiError> {
        match self.image.as_str() {
            "absent" => Err(ApiError::new(ErrorCode::Failed, "failed to pull: not found")),
            _ => Ok(ImageView { name: self.image, digest: "sha256:aa".into(), size: Some(5), created: None }),
        }
    }
}

impl Backend for Agent {
    type Exec = HostExec;
    type Pull = FakePull;

    async fn status(&self) -> NodeView {
        NodeView {
            node: self.roots.node_name.clone(),
            version: "9".into(),
            // The pid of no process, as after the agent's death.
            pid: u32::MAX,
            start_time: 1,
            since: Wall(1),
            containerd: if self.healthy { Health::good("v2") } else { Health::bad("does not answer") },
            network: Health::good(""),
            logd: Health::good(""),
            services: None,
            dns: None,
            image_disk: None,
            csi: None,
            addresses: None,
            sources: Vec::new(),
            control_plane: None,
            as_of: Wall(1_700_000_000_000_000_000),
        }
    }

    async fn images(&self) -> Result<Vec<ImageView>, ApiError> {
        if !self.healthy {
            return Err(ApiError::new(ErrorCode::Unavailable, "containerd does not answer"));
        }
        Ok(vec![ImageView { name: "i:1".into(), digest: "sha256:aa".into(), size: Some(5), created: None }])
    }

    async fn import(&self, path: PathBuf) -> Result<Vec<String>, ApiError> {
        assert!(path.is_absolute());
        Ok(vec![format!("imported {}", path.file_name().unwrap().display())])
    }

    async fn pull(&self, image: String) -> Result<FakePull, ApiError> {
        Ok(FakePull { image, steps: 2 })
    }

    async fn remove_image(&self, image: String, _force: bool) -> Result<Vec<String>, ApiError> {
        Ok(vec![image])
    }

    async fn tag_image(&self, _image: String, name: String) -> Result<String, ApiError> {
        Ok(name)
    }

    async fn inspect_image(&self, image: String) -> Result<ImageDetails, ApiError> {
        Ok(ImageDetails { names: vec![image], ..ImageDetails::default() })
    }

    fn pulls(&self) -> Vec<PullView> {
        let layer = |state, done| LayerProgress { digest: "sha256:aa".into(), state, done, total: 3 << 20 };
        let layers = vec![layer(LayerState::Present, 0), layer(LayerState::Downloading, 1 << 20)];
        let progress = PullProgress { layers };
        vec![PullView { image: "docker.io/library/i:2".into(), wanted: vec!["i:2".into()], progress }]
    }

    async fn prepare_exec(&self, spec: ExecSpec) -> Result<HostExec, ApiError> {
        if spec.container.as_str() != "app" {
            return Err(ApiError::new(ErrorCode::NotFound, "it does not run"));
        }
        let dir = tempfile::Builder::new().prefix("exec-").tempdir_in(&self.roots.runtime_state).unwrap();
        let mut held = Vec::new();
        let mut fifo = |name: &str| {
            let path = dir.path().join(name);
            mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
            held.push(both_ends(&path));
            path
        };
        let paths = ExecPaths {
            stdout: fifo("stdout"),
            stderr: (!spec.tty).then(|| fifo("stderr")),
            stdin: spec.stdin.then(|| fifo("stdin")),
        };
        self.sizes.lock().unwrap().extend(spec.size);
        Ok(HostExec {
            spec,
            paths,
            held,
            input: None,
            child: None,
            sizes: Arc::clone(&self.sizes),
            _dir: dir,
        })
    }
}

fn both_ends(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

/// A command on the host in place of one in a container, its FIFOs treated as a shim treats them.
struct HostExec {
    spec: ExecSpec,
    paths: ExecPaths,
    held: Vec<File>,
    /// The command's input; a shim keeps it open until the client's input ends.
    input: Option<File>,
    child: Option<tokio::process::Child>,
    sizes: Arc<Mutex<Vec<Size>>>,
    _dir: tempfile::TempDir,
}

impl ExecSession for HostExec {
    fn paths(&self) -> ExecPaths {
        self.paths.clone()
    }

    async fn start(&mut self) -> Result<u32, ApiError> {
        let mut words = self.spec.command.iter();
        let mut command = tokio::process::Command::new(words.next().unwrap());
        let write = |path: &Path| OpenOptions::new().write(true).open(path).unwrap();
        command.args(words).stdin(Stdio::null()).stdout(write(&self.paths.stdout)).kill_on_drop(true);
        match &self.paths.stderr {
            Some(path) => command.stderr(write(path)),
            None => command.stderr(write(&self.paths.stdout)),
        };
        if let Some(path) = &self.paths.stdin {
            self.input = Some(write(path));
            command.stdin(File::open(path).unwrap());
        }
        let child = command.spawn().map_err(|e| ApiError::new(ErrorCode::Failed, format!("spawn: {e}")))?;
        self.held.clear();
        let pid = child.id().unwrap_or_default();
        self.child = Some(child);
        Ok(pid)
    }

    async fn wait(&mut self) -> Result<i32, ApiError> {
        let status = self.child.as_mut().unwrap().wait().await.unwrap();
        Ok(status.code().unwrap_or(137))
    }

    async fn resize(&mut self, size: Size) -> Result<(), ApiError> {
        self.sizes.lock().unwrap().push(size);
        Ok(())
    }

    async fn close_stdin(&mut self) -> Result<(), ApiError> {
        self.input = None;
        Ok(())
    }
}
