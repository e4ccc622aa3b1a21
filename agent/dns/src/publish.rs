//! Publishing of the zone file by the agent. All functions block.

use crate::{
    error::Error,
    zone::{VERSION, ZONE_MAX, Zone},
};
use berth_core::roots::Roots;
use std::path::{Path, PathBuf};

/// Publisher of zones. Writes only changed zones, each under a higher serial number.
#[derive(Debug)]
pub struct Publisher {
    path: PathBuf,
    /// The zone in the file, if known.
    last: Option<Zone>,
}

impl Publisher {
    /// Reads the published zone. A file that cannot be read is replaced by the next zone.
    ///
    /// # Errors
    /// The directory cannot be created.
    pub fn open(roots: &Roots) -> Result<Publisher, Error> {
        let path = roots.zone_file();
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(|source| Error::File { path: dir.into(), source })?;
        }
        let last = read(&path).ok();
        Ok(Publisher { path, last })
    }

    /// Publishes a zone under the next serial number. Returns whether it differs from the published
    /// one.
    ///
    /// # Errors
    /// The file cannot be written; the published one stays.
    pub fn publish(&mut self, mut zone: Zone) -> Result<bool, Error> {
        let before = self.last.as_ref().map_or(0, |last| last.serial);
        zone.serial = before;
        if self.last.as_ref() == Some(&zone) {
            return Ok(false);
        }
        zone.serial = before.wrapping_add(1).max(1);
        let failed = |e: serde_json::Error| Error::File { path: self.path.clone(), source: e.into() };
        let text = serde_json::to_vec(&zone).map_err(failed)?;
        berth_sys::fs::write_atomic(&self.path, &text, 0o644)
            .map_err(|source| Error::State { path: self.path.clone(), source })?;
        self.last = Some(zone);
        Ok(true)
    }
}

/// Reads a zone file.
///
/// # Errors
/// The file is missing, torn or of another version.
pub fn read(path: &Path) -> Result<Zone, Error> {
    let bytes = berth_sys::fs::read_limited(path, ZONE_MAX)
        .map_err(|source| Error::State { path: path.into(), source })?;
    parse(&bytes).map_err(|reason| Error::Zone { path: path.into(), reason })
}

/// Parses a zone.
pub(crate) fn parse(bytes: &[u8]) -> Result<Zone, String> {
    let zone: Zone = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    if zone.version != VERSION {
        return Err(format!("its format is {}, this build reads {VERSION}", zone.version));
    }
    Ok(zone)
}
