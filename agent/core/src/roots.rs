//! Roots of a node: the one value from which every path, name and port of the node derives.
//!
//! The defaults are the de-facto contract of a Kubernetes node. Tests and the demo pass other roots, and two
//! nodes with different roots can share one machine.

use crate::ids::NodeName;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The directories, sockets and names of one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Roots {
    /// The node's name.
    pub node_name: NodeName,
    /// Pod state: `pods/<uid>/{volumes,containers,etc-hosts}`. Survives reboots. Default `/var/lib/kubelet`.
    pub pod_state: PathBuf,
    /// Container output: `<ns>_<pod>_<uid>/<container>/<n>.log`. Default `/var/log/pods`.
    pub pod_logs: PathBuf,
    /// Links to the output files by container. Default `/var/log/containers`.
    pub container_log_links: PathBuf,
    /// State of the current boot: memory of pods, sockets, pinned namespaces. A tmpfs. Default `/run/berth`.
    pub runtime_state: PathBuf,
    /// State that survives reboots: the address journal. Default `/var/lib/berth`.
    pub lasting_state: PathBuf,
    /// containerd's gRPC socket. Default `/run/containerd/containerd.sock`.
    pub containerd_socket: PathBuf,
    /// The containerd namespace that holds the pods. Default `k8s.io`.
    pub containerd_namespace: String,
    /// containerd's runtime for containers. Default `io.containerd.runc.v2`.
    pub containerd_runtime: String,
    /// containerd's snapshotter. Default `overlayfs`.
    pub snapshotter: String,
    /// Directory of the registries' `hosts.toml`: mirrors, certificates, plain HTTP. Default `/etc/containerd/certs.d`.
    #[serde(default = "registry_hosts")]
    pub registry_hosts: PathBuf,
    /// The directory where cgroup hierarchies are mounted. Default `/sys/fs/cgroup`.
    pub cgroup_mount: PathBuf,
    /// The parent cgroup of all pods, relative to each hierarchy's root. Default `kubepods`; tests use
    /// `berth-<x>/kubepods`.
    pub cgroup_root: PathBuf,
    /// The cgroup of the agent's own helpers, relative to each hierarchy's root. Default `berth`.
    pub cgroup_helpers: PathBuf,
    /// The cgroup whose sockets reach Services, relative to the cgroup2 hierarchy's root. Default empty,
    /// which means the whole machine. Tests use a subtree of their own and move their host-side clients into
    /// it.
    pub cgroup_hooks: PathBuf,
    /// The directory of pinned programs, links and maps, on a BPF file system. Default `/sys/fs/bpf/berth`.
    pub bpf_pins: PathBuf,
    /// Directory of CNI configuration lists. Default `/etc/cni/net.d`.
    pub cni_conf: PathBuf,
    /// Directory of CNI plugin binaries. Default `/opt/cni/bin`.
    pub cni_bin: PathBuf,
    /// File with the boot id. Default `/proc/sys/kernel/random/boot_id`.
    pub boot_id: PathBuf,
    /// The node's resolver configuration, on which that of every pod is based. Default `/etc/resolv.conf`.
    pub resolv_conf: PathBuf,
    /// The node's hosts file, on which that of host-network pods is based. Default `/etc/hosts`.
    pub hosts_file: PathBuf,
    /// Directory of Localhost seccomp profiles. Default `/var/lib/kubelet/seccomp`.
    pub seccomp: PathBuf,
}

/// The default, also of roots that an older agent stored.
fn registry_hosts() -> PathBuf {
    "/etc/containerd/certs.d".into()
}

impl Roots {
    /// The roots of a normal Kubernetes node.
    pub fn defaults(node_name: NodeName) -> Roots {
        Roots {
            node_name,
            pod_state: "/var/lib/kubelet".into(),
            pod_logs: "/var/log/pods".into(),
            container_log_links: "/var/log/containers".into(),
            runtime_state: "/run/berth".into(),
            lasting_state: "/var/lib/berth".into(),
            containerd_socket: "/run/containerd/containerd.sock".into(),
            containerd_namespace: "k8s.io".into(),
            containerd_runtime: "io.containerd.runc.v2".into(),
            snapshotter: "overlayfs".into(),
            registry_hosts: registry_hosts(),
            cgroup_mount: "/sys/fs/cgroup".into(),
            cgroup_root: "kubepods".into(),
            cgroup_helpers: "berth".into(),
            cgroup_hooks: PathBuf::new(),
            bpf_pins: "/sys/fs/bpf/berth".into(),
            cni_conf: "/etc/cni/net.d".into(),
            cni_bin: "/opt/cni/bin".into(),
            boot_id: "/proc/sys/kernel/random/boot_id".into(),
            resolv_conf: "/etc/resolv.conf".into(),
            hosts_file: "/etc/hosts".into(),
            seccomp: "/var/lib/kubelet/seccomp".into(),
        }
    }

