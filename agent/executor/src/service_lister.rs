//! Reader of the node's current Services.

use berth_core::model::Service;
use std::{fmt, sync::Arc};

/// The Services of the node's sources as they are now, for the environment of containers. Cheap to clone.
#[derive(Clone)]
pub struct ServiceLister(Arc<dyn Fn() -> Option<Vec<Arc<Service>>> + Send + Sync>);

impl ServiceLister {
    /// Creates a reader that calls `now` at each start of a container. `now` must not block. `None` says that a source
    /// has not told its Services yet.
    pub fn new(now: impl Fn() -> Option<Vec<Arc<Service>>> + Send + Sync + 'static) -> ServiceLister {
        ServiceLister(Arc::new(now))
    }

    /// The current Services; `None` while a source has not told them. A container that was started without them would
    /// lack their variables for its whole life.
    pub fn get(&self) -> Option<Vec<Arc<Service>>> {
        (self.0)()
    }
}

impl fmt::Debug for ServiceLister {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceLister").finish_non_exhaustive()
    }
}
