//! The node's addresses, as they are just now.

use std::{fmt, net::IpAddr, sync::Arc};

/// The node's addresses, the primary one first: `hostIPs`, and the `podIPs` of pods in the host's network. They may
/// change while pods run; each reading is of the moment. Cheap to clone.
#[derive(Clone)]
pub struct HostIps(Arc<dyn Fn() -> Vec<IpAddr> + Send + Sync>);

impl HostIps {
    /// Asks `now` at each reading; it must not block.
    pub fn new(now: impl Fn() -> Vec<IpAddr> + Send + Sync + 'static) -> HostIps {
        HostIps(Arc::new(now))
    }

    /// As they are now.
    pub fn get(&self) -> Vec<IpAddr> {
        (self.0)()
    }
}

impl fmt::Debug for HostIps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HostIps").field(&self.get()).finish()
    }
}
