//! The parts of a container's file system and environment that are not from its image: volumes, the hosts, resolver and
//! hostname files, /dev/shm, the termination message, environment variables.
//!
//! Owns the pod directories `pods/<uid>` below the pod state:
//!
//! ```text
//! volumes/kubernetes.io~<plugin>/<volume>       the volumes (none for hostPath: its path is used as it is)
//! volume-subpaths/<volume>/<container>/<index>  bind mounts of sub-paths
//! containers/<container>/termination-<attempt>  termination messages
//! image-volumes/<container id>/<digest>         VOLUMEs of its image, one directory for each
//! etc-hosts, resolv.conf, hostname, shm         shared by the pod's containers
//! ```
//!
//! The code blocks and has no tasks. Callers use a thread for blocking work, one at a time for a pod; pods share nothing
//! here. What is kept in memory waits for a server and is out of sight: mounts that are not whole yet (module `pending`)
//! and unmounts that have not ended (module `unmounting`). Otherwise every call reads the disk and the mount table. So
//! each call may be repeated after a crash at any point, and finishes half-done work.
//!
//! Invariants:
//! - Paths that a container can write are entered only by descriptor, with symbolic links refused or held inside the
//!   volume; a link planted by a container leads nowhere.
//! - Nothing is removed across a mount, and a hostPath is never written below.
//! - A ConfigMap or Secret in a volume changes as a whole: readers that go through `..data` see one version.
//! - Every kind of volume is behind [`kinds::VolumePlugin`].
//!
//! On failure the error names the operation and its path; the caller retries. Nothing that works is taken down.

mod atomic;
#[cfg(test)]
mod attacks;
mod csi;
pub mod env;
mod error;
mod fields;
mod files;
mod fs_group;
mod hostname;
mod hosts;
mod huge_pages;
mod image_volumes;
mod inputs;
mod kinds;
mod layout;
pub mod metrics;
mod mounts;
mod nested_mounts;
mod os;
mod payload;
mod pending;
mod resolv_conf;
mod subpath;
mod teardown;
mod termination;
#[cfg(test)]
mod testing;
mod tmpfs_size;
mod unmounting;
mod volume;
mod volume_root;

pub use csi::{ClaimAnswer, ClaimOfVolume, Claims, ControlPlane, CsiDrivers, FindDriver};
pub use error::Error;
pub use fields::FieldError;
pub use files::host_name;
pub use hostname::PodHostname;
pub use kinds::csi::ephemeral_handle;
pub use mounts::{ContainerDevice, ContainerMount};

use berth_core::{model::NodeInfo, roots::Roots};
use std::{net::IpAddr, sync::Arc};

/// The volumes and files of this node's pods. Holds paths and the way to the CSI drivers, so that it is cheap to clone.
#[derive(Debug, Clone)]
pub struct Volumes {
    roots: Arc<Roots>,
    csi: CsiDrivers,
    pending: pending::PendingMounts,
    unmounting: unmounting::Unmountings,
}

impl Volumes {
    /// The volumes below these roots. Touches no file. Volumes of CSI drivers find no driver.
    pub fn new(roots: &Roots) -> Volumes {
        Volumes {
            roots: Arc::new(roots.clone()),
            csi: CsiDrivers::default(),
            pending: pending::PendingMounts::default(),
            unmounting: unmounting::Unmountings::default(),
        }
    }

    /// The same with the node's CSI drivers.
    #[must_use]
    pub fn with_drivers(self, csi: CsiDrivers) -> Volumes {
        Volumes { csi, ..self }
    }
}

/// Facts about a pod and its node beyond the pod's specification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodFacts {
    /// The pod's addresses, the preferred family first; empty before the pod has a network.
    pub ips: Vec<IpAddr>,
    /// The node.
    pub node: Arc<NodeInfo>,
}
