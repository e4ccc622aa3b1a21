//! Containers through containerd's own services: images, containers, snapshots, tasks, exec, events.
//!
//! The crate is an adapter without pod logic. Every operation is idempotent, has a deadline and a typed
//! error, and can be repeated after an unknown outcome ([`Error::is_unknown`]).
//!
//! The crate owns the connection ([`Runtime`], one channel that redials by itself), the event stream (one
//! task), the shims of the pods ([`shims`]: one task for each shim, one for the pool), and a task that
//! queries containerd's properties again after a reconnect. [`Runtime::shutdown`] ends all of them; the
//! containers keep running.
//!
//! The state of a container is on its containerd record (see [`record`]): the agent remembers nothing here
//! that it cannot read back. A sandbox record with the container's own id makes containerd keep an exit that
//! happens while containerd is down. While containerd's CRI plugin is on, the agent uses neither such records
//! nor its own shims, because the plugin would claim them: then the spec's annotation groups the shims, and
//! an exit during an outage is unknown.

mod client;
mod error;
mod events;
mod exec;
mod found;
mod image;
mod image_files;
mod import;
mod layers;
mod lease;
mod process;
mod process_io;
mod pull;
mod record;
pub mod reference;
mod shims;
pub mod spec;
mod start;
mod stop;
mod stream;
mod tree;
mod update;
mod wire;

pub use error::{Answer, Error, Kind};
pub use events::RuntimeEvent;
pub use exec::{ExecHandle, ExecOutput, ExecRequest};
pub use found::{FoundContainer, FoundState};
pub use image::{Damage, Image, ImageDetails, ImageSummary, StoreUse, StoredImage, Verified};
pub use image_files::ImageView;
pub use layers::{LayerUse, LayersUse};
pub use pull::{Pulled, STALE as STALE_PULL};
pub use record::ExitRecord;
pub use spec::ImageConfig;
pub use start::{START_ERROR_EXIT_CODE, Stage, StartError, StartFailure, StartRequest, Started, Stdio};

use berth_core::{error::Chain, ids::BootId, roots::Roots, sync::lock};
use client::{Client, QUERY, RECORD, call};
use containerd_client::{
    services::v1::{PluginsRequest, sandbox::StoreCreateRequest},
    types::{Sandbox, sandbox},
};
use shims::{Shims, spawn::Spawner};
use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    net::UnixStream,
    sync::{broadcast, watch},
    task::JoinHandle,
};

/// The sandbox record that containers on this agent's shims belong to: containerd accepts a shim's address
/// only together with one.
const NODE_SANDBOX: &str = "berth-node";
/// Longest wait for the first opening of the event stream.
const FIRST_EVENTS: Duration = Duration::from_secs(10);

/// Configuration of a node's runtime.
#[derive(Debug, Clone)]
pub struct RuntimeConfig {
    /// Paths and names.
    pub roots: Roots,
    /// The runc shim's binary; `None` searches `PATH` and the usual package directories.
    pub shim_binary: Option<PathBuf>,
    /// Number of started shims kept ready (2 is a good number); with 0, containerd starts the shims.
    pub shim_pool: usize,
    /// The cgroup for shims, which takes them out of the cgroup of the service that started them; `None`
    /// leaves them there.
    pub shim_group: Option<PathBuf>,
    /// The current boot, written on each container.
    pub boot: BootId,
    /// The OCI runtime; `None` uses `runc` as the shim finds it.
    pub runc_binary: Option<PathBuf>,
    /// State directory of the OCI runtime; `None` uses the shim's default, `/run/containerd/runc`.
    pub runc_root: Option<PathBuf>,
    /// The longest time that a pull of an image may go without progress.
    pub pull_patience: Duration,
}

impl RuntimeConfig {
    /// Default configuration: two shims kept ready, everything else detected.
    pub fn new(roots: Roots, boot: BootId) -> RuntimeConfig {
        RuntimeConfig {
            roots,
            shim_binary: None,
            shim_pool: 2,
            shim_group: None,
            boot,
            runc_binary: None,
            runc_root: None,
            pull_patience: pull::PATIENCE,
        }
    }
}

/// Handle of a node's containers. A clone is cheap and shares the same state.
#[derive(Clone)]
pub struct Runtime(Arc<Inner>);

struct Inner {
    config: RuntimeConfig,
    client: Client,
    events: broadcast::Sender<RuntimeEvent>,
    stop: watch::Sender<bool>,
    shims: Option<Arc<Shims>>,
    /// Whether sandbox records may be used, which is so while containerd's CRI plugin is off.
    records: AtomicBool,
    images: image::Cache,
    leases: lease::Held,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl std::fmt::Debug for Runtime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runtime")
            .field("socket", &self.0.config.roots.containerd_socket)
            .finish_non_exhaustive()
    }
}

