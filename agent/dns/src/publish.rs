//! Publishing the zone: the agent's side of the zone file. Blocks.

use crate::{
    error::Error,
    zone::{VERSION, ZONE_MAX, Zone},
};
use berth_core::roots::Roots;
use std::path::{Path, PathBuf};

/// Writes zones, each under a higher serial number, and only where something changed.
#[derive(Debug)]
pub struct Publisher {
    path: PathBuf,
    /// What the file says, as far as is known.
    last: Option<Zone>,
}

impl Publisher {
    /// Reads what was published before. A file that cannot be read is replaced by the next zone.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn open(roots: &Roots) -> Result<Publisher, Error> {
        let path = roots.zone_file();
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(|source| Error::File { path: dir.into(), source })?;
        }
        let last = read(&path).ok();
        Ok(Publisher { path, last })
    }

    /// Publishes a zone; its serial number is given here. Returns whether it differs from the one before.
    ///
    /// # Errors
    /// The file cannot be written; the one before stays.
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
/// It is missing, torn or of another version.
pub fn read(path: &Path) -> Result<Zone, Error> {
    let bytes = berth_sys::fs::read_limited(path, ZONE_MAX)
        .map_err(|source| Error::State { path: path.into(), source })?;
    parse(&bytes).map_err(|reason| Error::Zone { path: path.into(), reason })
}

/// Reads a zone.
pub(crate) fn parse(bytes: &[u8]) -> Result<Zone, String> {
    let zone: Zone = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    if zone.version != VERSION {
        return Err(format!("format {}, not {VERSION}", zone.version));
    }
    Ok(zone)
}
