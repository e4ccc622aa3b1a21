//! Paths and primitives of the pin directory.

use crate::{
    Error, Result,
    sys::{ProgInfo, info, obj_get, obj_pin},
};
use berth_ebpf_abi::SCHEMA;
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use std::{
    fs::{self, DirBuilder, File},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::{DirBuilderExt, MetadataExt, symlink},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// The pin directory, as the schema of this program uses it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pins {
    root: PathBuf,
    schema: u32,
}

impl Pins {
    /// The pins below `Roots::bpf_pins`.
    pub fn new(root: impl Into<PathBuf>) -> Pins {
        Pins { root: root.into(), schema: SCHEMA }
    }

    /// The same directory for a program with another schema: for tests of upgrades.
    #[must_use]
    pub fn with_schema(self, schema: u32) -> Pins {
        Pins { schema, ..self }
    }

    /// The pin directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn own(&self) -> PathBuf {
        self.root.join(self.schema.to_string())
    }

    /// The directory of this schema's maps.
    pub fn maps(&self) -> PathBuf {
        self.own().join("maps")
    }

    /// The directory of this schema's programs.
    pub fn programs(&self) -> PathBuf {
        self.own().join("programs")
    }

    /// The directory of the iterators over this schema's socket storage.
    pub(crate) fn iterators(&self) -> PathBuf {
        self.own().join("iterators")
    }

    /// The directory of the links of all schemas.
    pub fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    fn object(&self) -> PathBuf {
        self.own().join("object")
    }

    /// The digest of the object that the pinned programs were loaded from; `None` where they may be
    /// incomplete.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn loaded_digest(&self) -> Result<Option<String>> {
        match fs::read_link(self.object()) {
            Ok(digest) => Ok(Some(digest.to_string_lossy().into_owned())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(failed("read", &self.object())(e)),
        }
    }

    /// Marks the programs as complete.
    pub(crate) fn write_digest(&self, digest: &str) -> Result<()> {
        let fresh = self.own().join("object-new");
        remove(&fresh)?;
        symlink(digest, &fresh).map_err(failed("make", &fresh))?;
        rename(&fresh, &self.object())
    }

    /// Marks the programs as incomplete.
    pub(crate) fn forget_digest(&self) -> Result<()> {
        remove(&self.object()).map(drop)
    }

    /// Creates the directories below the pin directory.
    pub(crate) fn make(&self) -> Result<()> {
        let all = [self.own(), self.maps(), self.programs(), self.iterators(), self.links()];
        all.iter().try_for_each(|dir| make_dir(dir))
    }

    /// Removes the directories of other schemas. The kernel frees their maps and programs with their last
    /// user.
    pub(crate) fn remove_other_schemas(&self) -> Result<Vec<u32>> {
        let mut removed = Vec::new();
        for (name, path) in list(&self.root)? {
            let Ok(schema) = name.parse::<u32>() else { continue };
            if schema != self.schema {
                fs::remove_dir_all(&path).map_err(failed("remove", &path))?;
                removed.push(schema);
            }
        }
        Ok(removed)
    }
}

/// Creates a directory that may exist already.
pub(crate) fn make_dir(dir: &Path) -> Result<()> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(failed("make", dir)(e)),
        _ => Ok(()),
    }
}

/// Takes an exclusive lock on a directory. The lock ends with the returned value or with the process. `None`
/// where the directory does not exist or was removed during the wait.
pub(crate) fn lock(dir: &Path, patience: Duration) -> Result<Option<Flock<File>>> {
    let end = Instant::now() + patience;
    let mut file = match File::open(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(failed("open", dir))?,
    };
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => {
                let locked = lock.metadata().map_err(failed("examine", dir))?;
                let there = match fs::metadata(dir) {
                    Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
                    there => there.map_err(failed("examine", dir))?,
                };
                let same = (locked.dev(), locked.ino()) == (there.dev(), there.ino());
                return Ok(same.then_some(lock));
            }
            Err((back, Errno::EAGAIN)) if Instant::now() < end => file = back,
            Err((_, Errno::EAGAIN)) => return Err(failed("lock", dir)(io::ErrorKind::TimedOut.into())),
            Err((_, e)) => return Err(failed("lock", dir)(e.into())),
        }
        // flock(2) has no deadline of its own.
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub(crate) fn failed(op: &'static str, path: &Path) -> impl Fn(io::Error) -> Error {
    move |source| Error::File { op, path: path.into(), source }
}

/// The names and paths in a directory; empty where the directory is missing.
pub(crate) fn list(dir: &Path) -> Result<Vec<(String, PathBuf)>> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed("list", dir))?,
    };
    let mut all = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed("list", dir))?;
        all.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
    }
    all.sort();
    Ok(all)
}

/// Removes a pin. Returns whether the pin existed.
pub(crate) fn remove(path: &Path) -> Result<bool> {
    match fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        done => done.map(|()| true).map_err(failed("remove", path)),
    }
}

pub(crate) fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(failed("rename", from))
}

/// Pins an object over an existing pin, atomically by rename.
pub(crate) fn pin_over(fd: BorrowedFd<'_>, path: &Path) -> Result<()> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push("-new");
    let fresh = PathBuf::from(fresh);
    remove(&fresh)?;
    obj_pin(fd, &fresh).map_err(|source| Error::Pin { path: fresh.clone(), source })?;
    rename(&fresh, path)
}

/// Opens a pinned program, and reads its id.
pub(crate) fn open_program(pins: &Pins, name: &str) -> Result<(OwnedFd, u32)> {
    let path = pins.programs().join(name);
    let failed = |source| Error::OpenPin { path: path.clone(), source };
    let program = obj_get(&path, false).map_err(failed)?;
    let found: ProgInfo = info(program.as_fd()).map_err(failed)?;
    Ok((program, found.id))
}

/// Opens a pinned link; `None` where the pin is missing.
pub(crate) fn open_link(path: &Path) -> Result<Option<OwnedFd>> {
    match obj_get(path, false) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        link => link.map(Some).map_err(|source| Error::OpenPin { path: path.into(), source }),
    }
}
