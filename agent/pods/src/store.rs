//! Memory on the tmpfs: one file a pod, written before acting.
//!
//! A torn or unreadable file is set aside under `<name>.bad` and counts as no memory: the plan then takes what runs
//! for started and its readiness for unknown.

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

/// The largest memory file that is read back.
const MOST: usize = 4 << 20;

/// Why memory could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Writing failed.
    #[error("store memory {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: berth_sys::Error,
    },
    /// A directory or file could not be read, made or removed.
    #[error("{operation} {path}")]
    File {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The memory has no text form.
    #[error("encode memory of {pod}")]
    Encode {
        /// Whose.
        pod: PodUid,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// What is kept of a pod over the agent's death.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Kept {
    /// The boot it belongs to.
    pub boot: BootId,
    /// The pod.
    pub pod: Arc<Pod>,
    /// What is remembered.
    pub memory: Memory,
}

/// The directory of memory files.
#[derive(Debug, Clone)]
pub struct Store {
    roots: Roots,
    boot: BootId,
}

impl Store {
    /// Makes the directory.
    pub fn open(roots: &Roots, boot: &BootId) -> Result<Store, StoreError> {
        let dir = roots.runtime_state.join("memory");
        std::fs::create_dir_all(&dir).map_err(|source| StoreError::File {
            operation: "create",
            path: dir,
            source,
        })?;
        Ok(Store { roots: roots.clone(), boot: boot.clone() })
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

    /// Everything kept in this boot. What belongs to another boot is dropped.
    pub fn load(&self) -> Result<Vec<Kept>, StoreError> {
        let dir = self.roots.runtime_state.join("memory");
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

    /// What is kept of one pod in this boot.
    pub fn load_one(&self, uid: &PodUid) -> Result<Option<Kept>, StoreError> {
        let path = self.roots.memory_file(uid);
        if path.exists() { self.take(path) } else { Ok(None) }
    }

    /// Reads one file; sets it aside where that is not possible.
    fn take(&self, path: PathBuf) -> Result<Option<Kept>, StoreError> {
        let why = match read(&path) {
            Ok(kept) if kept.boot == self.boot => return Ok(Some(kept)),
            Ok(_) => return remove(&path).map(|()| None),
            Err(why) => why,
        };
        tracing::warn!(file = %path.display(), why, "memory set aside");
        let aside = path.with_extension("bad");
        std::fs::rename(&path, &aside).map(|()| None).map_err(|source| StoreError::File {
            operation: "set aside",
            path,
            source,
        })
    }

    /// Forgets one pod, what was set aside of it too.
    pub fn forget(&self, uid: &PodUid) -> Result<(), StoreError> {
        let path = self.roots.memory_file(uid);
        remove(&path.with_extension("bad"))?;
        remove(&path)
    }
}

fn read(path: &Path) -> Result<Kept, String> {
    let text = berth_sys::fs::read_limited(path, MOST).map_err(|e| e.to_string())?;
    let kept = parse(&text)?;
    // Under another name it would never be forgotten.
    if path.file_stem().and_then(|s| s.to_str()) == Some(kept.pod.uid.as_str()) {
        Ok(kept)
    } else {
        Err(format!("holds the memory of pod {}", kept.pod.uid))
    }
}

fn parse(text: &[u8]) -> Result<Kept, String> {
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
