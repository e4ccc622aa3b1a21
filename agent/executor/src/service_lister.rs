//! Reader of the node's current Services.

use berth_core::model::Service;
use std::{fmt, sync::Arc};

/// The Services of the node's sources as they are now, for the environment of containers. Cheap to clone.
#[derive(Clone)]
pub struct ServiceLister(Arc<dyn Fn() -> Vec<Arc<Service>> + Send + Sync>);

impl ServiceLister {
    /// Creates a reader that calls `now` at each start of a container. `now` must not block.
    pub fn new(now: impl Fn() -> Vec<Arc<Service>> + Send + Sync + 'static) -> ServiceLister {
        ServiceLister(Arc::new(now))
    }

    /// The current Services.
    pub fn get(&self) -> Vec<Arc<Service>> {
        (self.0)()
    }
}

impl fmt::Debug for ServiceLister {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceLister").finish_non_exhaustive()
    }
}
