//! The last good version of each manifest on disk, so that a file that is bad when the agent starts keeps its
//! pods.
//!
//! One state file per manifest, replaced by rename: a line of JSON, then the manifest's bytes. A state file
//! that is torn or altered, by its digest, is set aside as `<name>.torn`. The file `directory` names the
//! directory to which all the others belong. Manifests may hold Secrets: the folder is 0700, the files 0600.

use crate::{
    Error,
    state_file::{replace, set_aside},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

/// Version of the format. A file of another version is set aside like a torn one.
const VERSION: u32 = 1;

/// A SHA-256 in hexadecimal.
pub(super) type ContentHash = String;

pub(super) fn hash(bytes: &[u8]) -> ContentHash {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// The last good version of one manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LastGood {
    /// The contents of the manifest.
    pub(super) bytes: Vec<u8>,
    /// Hash of `bytes`.
    pub(super) hash: ContentHash,
    /// The time at which each pod and Service without a creation time was first seen, by UID, in nanoseconds
    /// since 1970.
    pub(super) seen: BTreeMap<String, i64>,
}

#[derive(Serialize, Deserialize)]
struct Header {
    version: u32,
    name: String,
    sha256: ContentHash,
    seen: BTreeMap<String, i64>,
}

#[derive(Serialize, Deserialize)]
struct DirectoryFile {
    version: u32,
    path: PathBuf,
    inode: u64,
}

/// The folder of state files.
#[derive(Debug)]
pub(super) struct LastGoodStore {
    folder: PathBuf,
}

impl LastGoodStore {
    pub(super) fn new(folder: PathBuf) -> LastGoodStore {
        LastGoodStore { folder }
    }

    /// Reads the state of the directory: the last good versions by file name, and the inode of the directory.
    /// State of another directory does not count.
    pub(super) fn load(&self, dir: &Path) -> (BTreeMap<String, LastGood>, Option<u64>) {
        let mut found = BTreeMap::new();
        let directory = self.folder.join("directory");
        let inode = match fs::read(&directory) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => {
                tracing::warn!(path = %directory.display(), error = %e, "cannot read the saved state of the manifest directory: manifests that are bad now have no last good version");
                None
            }
            Ok(bytes) => match serde_json::from_slice::<DirectoryFile>(&bytes) {
                Ok(d) if d.version == VERSION && d.path == dir => Some(d.inode),
                Ok(d) if d.version == VERSION => {
                    tracing::info!(before = %d.path.display(), now = %dir.display(), "the manifest directory is configured to another path: the saved state of the former one is dropped");
                    return (found, None);
                }
                Ok(_) | Err(_) => {
                    set_aside(&directory);
                    None
                }
            },
        };
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(_) => return (found, inode),
        };
        for entry in entries.flatten() {
            let path = entry.path();
            if path.extension().is_none_or(|e| e != "last") {
                continue;
            }
            match fs::read(&path).ok().and_then(|bytes| parse(&bytes)) {
                Some((name, remembered)) if self.path(&name) == path => {
                    found.insert(name, remembered);
                }
                _ => set_aside(&path),
            }
        }
        (found, inode)
    }

    /// Writes the last good version of a manifest.
    pub(super) fn save(&self, name: &str, last_good: &LastGood) -> Result<(), Error> {
        let header = Header {
            version: VERSION,
            name: name.to_owned(),
            sha256: last_good.hash.clone(),
            seen: last_good.seen.clone(),
        };
        let path = self.path(name);
        let fail = |source| Error::State { path: path.clone(), source };
        let mut bytes = serde_json::to_vec(&header).map_err(|e| fail(e.into()))?;
        bytes.push(b'\n');
        bytes.extend_from_slice(&last_good.bytes);
        replace(&path, &bytes).map_err(fail)
    }

    /// Removes the last good version of a manifest that is gone.
    pub(super) fn forget(&self, name: &str) -> Result<(), Error> {
        let path = self.path(name);
        berth_sys::fs::remove_if_there(&path).map_err(|source| Error::State { path, source })
    }

    /// Writes which directory the state belongs to, and removes the state of manifests other than those
    /// named.
    pub(super) fn save_directory(&self, dir: &Path, inode: u64, names: &[&str]) -> Result<(), Error> {
        let path = self.folder.join("directory");
        let fail = |source| Error::State { path: path.clone(), source };
        let file = DirectoryFile { version: VERSION, path: dir.to_owned(), inode };
        let bytes = serde_json::to_vec(&file).map_err(|e| fail(e.into()))?;
        replace(&path, &bytes).map_err(fail)?;
        let kept: Vec<PathBuf> = names.iter().map(|n| self.path(n)).collect();
        for entry in fs::read_dir(&self.folder).map_err(fail)?.flatten() {
            let entry = entry.path();
            if entry.extension().is_some_and(|e| e == "last") && !kept.contains(&entry) {
                fs::remove_file(&entry).map_err(fail)?;
            }
        }
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        let digest = hash(name.as_bytes());
        self.folder.join(format!("{}.last", digest.get(..32).unwrap_or(&digest)))
    }
}

fn parse(bytes: &[u8]) -> Option<(String, LastGood)> {
    let end = bytes.iter().position(|b| *b == b'\n')?;
    let header: Header = serde_json::from_slice(bytes.get(..end)?).ok()?;
    let bytes = bytes.get(end.checked_add(1)?..)?.to_vec();
    (header.version == VERSION && hash(&bytes) == header.sha256)
        .then_some((header.name, LastGood { bytes, hash: header.sha256, seen: header.seen }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> LastGood {
        LastGood { bytes: text.into(), hash: hash(text.as_bytes()), seen: [("u".to_owned(), 5)].into() }
    }

    #[test]
    fn saved_versions_are_loaded_again() {
        let folder = tempfile::tempdir().unwrap();
        let store = LastGoodStore::new(folder.path().join("state"));
        store.save("a.yaml", &version("one\ntwo")).unwrap();
        store.save("b.yaml", &version("")).unwrap();
        store.save("a.yaml", &version("three")).unwrap();
        store.save_directory(Path::new("/m"), 42, &["a.yaml", "b.yaml"]).unwrap();
        let (found, inode) = store.load(Path::new("/m"));
        assert_eq!(inode, Some(42));
        assert_eq!(found.len(), 2);
        assert_eq!(found["a.yaml"], version("three"));
        store.forget("a.yaml").unwrap();
        store.forget("a.yaml").unwrap();
        assert_eq!(store.load(Path::new("/m")).0.len(), 1);
        assert_eq!(
            store.load(Path::new("/other")),
            (BTreeMap::new(), None),
            "the state of another directory"
        );
    }

    #[test]
    fn a_torn_file_is_set_aside_at_any_length() {
        let folder = tempfile::tempdir().unwrap();
        let store = LastGoodStore::new(folder.path().to_owned());
        store.save("a.yaml", &version("contents")).unwrap();
        let path = store.path("a.yaml");
        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            assert!(store.load(Path::new("/m")).0.is_empty(), "cut at {length}");
            assert!(!path.exists());
        }
        fs::write(&path, &whole).unwrap();
        assert_eq!(store.load(Path::new("/m")).0.len(), 1);
    }

    #[test]
    fn state_files_are_readable_by_root_alone() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let store = LastGoodStore::new(folder.path().join("state"));
        store.save("a.yaml", &version("secret")).unwrap();
        let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&store.path("a.yaml")), 0o600);
        assert_eq!(mode(&folder.path().join("state")), 0o700);
    }
}
