//! Assembly of a spec's input from what is known of a container: user, namespaces, resources and OOM score
//! follow from the pod, the image and the node.

use super::{
    DeviceSpec, HostFacts, ImageConfig, MountSpec, NamespacePaths, PidNamespace, SpecError, SpecInput,
    UserError, UserFiles, build, resolve_user,
};
use berth_core::{
    ids::ContainerId,
    model::{Container, Pod, PodNamespaces},
    resources::{ContainerResources, oom_score_adj},
};
use berth_sys::ns::NsKind;
use oci_spec::runtime::Spec;
use std::path::Path;

/// What is known of a container before its spec is built.
#[derive(Debug, Clone, Copy)]
pub struct ContainerInput<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// The container of the pod that the spec is for.
    pub container: &'a Container,
    /// The id of this attempt.
    pub id: &'a ContainerId,
    /// The image's configuration.
    pub image: &'a ImageConfig,
    /// The image's user database.
    pub users: UserFiles<'a>,
    /// The pod's environment, resolved and expanded.
    pub env: &'a [(String, String)],
    /// `command`, expanded.
    pub command: &'a [String],
    /// `args`, expanded.
    pub args: &'a [String],
    /// Bind mounts, in the order of [`SpecInput::mounts`].
    pub mounts: &'a [MountSpec],
    /// Block devices of volumes.
    pub devices: &'a [DeviceSpec],
    /// The directory of the sandbox's pinned namespaces.
    pub sandbox_dir: &'a Path,
    /// The container's cgroup, from the root of each hierarchy.
    pub cgroups_path: &'a str,
    /// The host name of the pod, or of the node for host-network pods.
    pub hostname: &'a str,
    /// The process whose PID namespace an ephemeral container joins, if it targets a container.
    pub target: Option<u32>,
    /// The text of the profile that `seccompProfile: Localhost` names.
    pub seccomp_file: Option<&'a str>,
    /// Facts of the node.
    pub host: &'a HostFacts,
}

/// Reason why a container has no spec.
#[derive(Debug, thiserror::Error)]
pub enum ContainerSpecError {
    /// The user of the process cannot be determined, or is not permitted.
    #[error(transparent)]
    User(#[from] UserError),
    /// The spec cannot be built.
    #[error(transparent)]
    Spec(#[from] SpecError),
}

impl NamespacePaths {
    /// The namespaces that a pod's containers join, as the sandbox pins them in this directory.
    pub fn of(namespaces: &PodNamespaces, sandbox_dir: &Path) -> NamespacePaths {
        let pinned = |kind: NsKind| sandbox_dir.join(kind.file_name());
        NamespacePaths {
            net: (!namespaces.host_network).then(|| pinned(NsKind::Net)),
            ipc: (!namespaces.host_ipc).then(|| pinned(NsKind::Ipc)),
            uts: (!namespaces.host_network).then(|| pinned(NsKind::Uts)),
            pid: match (namespaces.host_pid, namespaces.share_pid) {
                (true, _) => PidNamespace::Host,
                (false, true) => PidNamespace::Shared(pinned(NsKind::Pid)),
                (false, false) => PidNamespace::Own,
            },
        }
    }

    /// The same namespaces, with the PID namespace of this process in place of one of the container's own
    /// (`generateLinuxContainerConfig`, `pkg/kubelet/kuberuntime`).
    fn joining(mut self, target: Option<u32>) -> NamespacePaths {
        if let (Some(pid), PidNamespace::Own) = (target, &self.pid) {
            self.pid = PidNamespace::Shared(format!("/proc/{pid}/ns/pid").into());
        }
        self
    }
}

/// Builds the spec of one attempt of a container. All containers of a pod share one shim group, named by the
/// pod's UID.
pub fn build_container(input: &ContainerInput<'_>) -> Result<Spec, ContainerSpecError> {
    let ContainerInput { pod, container, host, .. } = *input;
    let user = resolve_user(pod, container, &input.image.user, input.users)?;
    let spec = build(&SpecInput {
        pod,
        container,
        id: input.id,
        image: input.image,
        user: &user,
        env: input.env,
        command: input.command,
        args: input.args,
        mounts: input.mounts,
        devices: input.devices,
        namespaces: &NamespacePaths::of(&pod.namespaces, input.sandbox_dir).joining(input.target),
        cgroups_path: input.cgroups_path,
        resources: &ContainerResources::of(pod, container, host.cgroup_facts()),
        oom_score_adj: oom_score_adj(pod, container, host.memory_capacity),
        hostname: input.hostname,
        seccomp_file: input.seccomp_file,
        host,
        shim_group: pod.uid.as_str(),
    })?;
    Ok(spec)
}
