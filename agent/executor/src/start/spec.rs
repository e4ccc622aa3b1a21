//! The OCI spec of a container: its inputs from the pod, the image, the prepared files and the node.

use super::{PreparedFiles, config_error};
use crate::NodeExecutor;
use berth_core::{
    error::Chain,
    ids::ContainerId,
    model::{Container, Pod, Seccomp},
    plan::Failure,
};
use berth_runtime::{
    Image,
    spec::{ContainerInput, ContainerSpecError, HostFacts, UserError, UserFiles, build_container},
};
use berth_volumes::{PodHostname, env};
use std::borrow::Cow;

/// The text of a user error. A violation of `runAsNonRoot` names the pod and the container in the kubelet's
/// words.
fn user_error(pod: &Pod, container: &Container, error: &UserError) -> String {
    let text = Chain(error).to_string();
    match error {
        UserError::RunAsUserIsRoot | UserError::ImageIsRoot | UserError::NonNumericUser(_) => format!(
            "{text} (pod: \"{}_{}({})\", container: {})",
            pod.key.name, pod.key.namespace, pod.uid, container.name
        ),
        _ => text,
    }
}

impl NodeExecutor {
    #[expect(clippy::too_many_arguments, reason = "each is one of the spec's inputs")]
    pub(super) fn spec(
        &self,
        pod: &Pod,
        container: &Container,
        id: &ContainerId,
        image: &Image,
        prepared: &PreparedFiles,
        files: UserFiles<'_>,
        target: Option<u32>,
    ) -> Result<oci_spec::runtime::Spec, Failure> {
        let hostname = if pod.namespaces.host_network {
            // The host's own name, which may differ from the node's name.
            berth_volumes::host_name()
        } else {
            PodHostname::of(pod, self.node().cluster_domain.as_deref())
                .map_err(|e| config_error(e.message()))?
                .kernel
        };
        let expand =
            |words: &[String]| words.iter().map(|w| env::expand(w, &prepared.env)).collect::<Vec<_>>();
        let host = self.host_facts(container)?;
        let host = host.as_ref();
        let seccomp_file = self.seccomp_file(pod, container)?;
        let input = ContainerInput {
            pod,
            container,
            id,
            image: &image.config,
            users: files,
            env: &prepared.env,
            command: &expand(&container.command),
            args: &expand(&container.args),
            mounts: &prepared.mounts,
            devices: &prepared.devices,
            sandbox_dir: &self.config.roots.sandbox_dir(&pod.uid),
            cgroups_path: &self.cgroups.container_cgroup(pod, id),
            hostname: &hostname,
            target,
            seccomp_file: seccomp_file.as_deref(),
            host,
        };
        build_container(&input).map_err(|error| match error {
            ContainerSpecError::User(error) => config_error(user_error(pod, container, &error)),
            ContainerSpecError::Spec(error) => Failure::new("CreateContainerError", Chain(&error)),
        })
    }

    /// The host's facts. For a privileged container they hold the devices as they are now.
    fn host_facts(&self, container: &Container) -> Result<Cow<'_, HostFacts>, Failure> {
        let host = &self.config.host;
        if !container.security.privileged {
            return Ok(Cow::Borrowed(host));
        }
        let devices = HostFacts::devices("/dev".as_ref())
            .map_err(|e| Failure::new("CreateContainerError", Chain(&e)))?;
        Ok(Cow::Owned(HostFacts { devices, ..host.clone() }))
    }

    /// The text of the profile that `seccompProfile: Localhost` names. A missing profile fails the container.
    fn seccomp_file(&self, pod: &Pod, container: &Container) -> Result<Option<String>, Failure> {
        let wanted = container.security.seccomp.as_ref().or(pod.security.seccomp.as_ref());
        let Some(Seccomp::Localhost(name)) = wanted else { return Ok(None) };
        let path = self.config.roots.seccomp.join(name);
        berth_sys::fs::read_to_string_limited(&path, 4 << 20).map(Some).map_err(|e| {
            Failure::new("CreateContainerError", format!("seccomp profile {name:?}: {}", Chain(&e)))
        })
    }
}
