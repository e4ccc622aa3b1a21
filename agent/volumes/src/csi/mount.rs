//! Staging and publishing a volume.

use super::{
    CallableDriver, CsiPaths, Growth,
    marks::Mark,
    record::{self, Record},
};
use crate::{
    Error, Volumes,
    error::{PUBLISH, STAGE},
    fs_group,
    layout::NODE_DIR,
    os,
};
use berth_core::{
    error::Chain,
    ids::PodUid,
    model::{AccessMode, Pod, VolumeMode},
    volume::steps::{Progress, StepResult, VolumeState, VolumeStep, VolumeWanted, next_step},
};
use berth_csi_client::{
    AccessMode as CsiAccessMode, AccessType, MountVolume, Publish, Secrets, Stage, VolumeCapability, VolumeId,
};
use berth_sys::failpoint::step;
use std::{collections::BTreeMap, path::Path};

/// All that a driver is told of a volume.
#[derive(Debug, Clone)]
pub(crate) struct CsiVolumeSpec {
    /// The persistent volume's name, or the pod's.
    pub(crate) name: String,
    pub(crate) driver: String,
    pub(crate) handle: String,
    pub(crate) mode: VolumeMode,
    pub(crate) access: AccessMode,
    pub(crate) fs_type: Option<String>,
    pub(crate) mount_options: Vec<String>,
    pub(crate) read_only: bool,
    pub(crate) ephemeral: bool,
    /// What the controller's publication returned.
    pub(crate) publish_context: BTreeMap<String, String>,
    /// The VolumeAttachment's name, empty without one.
    pub(crate) attachment: String,
    /// The attributes for staging.
    pub(crate) attributes: BTreeMap<String, String>,
    /// The attributes for publishing: also the pod's, where the driver asks for them.
    pub(crate) publish_attributes: BTreeMap<String, String>,
    pub(crate) stage_secrets: Secrets,
    pub(crate) publish_secrets: Secrets,
    /// The pod's group, for a driver that sets it itself.
    pub(crate) pod_group: Option<u32>,
    /// The group for the volume's files, if the node is to set it.
    pub(crate) fs_group: Option<u32>,
    /// Whether one pod alone may have the volume (`ReadWriteOncePod`).
    pub(crate) one_pod: bool,
    /// Of a persistent volume: what its expansion needs.
    pub(crate) growth: Option<Growth>,
}

impl CsiVolumeSpec {
    fn record(&self, pod: &Pod) -> Record {
        Record {
            driver_name: self.driver.clone(),
            volume_handle: self.handle.clone(),
            spec_vol_id: self.name.clone(),
            node_name: pod.node.to_string(),
            attachment_id: Some(self.attachment.clone()),
            volume_lifecycle_mode: if self.ephemeral { "Ephemeral" } else { "Persistent" }.to_owned(),
        }
    }

    /// The group goes to the driver where it sets the group itself.
    pub(super) fn capability(&self, driver: &CallableDriver) -> VolumeCapability {
        let capabilities = &driver.capabilities;
        let modes = capabilities.single_node_multi_writer;
        let access_mode = match self.access {
            AccessMode::ReadWriteOnce if modes => CsiAccessMode::SingleNodeMultiWriter,
            AccessMode::ReadWriteOncePod if modes => CsiAccessMode::SingleNodeSingleWriter,
            AccessMode::ReadWriteOnce | AccessMode::ReadWriteOncePod => CsiAccessMode::SingleNodeWriter,
            AccessMode::ReadOnlyMany => CsiAccessMode::MultiNodeReaderOnly,
            AccessMode::ReadWriteMany => CsiAccessMode::MultiNodeMultiWriter,
        };
        let access_type = match self.mode {
            VolumeMode::Block => AccessType::Block,
            VolumeMode::Filesystem => AccessType::Mount(MountVolume {
                fs_type: self.fs_type.clone().unwrap_or_default(),
                mount_flags: self.mount_options.clone(),
                volume_mount_group: self.pod_group.filter(|_| capabilities.volume_mount_group),
            }),
        };
        VolumeCapability { access_mode, access_type }
    }

    pub(super) fn id(&self) -> Result<VolumeId, Error> {
        VolumeId::new(&self.handle).map_err(|e| Error::CsiUse { reason: e.to_string() })
    }
}

