//! The interface of this crate.

mod collection;
mod preparation;
mod sandboxes;

use crate::{
    Conflist, Error,
    attachments::{Attachments, Record},
    verbs::Runner,
};
use berth_core::{
    error::Chain,
    ids::{BootId, PodKey, PodUid},
    model::ContainerPort,
    roots::Roots,
    sync::lock,
};
use ipnet::IpNet;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::sync::RwLock;

/// Name of the pod's interface in its sandbox.
const IFNAME: &str = "eth0";
/// How long a STATUS answer of the plugins is reused.
const STATUS_LASTS: Duration = Duration::from_secs(5);

/// Configuration of the pod network.
#[derive(Debug, Clone)]
pub struct NetworkConfig {
    /// Masquerade of pod egress with the node's address; None turns it off.
    pub masquerade: Option<MasqueradeConfig>,
    /// Deadline of one plugin for one CNI command.
    pub plugin_timeout: Duration,
}

impl Default for NetworkConfig {
    /// No masquerade, 60 s a command.
    fn default() -> Self {
        NetworkConfig { masquerade: None, plugin_timeout: Duration::from_secs(60) }
    }
}

/// Masquerade of pod egress. The pods' own networks come from the configuration list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MasqueradeConfig {
    /// Destinations besides pods that see the pod's own address.
    pub non_masquerade_cidrs: Vec<IpNet>,
}

/// Readiness of the pod network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkStatus {
    /// Whether sandboxes can be attached.
    pub ready: bool,
    /// The active network, if there is one.
    pub network: Option<String>,
    /// Reason, if not ready.
    pub reason: Option<String>,
}

/// Request to attach a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxNetwork {
    /// The pod's UID.
    pub uid: PodUid,
    /// The pod's namespace and name.
    pub key: PodKey,
    /// `CNI_CONTAINERID`.
    pub sandbox_id: String,
    /// Path at which the network namespace is pinned.
    pub netns: PathBuf,
    /// The ports of all containers. Those with a host port are passed to plugins that can map them.
    pub ports: Vec<ContainerPort>,
    /// The pod's labels, stored with the attachment.
    pub labels: BTreeMap<String, String>,
    /// The pod's annotations. Bandwidth limits are passed to plugins that can shape traffic.
    pub annotations: BTreeMap<String, String>,
}

/// Network features that a pod requests and no plugin provides.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unserved {
    /// `name` of the configuration list.
    pub network: String,
    /// The pod has host ports, and no plugin of the list accepts `portMappings`.
    pub host_ports: bool,
    /// The pod has bandwidth limits, and no plugin of the list accepts `bandwidth`.
    pub bandwidth: bool,
}

/// The pod network of this node.
#[derive(Debug, Clone)]
pub struct Network {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: NetworkConfig,
    conf_dir: PathBuf,
    boot: BootId,
    attachments: Attachments,
    runner: Runner,
    sysctls: PathBuf,
    table: String,
    /// Sandboxes that this process has attached or is attaching. GC leaves them to their owner.
    attached_here: Mutex<BTreeSet<String>>,
    /// For each attached pod, whether it [bypasses the host's stack](Network::bypasses_host_stack).
    /// None until read.
    bypassing: Mutex<Option<BTreeMap<PodUid, bool>>>,
    /// ADD and DEL take it shared, the plugins' GC exclusively, because GC names all valid
    /// attachments.
    plugins: RwLock<()>,
    status: Mutex<Option<(Instant, NetworkStatus)>>,
    host: tokio::sync::Mutex<HostNetwork>,
}

/// State of the host's preparation.
#[derive(Debug, Default)]
enum HostNetwork {
    /// The preparation was not requested.
    #[default]
    Untouched,
    /// Forwarding is on, and the rules are for these pod networks.
    Prepared(Vec<IpNet>),
    /// The last try failed; the next ADD tries again.
    Failed(String),
}

