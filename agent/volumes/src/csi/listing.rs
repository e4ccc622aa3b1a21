//! The wait of attached volumes for the Node's status, which has to list them in `volumesInUse`.

use super::{CsiDrivers, record::Record};
use crate::Error;
use berth_core::volume::{
    in_use::{VolumeUse, may_use},
    unique_name,
};
use std::time::{Duration, Instant};

/// The longest wait in one try of mounting a pod's volumes. The status is sent at once, so that a wait of this length
/// means that the API server is away.
pub(crate) const WAIT: Duration = Duration::from_secs(5);

impl CsiDrivers {
    /// Whether a call for the volume of that record may be made. `in_use`: an earlier one has succeeded.
    ///
    /// # Errors
    ///
    /// The volume has to be listed first.
    pub(super) fn check_listed(&self, record: &Record, in_use: bool) -> Result<(), Error> {
        let Some(control_plane) = self.0.as_ref().and_then(|inner| inner.control_plane.as_ref()) else {
            return Ok(());
        };
        let name = unique_name(&record.driver_name, &record.volume_handle);
        let volume = VolumeUse { attached: record.is_attached().then_some(&*name), in_use };
        match may_use(volume, &control_plane.listed.borrow()) {
            true => Ok(()),
            false => Err(Error::NotListed { volume: name }),
        }
    }

    /// Waits until one of these volumes is listed. Returns whether one is.
    pub(crate) fn wait_listed(&self, names: &[String], until: Instant) -> bool {
        let Some(inner) = &self.0 else { return false };
        let Some(control_plane) = &inner.control_plane else { return false };
        let mut listed = control_plane.listed.clone();
        let one_is = listed.wait_for(|listed| names.iter().any(|name| listed.contains(name)));
        // A sender that is gone lists nothing more.
        inner.runtime.block_on(async {
            tokio::time::timeout_at(until.into(), one_is).await.is_ok_and(|found| found.is_ok())
        })
    }
}
