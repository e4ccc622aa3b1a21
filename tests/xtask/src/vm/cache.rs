//! Cache of VM parts and of a running VM's files, in the user's cache directory.

use anyhow::{Context, Result, bail};
use berth_harness::tools;
use std::{
    fs::{self, File, TryLockError},
    path::PathBuf,
};

/// The cache, locked by this process.
#[derive(Debug)]
pub(super) struct Cache {
    dir: PathBuf,
    _lock: File,
}

impl Cache {
    /// Opens and locks the cache.
    ///
    /// # Errors
    /// Another process holds the lock.
    pub(super) fn open() -> Result<Cache> {
        let dir = tools::cache()?.join("vm");
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let path = dir.join("lock");
        let lock = File::create(&path).with_context(|| format!("cannot open {}", path.display()))?;
        match lock.try_lock() {
            Ok(()) => Ok(Cache { dir, _lock: lock }),
            Err(TryLockError::WouldBlock) => bail!("another `cargo xtask` is at work with a VM; wait for it"),
            Err(TryLockError::Error(error)) => Err(error).context("cannot lock the cache of VMs"),
        }
    }

    /// A directory in the cache, created where missing.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub(super) fn dir(&self, name: &str) -> Result<PathBuf> {
        let dir = self.dir.join(name);
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(dir)
    }

    /// An empty directory in the cache.
    ///
    /// # Errors
    /// The directory cannot be made, or its old content cannot be removed.
    pub(super) fn empty_dir(&self, name: &str) -> Result<PathBuf> {
        let dir = self.dir.join(name);
        if dir.exists() {
            fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
        }
        self.dir(name)
    }
}