impl Network {
    /// Opens the state below `roots`, without changing anything or running a plugin.
    pub fn open(roots: &Roots, config: NetworkConfig) -> Result<Self, Error> {
        let text = fs::read_to_string(&roots.boot_id).map_err(Error::file("read boot id", &roots.boot_id))?;
        let boot = BootId::new(text.trim())
            .map_err(|e| Error::file("read boot id", &roots.boot_id)(std::io::Error::other(e)))?;
        let runner = Runner { bin_dir: roots.cni_bin.clone(), timeout: config.plugin_timeout };
        Ok(Network {
            inner: Arc::new(Inner {
                config,
                conf_dir: roots.cni_conf.clone(),
                boot,
                attachments: Attachments::open(roots.attachments_dir())?,
                runner,
                sysctls: roots.sysctls_file(),
                table: table_name(&roots.runtime_state),
                attached_here: Mutex::default(),
                bypassing: Mutex::default(),
                plugins: RwLock::default(),
                status: Mutex::default(),
                host: tokio::sync::Mutex::default(),
            }),
        })
    }

    /// Whether there is a configuration whose plugins exist and are ready (STATUS), and if not, the
    /// reason. The answer may be 5 s old.
    pub async fn ready(&self) -> Result<NetworkStatus, Error> {
        if let Some((at, status)) = &*lock(&self.inner.status)
            && at.elapsed() < STATUS_LASTS
        {
            return Ok(status.clone());
        }
        let status = match self.conflist().await {
            Err(Error::Panicked(what)) => return Err(Error::Panicked(what)),
            Err(error) => {
                NetworkStatus { ready: false, network: None, reason: Some(Chain(&error).to_string()) }
            }
            Ok(list) => {
                let answer = self.inner.runner.status(&list).await;
                let host = match &*self.inner.host.lock().await {
                    HostNetwork::Failed(why) => Some(format!("cannot prepare the host's network: {why}")),
                    HostNetwork::Untouched | HostNetwork::Prepared(_) => None,
                };
                let reason = answer.err().map(|e| Chain(&e).to_string()).or(host);
                NetworkStatus { ready: reason.is_none(), network: Some(list.name), reason }
            }
        };
        let before = lock(&self.inner.status).replace((Instant::now(), status.clone()));
        if before.is_none_or(|(_, before)| before != status) {
            let (network, reason) = (status.network.as_deref(), status.reason.as_deref());
            tracing::info!(ready = status.ready, network, reason, "pod network status");
        }
        Ok(status)
    }

    /// Whether the pod's packets may bypass the host's stack: our own plugin attached the pod, and
    /// every other plugin of its list leaves traffic alone or acts only where connections begin.
    /// False for a pod that is not attached in this boot. Blocks on the first call and after an
    /// ADD, when it reads every attachment file.
    pub fn bypasses_host_stack(&self, pod: &PodUid) -> bool {
        let mut bypassing = lock(&self.inner.bypassing);
        let read = || {
            let sandboxes = self.inner.attachments.list().unwrap_or_default();
            let records = sandboxes.iter().filter_map(|id| self.inner.attachments.read(id).ok().flatten());
            let here = records.filter(|record| record.boot == self.inner.boot && record.result.is_some());
            here.map(|record| (record.uid.clone(), crate::conflist::bypasses_host_stack(&record.plugins)))
                .collect()
        };
        bypassing.get_or_insert_with(read).get(pod).copied().unwrap_or(false)
    }

    async fn conflist(&self) -> Result<Conflist, Error> {
        let dir = self.inner.conf_dir.clone();
        blocking("the network configuration", move || Conflist::load(&dir)).await
    }

    async fn read(&self, sandbox: &str) -> Result<Option<Record>, Error> {
        let (inner, sandbox) = (self.inner.clone(), sandbox.to_owned());
        blocking("attachment files", move || inner.attachments.read(&sandbox)).await
    }

    async fn write(&self, record: &Record) -> Result<(), Error> {
        let (inner, record) = (self.inner.clone(), record.clone());
        blocking("attachment files", move || inner.attachments.write(&record)).await
    }
}

/// Name of the nftables table of the node with this runtime state. Two nodes on one machine have
/// different names.
fn table_name(runtime_state: &Path) -> String {
    let bytes = runtime_state.as_os_str().as_encoded_bytes();
    let hash = bytes.iter().fold(0x811c_9dc5_u32, |h, b| (h ^ u32::from(*b)).wrapping_mul(0x0100_0193));
    format!("berth_{hash:08x}")
}

async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|_panic| Error::Panicked(what))?
}
