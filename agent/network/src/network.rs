//! The interface of this crate.

use crate::{
    Attachment, Conflist, Error,
    attachments::{Attachments, Record, netns_inode},
    host, loopback,
    verbs::Runner,
};
use berth_core::{
    ids::{BootId, PodKey, PodUid},
    model::{ContainerPort, Protocol},
    roots::Roots,
};
use ipnet::IpNet;
use serde_json::{Map, Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::RwLock;

/// The pod's interface in its sandbox.
const IFNAME: &str = "eth0";
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
    /// Sandboxes that this process has attached: GC leaves them to their owner.
    own: Mutex<BTreeSet<String>>,
    /// ADD and DEL hold it together, GC alone.
    quiet: RwLock<()>,
    status: Mutex<Option<(Instant, NetworkStatus)>>,
    /// The pod networks that the rules were made for; `None` before [`Network::prepare_host`].
    masqueraded: tokio::sync::Mutex<Option<Vec<IpNet>>>,
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
                quiet: RwLock::default(),
                status: Mutex::default(),
                masqueraded: tokio::sync::Mutex::default(),
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
            Err(error) => NetworkStatus { ready: false, network: None, reason: Some(chain(&error)) },
            Ok(list) => {
                let answer = self.inner.runner.status(&list).await;
                let reason = answer.err().map(|e| chain(&e));
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
    pub async fn prepare_host(&self) -> Result<(), Error> {
        let inner = self.inner.clone();
        blocking("sysctls", move || host::forward(&inner.sysctls, &inner.boot)).await?;
        if self.inner.config.masquerade.is_none() {
            // An earlier life may have been configured otherwise. A host without nft or nf_tables has no rules of ours.
            if let Err(error) = host::apply(&self.inner.table, &host::no_rules(&self.inner.table)).await {
                tracing::debug!(error = chain(&error), "no masquerade rules to remove");
            }
            return Ok(());
        }
        let pods = match self.conflist().await {
            Ok(list) => list.pod_cidrs(),
            // The rules follow with the first ADD.
            Err(Error::NoConflist { .. }) => Vec::new(),
            Err(e) => return Err(e),
        };
        let mut made_for = self.inner.masqueraded.lock().await;
        self.masquerade(&pods).await?;
        *made_for = Some(pods);
        Ok(())
    }

    /// Removes the rules and puts the sysctls back, for the end of the node on this machine: forwarding is off again
    /// where it was off before, also for others that came to count on it (a second node beside this one, unless it
    /// goes first).
    pub async fn restore_host(&self) -> Result<(), Error> {
        let mut made_for = self.inner.masqueraded.lock().await;
        match host::apply(&self.inner.table, &host::no_rules(&self.inner.table)).await {
            // Without nft there are no rules of ours.
            Err(Error::Nft(e)) if e.kind() == std::io::ErrorKind::NotFound => {}
            other => other?,
        }
        *made_for = None;
        let inner = self.inner.clone();
        blocking("sysctls", move || host::restore(&inner.sysctls, &inner.boot)).await
    }

    /// Attaches a sandbox: sets its `lo` up and runs the list's plugins. Where that sandbox is attached already, in
    /// the same namespace, the answer is the earlier one; what an earlier attempt left half done is taken away first.
    /// On failure everything is taken back as far as the plugins can.
    pub async fn add(&self, request: &SandboxNetwork) -> Result<Attachment, Error> {
        let _together = self.inner.quiet.read().await;
        let added = self.attach(request).await;
        if added.is_ok() {
            lock(&self.inner.own).insert(request.sandbox_id.clone());
        }
        added
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
            capabilities: capabilities(&request.ports),
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
                    tracing::warn!(pod = %request.key, error = chain(&left), "half an attachment is left");
                }
                Err(error)
            }
        }
    }

    /// Detaches a sandbox, with the configuration and result it was attached with. Succeeds where it is not attached,
    /// and where its namespace is gone. `netns` defaults to where it was at ADD.
    pub async fn del(&self, sandbox_id: &str, netns: Option<&Path>) -> Result<(), Error> {
        let _together = self.inner.quiet.read().await;
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
    pub async fn gc(&self, valid_sandboxes: &BTreeSet<String>) -> Result<(), Error> {
        let _alone = self.inner.quiet.write().await;
        let valid: BTreeSet<String> = valid_sandboxes.union(&lock(&self.inner.own)).cloned().collect();
        let inner = self.inner.clone();
        let known = blocking("attachment files", move || inner.attachments.list()).await?;
        let mut errors = Vec::new();
        for sandbox in known.difference(&valid) {
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
        match self.conflist().await {
            Ok(list) => {
                // What could not be detached above stays known to its plugins until it can.
                let left = self.inner.attachments.list().unwrap_or_default();
                let keep = valid.union(&left).map(|id| (id.clone(), IFNAME.to_owned()));
                errors.extend(self.inner.runner.gc(&list, &keep.collect::<Vec<_>>()).await);
            }
            Err(Error::NoConflist { .. }) => {}
            Err(e) => errors.push(e),
        }
        let failed = errors.len();
        match errors.into_iter().next() {
            None => Ok(()),
            Some(first) => Err(Error::Collect { failed, source: Box::new(first) }),
        }
    }

    /// What a sandbox was given, from its file, for adoption; `None` where it is not attached in this boot.
    pub fn attachment(&self, sandbox_id: &str) -> Option<Attachment> {
        let record = self.inner.attachments.read(sandbox_id).ok().flatten()?;
        (record.boot == self.inner.boot).then(|| record.attachment()).flatten()
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
        let mut made_for = self.inner.masqueraded.lock().await;
        if let Some(before) = &*made_for {
            let pods = list.pod_cidrs();
            if *before != pods {
                self.masquerade(&pods).await?;
                *made_for = Some(pods);
            }
        }
        Ok(())
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

fn capabilities(ports: &[ContainerPort]) -> Map<String, Value> {
    let mapping = |port: &ContainerPort| {
        let protocol = match port.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        };
        let host_ip = port.host_ip.map(|ip| ip.to_string()).unwrap_or_default();
        Some(json!({
            "hostPort": port.host_port?, "containerPort": port.port, "protocol": protocol, "hostIP": host_ip,
        }))
    };
    let mappings: Vec<_> = ports.iter().filter_map(mapping).collect();
    let mut all = Map::new();
    if !mappings.is_empty() {
        all.insert("portMappings".into(), mappings.into());
    }
    all
}

async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|_panic| Error::Panicked(what))?
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An error with its sources, for a status line.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}
