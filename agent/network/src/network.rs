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

/// The pod's interface in its sandbox.
const IFNAME: &str = "eth0";
/// How long one plugin may take for its GC: every ADD and DEL of the node waits for it.
const GC_TIMEOUT: Duration = Duration::from_secs(10);
/// For how long plugins are not asked for their STATUS again.
const STATUS_LASTS: Duration = Duration::from_secs(5);

/// How the pod network is run.
#[derive(Debug, Clone)]
pub struct NetworkConfig {
    /// Whether what pods send out of the pod network takes on the node's address.
    pub masquerade: Option<MasqueradeConfig>,
    /// How long one plugin may take for one command.
    pub plugin_timeout: Duration,
}

impl Default for NetworkConfig {
    /// No masquerade; 60 s a command.
    fn default() -> Self {
        NetworkConfig { masquerade: None, plugin_timeout: Duration::from_secs(60) }
    }
}

/// Masquerade of pod egress. Pods' own networks are those that the configuration list names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MasqueradeConfig {
    /// Destinations that see the pod's own address, besides pods.
    pub non_masquerade_cidrs: Vec<IpNet>,
}

/// Whether sandboxes can be attached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkStatus {
    /// Whether they can.
    pub ready: bool,
    /// The network in force, where there is one.
    pub network: Option<String>,
    /// Why not.
    pub reason: Option<String>,
}

/// A sandbox that shall be attached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxNetwork {
    /// The pod.
    pub uid: PodUid,
    /// Its names.
    pub key: PodKey,
    /// `CNI_CONTAINERID`.
    pub sandbox_id: String,
    /// Where its network namespace is pinned.
    pub netns: PathBuf,
    /// The ports of all its containers; those with a host port go to plugins that can map them.
    pub ports: Vec<ContainerPort>,
    /// Its labels, kept with the attachment.
    pub labels: BTreeMap<String, String>,
    /// Its annotations: those that limit its bandwidth go to plugins that can shape it.
    pub annotations: BTreeMap<String, String>,
}

/// What a pod asks of the network and does not get.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unserved {
    /// The list's `name`.
    pub network: String,
    /// Its host ports: no plugin of the list takes `portMappings`.
    pub host_ports: bool,
    /// Limits of its bandwidth: no plugin of the list takes `bandwidth`.
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
    /// Sandboxes that this process has attached or is attaching: GC leaves them to their owner.
    own: Mutex<BTreeSet<String>>,
    /// The pods whose attachments were read, and whether each [stays clear](Network::stays_clear_of_host).
    clear: Mutex<Option<BTreeMap<PodUid, bool>>>,
    /// ADD and DEL take it shared; the plugins' GC, which names all valid attachments, takes it exclusively.
    plugins: RwLock<()>,
    status: Mutex<Option<(Instant, NetworkStatus)>>,
    host: tokio::sync::Mutex<HostNetwork>,
}

/// How far the host's network was prepared.
#[derive(Debug, Default)]
enum HostNetwork {
    /// Nobody asked for it.
    #[default]
    Untouched,
    /// Forwarding is on, and the rules were made for these pod networks.
    Prepared(Vec<IpNet>),
    /// The last try failed: the next ADD tries again.
    Failed(String),
}

