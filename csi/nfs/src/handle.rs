//! The ids of volumes and snapshots. An id holds all that the driver needs to find and delete the thing, because a
//! deletion tells nothing else.
//!
//! Format: fields joined by `#`, the first of them the kind with the version of the format. `%`, `#`, blanks and all
//! that is not printable ASCII stand in a field as `%` with two hexadecimal digits. Each id has one spelling: a text
//! that would be written in another way is no id.
//!
//! - volume: `v1#server#share#subDir#onDelete#key`
//! - snapshot: `s1#server#share#key`

use crate::{
    location::{Location, Server, Share, SubDir},
    parameters::OnDelete,
};
use sha2::{Digest, Sha256};
use std::fmt::Write;

/// Name of a record: the first 32 hexadecimal digits of the SHA-256 of the name that the volume or snapshot was
/// created by.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key(String);

impl Key {
    /// The key of a name.
    pub(crate) fn of(name: &str) -> Self {
        Self(digest(name, 32))
    }

    /// Reads a key.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let hex = text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        (text.len() == 32 && hex).then(|| Self(text.to_owned()))
    }

    /// The digits.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// The first hexadecimal digits of the SHA-256 of a text.
pub(crate) fn digest(text: &str, digits: usize) -> String {
    let mut hex = String::new();
    for byte in Sha256::digest(text.as_bytes()).iter().take(digits.div_ceil(2)) {
        // Writing to a String does not fail.
        _ = write!(hex, "{byte:02x}");
    }
    hex.truncate(digits);
    hex
}

/// The id of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VolumeHandle {
    /// Where the volume is. Its sub-directory is always there.
    pub(crate) location: Location,
    /// What becomes of the data when the volume is deleted.
    pub(crate) on_delete: OnDelete,
    /// Its record. Two volumes in one directory have different ones.
    pub(crate) key: Key,
}

impl VolumeHandle {
    /// Reads an id; `None` where the text is none of this driver's.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let found = fields(text).and_then(|fields| match fields.as_slice() {
            [kind, server, share, sub, on_delete, key] if kind == "v1" => {
                let (server, share) = (Server::parse(server).ok()?, Share::parse(share).ok()?);
                let location = Location::new(server, share, Some(SubDir::parse(sub).ok()?)).ok()?;
                let (on_delete, key) = (OnDelete::parse(on_delete).ok()?, Key::parse(key)?);
                Some(Self { location, on_delete, key })
            }
            _ => None,
        });
        one_spelling(text, found, Self::to_id)
    }

    /// The id.
    pub(crate) fn to_id(&self) -> String {
        let Location { server, share, sub_dir } = &self.location;
        let sub = sub_dir.as_ref().map_or("", SubDir::as_str);
        join(&["v1", server.as_str(), share.as_str(), sub, self.on_delete.as_str(), self.key.as_str()])
    }
}

/// The id of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SnapshotHandle {
    /// The share that holds the snapshot, without a sub-directory.
    pub(crate) location: Location,
    /// Its record and its data.
    pub(crate) key: Key,
}

impl SnapshotHandle {
    /// Reads an id; `None` where the text is none of this driver's.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let found = fields(text).and_then(|fields| match fields.as_slice() {
            [kind, server, share, key] if kind == "s1" => {
                let location =
                    Location::new(Server::parse(server).ok()?, Share::parse(share).ok()?, None).ok()?;
                Some(Self { location, key: Key::parse(key)? })
            }
            _ => None,
        });
        one_spelling(text, found, Self::to_id)
    }

    /// The id.
    pub(crate) fn to_id(&self) -> String {
        let Location { server, share, .. } = &self.location;
        join(&["s1", server.as_str(), share.as_str(), self.key.as_str()])
    }
}

/// The value, if it is spelled as the text.
fn one_spelling<T>(text: &str, found: Option<T>, spell: impl Fn(&T) -> String) -> Option<T> {
    found.filter(|value| spell(value) == text)
}

fn join(fields: &[&str]) -> String {
    let mut text = String::new();
    for (at, field) in fields.iter().enumerate() {
        if at > 0 {
            text.push('#');
        }
        for byte in field.bytes() {
            match byte {
                b'%' | b'#' | 0..=b' ' | 127.. => _ = write!(text, "%{byte:02x}"),
                _ => text.push(char::from(byte)),
            }
        }
    }
    text
}

