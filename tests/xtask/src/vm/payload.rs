//! Second disk of a VM: the external programs of a node, a built checkout of this repository, the images of
//! the examples and of the shapes, and the checks.

mod groups;

use super::image;
use crate::{out, setup::succeed};
use anyhow::{Context, Result};
use berth_harness::{
    image::BUSYBOX,
    oci,
    tools::{self, Build},
};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Command that unpacks the disk in the VM.
pub(super) const UNPACK: &str = "tar -C / -xf /dev/vdb";

/// Path of the checkout in the VM.
pub(super) const CHECKOUT: &str = "/root/berth";

/// External programs in the node's PATH.
pub(super) const PROGRAMS: [&str; 4] = ["containerd", "containerd-shim-runc-v2", "ctr", "runc"];

/// Standard CNI plugins. Never taken from PATH, where iproute2 has another `bridge`.
const PLUGINS: [&str; 4] = ["bridge", "host-local", "loopback", "portmap"];

/// Makes the disk below `dir` and returns its path. `more` are further programs in the VM's PATH.
///
/// # Errors
/// Berth does not build, or a program is missing.
pub(super) fn make(dir: &Path, release: bool, more: &[(&str, &Path)]) -> Result<PathBuf> {
    let build = if release { Build::Release } else { Build::Plain };
    let built = out::timed(&format!("build berth ({build:?})"), || tools::programs(build))?;
    let payload = dir.join("payload");
    for name in PROGRAMS {
        program(&tools::find(name)?, &payload.join("usr/local/bin").join(name))?;
    }
    for (name, from) in more {
        program(from, &payload.join("usr/local/bin").join(name))?;
    }
    for name in PLUGINS {
        program(&tools::dir()?.join(name), &payload.join("opt/cni/bin").join(name))?;
    }
    let checkout = payload.join(CHECKOUT.trim_start_matches('/'));
    for name in ["berth", "berth-cni"] {
        program(&built.join(name), &checkout.join("target/release").join(name))?;
    }
    for (from, to) in [("deploy", checkout.clone()), ("tests/vm/checks", payload.join("root"))] {
        fs::create_dir_all(&to).with_context(|| format!("cannot make {}", to.display()))?;
        succeed(Command::new("cp").args(["-r", "--preserve=mode"]).arg(crate::root().join(from)).arg(&to))?;
    }
    groups::put(&payload.join("root/checks/cgroups"))?;
    for (file, image) in [("busybox.tar", BUSYBOX), ("shapes.tar", groups::IMAGE)] {
        oci::write_archive(&checkout.join(file), &[oci::Image::busybox(image)?])?;
    }
    let disk = dir.join("payload.tar");
    image::tar(&payload, &disk)?;
    fs::remove_dir_all(&payload).with_context(|| format!("cannot remove {}", payload.display()))?;
    Ok(disk)
}

/// Copies a program without debug information, because an emulated processor loads large files slowly.
pub(super) fn program(from: &Path, to: &Path) -> Result<()> {
    let dir = to.parent().unwrap_or(to);
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    succeed(Command::new("strip").args(["--strip-debug", "-o"]).args([to, from]))?;
    succeed(Command::new("chmod").arg("755").arg(to))
}
