//! A running driver, and the calls of its clients.

use berth_csi_proto::csi::{
    CapacityRange, CreateSnapshotRequest, CreateVolumeRequest, DeleteSnapshotRequest, DeleteVolumeRequest,
    NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse, NodePublishVolumeRequest,
    NodeUnpublishVolumeRequest, Snapshot, Volume, VolumeCapability, VolumeContentSource,
    controller_client::ControllerClient,
    node_client::NodeClient,
    volume_capability::{AccessMode, AccessType, MountVolume, access_mode::Mode},
    volume_content_source::{SnapshotSource, Type, VolumeSource},
};
use hyper_util::rt::TokioIo;
use std::{
    collections::HashMap,
    env, fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tokio::net::UnixStream;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

/// How long a condition may take to come about; a VM is slow.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// Waits until a condition holds.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A server with one share of this test's own.
pub(crate) struct Server {
    pub(crate) name: String,
    pub(crate) share: String,
    /// The share's files, as the server sees them.
    pub(crate) files: PathBuf,
    arguments: Vec<String>,
    real: bool,
}

static SHARES: AtomicU32 = AtomicU32::new(0);

impl Server {
    fn new(dir: &Path) -> Self {
        let number = SHARES.fetch_add(1, Ordering::Relaxed);
        let share = format!("share-{}-{number}", std::process::id());
        let real = env::var("BERTH_TEST_NFS_SERVER").ok();
        let export = env::var_os("BERTH_TEST_NFS_EXPORT").map_or_else(|| dir.join("shares"), PathBuf::from);
        let files = export.join(&share);
        fs::create_dir_all(&files).unwrap();
        match real {
            Some(name) => {
                let share = files.display().to_string();
                Self { name, share, files, arguments: Vec::new(), real: true }
            }
            None => {
                let arguments = vec!["--test-shares".to_owned(), export.display().to_string()];
                let share = format!("/{share}");
                Self { name: "test.invalid".into(), share, files, arguments, real: false }
            }
        }
    }

    /// Whether the server is one of NFS.
    pub(crate) fn is_real(&self) -> bool {
        self.real
    }
}

/// A driver, its sockets and a place for mounts. All of it goes at the end, also of a test that fails.
pub(crate) struct Driver {
    dir: TempDir,
    process: Option<Child>,
    pub(crate) server: Server,
    pub(crate) controller: ControllerClient<Channel>,
    pub(crate) node: NodeClient<Channel>,
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.kill();
        // Mounts outlive a driver that was killed.
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let own = self.dir.path().display().to_string();
        for point in mounts.lines().filter_map(|line| line.split(' ').nth(4)).filter(|p| p.starts_with(&own))
        {
            let flags = rustix::mount::UnmountFlags::DETACH | rustix::mount::UnmountFlags::NOFOLLOW;
            _ = rustix::mount::unmount(point, flags);
        }
        _ = fs::remove_dir_all(&self.server.files);
    }
}

/// A channel to a socket, with requests of this origin.
pub(crate) async fn connect(socket: PathBuf, origin: &str) -> Channel {
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let endpoint = Endpoint::from_static("http://localhost").origin(origin.parse().unwrap());
    endpoint.connect_with_connector(connector).await.unwrap()
}