impl Runtime {
    /// Connects, opens the event stream and adopts the shims of an earlier agent. Fails at once where
    /// containerd does not answer; the caller retries. The caller subscribes with [`Runtime::events`] first
    /// and then calls [`Runtime::list`].
    pub async fn connect(config: RuntimeConfig) -> Result<Runtime, Error> {
        let socket = &config.roots.containerd_socket;
        let dialled = tokio::time::timeout(QUERY, UnixStream::connect(socket)).await;
        dialled
            .unwrap_or_else(|_elapsed| Err(std::io::ErrorKind::TimedOut.into()))
            .map_err(|source| Error::Connect { socket: socket.clone(), source })?;
        let client = Client::new(socket, &config.roots.containerd_namespace)?;
        let cri = cri_plugin_on(&client).await?;
        let (stop, stopped) = watch::channel(false);
        let shims = own_shims(&config, stopped.clone());
        let (events, _nobody_yet) = broadcast::channel(events::BEHIND);
        let (live, mut is_live) = watch::channel(false);
        let runtime = Runtime(Arc::new(Inner {
            client: client.clone(),
            events: events.clone(),
            stop,
            shims: shims.clone(),
            records: AtomicBool::new(!cri),
            images: image::Cache::default(),
            leases: lease::Held::default(),
            tasks: Mutex::default(),
            config,
        }));
        let mut back = events.subscribe();
        let namespace = runtime.roots().containerd_namespace.clone();
        runtime.own(tokio::spawn(events::run(client, namespace, events, live, stopped.clone())));
        // The guard of the watch channel must not live across the next awaits.
        let opened = async { is_live.wait_for(|live| *live).await.is_ok() };
        let opened = tokio::time::timeout(FIRST_EVENTS, opened).await;
        if !matches!(opened, Ok(true)) {
            runtime.stop_tasks();
            return Err(Error::Deadline {
                operation: "open",
                subject: "event stream".to_owned(),
                after: FIRST_EVENTS,
            });
        }
        // The first opening needs no second query of containerd's properties.
        drop(back.try_recv());
        if let Err(e) = runtime.take_over(shims).await {
            runtime.stop_tasks();
            return Err(e);
        }
        let weak = Arc::downgrade(&runtime.0);
        runtime.own(tokio::spawn(look_again(weak, back, stopped)));
        tracing::info!(cri, own_shims = runtime.own_shims().is_some(), "connected to containerd");
        Ok(runtime)
    }

    /// Adopts the shims of earlier agents, whatever the size of the pool is now: they may run pods.
    async fn take_over(&self, shims: Option<Arc<Shims>>) -> Result<(), Error> {
        let Some(shims) = shims else { return Ok(()) };
        if self.records_allowed() {
            self.node_sandbox().await?;
        }
        let users = self.shim_users().await?;
        shims.adopt(users).await;
        if self.records_allowed() {
            self.own(tokio::spawn(shims.keep_filled()));
        }
        Ok(())
    }

    /// containerd's version.
    pub async fn version(&self) -> Result<String, Error> {
        let client = self.client();
        let mut service = client.version();
        let reply = call("ask", "version", QUERY, service.version(client.request((), QUERY))).await?;
        Ok(reply.version)
    }

    /// Whether containerd's CRI plugin is on, which decides whether sandbox records may be used.
    pub async fn cri_plugin_on(&self) -> Result<bool, Error> {
        cri_plugin_on(self.client()).await
    }

    /// A receiver of all events from now on. A receiver that falls behind gets `Lagged` and must list.
    pub fn events(&self) -> broadcast::Receiver<RuntimeEvent> {
        self.0.events.subscribe()
    }

    /// The process ids of the node's own shims, and the number of shims without a pod.
    pub fn shims(&self) -> (Vec<u32>, usize) {
        self.0.shims.as_ref().map(|s| s.process_ids_and_spares()).unwrap_or_default()
    }

    /// Stops the tasks of this adapter and ends the shims without a pod. Containers and their shims keep
    /// running, and the next agent adopts them.
    pub async fn shutdown(&self) {
        self.stop_tasks();
        if let Some(shims) = &self.0.shims {
            shims.end_idle().await;
        }
    }

    fn stop_tasks(&self) {
        self.0.stop.send_replace(true);
        let tasks = std::mem::take(&mut *lock(&self.0.tasks));
        for task in tasks {
            task.abort();
        }
    }

    fn own(&self, task: JoinHandle<()>) {
        lock(&self.0.tasks).push(task);
    }

    pub(crate) fn client(&self) -> &Client {
        &self.0.client
    }

