//! List and watch: a consumer's copy of a set of objects is kept equal to the API server's.
//!
//! [`ListWatch`] is the pure machine: it says what to ask for next and turns answers into [`Change`]s.
//! [`follow`] is its driver: it asks on a [`Pool`](crate::pool::Pool) and hands changes to a consumer.
//! [`Store`] is a consumer's set, to which changes are applied. [`Kind`] says what is followed.
//!
//! Invariants: deletions are told by the server or found at the end of a whole list; a list that breaks off
//! deletes nothing. Silence of the server deletes nothing. The resource version "0" is never asked for: an
//! API server that is behind would answer with an older state (kubernetes#59848).

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

/// What a reflector follows, and how its objects are read.
pub trait Kind {
    /// What an object becomes.
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

/// What identifies a version of an object.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Meta {
    /// Namespace; empty for kinds without namespaces.
    #[serde(default, deserialize_with = "or_default")]
    pub namespace: Box<str>,
    /// Name.
    pub name: Box<str>,
    /// UID: another object of the same name has another one.
    #[serde(default, deserialize_with = "or_default")]
    pub uid: Box<str>,
    /// Version of the object.
    pub resource_version: ResourceVersion,
}

/// Error: an object cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Bad(pub String);

/// A change of the followed set.
///
/// `Begin` to `Complete` is a list: what is not `Put` between them is not there any more, once `Complete` has
/// come. Another `Begin` instead means that the list broke off and starts anew. Changes after `Complete`
/// are news. `Gone` may also come within a list, for an object that was removed while it was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change<T> {
    /// A list begins.
    Begin,
    /// An object is there, or has changed.
    Put(Meta, T),
    /// An object was removed; this is its last state.
    Gone(Meta, T),
    /// An object is there and cannot be read. What is known of it stays.
    Unreadable(Meta, Bad),
    /// An unreadable object was removed.
    UnreadableGone(Meta),
    /// The list is complete up to this version.
    Complete(ResourceVersion),
}

#[cfg(test)]
mod tests;
