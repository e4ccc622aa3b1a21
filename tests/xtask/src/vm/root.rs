//! Root file system of a VM: a small Debian, made once by debootstrap.

use super::cache::Cache;
use crate::{apt, out, setup::succeed};
use anyhow::{Context, Result};
use std::{fs, path::PathBuf, process::Command};

/// Debian 13's code name.
pub(super) const RELEASE: &str = "trixie";

/// Packages of the node and of the checks.
const PACKAGES: [&str; 20] = [
    "systemd",
    "systemd-sysv",
    "systemd-resolved",
    "dbus",
    "udev",
    "kmod",
    "mount",
    "util-linux",
    "procps",
    "iproute2",
    "iptables",
    "nftables",
    "libseccomp2",
    "apparmor",
    "netbase",
    "busybox-static",
    "bind9-dnsutils",
    "bpftool",
    "curl",
    "nfs-kernel-server",
];

/// Directory of the root file system. Built where the cache has none with these packages.
///
/// # Errors
/// debootstrap fails.
pub(super) fn get(cache: &Cache) -> Result<PathBuf> {
    let roots = cache.dir("root")?;
    let (root, stamp) = (roots.join(RELEASE), roots.join(format!("{RELEASE}.packages")));
    let packages = PACKAGES.join(",");
    if fs::read_to_string(&stamp).is_ok_and(|made_of| made_of == packages) && root.is_dir() {
        return Ok(root);
    }
    let new = cache.empty_dir("root/new")?;
    out::timed(&format!("debootstrap {RELEASE}, a minute or two the first time"), || {
        // debootstrap's mounts disappear with this mount namespace.
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "debootstrap", "--variant=minbase"]);
        command.args(["--keyring", apt::KEYRING, &format!("--include={packages}"), RELEASE]);
        succeed(command.arg(&new).arg(apt::archive()?))
    })?;
    // Downloaded packages and package lists are not needed in the VM.
    for dir in ["var/cache/apt/archives", "var/lib/apt/lists"] {
        let dir = new.join(dir);
        fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    if root.exists() {
        fs::remove_dir_all(&root).with_context(|| format!("cannot remove {}", root.display()))?;
    }
    fs::rename(&new, &root).with_context(|| format!("cannot put {} in place", root.display()))?;
    fs::write(&stamp, packages).with_context(|| format!("cannot write {}", stamp.display()))?;
    Ok(root)
}
