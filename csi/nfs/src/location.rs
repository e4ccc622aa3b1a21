//! Where a volume's data is: server, share and sub-directory, each checked when it is read.
//!
//! Invariant: no value of these types has a part that is empty, `.` or `..`, a control character, or the driver's own
//! directory on the share, so a path made of them stays below the share.

use crate::error::{Error, Result};
use std::{fmt, net::Ipv6Addr};

/// The driver's own directory on a share: records, snapshots, and what is being copied or removed.
pub(crate) const OWN_DIR: &str = ".berth-csi-nfs";

/// Longest path of a share or a sub-directory in bytes, as in the protocol (`NFS_MAXPATHLEN`).
const LONGEST_PATH: usize = 1024;

/// Longest name of a file in bytes.
const LONGEST_NAME: usize = 255;

/// Longest name of a source in bytes that the kernel takes (fsconfig(2)).
const LONGEST_SOURCE: usize = 255;

/// Name or address of a server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Server(String);

impl Server {
    /// Reads a DNS name, an IPv4 address, or an IPv6 address with or without brackets.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let refuse = |reason: &str| Err(Error::field("server", format!("{text:?} {reason}")));
        let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
        if bare.contains(':') {
            let (address, scope) = bare.split_once('%').unwrap_or((bare, ""));
            let plain = scope.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
            if address.parse::<Ipv6Addr>().is_err() || !plain || bare.len() > LONGEST_NAME {
                return refuse("is no IPv6 address");
            }
            return Ok(Self(bare.to_owned()));
        }
        let label = |l: &str| {
            (1..=63).contains(&l.len())
                && l.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
                && !l.starts_with('-')
                && !l.ends_with('-')
        };
        if text.is_empty() || text.len() > 253 || !text.trim_end_matches('.').split('.').all(label) {
            return refuse("is neither a DNS name nor an address");
        }
        Ok(Self(text.to_owned()))
    }

    /// The name without brackets.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Server {
    /// The name as it stands before a path: an IPv6 address in brackets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.contains(':') { write!(f, "[{}]", self.0) } else { f.write_str(&self.0) }
    }
}

/// Absolute path of an exported directory.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Share(String);

impl Share {
    /// Reads an absolute path. Slashes at its end do not count.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let Some(rest) = text.strip_prefix('/') else {
            return Err(Error::field("share", format!("{text:?} does not begin with a slash")));
        };
        let rest = rest.trim_end_matches('/');
        if !rest.is_empty() {
            parts("share", rest)?;
        }
        Ok(Self(format!("/{rest}")))
    }

    /// The path, which begins with a slash.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// Relative path of a volume's directory on its share.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct SubDir(String);

impl SubDir {
    /// Reads a relative path.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        parts("subDir", text)?;
        if text.split('/').next() == Some(OWN_DIR) {
            return Err(Error::field("subDir", format!("{text:?} is in the driver's own directory")));
        }
        Ok(Self(text.to_owned()))
    }

    /// The path, without a slash at either end.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The path of the directory that holds it, and its name there.
    pub(crate) fn split(&self) -> (&str, &str) {
        self.0.rsplit_once('/').unwrap_or(("", &self.0))
    }

    /// The first part of the path. Directories that overlap have the same.
    pub(crate) fn first(&self) -> &str {
        self.0.split('/').next().unwrap_or(&self.0)
    }

    /// Whether one of the two directories is the other or lies in it.
    pub(crate) fn overlaps(&self, other: &SubDir) -> bool {
        let within = |a: &str, b: &str| a == b || a.strip_prefix(b).is_some_and(|rest| rest.starts_with('/'));
        within(&self.0, &other.0) || within(&other.0, &self.0)
    }
}

/// Checks each part of a path.
fn parts(field: &str, text: &str) -> Result<()> {
    let refuse = |reason: &str| Err(Error::field(field, format!("{text:?} {reason}")));
    if text.len() > LONGEST_PATH {
        return refuse("is longer than 1024 bytes");
    }
    for part in text.split('/') {
        match part {
            "" => return refuse("has an empty part"),
            "." | ".." => return refuse("has a part that is no name"),
            _ if part.len() > LONGEST_NAME => return refuse("has a name longer than 255 bytes"),
            _ if part.chars().any(char::is_control) => return refuse("has a control character"),
            _ => {}
        }
    }
    Ok(())
}

/// The place of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Location {
    /// The server.
    pub(crate) server: Server,
    /// The exported directory.
    pub(crate) share: Share,
    /// The volume's directory on the share; the whole share without one.
    pub(crate) sub_dir: Option<SubDir>,
}