/// The fields of an id, or `None` where an escape is wrong.
fn fields(text: &str) -> Option<Vec<String>> {
    text.split('#')
        .map(|field| {
            let mut bytes = Vec::new();
            let mut rest = field.bytes();
            while let Some(byte) = rest.next() {
                let digit = |b: Option<u8>| char::from(b?).to_digit(16).and_then(|d| u8::try_from(d).ok());
                match byte {
                    b'%' => bytes.push((digit(rest.next())? << 4) | digit(rest.next())?),
                    byte => bytes.push(byte),
                }
            }
            String::from_utf8(bytes).ok()
        })
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn handle(server: &str, share: &str, sub: &str) -> VolumeHandle {
        let location = Location::new(
            Server::parse(server).unwrap(),
            Share::parse(share).unwrap(),
            Some(SubDir::parse(sub).unwrap()),
        );
        VolumeHandle { location: location.unwrap(), on_delete: OnDelete::Archive, key: Key::of("pvc-1") }
    }

    #[test]
    fn an_id_is_readable_and_read_back() {
        let id = handle("fd00::1", "/srv/nfs", "a #1/pvc-1").to_id();
        assert_eq!(id, format!("v1#fd00::1#/srv/nfs#a%20%231/pvc-1#archive#{}", Key::of("pvc-1").as_str()));
        assert_eq!(VolumeHandle::parse(&id).unwrap(), handle("fd00::1", "/srv/nfs", "a #1/pvc-1"));
        let location = handle("h", "/s", "x").location.whole_share();
        let snapshot = SnapshotHandle { location, key: Key::of("snapshot-1") };
        assert_eq!(SnapshotHandle::parse(&snapshot.to_id()).unwrap(), snapshot);
        assert!(VolumeHandle::parse(&snapshot.to_id()).is_none() && SnapshotHandle::parse(&id).is_none());
    }

    #[test]
    fn another_spelling_is_no_id() {
        let key = Key::of("x").as_str().to_owned();
        for bad in [
            "fake-vol-id".to_owned(),
            format!("v1#h#/s#../x#delete#{key}"),
            format!("v1#h#/s#%2e%2e/x#delete#{key}"),
            format!("v1#h#/s#a/../x#delete#{key}"),
            format!("v1#h#/s##delete#{key}"),
            format!("v1#h#/s#/x#delete#{key}"),
            format!("v1#h#s#x#delete#{key}"),
            format!("v1#h#/s/#x#delete#{key}"),
            format!("v1#h#/s#%78#delete#{key}"),
            format!("v1#h#/s#x%#delete#{key}"),
            format!("v1#h#/s#%C3%A4#delete#{key}"),
            format!("v1#h#/s#x#Delete#{key}"),
            format!("v1#h#/s#x#delete#{}", key.to_uppercase()),
            format!("v1#h#/s#x#delete#{key}#"),
            format!("v2#h#/s#x#delete#{key}"),
            format!("v1#h#/s#.berth-csi-nfs/snapshots#delete#{key}"),
            String::new(),
        ] {
            assert!(VolumeHandle::parse(&bad).is_none(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn every_place_has_an_id_of_its_own(sub in "[ -~äß#%/.]{1,30}", share in "/[ -~#%]{1,20}") {
            if let (Ok(sub), Ok(share)) = (SubDir::parse(&sub), Share::parse(&share)) {
                let handle = handle("h", share.as_str(), sub.as_str());
                let id = handle.to_id();
                prop_assert!(id.bytes().all(|b| b.is_ascii_graphic()));
                prop_assert_eq!(VolumeHandle::parse(&id).unwrap(), handle);
            }
        }

        #[test]
        fn mutated_ids_never_panic_and_have_one_spelling(text in "(v1|s1)#[a-z:.]{1,5}#/[a-z%#]{1,9}#[a-z./%]{0,9}#(delete|retain)#[0-9a-f]{30,33}") {
            if let Some(handle) = VolumeHandle::parse(&text) {
                prop_assert_eq!(handle.to_id(), text);
            }
        }
    }
}
