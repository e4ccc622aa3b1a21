//! Preparation of the host for pods, and its undoing.

use super::{HostNetwork, Network, blocking};
use crate::{Conflist, Error, host};
use berth_core::error::Chain;
use ipnet::IpNet;

impl Network {
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
        blocking("sysctls", move || host::enable_forwarding(&inner.sysctls, &inner.boot)).await?;
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
                    "cannot masquerade pod egress before there is a valid network configuration"
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

    /// Updates the rules if the list's networks have changed.
    pub(super) async fn follow_masquerade(&self, list: &Conflist) -> Result<(), Error> {
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
