//! The program with calls as the sidecars and the node agent make them: volumes, copies, mounts, kills, attacks.
//!
//! Without more, a local directory stands in for the server. With `BERTH_TEST_NFS_SERVER` (a server whose export is the
//! local directory `BERTH_TEST_NFS_EXPORT`), the same tests run against NFS; `BERTH_CSI_NFS` names the program then.
//! Needs root.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(missing_docs, reason = "tests")]

mod attacks;
mod copies;
mod hangs;
mod mounts;
mod registration;
mod setup;
mod volumes;
