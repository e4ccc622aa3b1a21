//! Where the network namespaces of pods are found: pinned by this agent, or those of another node agent's processes.

use berth_core::{ids::PodUid, roots::Roots, sync::lock};
use std::{
    collections::HashMap,
    fmt, fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

/// Least time between two readings of all processes.
const AGAIN: Duration = Duration::from_millis(100);

type Find = dyn Fn(&PodUid) -> Option<PathBuf> + Send + Sync;

/// Function from a pod to the file of its network namespace; `None` where the pod has none that is known.
#[derive(Clone)]
pub struct PodNetworks(Arc<Find>);

impl PodNetworks {
    /// The namespaces that this agent pins.
    pub fn pinned(roots: &Roots) -> PodNetworks {
        let roots = roots.clone();
        PodNetworks(Arc::new(move |pod| Some(roots.sandbox_dir(pod).join("net"))))
    }

    /// The namespaces of the pods of another node agent, found by their processes.
    pub fn of_processes(pods: KubeletPods) -> PodNetworks {
        PodNetworks(Arc::new(move |pod| pods.network(pod)))
    }

    pub(super) fn of(&self, pod: &PodUid) -> Option<PathBuf> {
        (self.0)(pod)
    }
}

impl fmt::Debug for PodNetworks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PodNetworks")
    }
}

/// The pods of a kubelet, found by the cgroups of their processes: every cgroup driver and version, and every container
/// runtime, has the pod's UID in their path. The container runtime and the CNI plugins are not asked.
///
/// All processes are read at most ten times a second. A pod that was found keeps its process until that has ended.
#[derive(Debug)]
pub struct KubeletPods {
    proc: PathBuf,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// A process of each pod.
    processes: HashMap<String, u32>,
    read: Option<Instant>,
}

impl KubeletPods {
    /// The pods below this directory, `/proc` of the host.
    pub fn below(proc: impl Into<PathBuf>) -> KubeletPods {
        KubeletPods { proc: proc.into(), known: Mutex::default() }
    }

    fn network(&self, pod: &PodUid) -> Option<PathBuf> {
        let mut known = lock(&self.known);
        if let Some(pid) = known.processes.remove(pod.as_str())
            && pod_of_process(&self.proc, pid).as_deref() == Some(pod.as_str())
        {
            known.processes.insert(pod.to_string(), pid);
            return Some(self.file(pid));
        }
        if known.read.is_none_or(|at| at.elapsed() >= AGAIN) {
            known.processes = processes(&self.proc);
            known.read = Some(Instant::now());
        }
        known.processes.get(pod.as_str()).map(|pid| self.file(*pid))
    }

    fn file(&self, pid: u32) -> PathBuf {
        self.proc.join(pid.to_string()).join("ns/net")
    }
}

/// A process of each pod: the one with the lowest id, which is the sandbox's as a rule.
fn processes(proc: &Path) -> HashMap<String, u32> {
    let mut found: HashMap<String, u32> = HashMap::new();
    let entries = fs::read_dir(proc).into_iter().flatten().flatten();
    for pid in entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()) {
        if let Some(pod) = pod_of_process(proc, pid) {
            found.entry(pod).and_modify(|first| *first = pid.min(*first)).or_insert(pid);
        }
    }
    found
}

/// The UID of the pod in whose cgroup a process is; `None` for a process that has ended.
fn pod_of_process(proc: &Path, pid: u32) -> Option<String> {
    let text = fs::read_to_string(proc.join(pid.to_string()).join("cgroup")).ok()?;
    text.lines().find_map(pod_of_cgroup)
}

