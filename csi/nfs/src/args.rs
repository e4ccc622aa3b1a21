//! Options of the command line.

use crate::{
    error::{Error, Result},
    parameters::{Map, VolumeParameters},
};
use std::path::PathBuf;

/// A CSI driver for NFS. It needs no mount.nfs, and mounts what a StorageClass or a PersistentVolume names.
#[derive(Debug, clap::Parser)]
#[command(name = "berth-csi-nfs", version)]
pub(crate) struct Args {
    /// Socket of the driver: unix:///absolute/path. The kubelet can call it only with an @ in its name.
    #[arg(long, value_name = "URL", default_value = "unix:///csi/driver@csi.sock")]
    pub(crate) endpoint: String,
    /// Name of this node, as the control plane has it.
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    pub(crate) node_id: String,
    /// Name of the driver. It is in every PersistentVolume.
    #[arg(long, value_name = "NAME", default_value = "nfs.csi.berth.dev", value_parser = driver_name)]
    pub(crate) driver_name: String,
    /// The services to run.
    #[arg(long, value_enum, default_value = "all")]
    pub(crate) mode: Mode,
    /// Directory of the node agent in which the driver registers itself (/var/lib/kubelet/plugins_registry). Without
    /// it, the sidecar node-driver-registrar has to.
    #[arg(long, value_name = "DIR")]
    pub(crate) register_in: Option<PathBuf>,
    /// Path of the driver's socket as the node agent sees it, where that is another than in --endpoint.
    #[arg(long, value_name = "PATH", requires = "register_in")]
    pub(crate) kubelet_registration_path: Option<PathBuf>,
    /// A parameter for StorageClasses that do not name it, as NAME=VALUE; repeatable. With `server` and `share`, the
    /// driver can list the volumes there.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    pub(crate) parameter: Vec<(String, String)>,
    /// For tests of a debug build: a local directory in the place of the server test.invalid.
    #[cfg(debug_assertions)]
    #[arg(long, value_name = "DIR", hide = true)]
    pub(crate) test_shares: Option<PathBuf>,
}

/// The services of a driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Mode {
    /// On every node: mounts volumes.
    Node,
    /// Once a cluster: creates and deletes volumes.
    Controller,
    /// Both the node service and the controller service.
    All,
}

impl Mode {
    /// Whether volumes are mounted here.
    pub(crate) fn has_node(self) -> bool {
        self != Self::Controller
    }

    /// Whether volumes are created here.
    pub(crate) fn has_controller(self) -> bool {
        self != Self::Node
    }
}

impl Args {
    /// Path of the driver's socket.
    ///
    /// # Errors
    /// The endpoint is no absolute path of a Unix socket.
    pub(crate) fn socket(&self) -> Result<PathBuf> {
        let path = self.endpoint.strip_prefix("unix://").map(PathBuf::from).filter(|path| path.is_absolute());
        path.ok_or_else(|| {
            Error::field("--endpoint", format!("{:?} is not unix:///absolute/path", self.endpoint))
        })
    }

    /// The default parameters.
    ///
    /// # Errors
    /// One is unknown or wrong.
    pub(crate) fn defaults(&self) -> Result<Map> {
        let defaults: Map = self.parameter.iter().cloned().collect();
        let example = Map::from([
            ("server".into(), "h".into()),
            ("share".into(), "/".into()),
            ("subDir".into(), "x".into()),
        ]);
        let mut checked = example;
        checked.extend(defaults.clone());
        checked.remove("subDir");
        VolumeParameters::read("x", &checked, &Map::new())?;
        Ok(defaults)
    }
}

/// A name as the CSI wants it: at most 63 characters of a DNS name.
fn driver_name(text: &str) -> Result<String, String> {
    let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b".-".contains(&b));
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    if plain && text.len() <= 63 && ends(text.chars().next()) && ends(text.chars().last()) {
        Ok(text.to_owned())
    } else {
        Err("it is no DNS name of at most 63 characters".to_owned())
    }
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("it is not NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use clap::Parser;

    fn args(more: &[&str]) -> Result<Args, clap::Error> {
        Args::try_parse_from([&["berth-csi-nfs", "--node-id", "n"], more].concat())
    }

    #[test]
    fn wrong_options_are_refused() {
        assert_eq!(
            args(&["--endpoint", "unix:///run/x.sock"]).unwrap().socket().unwrap(),
            PathBuf::from("/run/x.sock")
        );
        for bad in ["tcp://0.0.0.0:1", "unix://x.sock", "/run/x.sock"] {
            assert!(args(&["--endpoint", bad]).unwrap().socket().is_err(), "{bad}");
        }
        for bad in
            [["--driver-name", "a/b"], ["--driver-name", "-a"], ["--mode", "both"], ["--parameter", "server"]]
        {
            assert!(args(&bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn default_parameters_are_checked_at_the_start() {
        let defaults =
            args(&["--parameter", "server=h", "--parameter", "mountOptions=vers=4.1"]).unwrap().defaults();
        assert_eq!(defaults.unwrap().get("mountOptions").map(String::as_str), Some("vers=4.1"));
        for bad in ["servre=h", "onDelete=x", "server=a b", "share=x"] {
            assert!(args(&["--parameter", bad]).unwrap().defaults().is_err(), "{bad}");
        }
    }
}
