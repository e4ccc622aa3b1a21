//! Builders of pods and node directories for this crate's tests.

use crate::{PodFacts, Volumes};
use berth_core::{
    ids::{Namespace, NodeName, PodKey, PodName, PodUid, VolumeName},
    model::*,
    roots::Roots,
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

pub(crate) fn pod(name: &str) -> Pod {
    let key = PodKey { namespace: Namespace::new("default").unwrap(), name: PodName::new(name).unwrap() };
    Pod {
        containers: vec![container("main")],
        service_account: "robot".into(),
        ..Pod::new(PodUid::new("uid-1").unwrap(), key, NodeName::new("node-1").unwrap())
    }
}

pub(crate) fn container(name: &str) -> Container {
    Container::new(name.parse().unwrap(), "image")
}

pub(crate) fn facts() -> PodFacts {
    PodFacts {
        ips: vec!["10.1.2.3".parse().unwrap(), "fd00::3".parse().unwrap()],
        node: Arc::new(NodeInfo {
            ips: vec!["192.168.0.7".parse().unwrap()],
            cluster_dns: vec!["10.96.0.10".parse().unwrap()],
            cluster_domain: Some("cluster.local".into()),
            allocatable: [("cpu", "4"), ("memory", "8Gi"), ("ephemeral-storage", "100Gi")]
                .map(|(k, v)| (k.to_owned(), v.parse().unwrap()))
                .into(),
            ..NodeInfo::new(NodeName::new("node-1").unwrap())
        }),
    }
}

pub(crate) fn volume(name: &str, source: VolumeSource) -> Volume {
    Volume { name: VolumeName::new(name).unwrap(), source }
}

pub(crate) fn mount(volume: &str, path: &str) -> VolumeMount {
    VolumeMount {
        volume: VolumeName::new(volume).unwrap(),
        mount_path: path.into(),
        read_only: false,
        recursive_read_only: RecursiveReadOnly::Disabled,
        sub_path: None,
        propagation: MountPropagation::None,
    }
}

/// The pod with all its volumes mounted by its first container, which is added if the pod has none.
pub(crate) fn mounting_all(mut pod: Pod) -> Pod {
    let all =
        pod.volumes.iter().map(|v| mount(v.name.as_str(), &format!("/all/{}", v.name))).collect::<Vec<_>>();
    if pod.containers.is_empty() {
        pod.containers.push(container("all"));
    }
    pod.containers[0].mounts.extend(all);
    pod
}

pub(crate) fn keys(name: &str) -> KeysVolume {
    KeysVolume { name: name.into(), items: Vec::new(), default_mode: 0o644, optional: false }
}

pub(crate) fn keyed(name: &str, data: &[(&str, &[u8])]) -> KeyedData {
    KeyedData {
        kind: None,
        uid: String::new(),
        binary_data: Default::default(),
        namespace: Namespace::new("default").unwrap(),
        name: name.into(),
        data: data.iter().map(|(k, v)| ((*k).to_owned(), v.to_vec())).collect(),
    }
}

pub(crate) fn config_map(name: &str, data: &[(&str, &[u8])]) -> Objects {
    let mut objects = Objects::listed();
    objects.put_config_map(keyed(name, data));
    objects
}

pub(crate) fn empty_dir(medium: Medium) -> VolumeSource {
    VolumeSource::EmptyDir { medium, size_limit: None }
}

/// The plugin of a volume on a node with that name alone.
pub(crate) fn plugin_of<'a>(
    volumes: &'a Volumes,
    pod: &Pod,
    volume: &'a Volume,
    objects: &Objects,
) -> Result<Box<dyn crate::kinds::VolumePlugin + 'a>, crate::Error> {
    crate::kinds::plugin_of(volumes, pod, volume, objects, &facts().node)
}

/// The mounts of a container of a pod without persistent volumes.
pub(crate) fn container_mounts(
    node: &Node,
    pod: &Pod,
    container: &Container,
    env: &[(String, String)],
) -> Result<Vec<crate::ContainerMount>, crate::Error> {
    node.volumes.container_mounts(pod, container, (&Objects::listed(), &facts().node), env)
}

/// A node's directories in a temporary directory. The drop unmounts everything below.
pub(crate) struct Node {
    pub volumes: Volumes,
    pub roots: Roots,
    dir: tempfile::TempDir,
}

impl Node {
    pub(crate) fn new() -> Node {
        let dir = tempfile::Builder::new().prefix("berth-volumes-").tempdir().unwrap();
        Node::at(dir)
    }

    /// The same on a tmpfs.
    pub(crate) fn on_tmpfs() -> Node {
        let dir = tempfile::Builder::new().prefix("berth-volumes-").tempdir().unwrap();
        crate::os::mount_tmpfs("tmpfs", dir.path(), rustix::mount::MountFlags::empty(), "mode=755").unwrap();
        Node::at(dir)
    }

    fn at(dir: tempfile::TempDir) -> Node {
        let mut roots = Roots::below(dir.path(), NodeName::new("node-1").unwrap(), "berth-volumes");
        roots.hosts_file = dir.path().join("hosts");
        roots.resolv_conf = dir.path().join("resolv.conf");
        std::fs::write(&roots.hosts_file, "127.0.0.1 the-node\n").unwrap();
        std::fs::write(&roots.resolv_conf, "nameserver 192.0.2.1\nsearch example.org\n").unwrap();
        Node { volumes: Volumes::new(&roots), roots, dir }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn pod_dir(&self, pod: &Pod) -> PathBuf {
        self.roots.pod_dir(&pod.uid)
    }

    pub(crate) fn volume_dir(&self, pod: &Pod, name: &str) -> PathBuf {
        let volume = pod.volumes.iter().find(|v| v.name.as_str() == name).unwrap();
        let plugin = plugin_of(&self.volumes, pod, volume, &Objects::listed()).unwrap();
        plugin.root(&self.pod_dir(pod), &volume.name)
    }

    pub(crate) fn mounts(&self) -> Vec<PathBuf> {
        let mounts = berth_sys::mount::mounts_below(self.path()).unwrap();
        mounts.into_iter().map(|m| m.mount_point).collect()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for _ in 0..64 {
            let mut mounts = self.mounts();
            let Some(last) = mounts.pop() else { return };
            if berth_sys::mount::unmount(&last).is_err() {
                return;
            }
        }
    }
}

/// Unmounts a path at the end of a test, also when it fails.
pub(crate) struct Unmounting(pub(crate) PathBuf);

impl Drop for Unmounting {
    fn drop(&mut self) {
        berth_sys::mount::unmount(&self.0).ok();
    }
}
