//! The lock that makes one process of a helper the active one.

use rustix::{
    fd::OwnedFd,
    fs::{FlockOperation, Mode, OFlags},
    io::Errno,
};
use std::{io, path::Path};

/// Lock file of a helper. The lock belongs to the open file, so it moves with its descriptor to a
/// successor.
#[derive(Debug)]
pub struct Lock(OwnedFd);

impl Lock {
    /// Opens the lock file, mode 0600, without taking the lock. The file is created if it does not
    /// exist.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn open(path: &Path) -> io::Result<Lock> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
        Ok(Lock(rustix::fs::open(path, flags, Mode::from_raw_mode(0o600))?))
    }

    /// Takes the lock if no other process has it. Returns whether it is held now.
    ///
    /// # Errors
    /// The kernel refuses, other than because the lock is held.
    pub fn try_lock(&self) -> io::Result<bool> {
        match rustix::fs::flock(&self.0, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(true),
            Err(Errno::WOULDBLOCK | Errno::INTR) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// The descriptor, which holds the lock if it was taken.
    pub fn into_fd(self) -> OwnedFd {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_held_until_the_last_copy_of_its_descriptor_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let (first, second) = (Lock::open(&path).unwrap(), Lock::open(&path).unwrap());
        assert!(first.try_lock().unwrap() && !second.try_lock().unwrap());
        let successor = first.0.try_clone().unwrap();
        drop(first.into_fd());
        assert!(!second.try_lock().unwrap());
        drop(successor);
        assert!(second.try_lock().unwrap());
    }
}
