//! Another network namespace, entered by a thread that ends with the work.

use crate::error::Error;
use nix::{
    sched::{CloneFlags, setns},
    sys::statfs::{NSFS_MAGIC, fstatfs},
};
use std::{
    fs::File,
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// The open network namespace of a container.
#[derive(Debug)]
pub(crate) struct Netns {
    path: PathBuf,
    file: File,
}

impl Netns {
    /// Opens a network namespace. The host's own is an error, because its interfaces do not belong
    /// to a container.
    pub(crate) fn open(path: &Path) -> Result<Netns, Error> {
        let error = |operation| move |source| Error::Namespace { operation, path: path.to_owned(), source };
        let file = File::open(path).map_err(error("open"))?;
        let kind = fstatfs(&file).map_err(|e| error("check")(e.into()))?.filesystem_type();
        if kind != NSFS_MAGIC {
            return Err(error("open")(io::Error::other("it is not a namespace")));
        }
        let theirs = file.metadata().map_err(error("check"))?;
        let own = std::fs::metadata("/proc/self/ns/net").map_err(error("check"))?;
        if (theirs.dev(), theirs.ino()) == (own.dev(), own.ino()) {
            let reason = format!("({}) is the network namespace of the host", path.display());
            return Err(Error::Environment { name: "CNI_NETNS", reason });
        }
        Ok(Netns { path: path.to_owned(), file })
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `work` in the namespace.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, Error> {
        let error = |source| Error::Namespace { operation: "enter", path: self.path.clone(), source };
        std::thread::scope(|scope| {
            let enter = || {
                setns(&self.file, CloneFlags::CLONE_NEWNET).map_err(|e| error(e.into()))?;
                work()
            };
            let thread = std::thread::Builder::new().spawn_scoped(scope, enter).map_err(error)?;
            thread.join().unwrap_or_else(|_| Err(error(io::Error::other("the thread in it panicked"))))
        })
    }
}
