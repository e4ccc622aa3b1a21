//! Unpublishing and unstaging a volume. All that is needed is on disk, so that nothing but the pod's UID is asked for.

use super::{CallableDriver, CsiPaths, marks::Mark, mount::csi_error, paths::plugin_dir, record};
use crate::{
    Error, Volumes,
    error::{UNPUBLISH, UNSTAGE},
    os,
};
use berth_core::{
    ids::PodUid,
    volume::{
        steps::{Progress, StepResult, VolumeStep, VolumeWanted, next_step},
        unique_name,
    },
};
use berth_csi_client::{Unpublish, Unstage, VolumeId};
use berth_sys::failpoint::step;
use record::{PodVolume, Record};
use std::{collections::BTreeSet, io};

impl Volumes {
    /// Unpublishes all volumes of CSI drivers of a pod, and unstages those that no other pod has. All are tried; the
    /// error is the first one's. A volume that cannot be unstaged is tried again by [`Volumes::unstage_unused`].
    pub(crate) fn unmount_csi(&self, pod: &PodUid) -> Result<(), Error> {
        let dir = self.pod_dir(pod);
        let volumes = record::of_pod(&dir).map_err(Error::io("read the records of volumes in", dir))?;
        let mut failed = None;
        for volume in volumes.read {
            if let Err(e) = self.unmount_one(pod, &volume) {
                failed.get_or_insert(e.in_persistent(Some(&volume.name)));
            }
        }
        for (name, error) in volumes.unreadable {
            let e = Error::io("read the record of a volume in", self.pod_dir(pod))(error);
            failed.get_or_insert(e.in_persistent(Some(&name)));
        }
        failed.map_or(Ok(()), Err)
    }

    fn unmount_one(&self, pod: &PodUid, volume: &PodVolume) -> Result<(), Error> {
        let Record { driver_name, volume_handle, .. } = &volume.record;
        let paths = CsiPaths::new(&self.roots, driver_name, volume_handle, volume.mode, &volume.name);
        let driver = self.csi.driver(driver_name, UNPUBLISH)?;
        let busy = || Error::Busy { driver: driver_name.clone(), handle: volume_handle.clone() };
        let _own = self.csi.lock_of_pod(&paths.key, pod).ok_or_else(busy)?;
        let _turn = self.csi.lock(&paths.key).ok_or_else(busy)?;
        let failed = |e| Error::io("unpublish", self.pod_dir(pod))(e);
        let mut state = self.csi_state(&paths, pod).map_err(failed)?;
        let others = self.users(&volume.record, Some(pod)).map_err(failed)?;
        state.published.extend(others.iter().map(|other| (other.clone(), Progress::Done)));
        let wanted = VolumeWanted { pods: others, stages: driver.capabilities.stage_unstage };
        while let Some(step) = next_step(&wanted, &state) {
            let before = state.clone();
            match &step {
                VolumeStep::Unpublish(_) => self.unpublish(&driver, &paths, pod, &volume.record)?,
                VolumeStep::Unstage => {
                    if let Err(error) = self.unstage(&driver, &paths, &volume.record) {
                        tracing::warn!(volume = %volume.name, error = error.message(), "volume stays staged: tried again later");
                        break;
                    }
                }
                // The others' parts are theirs.
                VolumeStep::Stage | VolumeStep::Publish(_) => break,
            }
            state.finish(&before, &step, StepResult::Done);
        }
        Ok(())
    }

    fn unpublish(
        &self,
        driver: &CallableDriver,
        paths: &CsiPaths,
        pod: &PodUid,
        record: &Record,
    ) -> Result<(), Error> {
        let pod_dir = self.pod_dir(pod);
        let target = paths.target(&pod_dir, pod);
        let failed = |e| Error::io("unpublish", &target)(e);
        paths.set_mark(Mark::Published(pod), Progress::Uncertain).map_err(failed)?;
        let call = Unpublish { volume: id(record)?, target_path: target.clone() };
        step("csi-unpublish", || driver.call(driver.driver.unpublish(&call)))
            .map_err(|e| csi_error(UNPUBLISH, &e))?;
        // A driver that leaves its mount would have its data removed with the pod's directory.
        if os::sys(berth_sys::mount::is_mount_point(&target)).map_err(failed)? {
            os::sys(berth_sys::mount::unmount(&target)).map_err(failed)?;
        }
        self.forget_publishing(paths, pod).map_err(failed)
    }

