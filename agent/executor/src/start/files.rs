//! The parts of a container that come from files of the node: environment, mounts and image volumes.

use super::{config_error, no_such_container};
use crate::{NodeExecutor, pod_locks::Area};
use berth_core::{
    error::Chain,
    event::Event,
    ids::{Attempt, ContainerId, ContainerName},
    model::{MountPropagation, Pod, RecursiveReadOnly},
    plan::Failure,
};
use berth_pods::Context;
use berth_runtime::{
    Image, Runtime,
    spec::{DeviceSpec, MountSpec},
};
use berth_volumes::{ContainerMount, env};
use std::{collections::BTreeSet, sync::Arc};

/// The parts of a container that come from the node's files: environment, mounts, and events about them.
#[derive(Default)]
pub(super) struct PreparedFiles {
    pub(super) env: Vec<(String, String)>,
    pub(super) mounts: Vec<MountSpec>,
    pub(super) devices: Vec<DeviceSpec>,
    pub(super) events: Vec<Event>,
}

/// The OCI mount of a container's mount. `recursive` says whether the node can make mounts read-only together
/// with the mounts below them.
fn mount_spec(m: ContainerMount, recursive: bool) -> Result<MountSpec, Failure> {
    let recursive_read_only = match m.recursive_read_only {
        RecursiveReadOnly::Disabled => false,
        RecursiveReadOnly::IfPossible => recursive && m.read_only && m.propagation == MountPropagation::None,
        RecursiveReadOnly::Enabled if recursive => true,
        RecursiveReadOnly::Enabled => {
            return Err(config_error(format!(
                "mount {}: recursiveReadOnly is Enabled, which the kernel or the OCI runtime of this node cannot do",
                m.destination
            )));
        }
    };
    let sandbox = matches!(m.destination.as_str(), "/etc/resolv.conf" | "/etc/hostname" | "/dev/shm");
    let plain = if sandbox {
        MountSpec::sandbox(m.source, &m.destination)
    } else {
        MountSpec::pod(m.source, &m.destination)
    };
    Ok(MountSpec { read_only: m.read_only, recursive_read_only, propagation: m.propagation, ..plain })
}

impl NodeExecutor {
    /// Prepares everything that touches files: the pod's own files, the mounts and the environment.
    pub(super) async fn prepare_files(
        &self,
        context: Context,
        container: ContainerName,
        attempt: Attempt,
    ) -> Result<PreparedFiles, Failure> {
        let (volumes, facts) = (self.volumes.clone(), self.facts(&context));
        let (uid, recursive) = (context.pod.uid.clone(), facts.node.recursive_read_only);
        // The kubelet's own words (`getServiceEnvVarMap`, `pkg/kubelet/kubelet_pods.go`).
        let services = self.config.services.get().ok_or_else(|| {
            config_error("services have not yet been read at least once, cannot construct envvars".to_owned())
        })?;
        let services = env::service_env(&context.pod, &services);
        self.pod_locks
            .blocking(&uid, Area::Files, move || {
                let pod = &context.pod;
                let spec = pod.container(&container).ok_or_else(no_such_container)?;
                let env = env::resolve(pod, spec, &facts, &context.objects, &services)
                    .map_err(|e| config_error(e.message()))?;
                let events = volumes.prepare_files(pod, &facts).map_err(|e| config_error(e.message()))?;
                let known = (context.objects.as_ref(), facts.node.as_ref());
                let mut mounts = volumes
                    .container_mounts(pod, spec, known, &env)
                    .map_err(|e| config_error(e.message()))?;
                let devices =
                    volumes.container_devices(pod, spec, known).map_err(|e| config_error(e.message()))?;
                let devices = devices.into_iter().map(|d| DeviceSpec {
                    path: d.destination,
                    numbers: d.numbers,
                    read_only: d.read_only,
                });
                mounts.extend(
                    volumes.termination_mount(pod, spec, attempt).map_err(|e| config_error(e.message()))?,
                );
                let mounts =
                    mounts.into_iter().map(|m| mount_spec(m, recursive)).collect::<Result<_, _>>()?;
                Ok(PreparedFiles { env, mounts, devices: devices.collect(), events })
            })
            .await?
    }

    /// The mounts for the image's `VOLUME`s, whose directories are created and filled.
    pub(super) async fn image_volumes(
        &self,
        runtime: &Runtime,
        pod: &Pod,
        id: &ContainerId,
        image: &Image,
        wanted: BTreeSet<String>,
    ) -> Result<Vec<MountSpec>, Failure> {
        let failed = |e: berth_runtime::Error| Failure::new("CreateContainerError", Chain(&e));
        let view = Arc::new(runtime.view_image(image).await.map_err(failed)?);
        let (volumes, uid, id) = (self.volumes.clone(), pod.uid.clone(), id.clone());
        let wanted: Vec<String> = wanted.into_iter().collect();
        let (root, destinations) = (Arc::clone(&view), wanted.clone());
        let filled = self.pod_locks.blocking(&pod.uid, Area::Files, move || {
            volumes.image_volumes(&uid, &id, &destinations, || root.root().map_err(std::io::Error::other))
        });
        let filled = filled.await;
        runtime.release_view(&view).await.map_err(failed)?;
        let sources = filled?.map_err(|e| Failure::new("CreateContainerError", e.message()))?;
        Ok(sources.into_iter().zip(wanted).map(|(source, at)| MountSpec::image_volume(source, &at)).collect())
    }
}