impl Network {
    /// Opens the state below `roots`. Runs and changes nothing.
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
                clear: Mutex::default(),
                plugins: RwLock::default(),
                status: Mutex::default(),
                host: tokio::sync::Mutex::default(),
            }),
        })
    }

    /// Whether there is a configuration whose plugins are there and ready (STATUS), and if not, why. The answer may
    /// be 5 s old.
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

    /// Turns forwarding on and, by configuration, masquerades pod egress. What it changes is recorded first, so that
    /// [`Network::restore_host`] can put it back; may be called again. The masquerade needs the `nft` binary.
    ///
    /// # Errors
    /// The kernel or `nft` refuses. [`Network::ready`] tells so, and each ADD tries again before it attaches anything.
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

    /// Returns the pod networks that the rules were made for.
    async fn try_prepare(&self) -> Result<Vec<IpNet>, Error> {
        let inner = self.inner.clone();
        blocking("sysctls", move || host::forward(&inner.sysctls, &inner.boot)).await?;
        if self.inner.config.masquerade.is_none() {
            // An earlier life may have been configured otherwise. A host without nft or nf_tables has no rules of ours.
            if let Err(error) = host::apply(&self.inner.table, &host::no_rules(&self.inner.table)).await {
                tracing::debug!(error = %Chain(&error), "no masquerade rules to remove");
            }
            return Ok(Vec::new());
        }
        let pods = match self.conflist().await {
            Ok(list) => list.pod_cidrs(),
            // Without a list that can be read nothing is attached: the rules follow with the first ADD.
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

    /// Removes the rules and puts the sysctls back, for the end of the node on this machine: forwarding is off again
    /// where it was off before, also for others that came to count on it (a second node beside this one, unless it
    /// goes first).
    pub async fn restore_host(&self) -> Result<(), Error> {
        let mut host = self.inner.host.lock().await;
        match host::apply(&self.inner.table, &host::no_rules(&self.inner.table)).await {
            // Without nft there are no rules of ours.
            Err(Error::Nft(e)) if e.kind() == std::io::ErrorKind::NotFound => {}
            other => other?,
        }
        *host = HostNetwork::Untouched;
        let inner = self.inner.clone();
        blocking("sysctls", move || host::restore(&inner.sysctls, &inner.boot)).await
    }

    /// Attaches a sandbox: sets its `lo` up and runs the list's plugins. Where that sandbox is attached already, in
    /// the same namespace, the answer is the earlier one; what an earlier attempt left half done is taken away first.
    /// On failure everything is taken back as far as the plugins can.
    pub async fn add(&self, request: &SandboxNetwork) -> Result<Attachment, Error> {
        let _shared = self.inner.plugins.read().await;
        // Before its file is written: GC lists the files first and then asks whose they are.
        lock(&self.inner.own).insert(request.sandbox_id.clone());
        let added = self.attach(request).await;
        // Read anew by who asks next.
        lock(&self.inner.clear).take();
        if added.is_err() {
            lock(&self.inner.own).remove(&request.sandbox_id);
        }
        added
    }

    /// What an attached sandbox asks of the network and no plugin of the list that attached it takes.
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
                    // The file stays: a later DEL or GC tries again.
                    tracing::warn!(pod = %request.key, error = %Chain(&left), "half an attachment is left");
                }
                Err(error)
            }
        }
    }

    /// Detaches a sandbox, with the configuration and result it was attached with. Succeeds where it is not attached,
    /// and where its namespace is gone. `netns` defaults to where it was at ADD.
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

    /// Asks the plugins whether a sandbox's network is as they made it.
    pub async fn check(&self, sandbox_id: &str) -> Result<(), Error> {
        let not_attached = || Error::NotAttached(sandbox_id.to_owned());
        let record = self.read(sandbox_id).await?.filter(|r| r.result.is_some() && r.boot == self.inner.boot);
        let record = record.ok_or_else(not_attached)?;
        let list = record.conflist(&self.inner.attachments.path(sandbox_id)?)?;
        self.inner.runner.check(&list, &record).await
    }

    /// Takes away what belongs to no valid sandbox: attachments of earlier lives of the agent by DEL, then whatever
    /// the plugins of the current list still know (GC). Everything is tried; the first failure is returned.
    ///
    /// ADDs and DELs of other sandboxes go on beside the DELs. They wait for the plugins' GC, which is given all valid
    /// attachments and takes each other one away: it has [`GC_TIMEOUT`] for that.
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

    /// GC by the plugins of the list in force.
    async fn plugins_gc(&self, valid_sandboxes: &BTreeSet<String>) -> Vec<Error> {
        let list = match self.conflist().await {
            Ok(list) => list,
            Err(Error::NoConflist { .. }) => return Vec::new(),
            Err(error) => return vec![error],
        };
        let _alone = self.inner.plugins.write().await;
        // What could not be detached stays known to its plugins until it can.
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

    /// What a sandbox was given, from its file, for adoption; `None` where it is not attached in this boot.
    pub fn attachment(&self, sandbox_id: &str) -> Option<Attachment> {
        let record = self.inner.attachments.read(sandbox_id).ok().flatten()?;
        (record.boot == self.inner.boot).then(|| record.attachment()).flatten()
    }

    /// Whether our own plugin attached the pod and every other one of the list leaves its traffic alone or does its work
    /// where connections begin: so that packets from and to it may go past the host's stack.
    /// A pod that is not attached in this boot does not. Blocks where it is asked for the first time, or after an ADD: it
    /// reads the file of each attachment.
    pub fn stays_clear_of_host(&self, pod: &PodUid) -> bool {
        let mut clear = lock(&self.inner.clear);
        let read = || {
            let sandboxes = self.inner.attachments.list().unwrap_or_default();
            let records = sandboxes.iter().filter_map(|id| self.inner.attachments.read(id).ok().flatten());
            let here = records.filter(|record| record.boot == self.inner.boot && record.result.is_some());
            here.map(|record| (record.uid.clone(), crate::conflist::stays_clear(&record.plugins))).collect()
        };
        clear.get_or_insert_with(read).get(pod).copied().unwrap_or(false)
    }

    /// DEL along the chain that was used at ADD; the file goes last.
    async fn take_back(&self, record: Record, netns: Option<&Path>) -> Result<(), Error> {
        let list = record.conflist(&self.inner.attachments.path(&record.sandbox)?)?;
        // Where the path names another namespace by now, or none, there is nothing to enter.
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

    /// Makes the rules anew where the list's networks are not those they were made for.
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

/// The nftables table of the node whose runtime state lies there: two nodes on one machine have different ones.
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
