//! Attaching and detaching of sandboxes.

use super::{IFNAME, Network, SandboxNetwork, Unserved, blocking};
use crate::{
    Attachment, Error,
    attachments::{Record, netns_inode},
    capabilities, loopback,
};
use berth_core::{error::Chain, sync::lock};
use std::path::Path;

impl Network {
    /// Attaches a sandbox: sets its `lo` up and runs the list's plugins. If the sandbox is already
    /// attached in the same namespace, the earlier result is returned. The rest of an earlier
    /// failed attempt is removed first. On failure everything is undone as far as the plugins can.
    pub async fn add(&self, request: &SandboxNetwork) -> Result<Attachment, Error> {
        let _shared = self.inner.plugins.read().await;
        // The sandbox is entered before its file is written, because GC lists the files first and
        // then asks for owners.
        lock(&self.inner.attached_here).insert(request.sandbox_id.clone());
        let added = self.attach(request).await;
        // The next caller reads the attachments again.
        lock(&self.inner.bypassing).take();
        if added.is_err() {
            lock(&self.inner.attached_here).remove(&request.sandbox_id);
        }
        added
    }

    /// Network features that an attached sandbox requests and no plugin of its list provides.
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
            netns_inode(&netns).map_err(Error::file("stat", &netns))
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
                    tracing::warn!(pod = %request.key, error = %Chain(&left), "cannot undo a failed attachment; a later DEL or GC tries again");
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
        lock(&self.inner.attached_here).remove(sandbox_id);
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

    /// The attachment of a sandbox, from its file, for adoption. None if it is not attached in this
    /// boot.
    pub fn attachment(&self, sandbox_id: &str) -> Option<Attachment> {
        let record = self.inner.attachments.read(sandbox_id).ok().flatten()?;
        (record.boot == self.inner.boot).then(|| record.attachment()).flatten()
    }

    /// Runs DEL along the chain that was used at ADD, then removes the file.
    pub(super) async fn take_back(&self, record: Record, netns: Option<&Path>) -> Result<(), Error> {
        let list = record.conflist(&self.inner.attachments.path(&record.sandbox)?)?;
        // If the path names another namespace by now, or none, there is no namespace to enter.
        let netns = netns.unwrap_or(&record.netns);
        let there =
            record.boot == self.inner.boot && netns_inode(netns).is_ok_and(|i| i == record.netns_inode);
        self.inner.runner.del(&list, &record, there.then_some(netns)).await?;
        let inner = self.inner.clone();
        blocking("attachment files", move || inner.attachments.remove(&record.sandbox)).await
    }
}

/// `CNI_ARGS` of a pod.
fn cni_args(request: &SandboxNetwork) -> String {
    format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
        request.key.namespace, request.key.name, request.sandbox_id, request.uid
    )
}
