//! JSON of lists and watches. Objects stay uninterpreted, so that only one object is decoded at a time.

use super::{Meta, ResourceVersion};
use crate::null::or_default;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;

/// Annotation of the bookmark that ends a streaming list (`metav1.InitialEventsAnnotationKey`).
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

/// Maximum length of a continue token in bytes. The API server's tokens contain a key and a version.
const MAX_TOKEN: usize = 16 * 1024;

/// One line of a watch.
#[derive(Debug, Deserialize)]
pub(super) struct Event<'a> {
    /// ADDED, MODIFIED, DELETED, BOOKMARK or ERROR.
    #[serde(rename = "type", borrow)]
    pub(super) kind: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) object: &'a RawValue,
}

/// One page of a list.
#[derive(Debug)]
pub(super) struct Page<'a> {
    pub(super) items: Vec<&'a RawValue>,
    pub(super) version: ResourceVersion,
    /// Token of the next page; `None` on the last one.
    pub(super) token: Option<String>,
}

#[derive(Debug, Deserialize)]
struct RawPage<'a> {
    #[serde(default)]
    kind: String,
    metadata: PageMeta,
    #[serde(borrow)]
    items: Option<Vec<&'a RawValue>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PageMeta {
    resource_version: ResourceVersion,
    #[serde(default, rename = "continue", deserialize_with = "or_default")]
    token: String,
}

#[derive(Debug, Deserialize)]
struct Bookmark {
    metadata: BookmarkMeta,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct BookmarkMeta {
    resource_version: ResourceVersion,
    #[serde(default, deserialize_with = "or_default")]
    annotations: serde_json::Map<String, serde_json::Value>,
}

#[derive(Debug, Deserialize)]
struct Object {
    metadata: Meta,
}

/// Reads a page. A body that is no list, such as a proxy's `{}`, is an error: as a list without items it
/// would delete all objects.
pub(super) fn page(body: &[u8]) -> Result<Page<'_>, String> {
    let page: RawPage<'_> =
        serde_json::from_slice(body).map_err(|e| format!("cannot read the answer as a list: {e}"))?;
    if !page.kind.ends_with("List") {
        let kind: String = page.kind.chars().take(64).collect();
        return Err(format!("cannot read the answer as a list: it is of kind {kind:?}"));
    }
    if page.metadata.token.len() > MAX_TOKEN {
        return Err(format!("cannot read the answer as a list: continue has more than {MAX_TOKEN} bytes"));
    }
    Ok(Page {
        items: page.items.unwrap_or_default(),
        version: page.metadata.resource_version,
        token: Some(page.metadata.token).filter(|token| !token.is_empty()),
    })
}

/// Version of a bookmark, and whether the bookmark ends a streaming list.
pub(super) fn bookmark(object: &RawValue) -> Result<(ResourceVersion, bool), String> {
    let bookmark: Bookmark =
        serde_json::from_str(object.get()).map_err(|e| format!("cannot read a bookmark: {e}"))?;
    let end = bookmark.metadata.annotations.get(INITIAL_EVENTS_END).is_some_and(|v| v == "true");
    Ok((bookmark.metadata.resource_version, end))
}

/// Metadata of an object that its kind could not read.
pub(super) fn meta(object: &RawValue) -> Result<Meta, String> {
    serde_json::from_str::<Object>(object.get())
        .map(|object| object.metadata)
        .map_err(|e| format!("cannot read the metadata of an object: {e}"))
}

/// The text encoded for the value of a query.
pub(super) fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}
