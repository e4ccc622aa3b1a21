//! Garbage collection of attachments without a sandbox.

use super::{IFNAME, Network, blocking};
use crate::{Error, verbs::Runner};
use berth_core::sync::lock;
use std::{collections::BTreeSet, time::Duration};

/// Deadline of one plugin's GC. Every ADD and DEL of the node waits for it.
const GC_TIMEOUT: Duration = Duration::from_secs(10);

impl Network {
    /// Removes attachments without a valid sandbox: those of earlier agents by DEL, then everything
    /// else that the plugins of the current list know by GC. Everything is tried; the first failure
    /// is returned.
    ///
    /// ADDs and DELs of other sandboxes run beside these DELs. They wait for the plugins' GC, which
    /// receives all valid attachments and removes all others: its deadline is [`GC_TIMEOUT`].
    pub async fn gc(&self, valid_sandboxes: &BTreeSet<String>) -> Result<(), Error> {
        let inner = self.inner.clone();
        let known = blocking("attachment files", move || inner.attachments.list()).await?;
        let attached_here = || lock(&self.inner.attached_here).clone();
        let valid: BTreeSet<String> = valid_sandboxes.union(&attached_here()).cloned().collect();
        let mut errors = Vec::new();
        for sandbox in known.difference(&valid) {
            let _shared = self.inner.plugins.read().await;
            let gone = match self.read(sandbox).await {
                Ok(Some(record)) => self.take_back(record, None).await,
                Ok(None) => Ok(()),
                Err(e) => Err(e),
            };
            match gone {
                Ok(()) => tracing::info!(sandbox, "detached a sandbox that no longer exists"),
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
        let _exclusive = self.inner.plugins.write().await;
        // Sandboxes that could not be detached stay known to their plugins until they can be.
        let left = match self.inner.attachments.list() {
            Ok(left) => left,
            Err(error) => return vec![error],
        };
        let keep: BTreeSet<String> =
            valid_sandboxes.iter().chain(&*lock(&self.inner.attached_here)).cloned().chain(left).collect();
        let keep: Vec<_> = keep.into_iter().map(|id| (id, IFNAME.to_owned())).collect();
        let runner =
            Runner { timeout: self.inner.runner.timeout.min(GC_TIMEOUT), ..self.inner.runner.clone() };
        runner.gc(&list, &keep).await
    }
}