impl Driver {
    /// Starts a driver.
    pub(crate) async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::new(dir.path());
        let (process, channel) = Self::spawn(dir.path(), &server).await;
        let (controller, node) = (ControllerClient::new(channel.clone()), NodeClient::new(channel));
        Self { dir, process: Some(process), server, controller, node }
    }

    async fn spawn(dir: &Path, server: &Server) -> (Child, Channel) {
        let program = env::var_os("BERTH_CSI_NFS")
            .map_or_else(|| env!("CARGO_BIN_EXE_berth-csi-nfs").into(), PathBuf::from);
        let socket = dir.join("driver@csi.sock");
        let child = Command::new(program)
            .arg(format!("--endpoint=unix://{}", socket.display()))
            .arg(format!("--register-in={}", dir.join("registry").display()))
            .args(["--node-id", "node"])
            .args([
                "--parameter",
                &format!("server={}", server.name),
                "--parameter",
                &format!("share={}", server.share),
            ])
            .args(&server.arguments)
            .stdin(Stdio::null())
            .stderr(fs::File::create(dir.join("log")).unwrap())
            .spawn()
            .unwrap();
        until("the driver's socket", || std::os::unix::net::UnixStream::connect(&socket).is_ok()).await;
        (child, connect(socket, "http://localhost").await)
    }

    /// Ends the driver at once, as a node that loses power does.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            _ = process.kill();
            _ = process.wait();
        }
    }

    /// Starts a driver after a kill.
    pub(crate) async fn again(&mut self) {
        assert!(self.process.is_none(), "the driver runs");
        let (process, channel) = Self::spawn(self.dir.path(), &self.server).await;
        self.process = Some(process);
        self.controller = ControllerClient::new(channel.clone());
        self.node = NodeClient::new(channel);
    }

    /// Ends the driver as a service manager does.
    pub(crate) async fn terminate(&mut self) {
        let mut process = self.process.take().unwrap();
        let pid = rustix::process::Pid::from_child(&process);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        until("the driver's end", || process.try_wait().unwrap().is_some_and(|s| s.success())).await;
    }

    /// A path below the directory of this test.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Threads of the driver with blocking work.
    pub(crate) fn blocking_threads(&self) -> usize {
        let pid = self.process.as_ref().unwrap().id();
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        // A thread may end between its listing and the reading of its name.
        let name =
            |task: std::io::Result<fs::DirEntry>| fs::read_to_string(task.ok()?.path().join("comm")).ok();
        tasks.filter_map(name).filter(|name| name.trim() == "blocking").count()
    }

    /// The path of a pod's volume.
    pub(crate) fn target(&self, name: &str) -> PathBuf {
        let dir = self.path("pods");
        fs::create_dir_all(&dir).unwrap();
        dir.join(name)
    }

    pub(crate) async fn create(&mut self, request: CreateVolumeRequest) -> Result<Volume, Status> {
        self.controller.create_volume(request).await.map(|r| r.into_inner().volume.unwrap())
    }

    pub(crate) async fn delete(&mut self, volume: &Volume) -> Result<(), Status> {
        let request = DeleteVolumeRequest { volume_id: volume.volume_id.clone(), ..Default::default() };
        self.controller.delete_volume(request).await.map(drop)
    }

    pub(crate) async fn snapshot(&mut self, name: &str, of: &Volume) -> Result<Snapshot, Status> {
        let request = CreateSnapshotRequest {
            name: name.into(),
            source_volume_id: of.volume_id.clone(),
            ..Default::default()
        };
        self.controller.create_snapshot(request).await.map(|r| r.into_inner().snapshot.unwrap())
    }

    /// As the snapshotter does: asks until the snapshot is ready.
    pub(crate) async fn ready_snapshot(&mut self, name: &str, of: &Volume) -> Snapshot {
        let begun = Instant::now();
        loop {
            match self.snapshot(name, of).await {
                Ok(snapshot) if snapshot.ready_to_use => return snapshot,
                Ok(_) => {}
                Err(status) => assert_eq!(status.code(), Code::Aborted, "{status}"),
            }
            assert!(begun.elapsed() < PATIENCE, "the snapshot does not get ready");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) async fn delete_snapshot(&mut self, id: &str) -> Result<(), Status> {
        let request = DeleteSnapshotRequest { snapshot_id: id.into(), ..Default::default() };
        self.controller.delete_snapshot(request).await.map(drop)
    }

    pub(crate) async fn publish(&mut self, volume: &Volume, target: &Path) -> Result<(), Status> {
        self.node.node_publish_volume(publish(volume, target)).await.map(drop)
    }

    pub(crate) async fn unpublish(&mut self, volume: &Volume, target: &Path) -> Result<(), Status> {
        let request = NodeUnpublishVolumeRequest {
            volume_id: volume.volume_id.clone(),
            target_path: target.display().to_string(),
        };
        self.node.node_unpublish_volume(request).await.map(drop)
    }

    pub(crate) async fn stats(
        &mut self,
        volume: &Volume,
        target: &Path,
    ) -> Result<NodeGetVolumeStatsResponse, Status> {
        let request = NodeGetVolumeStatsRequest {
            volume_id: volume.volume_id.clone(),
            volume_path: target.display().to_string(),
            ..Default::default()
        };
        self.node.node_get_volume_stats(request).await.map(tonic::Response::into_inner)
    }

    /// The directory of a volume on the server.
    pub(crate) fn files(&self, volume: &Volume) -> PathBuf {
        self.server.files.join(&volume.volume_context["subDir"])
    }

    /// Entries in a directory of the driver's own on the share.
    pub(crate) fn own(&self, dir: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.server.files.join(".berth-csi-nfs").join(dir));
        entries.map(|all| all.map(|e| e.unwrap().path()).collect()).unwrap_or_default()
    }
}

/// A mounted volume in this access mode.
pub(crate) fn capability(mode: Mode, flags: &[&str]) -> VolumeCapability {
    let mount =
        MountVolume { mount_flags: flags.iter().map(|f| (*f).to_owned()).collect(), ..Default::default() };
    VolumeCapability {
        access_type: Some(AccessType::Mount(mount)),
        access_mode: Some(AccessMode { mode: mode.into() }),
    }
}

/// A request for a volume of this name.
pub(crate) fn volume(name: &str, parameters: &[(&str, &str)]) -> CreateVolumeRequest {
    CreateVolumeRequest {
        name: name.into(),
        capacity_range: Some(CapacityRange { required_bytes: 1 << 20, limit_bytes: 0 }),
        volume_capabilities: vec![capability(Mode::MultiNodeMultiWriter, &[])],
        parameters: parameters
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect::<HashMap<_, _>>(),
        ..Default::default()
    }
}

/// A request for a copy of a volume.
pub(crate) fn clone(name: &str, of: &Volume) -> CreateVolumeRequest {
    let source = Type::Volume(VolumeSource { volume_id: of.volume_id.clone() });
    CreateVolumeRequest {
        volume_content_source: Some(VolumeContentSource { r#type: Some(source) }),
        ..volume(name, &[])
    }
}

/// A request for a volume with the data of a snapshot.
pub(crate) fn restored(name: &str, of: &Snapshot) -> CreateVolumeRequest {
    let source = Type::Snapshot(SnapshotSource { snapshot_id: of.snapshot_id.clone() });
    CreateVolumeRequest {
        volume_content_source: Some(VolumeContentSource { r#type: Some(source) }),
        ..volume(name, &[])
    }
}

/// A request to mount a volume for a pod.
pub(crate) fn publish(volume: &Volume, target: &Path) -> NodePublishVolumeRequest {
    NodePublishVolumeRequest {
        volume_id: volume.volume_id.clone(),
        volume_context: volume.volume_context.clone(),
        target_path: target.display().to_string(),
        volume_capability: Some(capability(Mode::MultiNodeMultiWriter, &[])),
        ..Default::default()
    }
}

/// The code of an expected failure.
pub(crate) fn code<T: std::fmt::Debug>(result: Result<T, Status>) -> Code {
    result.unwrap_err().code()
}