impl Volumes {
    /// Mounts a volume of a driver for a pod: the steps that are missing.
    pub(crate) fn mount_csi(&self, spec: &CsiVolumeSpec, pod: &Pod) -> Result<(), Error> {
        let paths = self.csi_paths(spec);
        let driver = self.csi.driver(&spec.driver, STAGE)?;
        let busy = || Error::Busy { driver: spec.driver.clone(), handle: spec.handle.clone() };
        let _own = self.csi.lock_of_pod(&paths.key, &pod.uid).ok_or_else(busy)?;
        let turn = self.csi.lock(&paths.key).ok_or_else(busy)?;
        let failed_to_read = |e| Error::io("read the state of", &paths.staging)(e);
        let record = spec.record(pod);
        if spec.one_pod && !self.users(&record, Some(&pod.uid)).map_err(failed_to_read)?.is_empty() {
            return Err(Error::InUse);
        }
        let stages = driver.capabilities.stage_unstage && !spec.ephemeral;
        let wanted = VolumeWanted { pods: [pod.uid.clone()].into(), stages };
        let mut state = self.csi_state(&paths, &pod.uid).map_err(failed_to_read)?;
        let mut published = false;
        while let Some(step) = next_step(&wanted, &state) {
            self.csi.check_listed(&record, state.is_in_use())?;
            let before = state.clone();
            state.begin(&step);
            match step {
                VolumeStep::Stage => self.stage(spec, &driver, &paths, pod, before.staged)?,
                VolumeStep::Publish(_) => {
                    let known = before.published.get(&pod.uid).copied().unwrap_or_default();
                    self.publish(spec, &driver, (&paths, stages), pod, known)?;
                    published = true;
                }
                // Others' parts are not in the state, and this pod wants its own.
                VolumeStep::Unpublish(_) | VolumeStep::Unstage => break,
            }
            state.finish(&before, &step, StepResult::Done);
        }
        // A walk over many files holds up this pod alone. Its record keeps the volume staged meanwhile.
        drop(turn);
        if published {
            self.finish_publishing(spec, &driver, &paths, pod)?;
        }
        self.expand_csi(spec, pod, true)
    }

    /// What the node itself does with a volume that the driver has published.
    fn finish_publishing(
        &self,
        spec: &CsiVolumeSpec,
        driver: &CallableDriver,
        paths: &CsiPaths,
        pod: &Pod,
    ) -> Result<(), Error> {
        let target = paths.target(&self.pod_dir(&pod.uid), &pod.uid);
        let group = spec.fs_group.filter(|_| !driver.capabilities.volume_mount_group);
        if let (VolumeMode::Filesystem, Some(gid)) = (spec.mode, group) {
            let root = os::open_dir(&target).map_err(Error::io("open", &target))?;
            fs_group::apply(&root, &target, gid, pod.security.fs_group_on_root_mismatch)?;
        }
        paths.set_mark(Mark::Published(&pod.uid), Progress::Done).map_err(Error::io("prepare", &target))
    }

    /// Publishes again what is published: the driver brings it up to date (`requiresRepublish`).
    pub(crate) fn republish_csi(&self, spec: &CsiVolumeSpec, pod: &Pod) -> Result<(), Error> {
        let paths = self.csi_paths(spec);
        // Who works on the volume brings it up to date.
        let Some(_turn) = self.csi.try_lock(&paths.key) else { return Ok(()) };
        if paths.marked(Mark::Published(&pod.uid)) != Some(Progress::Done) {
            return Ok(());
        }
        let driver = self.csi.driver(&spec.driver, PUBLISH)?;
        let stages = driver.capabilities.stage_unstage && !spec.ephemeral;
        self.call_publish(spec, &driver, (&paths, stages), pod).map_err(|e| csi_error(PUBLISH, &e))
    }

    pub(crate) fn csi_paths(&self, spec: &CsiVolumeSpec) -> CsiPaths {
        CsiPaths::new(&self.roots, &spec.driver, &spec.handle, spec.mode, &spec.name)
    }

    /// What was done with the volume, as far as it concerns that pod. Without a mark of this boot a mount point says
    /// that the agent of before has succeeded, and a record alone that it may have.
    pub(super) fn csi_state(&self, paths: &CsiPaths, pod: &PodUid) -> std::io::Result<VolumeState> {
        let pod_dir = self.pod_dir(pod);
        let progress = |mark, record: &Path, mount_point: &Path| {
            // A kubelet that had the node meanwhile knows of no marks, but removes the record.
            if Record::read(record)?.is_none() {
                return Ok(Progress::None);
            }
            if let Some(progress) = paths.marked(mark) {
                return Ok(progress);
            }
            let mounted = os::sys(berth_sys::mount::is_mount_point(mount_point))?;
            std::io::Result::Ok(if mounted { Progress::Done } else { Progress::Uncertain })
        };
        let staged = progress(Mark::Staged, &paths.staging_record(), &paths.staging)?;
        let target = paths.target(&pod_dir, pod);
        let published = progress(Mark::Published(pod), &paths.pod_record(&pod_dir), &target)?;
        let published = (published != Progress::None).then(|| (pod.clone(), published));
        Ok(VolumeState { staged, published: published.into_iter().collect() })
    }

