//! NFS, by the kernel's own client and without mount.nfs: the name is resolved here, and the versions are tried here.

use super::{Mounter, move_to};
use crate::{
    error::{Error, Result},
    location::Location,
    mountinfo::Mount,
    options::{Options, Version},
};
use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
    },
};
use std::{
    net::{IpAddr, ToSocketAddrs},
    path::Path,
};

/// The addresses of one name that are tried.
const MOST_ADDRESSES: usize = 4;

/// The lines of the kernel's own words about a failure that are read.
const MOST_WORDS: usize = 8;

/// The kernel's NFS client.
#[derive(Debug)]
pub(crate) struct Nfs;

impl Mounter for Nfs {
    fn mount(&self, location: &Location, options: &Options) -> Result<OwnedFd> {
        let failed = |reason: String| Error::Mount { source_name: location.source(), reason };
        let mut last = None;
        for address in addresses(location.server.as_str()).map_err(|e| failed(e.to_string()))? {
            let mut tried = options.versions;
            while let Some((version, older)) = tried.split_first() {
                match attempt(location, options, address, *version) {
                    Ok(mount) => return Ok(mount),
                    Err((errno, words)) => {
                        let next = fall_back(errno, older);
                        // The first failure is the telling one: an older version fails by being older.
                        last.get_or_insert_with(|| {
                            format!("NFSv{} at {address}: {errno}{words}", version.as_str())
                        });
                        if next.is_none() && !is_of_address(errno) {
                            return Err(failed(last.unwrap_or_default()));
                        }
                        tried = next.unwrap_or_default();
                    }
                }
            }
        }
        Err(failed(last.unwrap_or_else(|| "the name has no address".into())))
    }

    fn attach(&self, mount: BorrowedFd<'_>, target: BorrowedFd<'_>, path: &Path, _: &Options) -> Result<()> {
        move_to(mount, target, path)
    }

    fn is_of(&self, mount: &Mount, location: &Location) -> bool {
        mount.kind.starts_with("nfs") && mount.source.to_str() == Some(&location.source())
    }
}

/// The versions to try after a failure; `None` where another version would fail in the same way. As mount.nfs does:
/// a version that either side does not know leads to the next, and a path that NFSv4 does not find leads to NFSv3,
/// whose paths are those of the server's own file system.
fn fall_back(errno: Errno, older: &'static [Version]) -> Option<&'static [Version]> {
    let rest = match errno {
        Errno::PROTONOSUPPORT | Errno::OPNOTSUPP | Errno::INVAL => older,
        Errno::NOENT => older.get(older.iter().position(|v| *v == Version::V3)?..)?,
        _ => return None,
    };
    (!rest.is_empty()).then_some(rest)
}

/// Whether another address of the same name may do better.
fn is_of_address(errno: Errno) -> bool {
    use Errno as E;
    matches!(
        errno,
        E::CONNREFUSED | E::TIMEDOUT | E::HOSTUNREACH | E::NETUNREACH | E::HOSTDOWN | E::CONNRESET
    )
}

/// The addresses of a server. Blocks on the resolver.
fn addresses(server: &str) -> std::io::Result<Vec<IpAddr>> {
    if let Ok(address) = server.parse() {
        return Ok(vec![address]);
    }
    let mut found: Vec<IpAddr> = Vec::new();
    for address in (server, 2049).to_socket_addrs()? {
        if !found.contains(&address.ip()) && found.len() < MOST_ADDRESSES {
            found.push(address.ip());
        }
    }
    Ok(found)
}

/// Tries one version at one address. A failure has what the kernel says of it.
fn attempt(
    location: &Location,
    options: &Options,
    address: IpAddr,
    version: Version,
) -> Result<OwnedFd, (Errno, String)> {
    let fs = fsopen("nfs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(|e| {
        let words = if e == Errno::NODEV { " (this kernel has no NFS client)" } else { "" };
        (e, words.to_owned())
    })?;
    let configured = || -> rustix::io::Result<OwnedFd> {
        fsconfig_set_string(fs.as_fd(), "source", location.source())?;
        fsconfig_set_string(fs.as_fd(), "addr", address.to_string())?;
        fsconfig_set_string(fs.as_fd(), "vers", version.as_str())?;
        for flag in &options.flags {
            fsconfig_set_flag(fs.as_fd(), *flag)?;
        }
        for (name, value) in &options.of_nfs {
            match value {
                Some(value) => fsconfig_set_string(fs.as_fd(), name, value)?,
                None => fsconfig_set_flag(fs.as_fd(), name)?,
            }
        }
        fsconfig_create(fs.as_fd())?;
        fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, options.attributes)
    };
    configured().map_err(|errno| (errno, words(&fs)))
}

/// What the kernel wrote about a failure, after a blank.
fn words(fs: &OwnedFd) -> String {
    let mut all = String::new();
    for _ in 0..MOST_WORDS {
        let mut line = [0; 512];
        match rustix::io::read(fs, &mut line) {
            Ok(length) if length > 0 => {
                let line = String::from_utf8_lossy(line.get(..length).unwrap_or_default()).into_owned();
                // A letter for the severity and a blank stand first.
                all.push_str(if all.is_empty() { " (" } else { "; " });
                all.push_str(line.get(2..).unwrap_or(&line).trim_end());
            }
            _ => break,
        }
    }
    if !all.is_empty() {
        all.push(')');
    }
    all
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use std::ffi::OsString;

    const ALL: &[Version] = &[Version::V42, Version::V41, Version::V40, Version::V3];

    #[test]
    fn an_unknown_version_leads_to_the_next_and_a_refusal_to_none() {
        for errno in [Errno::PROTONOSUPPORT, Errno::INVAL, Errno::OPNOTSUPP] {
            assert_eq!(fall_back(errno, &ALL[1..]), Some(&ALL[1..]));
            assert_eq!(fall_back(errno, &[]), None);
        }
        assert_eq!(fall_back(Errno::NOENT, &ALL[1..]), Some(&ALL[3..]));
        assert_eq!(fall_back(Errno::NOENT, &[Version::V40]), None, "version 3 is not permitted");
        for errno in [Errno::ACCESS, Errno::PERM, Errno::TIMEDOUT, Errno::IO, Errno::STALE] {
            assert_eq!(fall_back(errno, &ALL[1..]), None, "{errno}");
        }
    }

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
