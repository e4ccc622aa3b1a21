//! Whether the source's state is the API server's, for the status page.

use berth_core::{model::ObjectName, value::Why};
use berth_kube::reflector::Health;
use std::collections::BTreeMap;
use tokio::sync::watch;

/// What the source knows to be missing in its state. Clones see the same.
#[derive(Debug, Clone)]
pub struct SourceHealth {
    pub(super) sets: Vec<(&'static str, watch::Receiver<Health>)>,
    pub(super) unread: watch::Receiver<BTreeMap<ObjectName, Why>>,
}

impl SourceHealth {
    /// The followed sets by their names in the API, and whether each is current.
    pub fn sets(&self) -> impl Iterator<Item = (&'static str, Health)> {
        self.sets.iter().map(|(name, health)| (*name, health.borrow().clone()))
    }

    /// The ConfigMaps and Secrets in use of which the API server has told nothing yet, with the reasons.
    pub fn unread(&self) -> BTreeMap<ObjectName, Why> {
        self.unread.borrow().clone()
    }
}
