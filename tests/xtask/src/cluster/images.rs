//! Images of the control node, made from files under names of their own: no registry is asked.

pub(super) mod suite;

use super::{containerd::ctr, place::Place, world::World};
use anyhow::{Context, Result};
use berth_harness::{
    image::{BUSYBOX, TEST},
    oci::{Entry, Image, write_archive},
    programs,
};
use serde_json::json;
use std::{fs, path::Path};

/// Name of the sandboxes' image.
pub(super) const PAUSE: &str = "berth.test/pause:1";

/// Name of CoreDNS' image.
const COREDNS: &str = "berth.test/coredns:1";

/// Gives images to containerd.
///
/// # Errors
/// Containerd refuses an image, or its archive cannot be written.
pub(super) fn import(world: &World, place: &Place, images: &[Image]) -> Result<()> {
    let archive = place.dir.join("images.tar");
    write_archive(&archive, images)?;
    ctr(world, &["images", "import", &archive.to_string_lossy()])?;
    fs::remove_file(&archive).context("cannot remove the archive of the images")
}

/// The images of every cluster with a node.
///
/// # Errors
/// A program is missing.
pub(super) fn of_node(bin: &Path) -> Result<Vec<Image>> {
    let busybox = Image::busybox(BUSYBOX)?;
    let mut test = Image::busybox(TEST)?;
    test.layers.push(vec![Entry::file("bin/berth-test", 0o755, programs::test_program()?)]);
    let coredns = bin.join("coredns");
    let coredns = fs::read(&coredns).with_context(|| format!("cannot read {}", coredns.display()))?;
    Ok(vec![
        busybox.variant(PAUSE, json!({"Entrypoint": ["/bin/sleep", "2147483647"]})),
        busybox,
        test,
        Image {
            name: COREDNS.into(),
            layers: vec![vec![Entry::file("coredns", 0o755, coredns)]],
            config: json!({"Entrypoint": ["/coredns"], "WorkingDir": "/"}),
        },
    ])
}
