//! Questions to the API server about a caller: who it is (TokenReview), and what it may (SubjectAccessReview).

use crate::Boxed;
use std::{collections::BTreeMap, time::Duration};

/// Who sends a request (`authentication.k8s.io/v1` `UserInfo`).
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Caller {
    /// The user's name, such as `kube-apiserver-kubelet-client`.
    pub name: String,
    /// The user's UID; empty where there is none.
    pub uid: String,
    /// The user's groups.
    pub groups: Vec<String>,
    /// Further attributes.
    pub extra: BTreeMap<String, Vec<String>>,
}

/// A question whether a caller may do something (`authorization.k8s.io/v1` `SubjectAccessReview`): always of the node's
/// own Node object, group "" and version `v1`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AccessReview {
    /// The caller.
    pub caller: Caller,
    /// `get`, `create`, ...; empty for a method that has no verb.
    pub verb: &'static str,
    /// Subresource of `nodes`, such as `proxy`.
    pub subresource: &'static str,
}

/// The API server gave no answer to a review.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot review the request: {reason}")]
pub struct ReviewError {
    /// Cause of the failure.
    pub reason: String,
    /// Whether another try may succeed: no connection, a server's error, too many requests.
    pub transient: bool,
    /// How long the server asks to wait before the next try.
    pub retry_after: Option<Duration>,
}

/// The API server's reviews. One call is one request; caches and further tries are the server's.
pub trait Reviewer: Send + Sync + 'static {
    /// Whose token this is; `None` if the API server does not know the token.
    fn token<'a>(&'a self, token: &'a str) -> Boxed<'a, Result<Option<Caller>, ReviewError>>;

    /// Whether the access is allowed.
    fn access<'a>(&'a self, review: &'a AccessReview) -> Boxed<'a, Result<bool, ReviewError>>;
}
