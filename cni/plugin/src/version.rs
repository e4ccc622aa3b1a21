//! Versions of the CNI specification.

/// The supported versions of the specification, newest last.
pub(crate) const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
