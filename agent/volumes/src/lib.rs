//! What containers find on their file systems and in their environment, apart from the image: volumes, the hosts,
//! resolver and hostname files, /dev/shm, the termination message, environment variables.
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
//! Blocking code without tasks or channels: callers use a thread for blocking work, one at a time for one pod (pods
//! do not share anything here). No state is kept in memory: every call looks at the disk and the mount table, so each
//! may be repeated after a crash at any point, and finishes what was half done.
//!
//! Invariants:
//! - Paths that a container can write to are only entered by descriptor, with symbolic links refused or held inside
//!   the volume; a link that a container plants leads nowhere.
//! - Nothing is removed across a mount, and a hostPath is never written below.
//! - A ConfigMap or Secret in a volume changes as a whole: readers that go through `..data` see one version.
//!
//! On failure the error says what could not be done; the caller retries. Nothing that works is taken down.

mod atomic;
mod dns;
pub mod env;
mod error;
mod fields;
mod files;
mod hostname;
mod hosts;
mod image_volumes;
mod layout;
mod mounts;
mod os;
mod payload;
mod subpath;
mod teardown;
mod termination;
#[cfg(test)]
mod testing;
mod tmpfs_size;
mod volume;

pub use error::{Error, ObjectKind};
pub use fields::FieldError;
pub use files::host_name;
pub use hostname::PodHostname;
pub use mounts::ContainerMount;
pub use payload::volume_objects;

use berth_core::{ids::NodeName, model::ResourceList, roots::Roots};
use std::{net::IpAddr, sync::Arc};

/// The volumes and files of this node's pods. Cheap to clone; holds nothing but where things lie.
#[derive(Debug, Clone)]
pub struct Volumes {
    roots: Arc<Roots>,
}

impl Volumes {
    /// For the node of these roots. Touches nothing yet.
    pub fn new(roots: &Roots) -> Volumes {
        Volumes { roots: Arc::new(roots.clone()) }
    }
}

/// What is known about a pod and its node beyond the pod's specification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodFacts {
    /// The pod's addresses, the preferred family first; empty before the network is there.
    pub ips: Vec<IpAddr>,
    /// The node's addresses, likewise.
    pub host_ips: Vec<IpAddr>,
    /// The node's name.
    pub node: NodeName,
    /// `clusterDNS`; empty where the node has none.
    pub cluster_dns: Vec<IpAddr>,
    /// `clusterDomain`, for example `cluster.local`.
    pub cluster_domain: Option<String>,
    /// What pods may use of the node: the limit that a container without one is told, and the upper bound of memory
    /// volumes.
    pub allocatable: ResourceList,
}