    fn unstage(&self, driver: &CallableDriver, paths: &CsiPaths, record: &Record) -> Result<(), Error> {
        let failed = |e| Error::io("unstage", &paths.staging)(e);
        paths.set_mark(Mark::Staged, Progress::Uncertain).map_err(failed)?;
        let call = Unstage { volume: id(record)?, staging_target_path: paths.staging.clone() };
        step("csi-unstage", || driver.call(driver.driver.unstage(&call)))
            .map_err(|e| csi_error(UNSTAGE, &e))?;
        if os::sys(berth_sys::mount::is_mount_point(&paths.staging)).map_err(failed)? {
            os::sys(berth_sys::mount::unmount(&paths.staging)).map_err(failed)?;
        }
        self.forget_staging(paths).map_err(failed)
    }

    /// The pods that may have the volume, but for that one.
    pub(super) fn users(&self, of: &Record, but: Option<&PodUid>) -> io::Result<BTreeSet<PodUid>> {
        let mut users = BTreeSet::new();
        for name in record::names(&self.pods_dir())? {
            let Ok(uid) = PodUid::new(name) else { continue };
            if but == Some(&uid) {
                continue;
            }
            let same = |volume: &PodVolume| {
                volume.record.driver_name == of.driver_name && volume.record.volume_handle == of.volume_handle
            };
            let volumes = record::of_pod(&self.pod_dir(&uid))?;
            // A record that cannot be read may be of this volume, unless it has another name. A kubelet's record of a
            // staging has no name.
            let may_be =
                |(name, _): &(String, io::Error)| of.spec_vol_id.is_empty() || *name == of.spec_vol_id;
            if volumes.read.iter().any(same) || volumes.unreadable.iter().any(may_be) {
                users.insert(uid);
            }
        }
        Ok(users)
    }

    /// Unstages the volumes that no pod has: those whose unstaging failed after their last pod, or whose pod's directory
    /// was lost. Failures are logged, and tried again at the next call.
    pub fn unstage_unused(&self) {
        if let Err(error) = record::remove_empty(&plugin_dir(&self.roots)) {
            tracing::debug!(%error, "cannot remove the empty directories of volumes that were unstaged");
        }
        let staged = match record::staged(&plugin_dir(&self.roots)) {
            Ok(staged) => staged,
            Err(error) => {
                tracing::warn!(%error, "cannot read the records of staged volumes");
                return;
            }
        };
        for (name, error) in &staged.unreadable {
            tracing::warn!(volume = name, %error, "cannot read the record of a staged volume: it stays staged");
        }
        for (record, mode, name) in staged.read {
            let paths = CsiPaths::new(&self.roots, &record.driver_name, &record.volume_handle, mode, &name);
            // Who works on the volume has a pod for it.
            let Some(_turn) = self.csi.try_lock(&paths.key) else { continue };
            if !self.users(&record, None).is_ok_and(|users| users.is_empty()) {
                continue;
            }
            let unstaged = self
                .csi
                .driver(&record.driver_name, UNSTAGE)
                .and_then(|driver| self.unstage(&driver, &paths, &record));
            match unstaged {
                Ok(()) => tracing::info!(
                    volume = record.volume_handle,
                    driver = record.driver_name,
                    "unused volume unstaged"
                ),
                Err(error) => tracing::debug!(error = error.message(), "cannot unstage an unused volume"),
            }
        }
    }

    /// Whether a pod or the node has the volume of that driver, or may have it.
    ///
    /// # Errors
    ///
    /// A record cannot be read.
    pub fn has_volume(&self, driver: &str, handle: &str) -> io::Result<bool> {
        let is = |record: &Record| record.driver_name == driver && record.volume_handle == handle;
        if record::staged(&plugin_dir(&self.roots))?.all()?.iter().any(|(record, ..)| is(record)) {
            return Ok(true);
        }
        for name in record::names(&self.pods_dir())? {
            let Ok(uid) = PodUid::new(name) else { continue };
            if record::of_pod(&self.pod_dir(&uid))?.all()?.iter().any(|volume| is(&volume.record)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The attached volumes that are or may be in use on the node, by the names that `status.volumesInUse` of the Node has
    /// for them.
    ///
    /// # Errors
    ///
    /// A record cannot be read: the volume of an unreadable record must not count as free.
    pub fn volumes_in_use(&self) -> io::Result<BTreeSet<String>> {
        let mut records: Vec<Record> =
            record::staged(&plugin_dir(&self.roots))?.all()?.into_iter().map(|(record, ..)| record).collect();
        for name in record::names(&self.pods_dir())? {
            let Ok(uid) = PodUid::new(name) else { continue };
            records
                .extend(record::of_pod(&self.pod_dir(&uid))?.all()?.into_iter().map(|volume| volume.record));
        }
        let attached = records.iter().filter(|r| r.is_attached());
        Ok(attached.map(|r| unique_name(&r.driver_name, &r.volume_handle)).collect())
    }
}

fn id(record: &Record) -> Result<VolumeId, Error> {
    VolumeId::new(&record.volume_handle).map_err(|e| Error::CsiUse { reason: e.to_string() })
}