impl Location {
    /// Joins the parts.
    ///
    /// # Errors
    /// The whole is longer than the kernel takes.
    pub(crate) fn new(server: Server, share: Share, sub_dir: Option<SubDir>) -> Result<Self> {
        let location = Self { server, share, sub_dir };
        let source = location.source();
        if source.len() > LONGEST_SOURCE {
            let reason =
                format!("{source:?} is longer than the {LONGEST_SOURCE} bytes that the kernel takes");
            return Err(Error::field("server, share and subDir", reason));
        }
        Ok(location)
    }

    /// The share itself.
    pub(crate) fn whole_share(&self) -> Self {
        Self { sub_dir: None, ..self.clone() }
    }

    /// Path of the directory on the server.
    pub(crate) fn path(&self) -> String {
        match &self.sub_dir {
            Some(sub) if self.share.as_str() == "/" => format!("/{}", sub.as_str()),
            Some(sub) => format!("{}/{}", self.share.as_str(), sub.as_str()),
            None => self.share.as_str().to_owned(),
        }
    }

    /// The name by which mount(8) and `/proc/self/mountinfo` know it: server, colon, path.
    pub(crate) fn source(&self) -> String {
        format!("{}:{}", self.server, self.path())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn servers_are_names_and_addresses() {
        for good in ["10.0.0.1", "nfs.example.org", "nfs", "fd00::1", "[fd00::1]", "fe80::1%eth0", "a.b."] {
            Server::parse(good).unwrap_or_else(|e| panic!("{good}: {e}"));
        }
        assert_eq!(Server::parse("[fd00::1]").unwrap().to_string(), "[fd00::1]");
        assert_eq!(Server::parse("[fd00::1]").unwrap(), Server::parse("fd00::1").unwrap());
        for bad in ["", ".", "a b", "a,b", "a:/x", "::1::", "-a", "a..b", "a#b", "a\nb", "[a]", "fe80::1%a,b"]
        {
            assert!(Server::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn paths_that_are_tricks_are_refused() {
        for bad in [
            "",
            "/",
            "/a",
            "a/",
            "a//b",
            ".",
            "..",
            "a/../b",
            "a/./b",
            "../a",
            "a\0",
            "a\nb",
            OWN_DIR,
            ".berth-csi-nfs/x",
        ] {
            assert!(SubDir::parse(bad).is_err(), "{bad:?}");
        }
        for bad in ["", "a", "//a", "/a//b", "/..", "/a/../b", "/a\tb"] {
            assert!(Share::parse(bad).is_err(), "{bad:?}");
        }
        assert_eq!(Share::parse("/srv/nfs///").unwrap().as_str(), "/srv/nfs");
        assert_eq!(Share::parse("/").unwrap().as_str(), "/");
        for good in ["a", "a/b", "...", "..a", "a b", "ä/ö", "a,b"] {
            assert_eq!(SubDir::parse(good).unwrap().as_str(), good);
        }
        assert!(SubDir::parse(&"a".repeat(256)).is_err());
        assert!(SubDir::parse(&vec!["a"; 600].join("/")).is_err());
    }

    #[test]
    fn the_source_is_what_mount_takes() {
        let source = |server: &str, share: &str, sub: Option<&str>| {
            let sub = sub.map(|s| SubDir::parse(s).unwrap());
            Location::new(Server::parse(server).unwrap(), Share::parse(share).unwrap(), sub)
                .map(|l| l.source())
        };
        assert_eq!(source("h", "/srv/", Some("a/b")).unwrap(), "h:/srv/a/b");
        assert_eq!(source("fd00::1", "/", Some("a")).unwrap(), "[fd00::1]:/a");
        assert_eq!(source("h", "/", None).unwrap(), "h:/");
        assert!(source("h", "/srv", Some(&"a".repeat(250))).is_err());
    }

    #[test]
    fn directories_overlap_by_parts_not_by_letters() {
        let overlap = |a: &str, b: &str| SubDir::parse(a).unwrap().overlaps(&SubDir::parse(b).unwrap());
        assert!(overlap("a", "a") && overlap("a", "a/b") && overlap("a/b/c", "a/b"));
        assert!(!overlap("a", "ab") && !overlap("a/b", "a/c") && !overlap("ab/c", "a"));
    }

    proptest! {
        #[test]
        fn an_accepted_path_stays_below(text in ".{0,40}|[./a]{1,12}") {
            if let Ok(sub) = SubDir::parse(&text) {
                let depth = std::path::Path::new(sub.as_str()).components().try_fold(0, |depth, part| match part {
                    std::path::Component::Normal(_) => Some(depth + 1),
                    _ => None,
                });
                prop_assert_eq!(depth, Some(text.split('/').count()));
            }
        }
    }
}
