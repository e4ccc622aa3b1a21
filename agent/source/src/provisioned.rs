//! Volumes that CSI drivers make for the claims of manifests: between who has them made and the directory of manifests,
//! whose thread binds them.
//!
//! Owns a pair of sockets. A change wakes the thread of the directory by one byte; what waits there already is enough.

use berth_core::{
    model::PersistentVolume,
    sync::lock,
    volume::{bind::ClaimName, provision::ProvisionRequest},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    sync::{Arc, Mutex},
};

/// What was made, and what is not made yet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Provisioned {
    /// The volumes.
    pub volumes: Vec<Arc<PersistentVolume>>,
    /// Why a claim has no volume yet.
    pub problems: BTreeMap<ClaimName, String>,
}

/// The claims of the manifests, for who has volumes made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StorageClaims {
    /// Whether these are all claims there are.
    pub whole: bool,
    /// The claims.
    pub claims: BTreeSet<ClaimName>,
    /// Those that pods use.
    pub used: BTreeSet<ClaimName>,
    /// Those for which a driver has to make a volume.
    pub requests: Vec<ProvisionRequest>,
}

#[derive(Debug)]
struct Shared {
    now: Mutex<Arc<Provisioned>>,
    wake: UnixStream,
}

/// The provisioned volumes. Clones share them.
#[derive(Debug, Clone)]
pub struct ProvisionedVolumes(Arc<Shared>);

/// The directory's side.
#[derive(Debug, Clone)]
pub struct ProvisionedReader {
    shared: Arc<Shared>,
    woken: Arc<UnixStream>,
}

impl ProvisionedVolumes {
    /// No volumes yet, and the side that reads them.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn new() -> io::Result<(ProvisionedVolumes, ProvisionedReader)> {
        let (wake, woken) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        woken.set_nonblocking(true)?;
        let shared = Arc::new(Shared { now: Mutex::default(), wake });
        let reader = ProvisionedReader { shared: Arc::clone(&shared), woken: Arc::new(woken) };
        Ok((ProvisionedVolumes(shared), reader))
    }

    /// Takes what there is now.
    pub fn set(&self, now: Provisioned) {
        {
            let mut known = lock(&self.0.now);
            if **known == now {
                return;
            }
            *known = Arc::new(now);
        }
        // A full socket wakes as well.
        drop((&self.0.wake).write(&[0]));
    }
}

impl ProvisionedReader {
    /// What there is now.
    pub(crate) fn now(&self) -> Arc<Provisioned> {
        Arc::clone(&lock(&self.shared.now))
    }

    /// The descriptor that a change makes readable.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.woken.as_fd()
    }

    /// Takes that the change was seen. Returns whether there was one.
    pub(crate) fn take(&self) -> bool {
        let mut bytes = [0; 64];
        let mut seen = false;
        while let Ok(1..) = (&*self.woken).read(&mut bytes) {
            seen = true;
        }
        seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_wakes_once_and_what_is_the_same_does_not() {
        let (volumes, reader) = ProvisionedVolumes::new().unwrap();
        assert!(!reader.take());
        let name = ("default".parse().unwrap(), "data".to_owned());
        let now =
            Provisioned { problems: BTreeMap::from([(name, "why".to_owned())]), ..Provisioned::default() };
        volumes.set(now.clone());
        volumes.set(now.clone());
        assert!(reader.take() && !reader.take());
        assert_eq!(*reader.now(), now);
        // A reader that does not read holds up nobody.
        for n in 0..100_000 {
            let problem = (("default".parse().unwrap(), "data".to_owned()), n.to_string());
            volumes.set(Provisioned { problems: BTreeMap::from([problem]), ..Provisioned::default() });
        }
        assert!(reader.take());
    }
}
