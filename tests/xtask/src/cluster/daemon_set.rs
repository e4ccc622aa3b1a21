//! `deploy/daemonset/services.yaml` on the cluster: the agent in kube-proxy's place as users run it, from an image, with the
//! paths of a normal node.

use super::{Cluster, KUBE_PROXY, containerd::ctr, place::SERVICES};
use crate::image;
use anyhow::{Context, Result, ensure};
use berth_harness::wait::{self, PATIENCE};
use std::fs;

/// Names of two images, of two builds of the program: one is the other's upgrade, whose eBPF programs are loaded anew.
pub(crate) const BERTH_IMAGES: [&str; 2] = ["berth.dev/berth:dev", "berth.dev/berth:next"];

/// The DaemonSet of the manifest.
const NAME: &str = "daemonset/berth-services";

/// The DaemonSet that removes what it left.
const RESET: &str = "daemonset/berth-reset";

impl Cluster {
    /// Builds the images and gives them to the node.
    ///
    /// # Errors
    /// The program does not build, or containerd refuses the archive.
    pub(crate) fn import_berth(&self) -> Result<()> {
        let archive = self.place.dir.join("berth.tar");
        image::write(&archive, &BERTH_IMAGES, true)?;
        ctr(&self.world, &["images", "import", &archive.to_string_lossy()])?;
        fs::remove_file(&archive).context("cannot remove the archive of the images")
    }

    /// Applies the manifest, with this cluster's API server and Service network at the two places that it marks, and
    /// waits until its pod is ready.
    ///
    /// # Errors
    /// The API server refuses it, or the pod does not get ready.
    pub(crate) fn roll_out_daemon_set(&self) -> Result<()> {
        let marked =
            [("https://API-SERVER:6443", self.place.server()), ("10.96.0.0/16", SERVICES.to_owned())];
        let manifest = self.manifest("services.yaml", &marked)?;
        self.apply("berth-services", &manifest)?;
        self.is_rolled_out(NAME)
    }

    /// Gives Services to the DaemonSet, and waits until kube-proxy and its rules are gone.
    ///
    /// # Errors
    /// As [`Cluster::import_berth`] and [`Cluster::roll_out_daemon_set`], or the rules stay.
    pub(crate) fn replace_kube_proxy(&self) -> Result<()> {
        self.import_berth()?;
        self.roll_out_daemon_set()?;
        self.kill(KUBE_PROXY)?;
        wait::ok("kube-proxy's rules are removed", 2 * PATIENCE, || {
            ensure!(!self.run(&["nft", "list", "tables"])?.contains("kube-proxy"), "there are some");
            Ok(())
        })
    }

    /// Gives the pod another image, and waits until it is ready with it.
    ///
    /// # Errors
    /// The pod does not get ready.
    pub(crate) fn upgrade_daemon_set(&self, image: &str) -> Result<()> {
        self.kubectl(&["-n", "kube-system", "set", "image", NAME, &format!("berth={image}")])?;
        self.is_rolled_out(NAME)
    }

    fn is_rolled_out(&self, name: &str) -> Result<()> {
        self.kubectl(&["-n", "kube-system", "rollout", "status", name, "--timeout=120s"]).map(drop)
    }

    /// Deletes the DaemonSet, and what its agent has left in the kernel, as the manifest says.
    ///
    /// # Errors
    /// The API server refuses it, or `berth reset` fails.
    pub(crate) fn remove_daemon_set(&self) -> Result<()> {
        self.delete_daemon_set(NAME, "berth-services")?;
        let text = self.manifest("reset.yaml", &[])?;
        self.apply("berth-reset", &text)?;
        self.is_rolled_out(RESET)?;
        self.delete_daemon_set(RESET, "berth-reset")
    }

    /// A manifest of the DaemonSet with these replacements. The agent's state that survives reboots goes to the cluster's
    /// directory: `/var/lib` is the machine's.
    fn manifest(&self, name: &str, replaced: &[(&str, String)]) -> Result<String> {
        let path = crate::root().join("deploy/daemonset").join(name);
        let mut text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let state =
            ("path: /var/lib/berth,", format!("path: {},", self.place.dir.join("berth-state").display()));
        for (from, to) in replaced.iter().chain([&state]) {
            ensure!(text.contains(from), "{} does not name {from}", path.display());
            text = text.replace(from, to);
        }
        Ok(text)
    }

    fn delete_daemon_set(&self, name: &str, app: &str) -> Result<()> {
        let of_kube_system = |args: &[&str]| self.kubectl(&[&["-n", "kube-system"], args].concat()).map(drop);
        of_kube_system(&["delete", name, "--wait", "--timeout=60s"])?;
        let app = format!("app.kubernetes.io/name={app}");
        of_kube_system(&["wait", "--for=delete", "pod", "-l", &app, "--timeout=60s"])
    }
}
