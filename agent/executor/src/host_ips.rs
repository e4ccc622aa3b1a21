//! Reader of the node's current addresses.

use std::{fmt, net::IpAddr, sync::Arc};

/// The node's addresses, the primary one first. They are the `hostIPs` of every pod, and the `podIPs` of pods
/// in the host's network. The addresses may change while pods run, so each reading returns the current ones.
/// Cheap to clone.
#[derive(Clone)]
pub struct HostIps(Arc<dyn Fn() -> Vec<IpAddr> + Send + Sync>);

impl HostIps {
    /// Creates a reader that calls `now` at each reading. `now` must not block.
    pub fn new(now: impl Fn() -> Vec<IpAddr> + Send + Sync + 'static) -> HostIps {
        HostIps(Arc::new(now))
    }

    /// The current addresses.
    pub fn get(&self) -> Vec<IpAddr> {
        (self.0)()
    }
}

impl fmt::Debug for HostIps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HostIps").field(&self.get()).finish()
    }
}