    pub(crate) fn roots(&self) -> &Roots {
        &self.0.config.roots
    }

    pub(crate) fn config(&self) -> &RuntimeConfig {
        &self.0.config
    }

    pub(crate) fn image_cache(&self) -> &image::Cache {
        &self.0.images
    }

    pub(crate) fn leases(&self) -> &lease::Held {
        &self.0.leases
    }

    pub(crate) fn records_allowed(&self) -> bool {
        self.0.records.load(Ordering::Relaxed)
    }

    /// This agent's shims, if new containers may use them.
    pub(crate) fn own_shims(&self) -> Option<&Arc<Shims>> {
        self.0.shims.as_ref().filter(|_| self.records_allowed() && self.0.config.shim_pool > 0)
    }

    /// This agent's shims, for containers that run on them already.
    pub(crate) fn known_shims(&self) -> Option<&Arc<Shims>> {
        self.0.shims.as_ref()
    }

    /// Whether a task that containerd reports as created already runs its program; see
    /// [`process::runs_program`]. The check knows only the name of runc's waiting init, so it applies to runc
    /// alone.
    pub(crate) fn runs_unnoticed(&self, pid: u32) -> bool {
        let runc =
            self.0.config.runc_binary.as_ref().is_none_or(|b| b.file_name().is_some_and(|n| n == "runc"));
        runc && self.roots().containerd_runtime == "io.containerd.runc.v2" && process::runs_program(pid)
    }

    /// Creates the record that lets containerd accept shims by address.
    async fn node_sandbox(&self) -> Result<(), Error> {
        self.sandbox_record(NODE_SANDBOX).await
    }

    /// Creates a sandbox record, unless it exists.
    pub(crate) async fn sandbox_record(&self, id: &str) -> Result<(), Error> {
        let client = self.client();
        let runtime =
            sandbox::Runtime { name: self.roots().containerd_runtime.clone(), ..sandbox::Runtime::default() };
        let sandbox = Sandbox { sandbox_id: id.to_owned(), runtime: Some(runtime), ..Sandbox::default() };
        let request = StoreCreateRequest { sandbox: Some(sandbox) };
        let mut service = client.sandboxes();
        let made =
            call("make sandbox record", id, RECORD, service.create(client.request(request, RECORD))).await;
        error::present(made)?;
        Ok(())
    }
}

fn own_shims(config: &RuntimeConfig, stopped: watch::Receiver<bool>) -> Option<Arc<Shims>> {
    let Some(binary) = shims::spawn::locate(config.shim_binary.as_deref()) else {
        tracing::warn!("no runc shim found: containerd starts one for each container");
        return None;
    };
    let spawner = Spawner {
        binary,
        dir: config.roots.shims_dir(),
        containerd: config.roots.containerd_socket.clone(),
        namespace: config.roots.containerd_namespace.clone(),
        group: config.shim_group.clone(),
    };
    Some(Shims::new(spawner, config.shim_pool, stopped))
}

async fn cri_plugin_on(client: &Client) -> Result<bool, Error> {
    let mut service = client.introspection();
    let reply = call(
        "list",
        "plugins",
        QUERY,
        service.plugins(client.request(PluginsRequest { filters: Vec::new() }, QUERY)),
    )
    .await?;
    // A plugin that failed to start reads and claims nothing.
    Ok(reply
        .plugins
        .iter()
        .any(|p| p.r#type == "io.containerd.grpc.v1" && p.id == "cri" && p.init_err.is_none()))
}

/// Queries containerd's properties again after each reconnect: a restarted containerd may have another
/// configuration.
async fn look_again(
    runtime: std::sync::Weak<Inner>,
    mut events: broadcast::Receiver<RuntimeEvent>,
    mut stop: watch::Receiver<bool>,
) {
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            _stopped = stop.wait_for(|s| *s) => return,
        };
        match event {
            Ok(RuntimeEvent::Reestablished) | Err(broadcast::error::RecvError::Lagged(_)) => {}
            Ok(_) => continue,
            Err(broadcast::error::RecvError::Closed) => return,
        }
        let Some(inner) = runtime.upgrade() else { return };
        let runtime = Runtime(inner);
        match runtime.cri_plugin_on().await {
            Ok(cri) => runtime.0.records.store(!cri, Ordering::Relaxed),
            // Nothing is known, so nothing changes; the next opening of the stream queries again.
            Err(e) => tracing::warn!(error = %Chain(&e), "cannot ask containerd for its plugins"),
        }
        if runtime.own_shims().is_some()
            && let Err(e) = runtime.node_sandbox().await
        {
            tracing::warn!(error = %Chain(&e), "cannot make the node's sandbox record");
        }
    }
}