    /// Roots below one directory, for tests and the demo, apart from the node's own paths. containerd is
    /// expected at `<dir>/containerd/containerd.sock`.
    pub fn below(dir: &Path, node_name: NodeName, cgroup: &str) -> Roots {
        Roots {
            pod_state: dir.join("kubelet"),
            pod_logs: dir.join("log/pods"),
            container_log_links: dir.join("log/containers"),
            runtime_state: dir.join("run"),
            lasting_state: dir.join("lib"),
            containerd_socket: dir.join("containerd/containerd.sock"),
            containerd_namespace: "berth".into(),
            registry_hosts: dir.join("containerd/certs.d"),
            cgroup_root: PathBuf::from(cgroup).join("kubepods"),
            cgroup_helpers: PathBuf::from(cgroup).join("helpers"),
            cgroup_hooks: cgroup.into(),
            // One directory directly below the file system's root; `berth-x/y` would need two.
            bpf_pins: Path::new("/sys/fs/bpf").join(cgroup.replace('/', "-")),
            cni_conf: dir.join("cni/net.d"),
            cni_bin: dir.join("cni/bin"),
            seccomp: dir.join("kubelet/seccomp"),
            ..Roots::defaults(node_name)
        }
    }

    /// Directory of a pod's state, `pods/<uid>` below the pod state.
    pub fn pod_dir(&self, uid: &crate::ids::PodUid) -> PathBuf {
        self.pod_state.join("pods").join(uid.as_str())
    }

    /// Directory in which drivers have their own sockets and state, `plugins` below the pod state.
    pub fn plugins_dir(&self) -> PathBuf {
        self.pod_state.join("plugins")
    }

    /// Directory of the sockets by which plugins introduce themselves, `plugins_registry` below the pod state.
    pub fn plugins_registry_dir(&self) -> PathBuf {
        self.pod_state.join("plugins_registry")
    }

    /// Name of a pod's log directory, `<namespace>_<pod>_<uid>`.
    pub fn pod_log_dir_name(key: &crate::ids::PodKey, uid: &crate::ids::PodUid) -> String {
        format!("{}_{}_{}", key.namespace, key.name, uid)
    }

    /// The directory of a pod's log files.
    pub fn pod_log_dir(&self, key: &crate::ids::PodKey, uid: &crate::ids::PodUid) -> PathBuf {
        self.pod_logs.join(Self::pod_log_dir_name(key, uid))
    }

    /// The directory of all sandboxes' pinned namespaces.
    pub fn sandboxes_dir(&self) -> PathBuf {
        self.runtime_state.join("sandboxes")
    }

    /// Directory of a pod's pinned namespaces: files `net`, `ipc`, `uts`, and `pid` where shared.
    pub fn sandbox_dir(&self, uid: &crate::ids::PodUid) -> PathBuf {
        self.sandboxes_dir().join(uid.as_str())
    }

    /// The agent's local socket.
    pub fn agent_socket(&self) -> PathBuf {
        self.runtime_state.join("agent.sock")
    }

    /// Lock file that ensures one agent per node.
    pub fn agent_lock(&self) -> PathBuf {
        self.runtime_state.join("agent.lock")
    }

    /// These roots as a JSON file, for the helpers that the agent starts.
    pub fn roots_file(&self) -> PathBuf {
        self.runtime_state.join("roots.json")
    }

    /// Directory of the status files, for commands while no agent runs.
    pub fn status_dir(&self) -> PathBuf {
        self.runtime_state.join("status")
    }

    /// File with the names of the Service ports in the kernel's tables.
    pub fn services_file(&self) -> PathBuf {
        self.runtime_state.join("services.json")
    }

