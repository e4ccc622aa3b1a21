//! The mounts of this mount namespace, from `/proc/self/mountinfo`. Reading them asks no server, so it does not wait
//! for one that is gone.

use crate::error::{Error, Result};
use std::{
    ffi::OsString,
    fs,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

/// A mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    /// The directory of the file system that is mounted.
    pub(crate) root: PathBuf,
    /// Where it is mounted.
    pub(crate) point: PathBuf,
    /// Whether the mount is read-only.
    pub(crate) read_only: bool,
    /// Type of the file system.
    pub(crate) kind: String,
    /// Source; of NFS the server, a colon and the path.
    pub(crate) source: OsString,
}

/// The mounts exactly at this path, the topmost last.
///
/// # Errors
/// The list cannot be read.
pub(crate) fn at(path: &Path) -> Result<Vec<Mount>> {
    Ok(all()?.into_iter().filter(|mount| mount.point == path).collect())
}

/// All mounts.
///
/// # Errors
/// The list cannot be read.
pub(crate) fn all() -> Result<Vec<Mount>> {
    let path = "/proc/self/mountinfo";
    let text = fs::read(path).map_err(|e| Error::file("read", path, e))?;
    Ok(text.split(|b| *b == b'\n').filter_map(parse).collect())
}

/// Reads a line: see proc_pid_mountinfo(5).
fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|b| *b == b' ');
    let root = unescape(fields.nth(3)?);
    let point = unescape(fields.next()?);
    let options = fields.next()?;
    fields.find(|field| *field == b"-")?;
    let kind = String::from_utf8(unescape(fields.next()?).into_vec()).ok()?;
    Some(Mount {
        root: root.into(),
        point: point.into(),
        read_only: options.split(|b| *b == b',').any(|o| o == b"ro"),
        kind,
        source: unescape(fields.next()?),
    })
}

/// A blank, a tab, a line feed and a backslash are written as a backslash and three octal digits.
fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let code = (*first == b'\\').then(|| after.get(..3)).flatten();
        let code = code.and_then(|c| std::str::from_utf8(c).ok()).and_then(|c| u8::from_str_radix(c, 8).ok());
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { after.get(3..).unwrap_or_default() } else { after };
    }
    OsString::from_vec(bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_are_read_with_their_escapes() {
        let line = br"37 29 0:54 / /var/lib/a\040b ro,relatime shared:12 - nfs4 h:/srv/x\134y rw,vers=4.2";
        let mount = parse(line).unwrap();
        assert_eq!(mount.point, Path::new("/var/lib/a b"));
        assert_eq!((mount.kind.as_str(), mount.source.to_str()), ("nfs4", Some(r"h:/srv/x\y")));
        assert!(mount.read_only);
        let other = parse(b"1 0 8:1 /sub / rw - ext4 /dev/vda ro").unwrap();
        assert_eq!((other.root.to_str(), other.read_only), (Some("/sub"), false));
        assert!(at(Path::new("/")).unwrap().last().is_some());
    }

    proptest! {
        #[test]
        fn mutated_lines_never_panic(line in proptest::collection::vec(prop_oneof![Just(b' '), Just(b'-'), Just(b'\\'), any::<u8>()], 0..80)) {
            _ = parse(&line);
        }
    }
}
