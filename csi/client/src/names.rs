//! The names of drivers and volumes.

use std::{fmt, sync::Arc};

/// The most bytes of a driver's name (specification: `GetPluginInfoResponse.name`).
const NAME_MAX: usize = 63;

/// A driver's name, for example `nfs.csi.k8s.io`. It is one component of a path: letters, digits, `-` and `.`, with a
/// letter or digit at both ends.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DriverName(Arc<str>);

/// A text that is no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// Not the name of a driver.
    #[error(
        "driver name {0:?} is not 1 to {NAME_MAX} letters, digits, '-' and '.' with a letter or digit at both ends"
    )]
    Driver(String),
    /// The id of a volume is empty.
    #[error("volume id is empty")]
    EmptyVolumeId,
}

impl DriverName {
    /// Reads a name.
    ///
    /// # Errors
    /// The text is no name of the specification.
    pub fn parse(text: &str) -> Result<DriverName, InvalidName> {
        let ends = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
        let fits = text.len() <= NAME_MAX
            && ends(text.bytes().next())
            && ends(text.bytes().last())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.'));
        // The start is enough for a message.
        let shown = || text.chars().take(2 * NAME_MAX).collect();
        if fits { Ok(DriverName(text.into())) } else { Err(InvalidName::Driver(shown())) }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DriverName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The id that a driver gave a volume (a PersistentVolume's `volumeHandle`). Any text, but not an empty one: never a
/// part of a path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeId(Arc<str>);

impl VolumeId {
    /// The id of this text.
    ///
    /// # Errors
    /// The text is empty.
    pub fn new(text: &str) -> Result<VolumeId, InvalidName> {
        if text.is_empty() { Err(InvalidName::EmptyVolumeId) } else { Ok(VolumeId(text.into())) }
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drivers_name_is_one_component_of_a_path() {
        for good in ["nfs.csi.k8s.io", "a", "A-b.9", &"x".repeat(63)] {
            assert_eq!(DriverName::parse(good).unwrap().as_str(), good);
        }
        for bad in ["", ".", "..", "-a", "a-", "a.", ".a", "a/b", "a\0", "a b", "ä", "a_b", &"x".repeat(64)]
        {
            let error = DriverName::parse(bad).unwrap_err().to_string();
            assert!(error.starts_with("driver name \""), "{error}");
        }
    }

    #[test]
    fn a_volume_has_an_id() {
        assert_eq!(VolumeId::new(""), Err(InvalidName::EmptyVolumeId));
        assert_eq!(VolumeId::new("server#share/../x").unwrap().to_string(), "server#share/../x");
    }
}
