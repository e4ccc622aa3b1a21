//! List and watch: keeps a consumer's copy of a set of objects equal to the API server's.
//!
//! [`ListWatch`] is the pure state machine: it decides the next request and turns answers into [`Change`]s.
//! [`follow`] is its driver: it sends the requests on a [`Pool`](crate::pool::Pool) and passes changes to a
//! consumer. [`Store`] is a consumer's set, to which changes are applied. [`Kind`] names the followed
//! objects.
//!
//! Invariants: a deletion comes from the server's event or from the end of a whole list; a list that breaks
//! off deletes nothing. Silence of the server deletes nothing. The resource version "0" is never requested:
//! an API server that is behind would answer with an older state (kubernetes#59848).

mod driver;
mod list_watch;
mod store;
mod version;
mod wire;

pub use driver::{Health, follow};
pub use list_watch::{End, ListWatch, Options, Step};
pub use store::{Effect, Store};
pub use version::ResourceVersion;

use crate::null::or_default;
use serde::Deserialize;

/// The objects that a reflector follows, and the reader of these objects.
pub trait Kind {
    /// Type of an object as the consumer keeps it.
    type Item;

    /// Path of the list, such as `/api/v1/pods`.
    fn path(&self) -> &str;

    /// Selectors of the list, encoded for a URL and without `?`, such as `fieldSelector=spec.nodeName%3Da`;
    /// may be empty.
    fn query(&self) -> &str;

    /// Reads one object.
    ///
    /// # Errors
    /// The object is not of this kind.
    fn read(&self, json: &[u8]) -> Result<(Meta, Self::Item), Bad>;
}

/// Identity and version of an object.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Meta {
    /// Namespace; empty for kinds without namespaces.
    #[serde(default, deserialize_with = "or_default")]
    pub namespace: Box<str>,
    /// `metadata.name`, unique in its namespace.
    pub name: Box<str>,
    /// UID, which differs from that of an earlier object with the same name.
    #[serde(default, deserialize_with = "or_default")]
    pub uid: Box<str>,
    /// Version of the object.
    pub resource_version: ResourceVersion,
}

/// Error of an object that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Bad(pub String);

/// A change of the followed set.
///
/// `Begin` to `Complete` is a list: objects that are not `Put` between them no longer exist once `Complete`
/// has come. Another `Begin` instead means that the list broke off and starts again. Changes after `Complete`
/// are news. `Gone` may also come within a list, for an object that was removed while the list was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change<T> {
    /// Start of a list.
    Begin,
    /// An object that exists, or has changed.
    Put(Meta, T),
    /// An object was removed; this is its last state.
    Gone(Meta, T),
    /// An object that exists and cannot be read. Its last readable state stays.
    Unreadable(Meta, Bad),
    /// An unreadable object was removed.
    UnreadableGone(Meta),
    /// End of the list, which is complete up to this version.
    Complete(ResourceVersion),
}

#[cfg(test)]
mod tests;
