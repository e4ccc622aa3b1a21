//! NFS, by the kernel's own client.

use super::{Mounter, move_to};
use crate::{
    error::{Error, Result},
    location::Location,
    mountinfo::Mount,
    options::Options,
};
use rustix::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

/// The kernel's NFS client.
#[derive(Debug)]
pub(crate) struct Nfs;

impl Mounter for Nfs {
    fn mount(&self, location: &Location, options: &Options) -> Result<OwnedFd> {
        let source = location.source();
        berth_nfs_mount::mount(location.server.as_str(), &source, options)
            .map_err(|reason| Error::Mount { source_name: source, reason })
    }

    fn attach(&self, mount: BorrowedFd<'_>, target: BorrowedFd<'_>, path: &Path, _: &Options) -> Result<()> {
        move_to(mount, target, path)
    }

    fn is_of(&self, mount: &Mount, location: &Location) -> bool {
        mount.kind.starts_with("nfs") && mount.source.to_str() == Some(&location.source())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use std::ffi::OsString;

    #[test]
    fn a_mount_is_known_by_its_source() {
        let place = |server: &str| {
            let parts = (crate::location::Server::parse(server), crate::location::Share::parse("/srv"));
            Location::new(parts.0.unwrap(), parts.1.unwrap(), None).unwrap()
        };
        let mount = |kind: &str, source: &str| Mount {
            root: "/".into(),
            point: "/x".into(),
            read_only: false,
            kind: kind.into(),
            source: OsString::from(source),
        };
        assert!(Nfs.is_of(&mount("nfs4", "h:/srv"), &place("h")));
        assert!(Nfs.is_of(&mount("nfs", "[fd00::1]:/srv"), &place("fd00::1")));
        assert!(!Nfs.is_of(&mount("nfs4", "h:/srv/a"), &place("h")));
        assert!(!Nfs.is_of(&mount("ext4", "h:/srv"), &place("h")));
    }

    #[test]
    fn a_failure_names_the_share_and_the_reason() {
        let (server, share) = ("127.0.0.1", "/nowhere");
        let parts = (crate::location::Server::parse(server), crate::location::Share::parse(share));
        let location = Location::new(parts.0.unwrap(), parts.1.unwrap(), None).unwrap();
        // Nothing listens on this port.
        let options = Options::parse(["port=1", "softerr", "timeo=10", "retrans=1"]).unwrap();
        let error = Nfs.mount(&location, &options).unwrap_err().to_string();
        assert!(error.starts_with("cannot mount 127.0.0.1:/nowhere: NFSv4.2 at 127.0.0.1: "), "{error}");
    }
}
