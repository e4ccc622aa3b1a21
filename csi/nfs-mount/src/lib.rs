//! Mounting a directory of an NFS server by the kernel's own client and without mount.nfs: the name is resolved here, and
//! the versions are tried here. For the CSI driver of NFS and for the agent's volumes.
//!
//! [`mount`] blocks as long as the server does not answer; its callers give it a thread that may be given up. The mount
//! is made out of sight, as a descriptor (fsmount(2)): a process that dies leaves none behind.

mod options;

pub use options::{NOSYMFOLLOW, Options, Version};

use rustix::{
    fd::{AsFd, OwnedFd},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
    },
};
use std::net::{IpAddr, ToSocketAddrs};

/// A mount option that is refused or malformed, with the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidOption(pub String);

impl std::fmt::Display for InvalidOption {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "mount options: {}", self.0)
    }
}

impl std::error::Error for InvalidOption {}

/// The addresses of one name that are tried.
const MOST_ADDRESSES: usize = 4;

/// The lines of the kernel's own words about a failure that are read.
const MOST_WORDS: usize = 8;

/// Mounts `source` (`server:/path`) of that server out of sight, and returns the mount.
///
/// # Errors
/// Why it cannot be mounted: of the first version and address, because an older version fails by being older.
pub fn mount(server: &str, source: &str, options: &Options) -> Result<OwnedFd, String> {
    let mut last = None;
    for address in addresses(server).map_err(|e| e.to_string())? {
        let mut tried = options.versions;
        while let Some((version, older)) = tried.split_first() {
            match attempt(source, options, address, *version) {
                Ok(mount) => return Ok(mount),
                Err((errno, words)) => {
                    let next = fall_back(errno, older);
                    last.get_or_insert_with(|| {
                        format!("NFSv{} at {address}: {errno}{words}", version.as_str())
                    });
                    if next.is_none() && !is_of_address(errno) {
                        return Err(last.unwrap_or_default());
                    }
                    tried = next.unwrap_or_default();
                }
            }
        }
    }
    Err(last.unwrap_or_else(|| "the name has no address".into()))
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
    source: &str,
    options: &Options,
    address: IpAddr,
    version: Version,
) -> Result<OwnedFd, (Errno, String)> {
    let fs = fsopen("nfs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(|e| {
        let words = if e == Errno::NODEV { " (this kernel has no NFS client)" } else { "" };
        (e, words.to_owned())
    })?;
    let configured = || -> rustix::io::Result<OwnedFd> {
        fsconfig_set_string(fs.as_fd(), "source", source)?;
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
    fn a_failure_names_version_address_and_reason() {
        // Nothing listens on this port.
        let options = Options::parse(["port=1", "softerr", "timeo=10", "retrans=1"]).unwrap();
        let error = mount("127.0.0.1", "127.0.0.1:/nowhere", &options).unwrap_err();
        assert!(error.starts_with("NFSv4.2 at 127.0.0.1: "), "{error}");
    }
}
