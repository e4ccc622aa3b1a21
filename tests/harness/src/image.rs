//! The images that the demo and the suites run.

use crate::{containerd::Containerd, oci, programs};
use anyhow::Result;
use std::path::Path;

/// Debian's busybox, as `busybox:1` in manifests.
pub const BUSYBOX: &str = "docker.io/library/busybox:1";
/// Busybox with the suites' own program at `/bin/berth-test`, as `berth.test/test:1` in manifests.
pub const TEST: &str = "berth.test/test:1";

/// Imports [`BUSYBOX`]; `scratch` is a directory for the archive.
///
/// # Errors
/// It cannot be made or imported.
pub fn import_busybox(containerd: &Containerd, scratch: &Path) -> Result<()> {
    import(containerd, scratch, &oci::Image::busybox(BUSYBOX)?)
}

/// Imports [`TEST`].
///
/// # Errors
/// The program does not build, or as [`import_busybox`].
pub fn import_test(containerd: &Containerd, scratch: &Path) -> Result<()> {
    let mut image = oci::Image::busybox(TEST)?;
    image.layers.push(vec![oci::Entry::file("bin/berth-test", 0o755, programs::test_program()?)]);
    import(containerd, scratch, &image)
}

/// Imports an image of a suite's own.
///
/// # Errors
/// As [`import_busybox`].
pub fn import(containerd: &Containerd, scratch: &Path, image: &oci::Image) -> Result<()> {
    let dir = tempfile::Builder::new().prefix("image-").tempdir_in(scratch)?;
    let archive = dir.path().join("image.tar");
    oci::write_archive(&archive, std::slice::from_ref(image))?;
    containerd.import(&archive)
}
