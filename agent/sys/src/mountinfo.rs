//! Parses `/proc/self/mountinfo` (proc_pid_mountinfo(5)); pure functions.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

/// One line of `/proc/self/mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Id of the mount.
    pub id: u32,
    /// Id of the mount that this mount is mounted on.
    pub parent: u32,
    /// Major and minor number of the file system's device.
    pub device: (u32, u32),
    /// Directory of the file system that forms the mount's root; `net:[4026531840]` and similar for
    /// namespaces.
    pub root: PathBuf,
    /// Mount point, relative to this process's root.
    pub mount_point: PathBuf,
    /// Options of the mount, comma separated.
    pub options: String,
    /// Peer group that the mount shares events with, where the mount is shared.
    pub shared: Option<u32>,
    /// Peer group that the mount receives events from, where the mount is a slave.
    pub master: Option<u32>,
    /// Type of the file system: `ext4`, `tmpfs`, `cgroup2`, `nsfs`, …
    pub fs_type: String,
    /// Source of the mount, as named in the mount call.
    pub source: OsString,
    /// Options of the file system, comma separated.
    pub super_options: String,
}

impl Mount {
    /// Whether the mount's own options contain `name`.
    pub fn has_option(&self, name: &str) -> bool {
        self.options.split(',').any(|o| o == name)
    }

    /// Whether the file system's options contain `name`, for example a cgroup v1 controller.
    pub fn has_super_option(&self, name: &str) -> bool {
        self.super_options.split(',').any(|o| o == name)
    }
}

/// Parses a whole mountinfo file. `Err` is the first malformed line and its number, counted from 1.
pub(crate) fn parse(text: &[u8]) -> Result<Vec<Mount>, (usize, String)> {
    parse_where(text, |_| true)
}

/// Parses the lines of the mounts at or below `dir`. The other lines, which are most on a node with many pods, are only
/// looked at.
pub(crate) fn parse_below(text: &[u8], dir: &Path) -> Result<Vec<Mount>, (usize, String)> {
    let below = |line: &[u8]| match line.split(|b| *b == b' ').nth(4) {
        Some(raw) if raw.contains(&b'\\') => path(raw).starts_with(dir),
        Some(raw) => Path::new(OsStr::from_bytes(raw)).starts_with(dir),
        // The line is malformed, and its parser says so.
        None => true,
    };
    parse_where(text, below)
}

fn parse_where(text: &[u8], wanted: impl Fn(&[u8]) -> bool) -> Result<Vec<Mount>, (usize, String)> {
    text.split(|b| *b == b'\n')
        .enumerate()
        .filter(|(_, line)| !line.is_empty() && wanted(line))
        .map(|(n, line)| {
            parse_line(line).ok_or_else(|| (n + 1, String::from_utf8_lossy(line).chars().take(120).collect()))
        })
        .collect()
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|b| *b == b' ');
    let id = number(fields.next()?)?;
    let parent = number(fields.next()?)?;
    let device = std::str::from_utf8(fields.next()?).ok()?.split_once(':')?;
    let root = path(fields.next()?);
    let mount_point = path(fields.next()?);
    let options = text(fields.next()?);
    let (mut shared, mut master) = (None, None);
    loop {
        let field = fields.next()?;
        if field == b"-" {
            break;
        }
        if let Some(group) = field.strip_prefix(b"shared:") {
            shared = Some(number(group)?);
        } else if let Some(group) = field.strip_prefix(b"master:") {
            master = Some(number(group)?);
        }
    }
    let fs_type = text(fields.next()?);
    let source = OsString::from_vec(unescape(fields.next()?));
    let super_options = text(fields.next()?);
    Some(Mount {
        id,
        parent,
        device: (device.0.parse().ok()?, device.1.parse().ok()?),
        root,
        mount_point,
        options,
        shared,
        master,
        fs_type,
        source,
        super_options,
    })
}

fn number(field: &[u8]) -> Option<u32> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(&unescape(field)).into_owned()
}

fn path(field: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(unescape(field)))
}

/// Decodes a field: the kernel writes space, tab, newline, backslash and `#` as `\` and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        if byte == b'\\'
            && let Some((digits, after)) = tail.split_at_checked(3)
            && let Some(value) = octal(digits)
        {
            out.push(value);
            rest = after;
        } else {
            out.push(byte);
            rest = tail;
        }
    }
    out
}

