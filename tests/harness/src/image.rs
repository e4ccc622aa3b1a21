//! Images that the demo and the suites run.

use crate::{containerd::Containerd, oci, programs};
use anyhow::Result;
use std::path::Path;

/// Name of the image with Debian's busybox; manifests write `busybox:1`.
pub const BUSYBOX: &str = "docker.io/library/busybox:1";
/// Name of the image with busybox and the suites' own program at `/bin/berth-test`; manifests write
/// `berth.test/test:1`.
pub const TEST: &str = "berth.test/test:1";

/// Imports [`BUSYBOX`]; `scratch` is the directory of the archive.
///
/// # Errors
/// The image cannot be made or imported.
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

/// Imports an image that a suite defines.
///
/// # Errors
/// As [`import_busybox`].
pub fn import(containerd: &Containerd, scratch: &Path, image: &oci::Image) -> Result<()> {
    let dir = tempfile::Builder::new().prefix("image-").tempdir_in(scratch)?;
    let archive = dir.path().join("image.tar");
    oci::write_archive(&archive, std::slice::from_ref(image))?;
    containerd.import(&archive)
}
