//! Volumes of CSI drivers: stage, publish, unpublish, unstage.
//!
//! What was done with a volume is on disk, where the kubelet keeps it, so that a node can be taken over in both
//! directions: `vol_data.json` beside the staged volume and beside that of each pod is written before the first call and
//! removed after the last ([`record`]). It says that a call may have been made. That it has succeeded is said by a
//! marker in this boot's state ([`marks`]), because a boot ends all mounts. The next call follows from both, and from
//! nothing in memory ([`berth_core::volume::steps`]).
//!
//! One piece of work on a volume at a time, also for several pods ([`locks`]). Each call of a driver has a deadline and
//! runs on the thread of its pod, so that a driver that hangs holds up the pods that use it alone.
//!
//! A volume that a control plane attaches is touched only once the Node's status lists it ([`listing`]).

mod expand;
mod listing;
mod locks;
mod marks;
mod mount;
mod paths;
mod record;
mod unmount;

use crate::Error;
use berth_core::ids::PodUid;
use berth_csi_client::{Driver, DriverName, NodeCapabilities};
pub(crate) use expand::Growth;
pub use expand::{ClaimAnswer, ClaimOfVolume, Claims};
pub(crate) use listing::WAIT as LISTING_WAIT;
use locks::Locks;
pub(crate) use mount::CsiVolumeSpec;
pub(crate) use paths::CsiPaths;
use std::{collections::BTreeSet, fmt, sync::Arc};
use tokio::{runtime::Handle, sync::watch};

/// The CSI drivers of the node, and the runtime on which their calls run.
#[derive(Clone, Default)]
pub struct CsiDrivers(Option<Arc<Inner>>);

/// Finds a registered driver, and what its node service can do.
pub type FindDriver = Box<dyn Fn(&DriverName) -> Option<(Driver, NodeCapabilities)> + Send + Sync>;

/// What a control plane has of the node's volumes.
pub struct ControlPlane {
    /// The attached volumes that the API server's Node lists as in use and that the node goes on to list.
    pub listed: watch::Receiver<Arc<BTreeSet<String>>>,
    /// The claims of its volumes.
    pub claims: Box<dyn Claims>,
}

struct Inner {
    find: FindDriver,
    runtime: Handle,
    locks: Locks,
    control_plane: Option<ControlPlane>,
    /// The expansions that have failed.
    failures: expand::Failures,
}

impl fmt::Debug for CsiDrivers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CsiDrivers").finish_non_exhaustive()
    }
}

impl CsiDrivers {
    /// The registered drivers, called on that runtime. The callers of volumes must not be tasks of it.
    /// Without a control plane nobody attaches volumes.
    pub fn new(find: FindDriver, runtime: Handle, control_plane: Option<ControlPlane>) -> CsiDrivers {
        let (locks, failures) = (Locks::default(), expand::Failures::default());
        CsiDrivers(Some(Arc::new(Inner { find, runtime, locks, control_plane, failures })))
    }

    /// The driver of that name.
    fn driver(&self, name: &str, step: &'static str) -> Result<CallableDriver, Error> {
        let missing = || Error::NoDriver { driver: name.to_owned(), step };
        let inner = self.0.as_ref().ok_or_else(missing)?;
        let parsed = DriverName::parse(name).map_err(|_invalid| missing())?;
        let (driver, capabilities) = (inner.find)(&parsed).ok_or_else(missing)?;
        Ok(CallableDriver { driver, capabilities, runtime: inner.runtime.clone() })
    }

    /// Waits for the turn of one volume.
    fn lock(&self, key: &str) -> Option<locks::Turn<'_>> {
        self.0.as_ref()?.locks.turn(key, locks::WAIT)
    }

    /// Waits until nobody works on the volume for that pod: what a pod does with a volume outside of the volume's turn
    /// is its own as well. It is asked for before the volume's turn.
    fn lock_of_pod(&self, key: &str, pod: &PodUid) -> Option<locks::Turn<'_>> {
        self.lock(&of_pod(key, pod))
    }

    /// Forgets what failed of a volume that the node has no more.
    fn forget_failures(&self, key: &str) {
        if let Some(inner) = &self.0 {
            inner.failures.forget(key);
        }
    }

    /// The turn of one volume, if nobody has it.
    fn try_lock(&self, key: &str) -> Option<locks::Turn<'_>> {
        self.0.as_ref()?.locks.turn(key, std::time::Duration::ZERO)
    }
}

/// The key of a pod's own work on a volume.
fn of_pod(key: &str, pod: &PodUid) -> String {
    format!("{key}/{pod}")
}

/// A registered driver that blocking code can call.
struct CallableDriver {
    driver: Driver,
    capabilities: NodeCapabilities,
    runtime: Handle,
}

impl CallableDriver {
    /// Waits for the end of a call, which has its own deadline.
    fn call<T>(
        &self,
        call: impl Future<Output = Result<T, berth_csi_client::Error>>,
    ) -> Result<T, berth_csi_client::Error> {
        self.runtime.block_on(call)
    }
}

#[cfg(test)]
mod tests;
