//! Store of the pods' memory on the tmpfs: one file for each pod, written before an action begins.
//!
//! A torn or unreadable file is set aside under `<name>.bad` and counts as no memory. The plan then takes
//! running containers as started and their readiness as unknown.

use berth_core::{
    ids::{BootId, PodUid},
    model::Pod,
    plan::Memory,
    roots::Roots,
};
use serde::{Deserialize, Serialize};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// The largest memory file in bytes that is read.
const MOST: usize = 4 << 20;

/// An error of the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A memory file could not be written.
    #[error("cannot write memory file {path}")]
    Write {
        /// The file's path.
        path: PathBuf,
        /// The error from writing.
        #[source]
        source: berth_sys::Error,
    },
    /// A directory or file could not be read, created or removed.
    #[error("cannot {operation} {path}")]
    File {
        /// The failed operation.
        operation: &'static str,
        /// The path of the directory or file.
        path: PathBuf,
        /// The error from the operation.
        #[source]
        source: std::io::Error,
    },
    /// The memory could not be encoded as JSON.
    #[error("cannot encode the memory of pod {pod}")]
    Encode {
        /// The pod of the memory.
        pod: PodUid,
        /// The error from the encoder.
        #[source]
        source: serde_json::Error,
    },
}

/// The content of a memory file, which survives the agent's death.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StoredPod {
    /// The boot in which the file was written.
    pub boot: BootId,
    /// The pod's spec.
    pub pod: Arc<Pod>,
    /// The pod's memory.
    pub memory: Memory,
}

/// The directory of memory files.
#[derive(Debug, Clone)]
pub struct MemoryStore {
    roots: Roots,
    boot: BootId,
}

impl MemoryStore {
    /// Opens the store, and creates its directory.
    pub fn open(roots: &Roots, boot: &BootId) -> Result<MemoryStore, StoreError> {
        let dir = roots.memory_dir();
        std::fs::create_dir_all(&dir).map_err(|source| StoreError::File {
            operation: "create",
            path: dir,
            source,
        })?;
        Ok(MemoryStore { roots: roots.clone(), boot: boot.clone() })
    }

    /// Writes one pod's memory.
    pub fn save(&self, pod: &Arc<Pod>, memory: &Memory) -> Result<(), StoreError> {
        #[derive(Serialize)]
        struct Borrowed<'a> {
            boot: &'a BootId,
            pod: &'a Pod,
            memory: &'a Memory,
        }
        let kept = Borrowed { boot: &self.boot, pod, memory };
        let text = serde_json::to_vec(&kept)
            .map_err(|source| StoreError::Encode { pod: pod.uid.clone(), source })?;
        let path = self.roots.memory_file(&pod.uid);
        berth_sys::fs::write_atomic(&path, &text, 0o600).map_err(|source| StoreError::Write { path, source })
    }

    /// Reads the memory of every pod of this boot. Files of another boot are removed.
    pub fn load(&self) -> Result<Vec<StoredPod>, StoreError> {
        let dir = self.roots.memory_dir();
        let listing = |source| StoreError::File { operation: "list", path: dir.clone(), source };
        let mut all = Vec::new();
        for entry in std::fs::read_dir(&dir).map_err(listing)? {
            let path = entry.map_err(listing)?.path();
            if path.extension().is_none_or(|e| e != "json") {
                continue;
            }
            all.extend(self.take(path)?);
        }
        Ok(all)
    }

    /// Reads the memory of one pod of this boot.
    pub fn load_one(&self, uid: &PodUid) -> Result<Option<StoredPod>, StoreError> {
        let path = self.roots.memory_file(uid);
        if path.exists() { self.take(path) } else { Ok(None) }
    }

    /// Reads one file. An unreadable file is set aside.
    fn take(&self, path: PathBuf) -> Result<Option<StoredPod>, StoreError> {
        let why = match read(&path) {
            Ok(kept) if kept.boot == self.boot => return Ok(Some(kept)),
            Ok(_) => return remove(&path).map(|()| None),
            Err(why) => why,
        };
        tracing::warn!(file = %path.display(), why, "cannot read a memory file: set aside");
        let aside = path.with_extension("bad");
        std::fs::rename(&path, &aside).map(|()| None).map_err(|source| StoreError::File {
            operation: "set aside",
            path,
            source,
        })
    }

    /// Removes a pod's memory, including a file that was set aside.
    pub fn forget(&self, uid: &PodUid) -> Result<(), StoreError> {
        let path = self.roots.memory_file(uid);
        remove(&path.with_extension("bad"))?;
        remove(&path)
    }
}

fn read(path: &Path) -> Result<StoredPod, String> {
    let text = berth_sys::fs::read_limited(path, MOST).map_err(|e| e.to_string())?;
    let kept = parse(&text)?;
    // A file under another name than its pod's would never be removed.
    if path.file_stem().and_then(|s| s.to_str()) == Some(kept.pod.uid.as_str()) {
        Ok(kept)
    } else {
        Err(format!("holds the memory of pod {}", kept.pod.uid))
    }
}

fn parse(text: &[u8]) -> Result<StoredPod, String> {
    serde_json::from_slice(text).map_err(|e| e.to_string())
}

fn remove(path: &Path) -> Result<(), StoreError> {
    berth_sys::fs::remove_if_there(path).map_err(|source| StoreError::File {
        operation: "remove",
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests;
