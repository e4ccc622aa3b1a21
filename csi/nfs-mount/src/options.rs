//! Mount options as users write them, sorted by who reads them: the mount itself, the super block, or NFS.

use crate::InvalidOption;
use rustix::mount::MountAttrFlags;

/// A version of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// NFSv4.2.
    V42,
    /// NFSv4.1.
    V41,
    /// NFSv4.0.
    V40,
    /// NFSv3.
    V3,
}

impl Version {
    /// All versions, the newest first.
    const ALL: [Version; 4] = [Version::V42, Version::V41, Version::V40, Version::V3];

    /// The value of the option `vers`.
    pub fn as_str(self) -> &'static str {
        match self {
            Version::V42 => "4.2",
            Version::V41 => "4.1",
            Version::V40 => "4.0",
            Version::V3 => "3",
        }
    }

    /// The versions that a value of `vers` permits, the newest first.
    fn permitted(value: &str) -> Result<&'static [Version], InvalidOption> {
        Ok(match value {
            "4" => &[Version::V42, Version::V41, Version::V40],
            "4.2" => &[Version::V42],
            "4.1" => &[Version::V41],
            "4.0" => &[Version::V40],
            "3" => &[Version::V3],
            _ => {
                return Err(InvalidOption(format!("{value:?} is no version of NFS from 3 on")));
            }
        })
    }
}

/// Mount options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Of the one mount.
    pub attributes: MountAttrFlags,
    /// Flags of the super block.
    pub flags: Vec<&'static str>,
    /// The versions that may be tried, the newest first.
    pub versions: &'static [Version],
    /// Options of NFS, in the given order: of two of one name the last counts.
    pub of_nfs: Vec<(String, Option<String>)>,
}

impl Default for Options {
    fn default() -> Self {
        let attributes = MountAttrFlags::empty();
        Self { attributes, flags: Vec::new(), versions: &Version::ALL, of_nfs: Vec::new() }
    }
}

/// Options that set or clear attributes of a mount. Attributes of access times replace each other.
const ATTRIBUTES: [(&str, MountAttrFlags, bool); 11] = [
    ("ro", MountAttrFlags::MOUNT_ATTR_RDONLY, true),
    ("rw", MountAttrFlags::MOUNT_ATTR_RDONLY, false),
    ("nosuid", MountAttrFlags::MOUNT_ATTR_NOSUID, true),
    ("suid", MountAttrFlags::MOUNT_ATTR_NOSUID, false),
    ("nodev", MountAttrFlags::MOUNT_ATTR_NODEV, true),
    ("dev", MountAttrFlags::MOUNT_ATTR_NODEV, false),
    ("noexec", MountAttrFlags::MOUNT_ATTR_NOEXEC, true),
    ("exec", MountAttrFlags::MOUNT_ATTR_NOEXEC, false),
    ("nodiratime", MountAttrFlags::MOUNT_ATTR_NODIRATIME, true),
    ("diratime", MountAttrFlags::MOUNT_ATTR_NODIRATIME, false),
    ("nosymfollow", NOSYMFOLLOW, true),
];

/// `MOUNT_ATTR_NOSYMFOLLOW` (Linux 5.14).
pub const NOSYMFOLLOW: MountAttrFlags = MountAttrFlags::from_bits_retain(0x0020_0000);

/// Options about access times. The kernel's own choice is `relatime`, which is no bit.
const TIMES: [(&str, MountAttrFlags); 4] = [
    ("relatime", MountAttrFlags::MOUNT_ATTR_RELATIME),
    ("atime", MountAttrFlags::MOUNT_ATTR_RELATIME),
    ("noatime", MountAttrFlags::MOUNT_ATTR_NOATIME),
    ("strictatime", MountAttrFlags::MOUNT_ATTR_STRICTATIME),
];

/// Flags that the kernel wants by fsconfig(2).
const FLAGS: [&str; 4] = ["sync", "dirsync", "lazytime", "mand"];

/// Options for mount(8) and fstab(5), which mean nothing to the kernel.
const WITHOUT_MEANING: [&str; 7] = ["defaults", "_netdev", "fg", "auto", "noauto", "nofail", "async"];

/// Options by which a mount would lead to another server than the volume names, or would not be over when its call is.
const REFUSED: [&str; 5] = ["addr", "source", "bg", "remount", "bind"];

