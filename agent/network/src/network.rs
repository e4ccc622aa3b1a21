//! The interface of this crate.

use crate::{
    Attachment, Conflist, Error,
    attachments::{Attachments, Record, netns_inode},
    capabilities, host, loopback,
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
/// Deadline of one plugin's GC. Every ADD and DEL of the node waits for it.
const GC_TIMEOUT: Duration = Duration::from_secs(10);
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

/// What a pod asks of the network and no plugin provides.
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
    own: Mutex<BTreeSet<String>>,
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
                attachments: Attachments::open(&roots.lasting_state)?,
                runner,
                sysctls: roots.runtime_state.join("network/sysctls.json"),
                table: table_name(&roots.runtime_state),
                own: Mutex::default(),
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

    /// Turns on forwarding and, if configured, masquerades pod egress. The previous state is
    /// recorded first, so that [`Network::restore_host`] can restore it. May be called again.
    /// Masquerade needs the `nft` binary.
    ///
    /// # Errors
    /// The kernel or `nft` refuses. Then [`Network::ready`] reports it, and each ADD retries before
    /// it attaches anything.
    pub async fn prepare_host(&self) -> Result<(), Error> {
        let mut host = self.inner.host.lock().await;
        self.prepare(&mut host).await
    }

    async fn prepare(&self, host: &mut HostNetwork) -> Result<(), Error> {
        let prepared = self.try_prepare().await;
        *host = match &prepared {
            Ok(pods) => HostNetwork::Prepared(pods.clone()),
            Err(error) => HostNetwork::Failed(Chain(error).to_string()),
        };
        prepared.map(drop)
    }

    /// Prepares the host and returns the pod networks of the rules.
    async fn try_prepare(&self) -> Result<Vec<IpNet>, Error> {
        let inner = self.inner.clone();
        blocking("sysctls", move || host::forward(&inner.sysctls, &inner.boot)).await?;
        if self.inner.config.masquerade.is_none() {
            // An earlier agent may have been configured otherwise. A host without nft or nf_tables
            // has no rules to remove.
            if let Err(error) = host::apply(&self.inner.table, &host::no_rules(&self.inner.table)).await {
                tracing::debug!(error = %Chain(&error), "no masquerade rules to remove");
            }
            return Ok(Vec::new());
        }
        let pods = match self.conflist().await {
            Ok(list) => list.pod_cidrs(),
            // Without a valid list no pod can be attached: the rules follow with the first ADD.
            Err(error) => {
                tracing::warn!(
                    error = %Chain(&error),
                    "pod egress is masqueraded once there is a network configuration"
                );
                Vec::new()
            }
        };
        self.masquerade(&pods).await?;
        Ok(pods)
    }

    /// Removes the rules and restores the sysctls, when the node leaves this machine. Forwarding is
    /// turned off again if it was off before, also for others that rely on it by now (such as a
    /// second node on this machine, unless it leaves first).
    pub async fn restore_host(&self) -> Result<(), Error> {
        let mut host = self.inner.host.lock().await;
        match host::apply(&self.inner.table, &host::no_rules(&self.inner.table)).await {
            // Without nft there are no rules to remove.
            Err(Error::Nft(e)) if e.kind() == std::io::ErrorKind::NotFound => {}
            other => other?,
        }
        *host = HostNetwork::Untouched;
        let inner = self.inner.clone();
        blocking("sysctls", move || host::restore(&inner.sysctls, &inner.boot)).await
    }

    /// Attaches a sandbox: sets its `lo` up and runs the list's plugins. If the sandbox is already
    /// attached in the same namespace, the earlier result is returned. The rest of an earlier
    /// failed attempt is removed first. On failure everything is undone as far as the plugins can.
    pub async fn add(&self, request: &SandboxNetwork) -> Result<Attachment, Error> {
        let _shared = self.inner.plugins.read().await;
        // The sandbox is entered before its file is written, because GC lists the files first and
        // then asks for owners.
        lock(&self.inner.own).insert(request.sandbox_id.clone());
        let added = self.attach(request).await;
        // The next caller reads the attachments again.
        lock(&self.inner.bypassing).take();
        if added.is_err() {
            lock(&self.inner.own).remove(&request.sandbox_id);
        }
        added
    }

    /// What an attached sandbox asks of the network and no plugin of its list provides.
    pub async fn unserved(&self, request: &SandboxNetwork) -> Result<Unserved, Error> {
        if capabilities::arguments(&request.ports, &request.annotations)?.is_empty() {
            return Ok(Unserved::default());
        }
        let record = self.read(&request.sandbox_id).await?;
        Ok(record.map_or_else(Unserved::default, |record| {
            let names = record.unserved();
            Unserved {
                network: record.network,
                host_ports: names.iter().any(|name| name == capabilities::PORT_MAPPINGS),
                bandwidth: names.iter().any(|name| name == capabilities::BANDWIDTH),
            }
        }))
    }

    async fn attach(&self, request: &SandboxNetwork) -> Result<Attachment, Error> {
        let netns = request.netns.clone();
        let inode = blocking("the sandbox's network namespace", move || {
            loopback::set_up(&netns).map_err(|source| Error::Loopback { netns: netns.clone(), source })?;
            netns_inode(&netns).map_err(Error::file("look at", &netns))
        })
        .await?;
        if let Some(before) = self.read(&request.sandbox_id).await? {
            let same = before.boot == self.inner.boot
                && before.netns_inode == inode
                && before.netns == request.netns;
            match before.attachment() {
                Some(attachment) if same => return Ok(attachment),
                _ => self.take_back(before, None).await?,
            }
        }
        let list = self.conflist().await?;
        self.follow_masquerade(&list).await?;
        let mut record = Record {
            boot: self.inner.boot.clone(),
            sandbox: request.sandbox_id.clone(),
            ifname: IFNAME.to_owned(),
            netns: request.netns.clone(),
            netns_inode: inode,
            uid: request.uid.clone(),
            key: request.key.clone(),
            labels: request.labels.clone(),
            network: list.name.clone(),
            version: list.version.to_owned(),
            disable_check: list.disable_check,
            plugins: list.plugins.iter().map(|p| p.raw.clone()).collect(),
            args: cni_args(request),
            capabilities: capabilities::arguments(&request.ports, &request.annotations)?,
            result: None,
        };
        self.write(&record).await?;
        let added = match self.inner.runner.add(&list, &record).await {
            Ok(attachment) => {
                record.result = Some(attachment.result.clone());
                self.write(&record).await.map(|()| attachment)
            }
            Err(error) => Err(error),
        };
        match added {
            Ok(attachment) => {
                tracing::info!(pod = %request.key, network = list.name, ips = ?attachment.ips, "attached sandbox");
                Ok(attachment)
            }
            Err(error) => {
                if let Err(left) = self.take_back(record, Some(&request.netns)).await {
                    // The file stays, and a later DEL or GC tries again.
                    tracing::warn!(pod = %request.key, error = %Chain(&left), "half an attachment is left");
                }
                Err(error)
            }
        }
    }

    /// Detaches a sandbox, with the configuration and result of its ADD. Succeeds if the sandbox is
    /// not attached or its namespace is gone. `netns` defaults to the path at ADD.
    pub async fn del(&self, sandbox_id: &str, netns: Option<&Path>) -> Result<(), Error> {
        let _shared = self.inner.plugins.read().await;
        if let Some(record) = self.read(sandbox_id).await? {
            let key = record.key.clone();
            self.take_back(record, netns).await?;
            tracing::info!(pod = %key, "detached sandbox");
        }
        lock(&self.inner.own).remove(sandbox_id);
        Ok(())
    }

    /// Runs CHECK: asks the plugins whether a sandbox's network is as they made it.
    pub async fn check(&self, sandbox_id: &str) -> Result<(), Error> {
        let not_attached = || Error::NotAttached(sandbox_id.to_owned());
        let record = self.read(sandbox_id).await?.filter(|r| r.result.is_some() && r.boot == self.inner.boot);
        let record = record.ok_or_else(not_attached)?;
        let list = record.conflist(&self.inner.attachments.path(sandbox_id)?)?;
        self.inner.runner.check(&list, &record).await
    }

    /// Removes attachments without a valid sandbox: those of earlier agents by DEL, then everything
    /// else that the plugins of the current list know by GC. Everything is tried; the first failure
    /// is returned.
    ///
    /// ADDs and DELs of other sandboxes run beside these DELs. They wait for the plugins' GC, which
    /// receives all valid attachments and removes all others: its deadline is [`GC_TIMEOUT`].
    pub async fn gc(&self, valid_sandboxes: &BTreeSet<String>) -> Result<(), Error> {
        let inner = self.inner.clone();
        let known = blocking("attachment files", move || inner.attachments.list()).await?;
        let own = || lock(&self.inner.own).clone();
        let valid: BTreeSet<String> = valid_sandboxes.union(&own()).cloned().collect();
        let mut errors = Vec::new();
        for sandbox in known.difference(&valid) {
            let _shared = self.inner.plugins.read().await;
            let gone = match self.read(sandbox).await {
                Ok(Some(record)) => self.take_back(record, None).await,
                Ok(None) => Ok(()),
                Err(e) => Err(e),
            };
            match gone {
                Ok(()) => tracing::info!(sandbox, "detached a sandbox that is gone"),
                Err(e) => errors.push(e),
            }
        }
        errors.extend(self.plugins_gc(valid_sandboxes).await);
        let failed = errors.len();
        match errors.into_iter().next() {
            None => Ok(()),
            Some(first) => Err(Error::Collect { failed, source: Box::new(first) }),
        }
    }

    /// Runs GC of the plugins of the active list.
    async fn plugins_gc(&self, valid_sandboxes: &BTreeSet<String>) -> Vec<Error> {
        let list = match self.conflist().await {
            Ok(list) => list,
            Err(Error::NoConflist { .. }) => return Vec::new(),
            Err(error) => return vec![error],
        };
        let _alone = self.inner.plugins.write().await;
        // Sandboxes that could not be detached stay known to their plugins until they can be.
        let left = match self.inner.attachments.list() {
            Ok(left) => left,
            Err(error) => return vec![error],
        };
        let keep: BTreeSet<String> =
            valid_sandboxes.iter().chain(&*lock(&self.inner.own)).cloned().chain(left).collect();
        let keep: Vec<_> = keep.into_iter().map(|id| (id, IFNAME.to_owned())).collect();
        let runner =
            Runner { timeout: self.inner.runner.timeout.min(GC_TIMEOUT), ..self.inner.runner.clone() };
        runner.gc(&list, &keep).await
    }

    /// The attachment of a sandbox, from its file, for adoption. None if it is not attached in this
    /// boot.
    pub fn attachment(&self, sandbox_id: &str) -> Option<Attachment> {
        let record = self.inner.attachments.read(sandbox_id).ok().flatten()?;
        (record.boot == self.inner.boot).then(|| record.attachment()).flatten()
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

    /// Runs DEL along the chain that was used at ADD, then removes the file.
    async fn take_back(&self, record: Record, netns: Option<&Path>) -> Result<(), Error> {
        let list = record.conflist(&self.inner.attachments.path(&record.sandbox)?)?;
        // If the path names another namespace by now, or none, there is no namespace to enter.
        let netns = netns.unwrap_or(&record.netns);
        let there =
            record.boot == self.inner.boot && netns_inode(netns).is_ok_and(|i| i == record.netns_inode);
        self.inner.runner.del(&list, &record, there.then_some(netns)).await?;
        let inner = self.inner.clone();
        blocking("attachment files", move || inner.attachments.remove(&record.sandbox)).await
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

    /// Updates the rules if the list's networks have changed.
    async fn follow_masquerade(&self, list: &Conflist) -> Result<(), Error> {
        let mut host = self.inner.host.lock().await;
        match &*host {
            HostNetwork::Untouched => Ok(()),
            HostNetwork::Failed(_) => self.prepare(&mut host).await,
            HostNetwork::Prepared(before) => {
                let pods = list.pod_cidrs();
                if *before != pods {
                    self.masquerade(&pods).await?;
                    *host = HostNetwork::Prepared(pods);
                }
                Ok(())
            }
        }
    }

    async fn masquerade(&self, pods: &[IpNet]) -> Result<(), Error> {
        let Some(config) = &self.inner.config.masquerade else { return Ok(()) };
        let rules = host::rules(&self.inner.table, pods, &config.non_masquerade_cidrs);
        host::apply(&self.inner.table, &rules).await
    }
}

/// Name of the nftables table of the node with this runtime state. Two nodes on one machine have
/// different names.
fn table_name(runtime_state: &Path) -> String {
    let bytes = runtime_state.as_os_str().as_encoded_bytes();
    let hash = bytes.iter().fold(0x811c_9dc5_u32, |h, b| (h ^ u32::from(*b)).wrapping_mul(0x0100_0193));
    format!("berth_{hash:08x}")
}

fn cni_args(request: &SandboxNetwork) -> String {
    format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
        request.key.namespace, request.key.name, request.sandbox_id, request.uid
    )
}

async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|_panic| Error::Panicked(what))?
}
