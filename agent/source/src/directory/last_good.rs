//! The last good contents of each manifest, so that a file that is bad when the agent starts holds its pods.
//!
//! One file per manifest, written to a temporary name and renamed: a line of JSON, then the manifest's bytes. A file
//! that is torn or altered (its digest says so) is set aside as `<name>.torn`. The file `directory` says which
//! directory all this is about. Secrets may be among it: the folder is 0700, the files 0600.

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

/// The format's version; another one is set aside like a torn file.
const VERSION: u32 = 1;

/// A SHA-256 in hexadecimal.
pub(super) type ContentHash = String;

pub(super) fn hash(bytes: &[u8]) -> ContentHash {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// What is known of one manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LastGood {
    pub(super) bytes: Vec<u8>,
    pub(super) hash: ContentHash,
    /// When each pod and Service (by UID) that gives no creation time was first seen, in nanoseconds since 1970.
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

/// The folder with all that.
#[derive(Debug)]
pub(super) struct LastGoodStore {
    folder: PathBuf,
}

impl LastGoodStore {
    pub(super) fn new(folder: PathBuf) -> LastGoodStore {
        LastGoodStore { folder }
    }

    /// Everything that is remembered about that directory, and its inode. What is remembered about another directory
    /// does not count.
    pub(super) fn load(&self, dir: &Path) -> (BTreeMap<String, LastGood>, Option<u64>) {
        let mut found = BTreeMap::new();
        let about = self.folder.join("directory");
        let inode = match fs::read(&about) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => {
                tracing::warn!(path = %about.display(), error = %e, "what is remembered of manifests cannot be read");
                None
            }
            Ok(bytes) => match serde_json::from_slice::<DirectoryFile>(&bytes) {
                Ok(d) if d.version == VERSION && d.path == dir => Some(d.inode),
                Ok(d) if d.version == VERSION => {
                    tracing::info!(before = %d.path.display(), now = %dir.display(), "another manifest directory than before");
                    return (found, None);
                }
                Ok(_) | Err(_) => {
                    set_aside(&about);
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

    /// Writes the manifest's last good contents.
    pub(super) fn keep(&self, name: &str, remembered: &LastGood) -> Result<(), Error> {
        let header = Header {
            version: VERSION,
            name: name.to_owned(),
            sha256: remembered.hash.clone(),
            seen: remembered.seen.clone(),
        };
        let path = self.path(name);
        let fail = |source| Error::Remember { path: path.clone(), source };
        let mut bytes = serde_json::to_vec(&header).map_err(|e| fail(e.into()))?;
        bytes.push(b'\n');
        bytes.extend_from_slice(&remembered.bytes);
        replace(&path, &bytes).map_err(fail)
    }

    /// The manifest is gone.
    pub(super) fn forget(&self, name: &str) -> Result<(), Error> {
        let path = self.path(name);
        berth_sys::fs::remove_if_there(&path).map_err(|source| Error::Remember { path, source })
    }

    /// This directory is the one that all the rest is about. Manifests of another one are forgotten.
    pub(super) fn about(&self, dir: &Path, inode: u64, names: &[&str]) -> Result<(), Error> {
        let path = self.folder.join("directory");
        let fail = |source| Error::Remember { path: path.clone(), source };
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

    fn remembered(text: &str) -> LastGood {
        LastGood { bytes: text.into(), hash: hash(text.as_bytes()), seen: [("u".to_owned(), 5)].into() }
    }

    #[test]
    fn what_is_kept_is_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let memory = LastGoodStore::new(folder.path().join("state"));
        memory.keep("a.yaml", &remembered("one\ntwo")).unwrap();
        memory.keep("b.yaml", &remembered("")).unwrap();
        memory.keep("a.yaml", &remembered("three")).unwrap();
        memory.about(Path::new("/m"), 42, &["a.yaml", "b.yaml"]).unwrap();
        let (found, inode) = memory.load(Path::new("/m"));
        assert_eq!(inode, Some(42));
        assert_eq!(found.len(), 2);
        assert_eq!(found["a.yaml"], remembered("three"));
        memory.forget("a.yaml").unwrap();
        memory.forget("a.yaml").unwrap();
        assert_eq!(memory.load(Path::new("/m")).0.len(), 1);
        assert_eq!(memory.load(Path::new("/other")), (BTreeMap::new(), None), "another directory's memory");
    }

    #[test]
    fn a_torn_file_is_set_aside_at_any_length() {
        let folder = tempfile::tempdir().unwrap();
        let memory = LastGoodStore::new(folder.path().to_owned());
        memory.keep("a.yaml", &remembered("contents")).unwrap();
        let path = memory.path("a.yaml");
        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            assert!(memory.load(Path::new("/m")).0.is_empty(), "cut at {length}");
            assert!(!path.exists());
        }
        fs::write(&path, &whole).unwrap();
        assert_eq!(memory.load(Path::new("/m")).0.len(), 1);
    }

    #[test]
    fn nobody_else_can_read_it() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let memory = LastGoodStore::new(folder.path().join("state"));
        memory.keep("a.yaml", &remembered("secret")).unwrap();
        let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&memory.path("a.yaml")), 0o600);
        assert_eq!(mode(&folder.path().join("state")), 0o700);
    }
}