    fn stage(
        &self,
        spec: &CsiVolumeSpec,
        driver: &CallableDriver,
        paths: &CsiPaths,
        pod: &Pod,
        before: Progress,
    ) -> Result<(), Error> {
        let failed = |e| Error::io("prepare the staging of", &paths.staging)(e);
        spec.record(pod).write(&paths.staging_record()).map_err(failed)?;
        paths.set_mark(Mark::Staged, Progress::Uncertain).map_err(failed)?;
        os::make_dirs(&paths.staging, NODE_DIR).map_err(failed)?;
        let stage = Stage {
            volume: spec.id()?,
            publish_context: spec.publish_context.clone(),
            staging_target_path: paths.staging.clone(),
            capability: spec.capability(driver),
            secrets: spec.stage_secrets.clone(),
            volume_context: spec.attributes.clone(),
        };
        let result = step("csi-stage", || driver.call(driver.driver.stage(&stage)));
        match &result {
            Ok(()) => paths.set_mark(Mark::Staged, Progress::Done).map_err(failed)?,
            // Nothing was done, and nothing had been: the volume is free.
            Err(e) if e.is_final() && before == Progress::None => {
                self.forget_staging(paths).map_err(failed)?
            }
            Err(_) => {}
        }
        result.map_err(|e| csi_error(STAGE, &e))
    }

    fn publish(
        &self,
        spec: &CsiVolumeSpec,
        driver: &CallableDriver,
        (paths, stages): (&CsiPaths, bool),
        pod: &Pod,
        before: Progress,
    ) -> Result<(), Error> {
        let pod_dir = self.pod_dir(&pod.uid);
        let target = paths.target(&pod_dir, &pod.uid);
        let failed = |e| Error::io("prepare", &target)(e);
        spec.record(pod).write(&paths.pod_record(&pod_dir)).map_err(failed)?;
        paths.set_mark(Mark::Published(&pod.uid), Progress::Uncertain).map_err(failed)?;
        if let Some(parent) = target.parent() {
            os::make_dirs(parent, NODE_DIR).map_err(failed)?;
        }
        match self.call_publish(spec, driver, (paths, stages), pod) {
            Ok(()) => {}
            Err(e) => {
                if e.is_final() && before == Progress::None {
                    self.forget_publishing(paths, &pod.uid).map_err(failed)?;
                }
                return Err(csi_error(PUBLISH, &e));
            }
        }
        if spec.mode == VolumeMode::Block {
            link_device(&paths.pod_volume_dir(&pod_dir), &target).map_err(failed)?;
        }
        Ok(())
    }

    fn call_publish(
        &self,
        spec: &CsiVolumeSpec,
        driver: &CallableDriver,
        (paths, stages): (&CsiPaths, bool),
        pod: &Pod,
    ) -> Result<(), berth_csi_client::Error> {
        // An id without text was refused when the volume was read.
        let Ok(volume) = VolumeId::new(&spec.handle) else { return Ok(()) };
        let publish = Publish {
            volume,
            publish_context: spec.publish_context.clone(),
            staging_target_path: stages.then(|| paths.staging.clone()),
            target_path: paths.target(&self.pod_dir(&pod.uid), &pod.uid),
            capability: spec.capability(driver),
            readonly: spec.read_only,
            secrets: spec.publish_secrets.clone(),
            volume_context: spec.publish_attributes.clone(),
        };
        step("csi-publish", || driver.call(driver.driver.publish(&publish)))
    }

    /// Removes what the node made for staging. The directory must be empty. The record goes last: what a node that dies
    /// here leaves is found by it.
    pub(super) fn forget_staging(&self, paths: &CsiPaths) -> std::io::Result<()> {
        remove_empty_dir(&paths.staging)?;
        paths.set_mark(Mark::Staged, Progress::None)?;
        record::remove(&paths.staging_record())?;
        remove_empty_dir(&paths.staging_record_dir)?;
        if let Some(of_device) =
            paths.staging_record_dir.parent().filter(|_| paths.staging_record_dir.ends_with("data"))
        {
            remove_empty_dir(of_device)?;
        }
        self.csi.forget_failures(&paths.key);
        Ok(())
    }

    /// Removes what the node made for publishing to a pod, the record last. The target must be unmounted and empty.
    pub(super) fn forget_publishing(&self, paths: &CsiPaths, pod: &PodUid) -> std::io::Result<()> {
        let pod_dir = self.pod_dir(pod);
        let target = paths.target(&pod_dir, pod);
        match std::fs::symlink_metadata(&target) {
            Ok(found) if found.is_dir() => remove_empty_dir(&target)?,
            Ok(_) => berth_sys::fs::remove_if_there(&target)?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        let dir = paths.pod_volume_dir(&pod_dir);
        if std::fs::symlink_metadata(&dir).is_ok_and(|found| found.is_symlink()) {
            berth_sys::fs::remove_if_there(&dir)?;
        }
        paths.set_mark(Mark::Published(pod), Progress::None)?;
        record::remove(&paths.pod_record(&pod_dir))?;
        remove_empty_dir(&dir)?;
        self.csi.forget_failures(&paths.key);
        Ok(())
    }
}

/// Removes a directory that is empty and no mount point; a missing one is gone already.
fn remove_empty_dir(dir: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Makes the link to a published device in the pod's directory, by which tools know it.
fn link_device(link: &Path, target: &Path) -> std::io::Result<()> {
    if let Some(parent) = link.parent() {
        os::make_dirs(parent, NODE_DIR)?;
    }
    match std::os::unix::fs::symlink(target, link) {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

pub(super) fn csi_error(step: &'static str, error: &berth_csi_client::Error) -> Error {
    Error::Csi { step, text: Chain(error).to_string() }
}