impl Options {
    /// Reads options. Each text may hold several, separated by commas.
    ///
    /// # Errors
    /// An option is refused or malformed.
    pub fn parse<'t>(texts: impl IntoIterator<Item = &'t str>) -> Result<Options, InvalidOption> {
        let mut options = Self::default();
        for option in texts.into_iter().flat_map(|t| t.split(',')).map(str::trim).filter(|o| !o.is_empty()) {
            options.add(option)?;
        }
        Ok(options)
    }

    fn add(&mut self, option: &str) -> Result<(), InvalidOption> {
        let (name, value) = option.split_once('=').map_or((option, None), |(n, v)| (n, Some(v)));
        let refuse = |reason: &str| Err(InvalidOption(format!("{option:?} {reason}")));
        let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if !plain || name.is_empty() || option.len() > 255 || option.chars().any(char::is_control) {
            return refuse("is no option");
        }
        if REFUSED.contains(&name) {
            return refuse("is not permitted here");
        }
        if let (Some((_, flag, set)), None) = (ATTRIBUTES.iter().find(|a| a.0 == name), value) {
            self.attributes.set(*flag, *set);
        } else if let (Some((_, time)), None) = (TIMES.iter().find(|t| t.0 == name), value) {
            for (_, other) in TIMES {
                self.attributes.remove(other);
            }
            self.attributes |= *time;
        } else if let (Some(flag), None) = (FLAGS.iter().find(|f| **f == name), value) {
            self.flags.push(flag);
        } else if WITHOUT_MEANING.contains(&name) || name == "retry" || name.starts_with("x-") {
            // Nothing to do.
        } else if matches!(name, "vers" | "nfsvers") {
            self.versions = Version::permitted(value.unwrap_or_default())?;
        } else if let (Some(minor), None) = (name.strip_prefix('v').filter(|_| name != "v"), value) {
            self.versions = Version::permitted(minor)?;
        } else if let ("minorversion", Some(minor)) = (name, value) {
            self.versions = Version::permitted(&format!("4.{minor}"))?;
        } else {
            self.of_nfs.push((name.to_owned(), value.map(str::to_owned)));
        }
        Ok(())
    }

    /// The same for the driver's own work on a share: a server that is gone gives errors after a minute instead of
    /// never, and nothing on the share can be run, opened as a device or followed as a link.
    #[must_use]
    pub fn for_own_work(mut self) -> Self {
        self.attributes.remove(MountAttrFlags::MOUNT_ATTR_RDONLY);
        self.attributes |= MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NOEXEC
            | NOSYMFOLLOW;
        self.of_nfs
            .retain(|(name, _)| !matches!(name.as_str(), "hard" | "soft" | "softerr" | "timeo" | "retrans"));
        let own = [("softerr", None), ("timeo", Some("100")), ("retrans", Some("2"))];
        self.of_nfs.extend(own.map(|(name, value)| (name.to_owned(), value.map(str::to_owned))));
        self
    }

    /// The same for a mount that a pod uses.
    #[must_use]
    pub fn read_only(mut self, read_only: bool) -> Self {
        if read_only {
            self.attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
        }
        self
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn parse(text: &str) -> Options {
        Options::parse([text]).unwrap()
    }

    #[test]
    fn each_option_goes_to_whom_it_concerns() {
        let options =
            parse("ro,nosuid,noatime,sync,vers=4.1,rsize=65536,nolock,_netdev,retry=2,x-systemd.automount");
        let wanted = MountAttrFlags::MOUNT_ATTR_RDONLY
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NOATIME;
        assert_eq!(options.attributes, wanted);
        assert_eq!((options.flags.as_slice(), options.versions), (&["sync"][..], &[Version::V41][..]));
        let of_nfs = [("rsize".to_owned(), Some("65536".to_owned())), ("nolock".to_owned(), None)];
        assert_eq!(options.of_nfs, of_nfs);
        let flags = ["nfsvers=4.1", "hard,timeo=600"];
        assert_eq!(Options::parse(flags).unwrap().of_nfs.len(), 2, "several texts, several options a text");
    }

    #[test]
    fn the_later_option_counts() {
        assert_eq!(parse("ro,rw").attributes, MountAttrFlags::empty());
        assert_eq!(parse("noatime,strictatime").attributes, MountAttrFlags::MOUNT_ATTR_STRICTATIME);
        assert_eq!(parse("vers=3,v4.2").versions, [Version::V42]);
    }

    #[test]
    fn versions_are_tried_from_the_newest() {
        assert_eq!(parse("").versions, Version::ALL);
        assert_eq!(parse("vers=4").versions, [Version::V42, Version::V41, Version::V40]);
        assert_eq!(parse("minorversion=1").versions, [Version::V41]);
        for bad in ["vers=2", "vers", "vers=5", "v2", "nfsvers=4.3"] {
            assert!(Options::parse([bad]).is_err(), "{bad}");
        }
    }

    #[test]
    fn options_that_lead_elsewhere_are_refused() {
        for bad in ["addr=10.0.0.2", "source=h:/x", "bg", "remount", "bind", "=x", "a b=c", "a\nb"] {
            assert!(Options::parse([bad]).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn own_work_is_never_hard_and_never_read_only() {
        let own = parse("hard,timeo=600,ro,rsize=4096,soft").for_own_work();
        assert!(!own.attributes.contains(MountAttrFlags::MOUNT_ATTR_RDONLY));
        assert!(own.attributes.contains(MountAttrFlags::MOUNT_ATTR_NODEV | NOSYMFOLLOW));
        let names: Vec<_> = own.of_nfs.iter().map(|(n, _)| n.as_str()).collect();
        assert_eq!(names, ["rsize", "softerr", "timeo", "retrans"]);
    }
}