/// The UID of the pod to which a cgroup belongs, by a line of `/proc/PID/cgroup`. The kubelet's driver `cgroupfs` names a
/// pod's group `podUID`, below a group `kubepods`; its driver `systemd` `kubepods-CLASS-podUID.slice` with underscores in
/// the UID (`pkg/kubelet/cm/pod_container_manager_linux.go`, `cgroup_manager_linux.go`).
fn pod_of_cgroup(line: &str) -> Option<String> {
    let path = line.splitn(3, ':').nth(2)?;
    let mut below_pods = false;
    for name in path.split('/') {
        if let Some(slice) = name.strip_suffix(".slice") {
            let pod = slice.strip_prefix("kubepods").and_then(|rest| rest.rsplit_once("-pod"));
            if let Some((_, uid)) = pod.filter(|(_, uid)| is_uid(uid)) {
                return Some(uid.replace('_', "-"));
            }
        }
        let pod = name.strip_prefix("pod").filter(|uid| below_pods && is_uid(uid));
        if let Some(uid) = pod {
            return Some(uid.to_owned());
        }
        below_pods |= name == "kubepods";
    }
    None
}

/// Whether a text may be a UID: of an object, or the hash by which the kubelet knows a static pod.
fn is_uid(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "2f0c2a3e-8c1f-4c5e-9a6b-0d8f1c2b3a4d";

    #[test]
    fn a_pod_is_found_by_every_driver_version_and_runtime() {
        let underscores = UID.replace('-', "_");
        for path in [
            format!("4:memory:/kubepods/burstable/pod{UID}/4c8a"),
            format!("0::/kubepods/besteffort/pod{UID}/4c8a"),
            format!("0::/kubepods/pod{UID}/4c8a"),
            format!("0::/test/cluster/kubepods/pod{UID}"),
            format!(
                "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{underscores}.slice/cri-containerd-4c8a.scope"
            ),
            format!("0::/kubepods.slice/kubepods-pod{underscores}.slice/crio-4c8a.scope/container"),
            format!("1:name=systemd:/kubelet.slice/kubelet-kubepods.slice/kubepods-pod{underscores}.slice/x"),
        ] {
            assert_eq!(pod_of_cgroup(&path).as_deref(), Some(UID), "{path}");
        }
        let hash = "9f2b1c8d7e6f5a4b3c2d1e0f9a8b7c6d";
        assert_eq!(pod_of_cgroup(&format!("0::/kubepods/burstable/pod{hash}/c")).as_deref(), Some(hash));
        for path in [
            "0::/system.slice/containerd.service",
            "0::/kubepods/burstable",
            "0::/kubepods.slice/kubepods-burstable.slice",
            "0::/user/podman-1234",
            &format!("0::/pod{UID}/c"),
            "0::/kubepods/pod/../x",
            "0::/",
            "",
            "0:",
        ] {
            assert_eq!(pod_of_cgroup(path), None, "{path}");
        }
    }

    fn process(proc: &Path, pid: u32, cgroup: &str) {
        let dir = proc.join(pid.to_string());
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("cgroup"), cgroup).unwrap();
    }

    #[test]
    fn the_first_process_of_a_pod_is_taken_and_the_next_once_it_has_ended() {
        let proc = tempfile::tempdir().unwrap();
        let of_pod = format!("3:cpu:/\n0::/kubepods/pod{UID}/c\n");
        process(proc.path(), 90, &of_pod);
        process(proc.path(), 41, &of_pod);
        process(proc.path(), 7, "0::/init.scope\n");
        fs::create_dir(proc.path().join("self")).unwrap();
        let pods = KubeletPods::below(proc.path());
        let uid: PodUid = UID.parse().unwrap();
        assert_eq!(pods.network(&uid), Some(proc.path().join("41/ns/net")));
        assert_eq!(pods.network(&"other".parse().unwrap()), None);
        // Process 41 is another one by now.
        process(proc.path(), 41, "0::/init.scope\n");
        lock(&pods.known).read = None;
        assert_eq!(pods.network(&uid), Some(proc.path().join("90/ns/net")));
        process(proc.path(), 90, "0::/init.scope\n");
        assert_eq!(pods.network(&uid), None, "the processes were read a moment ago");
    }
}
