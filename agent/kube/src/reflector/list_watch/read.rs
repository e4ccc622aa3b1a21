//! Objects of list and watch as changes.

use crate::reflector::{Bad, Change, Kind, Meta, ResourceVersion, wire};
use serde_json::value::RawValue;

/// Reads an object as a change, with its version. An object that cannot be read whole still has a name and a
/// version; an error means that it has neither.
pub(super) fn read<K: Kind>(
    kind: &K,
    object: &RawValue,
    gone: bool,
) -> Result<(ResourceVersion, Change<K::Item>), String> {
    match kind.read(object.get().as_bytes()) {
        Ok((meta, item)) => {
            let version = meta.resource_version.clone();
            Ok((version, if gone { Change::Gone(meta, item) } else { Change::Put(meta, item) }))
        }
        Err(bad) => {
            let meta: Meta = wire::meta(object)?;
            let version = meta.resource_version.clone();
            let bad = Bad(bad.0.chars().take(1024).collect());
            Ok((version, if gone { Change::UnreadableGone(meta) } else { Change::Unreadable(meta, bad) }))
        }
    }
}

/// Changes of a page, the token of the next page, and the list's version.
type Read<T> = (Vec<Change<T>>, Option<String>, ResourceVersion);

/// Reads a page as changes, with the token of the next page and the list's version.
pub(super) fn read_page<K: Kind>(
    kind: &K,
    body: &[u8],
    asked: Option<&str>,
    begun: bool,
) -> Result<Read<K::Item>, String> {
    let page = wire::page(body)?;
    if page.token.is_some() && page.token.as_deref() == asked {
        return Err("the server answers with the same page again".to_owned());
    }
    let mut changes = Vec::with_capacity(page.items.len().saturating_add(2));
    if !begun {
        changes.push(Change::Begin);
    }
    for item in page.items {
        changes.push(read(kind, item, false)?.1);
    }
    if page.token.is_none() {
        changes.push(Change::Complete(page.version.clone()));
    }
    Ok((changes, page.token, page.version))
}
