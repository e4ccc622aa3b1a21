//! Containerd of the cluster's node, with the images that the node needs.

use super::{images, place::Place, world::World};
use anyhow::Result;
use berth_harness::tools;
use std::path::Path;

/// Socket of containerd inside the cluster's namespaces, where `/run` is their own.
pub(super) const SOCKET: &str = "/run/containerd/containerd.sock";

/// Starts containerd and imports the images. CNI plugins are looked for in `plugins`, their lists in the cluster's
/// directory `cni`.
///
/// # Errors
/// A program is missing or does not start.
pub(super) fn start(world: &World, place: &Place, bin: &Path, plugins: &Path) -> Result<()> {
    let config = place.write("containerd.toml", &config(place, plugins))?;
    let args = ["--config".to_owned(), config.to_string_lossy().into_owned()];
    world.spawn("containerd", &tools::find("containerd")?, &args)?;
    world.ready("containerd", || ctr(world, &["version"]).map(drop))?;
    images::import(world, place, &images::of_node(bin)?)
}

/// Runs ctr in the namespace of the CRI plugin.
///
/// # Errors
/// The command fails.
pub(super) fn ctr(world: &World, args: &[&str]) -> Result<String> {
    let ctr = tools::find("ctr")?;
    let ctr = ctr.to_string_lossy();
    world.run(&[&[&*ctr, "--address", SOCKET, "--namespace", "k8s.io"], args].concat())
}

fn config(place: &Place, plugins: &Path) -> String {
    let (dir, plugins) = (place.dir.display(), plugins.display());
    let off = ["nri.v1.nri", "snapshotter.v1.btrfs", "snapshotter.v1.zfs", "snapshotter.v1.devmapper"]
        .map(|plugin| format!("\"io.containerd.{plugin}\""))
        .join(", ");
    format!(
        r#"version = 3
root = "{dir}/containerd"
state = "/run/containerd"
disabled_plugins = [{off}, "io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.erofs"]
[grpc]
  address = "{SOCKET}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{dir}/opt"
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "{pause}"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["{plugins}"]
    conf_dir = "{dir}/cni"
  [plugins."io.containerd.cri.v1.runtime".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
        SystemdCgroup = false
[plugins."io.containerd.grpc.v1.cri"]
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
"#,
        pause = images::PAUSE,
    )
}