fn octal(digits: &[u8]) -> Option<u8> {
    let value = digits.iter().try_fold(0u16, |v, d| match d {
        b'0'..=b'7' => Some(v * 8 + u16::from(d - b'0')),
        _ => None,
    })?;
    u8::try_from(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_all_fields_and_escapes() {
        let text = b"36 35 98:0 /mnt\\0401 /mnt\\011a\\134b rw,noatime master:1 shared:42 - ext3 /dev/root rw,errors=continue\n\
            40 1 0:22 / /a\\040(deleted) ro - nsfs nsfs rw\n";
        let mounts = parse(text).unwrap();
        let first = &mounts[0];
        assert_eq!((first.id, first.parent, first.device), (36, 35, (98, 0)));
        assert_eq!(first.root, Path::new("/mnt 1"));
        assert_eq!(first.mount_point, Path::new("/mnt\ta\\b"));
        assert_eq!((first.shared, first.master), (Some(42), Some(1)));
        assert_eq!((first.fs_type.as_str(), first.source.to_str()), ("ext3", Some("/dev/root")));
        assert!(first.has_option("noatime") && !first.has_option("atime"));
        assert!(first.has_super_option("errors=continue"));
        assert_eq!((mounts[1].shared, mounts[1].master), (None, None));
        assert_eq!(mounts.len(), 2);
    }

    #[test]
    fn an_escape_that_is_none_stays() {
        for (raw, want) in
            [("\\04", "\\04"), ("\\999", "\\999"), ("\\777", "\\777"), ("\\", "\\"), ("\\040\\", " \\")]
        {
            assert_eq!(unescape(raw.as_bytes()), want.as_bytes(), "{raw}");
        }
    }

    fn escape(path: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        for b in path {
            match b {
                b' ' | b'\t' | b'\n' | b'\\' | b'#' => out.extend(format!("\\{b:03o}").bytes()),
                b => out.push(*b),
            }
        }
        out
    }

    proptest::proptest! {
        #[test]
        fn any_path_comes_back(bytes in proptest::collection::vec(1u8.., 1..40)) {
            let mut line = b"1 0 0:1 / ".to_vec();
            line.extend(escape(&bytes));
            line.extend(b" rw - tmpfs x rw\n");
            let mounts = parse(&line).unwrap();
            proptest::prop_assert_eq!(mounts[0].mount_point.as_os_str().as_encoded_bytes(), &bytes[..]);
        }

        #[test]
        fn a_broken_line_is_an_answer_not_a_panic(
            cut in 0usize..80,
            at in 0usize..80,
            byte: u8,
        ) {
            let mut line = b"36 35 98:0 /mnt\\0401 /mnt rw,noatime master:1 shared:42 - ext3 /dev/root rw".to_vec();
            if let Some(b) = line.get_mut(at) {
                *b = byte;
            }
            line.truncate(cut);
            let _answer = parse(&line);
        }
    }

    #[test]
    fn the_mounts_below_a_directory_are_found_by_their_whole_names() {
        let line = |at: &str| format!("1 0 0:1 / {at} rw - tmpfs x rw\n");
        let text = ["/a", "/a/b", "/ab", "/a\\040b/c", "/"].map(line).concat();
        let below = |dir: &str| {
            let found = parse_below(text.as_bytes(), Path::new(dir)).unwrap();
            found.into_iter().map(|m| m.mount_point.display().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(below("/a"), ["/a", "/a/b"]);
        assert_eq!(below("/a b"), ["/a b/c"]);
        assert_eq!(below("/").len(), 5);
        assert!(parse_below(b"1 2 3\n", Path::new("/a")).is_err());
    }

    #[test]
    fn names_the_line_that_is_none() {
        assert_eq!(parse(b"").unwrap(), []);
        let (line, text) = parse(b"1 0 0:1 / / rw - a b rw\n1 2 3\n").unwrap_err();
        assert_eq!((line, text.as_str()), (2, "1 2 3"));
        for bad in [
            "x 0 0:1 / / rw - a b rw",
            "1 0 01 / / rw - a b rw",
            "1 0 0:1 / / rw shared:x - a b rw",
            "1 0 0:1 / / rw",
        ] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
