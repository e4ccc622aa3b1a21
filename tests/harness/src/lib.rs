//! What the suites share: images made from files.

pub mod oci;
