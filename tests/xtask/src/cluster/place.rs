//! Names, addresses and files of a cluster. All derive from the cluster's directory, so that two clusters do
//! not meet and a later call finds what an earlier one made.

use anyhow::{Context, Result, ensure};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Name of the node in the cluster's own namespaces.
pub(crate) const NODE: &str = "berth-node";

/// Directory of the places of further nodes, below the cluster's.
const NODES: &str = "nodes";

/// Addresses of Services.
pub(super) const SERVICES: &str = "10.96.0.0/16";

/// Address of the Service `kubernetes`, the first of [`SERVICES`].
pub(super) const KUBERNETES: &str = "10.96.0.1";

/// Address of the cluster's DNS.
pub(crate) const DNS: &str = "10.96.0.10";

/// Addresses of pods in the whole cluster.
pub(super) const PODS: &str = "10.244.0.0/16";

/// Addresses of pods on the one node.
pub(super) const NODE_PODS: &str = "10.244.0.0/24";

/// File that marks a directory as a cluster's.
const MARK: &str = "cluster";

/// Place of a cluster.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// Directory of all files.
    pub(super) dir: PathBuf,
    /// Name of the cgroup.
    pub(super) cgroup: String,
    /// Device on this machine that leads to the cluster's network namespace.
    pub(super) device: String,
    /// This machine's address on that device.
    pub(super) host: String,
    /// Address of the API server and of the node, at the other end.
    pub(super) address: String,
    /// Name of the node.
    pub(super) node: String,
}

impl Place {
    /// Place of the cluster in `dir`.
    ///
    /// # Errors
    /// The current directory is unknown.
    pub(super) fn of(dir: &Path) -> Result<Place> {
        let dir = std::path::absolute(dir).with_context(|| format!("cannot resolve {}", dir.display()))?;
        let id = hash(dir.as_os_str().as_encoded_bytes());
        let [a, b, ..] = id.to_be_bytes();
        // The second half of the range reserved for test networks (RFC 2544); networks of four addresses.
        let net = |last: u8| format!("198.19.{a}.{}", (b & 0xfc) | last);
        Ok(Place {
            dir,
            cgroup: format!("berth-cluster-{id:08x}"),
            device: format!("bc{id:08x}"),
            host: net(1),
            address: net(2),
            node: NODE.to_owned(),
        })
    }

    /// Place of a further node of this cluster, in namespaces of the node's own.
    ///
    /// # Errors
    /// As [`Place::of`].
    pub(super) fn of_node(&self, name: &str) -> Result<Place> {
        let place = Place::of(&self.dir.join(NODES).join(name))?;
        Ok(Place { node: name.to_owned(), ..place })
    }

    /// Places of the further nodes.
    ///
    /// # Errors
    /// As [`Place::of`].
    pub(super) fn nodes(&self) -> Result<Vec<Place>> {
        // A cluster without further nodes has no such directory.
        let entries = fs::read_dir(self.dir.join(NODES)).into_iter().flatten().flatten();
        entries.map(|entry| self.of_node(&entry.file_name().to_string_lossy())).collect()
    }

    /// Makes the directory.
    ///
    /// # Errors
    /// The directory holds something else than a cluster, cannot be made, or has too long a name.
    pub(super) fn make_files(&self) -> Result<()> {
        let long = self.dir.as_os_str().len();
        // The kernel takes paths of sockets up to 107 bytes; the kubelet adds 35.
        ensure!(
            long <= 70,
            "{} has more than 70 bytes: name a shorter directory by --dir",
            self.dir.display()
        );
        if let Ok(mut entries) = fs::read_dir(&self.dir) {
            let empty = entries.next().is_none();
            ensure!(
                empty,
                "{} is not empty: name a directory of the cluster's own by --dir",
                self.dir.display()
            );
        }
        for dir in ["logs", "processes", "pki"] {
            let path = self.dir.join(dir);
            fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        }
        self.write(MARK, "made by `cargo xtask cluster`\n").map(drop)
    }

    /// Whether the directory holds a cluster, running or not.
    pub(super) fn is_made(&self) -> bool {
        self.dir.join(MARK).is_file()
    }

    /// Removes the directory; does nothing where it does not exist.
    ///
    /// # Errors
    /// The directory holds something else than a cluster, or cannot be removed.
    pub(super) fn remove_files(&self) -> Result<()> {
        if !self.dir.exists() {
            return Ok(());
        }
        ensure!(self.is_made(), "{} holds no cluster and is left as it is", self.dir.display());
        fs::remove_dir_all(&self.dir).with_context(|| format!("cannot remove {}", self.dir.display()))
    }

    /// URL of the API server.
    pub(super) fn server(&self) -> String {
        format!("https://{}:6443", self.address)
    }

    /// Path of a kubeconfig.
    pub(super) fn kubeconfig(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.kubeconfig"))
    }

    /// Path of a file of the public key infrastructure.
    pub(super) fn pki(&self, file: &str) -> PathBuf {
        self.dir.join("pki").join(file)
    }

    /// Path of a program's log.
    pub(super) fn log(&self, name: &str) -> PathBuf {
        self.dir.join("logs").join(format!("{name}.log"))
    }

    /// Record of a program's process.
    pub(super) fn process(&self, name: &str) -> PathBuf {
        self.dir.join("processes").join(format!("{name}.json"))
    }

    /// Writes a file below the directory and returns its path.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn write(&self, file: &str, text: &str) -> Result<PathBuf> {
        let path = self.dir.join(file);
        let dir = path.parent().unwrap_or(&path);
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }
}

/// FNV-1a: the same on every machine and in every build.
fn hash(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_clusters_do_not_meet() {
        let [one, two] = ["/a", "/b"].map(|dir| Place::of(Path::new(dir)).unwrap());
        assert_ne!(one.cgroup, two.cgroup);
        assert_ne!(one.device, two.device);
        assert_ne!(one.address, two.address);
        assert_eq!(one.address, Place::of(Path::new("/a")).unwrap().address);
    }

    #[test]
    fn a_directory_of_others_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("mine"), "").unwrap();
        let place = Place::of(dir.path()).unwrap();
        assert!(place.make_files().is_err());
        assert!(place.remove_files().is_err());
        assert!(dir.path().join("mine").exists());
        let place = Place::of(&dir.path().join("new")).unwrap();
        place.remove_files().unwrap();
        place.make_files().unwrap();
        assert!(place.is_made());
        place.remove_files().unwrap();
        assert!(!place.dir.exists());
    }

    #[test]
    fn the_names_are_as_long_as_the_kernel_takes_them() {
        let place = Place::of(Path::new("/some/directory")).unwrap();
        assert!(place.device.len() < 16, "{}", place.device);
        let last = |address: &str| address.rsplit('.').next().unwrap().parse::<u8>().unwrap();
        assert_eq!((last(&place.host) % 4, last(&place.address) % 4), (1, 2));
    }
}