    /// Directory of the FIFOs of commands that clients of the local socket run.
    pub fn exec_sessions_dir(&self) -> PathBuf {
        self.runtime_state.join("exec-local")
    }

    /// State directory of the OCI runtime (`runc --root`).
    pub fn runc_root(&self) -> PathBuf {
        self.runtime_state.join("runc")
    }

    /// Standard output and error of `berth dns`.
    pub fn dns_output(&self) -> PathBuf {
        self.runtime_state.join("dns.out")
    }

    /// logd's local socket.
    pub fn logd_socket(&self) -> PathBuf {
        self.runtime_state.join("logd.sock")
    }

    /// The directory of logd's state: its lock, its table of streams, and unfinished lines.
    pub fn logd_state_dir(&self) -> PathBuf {
        self.runtime_state.join("logd")
    }

    /// File for logd's own messages, if no service manager takes them.
    pub fn logd_output(&self) -> PathBuf {
        self.runtime_state.join("logd.out")
    }

    /// The directory of a container's FIFOs.
    pub fn fifo_dir(&self, id: &crate::ids::ContainerId) -> PathBuf {
        self.runtime_state.join("fifo").join(id.as_str())
    }

    /// The lock of the active `berth dns`.
    pub fn dns_lock(&self) -> PathBuf {
        self.runtime_state.join("dns/lock")
    }

    /// List of the addresses that `berth dns` has added to `lo`.
    pub fn dns_addresses_file(&self) -> PathBuf {
        self.runtime_state.join("dns/addresses.json")
    }

    /// The directory of network attachments, one file per sandbox.
    pub fn attachments_dir(&self) -> PathBuf {
        self.lasting_state.join("attachments")
    }

    /// File with the host's sysctls from before this node changed them.
    pub fn sysctls_file(&self) -> PathBuf {
        self.runtime_state.join("network/sysctls.json")
    }

    /// File with the names that `berth dns` answers, replaced as a whole by one rename.
    pub fn zone_file(&self) -> PathBuf {
        self.runtime_state.join("dns/zone.json")
    }

    /// Local socket of `berth dns`, which reports that it is alive, and its addresses.
    pub fn dns_socket(&self) -> PathBuf {
        self.runtime_state.join("dns.sock")
    }

    /// The directory of the node's certificates and keys (the kubelet's `--cert-dir`).
    pub fn pki_dir(&self) -> PathBuf {
        self.pod_state.join("pki")
    }

    /// Directory of a source's own state, such as the last good versions of its manifests.
    pub fn source_state(&self, source: &str) -> PathBuf {
        self.lasting_state.join(source)
    }

    /// The directory of what the containers of a control plane's pods are started from, one file per pod.
    pub fn cluster_inputs_dir(&self) -> PathBuf {
        self.runtime_state.join("cluster")
    }

    /// The directory of sandbox records, one file per pod.
    pub fn sandbox_records_dir(&self) -> PathBuf {
        self.runtime_state.join("sandbox-records")
    }

    /// The record of a pod's sandbox.
    pub fn sandbox_record(&self, uid: &crate::ids::PodUid) -> PathBuf {
        self.sandbox_records_dir().join(format!("{uid}.json"))
    }

    /// Parent of the directories of runc shims.
    pub fn shims_dir(&self) -> PathBuf {
        self.runtime_state.join("shims")
    }

    /// Parent of the FIFO directories of processes that the agent runs in containers (hooks and sessions).
    pub fn exec_fifos_dir(&self) -> PathBuf {
        self.runtime_state.join("exec")
    }

    /// File with the stale backends whose sockets the agent has begun to end.
    pub fn stale_backends_file(&self) -> PathBuf {
        self.runtime_state.join("dead-backends")
    }

    /// The root file system of pause processes.
    pub fn pause_rootfs(&self) -> PathBuf {
        self.runtime_state.join("pause")
    }

    /// The directory of the pods' memory.
    pub fn memory_dir(&self) -> PathBuf {
        self.runtime_state.join("memory")
    }

    /// The file of a pod's memory, one per pod.
    pub fn memory_file(&self, uid: &crate::ids::PodUid) -> PathBuf {
        self.memory_dir().join(format!("{uid}.json"))
    }
}
