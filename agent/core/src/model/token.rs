//! Tokens of service accounts, which pods take as files of projected volumes.

use super::{Objects, Pod};
use crate::{
    ids::{Namespace, PodName, PodUid},
    refs::{Ref, RefUse, refs_with},
    time::Wall,
};
use std::fmt;

/// A token that a pod asks for. The token is bound to the pod: it ends with the pod's object in the API.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenRef {
    /// The pod's UID.
    pub pod: PodUid,
    /// The pod's name.
    pub pod_name: PodName,
    /// The namespace of the pod and of the service account.
    pub namespace: Namespace,
    /// The service account's name.
    pub service_account: String,
    /// The token's audience; `None` is the API server's own.
    pub audience: Option<String>,
    /// The wanted life of the token in seconds.
    pub ttl: u64,
}

impl TokenRef {
    /// The token of a pod with that audience and life in seconds.
    pub fn new(pod: &Pod, audience: Option<&str>, ttl: u64) -> TokenRef {
        TokenRef {
            pod: pod.uid.clone(),
            pod_name: pod.key.name.clone(),
            namespace: pod.key.namespace.clone(),
            service_account: pod.service_account.clone(),
            audience: audience.map(str::to_owned),
            ttl,
        }
    }

    /// The tokens of a pod's mounted volumes, with those that CSI drivers ask for.
    pub fn all_of(pod: &Pod, objects: &Objects) -> impl Iterator<Item = TokenRef> {
        refs_with(pod, objects).into_iter().filter_map(|reference| TokenRef::of(pod, &reference))
    }

    /// The token that a reference of this pod stands for; `None` for a reference to an object.
    pub fn of(pod: &Pod, reference: &Ref) -> Option<TokenRef> {
        match &reference.used_for {
            RefUse::Token { audience, ttl, .. } => Some(TokenRef::new(pod, audience.as_deref(), *ttl)),
            RefUse::Volume | RefUse::Env | RefUse::Pull | RefUse::Storage => None,
        }
    }
}

/// A token of a service account.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// The token's text.
    pub text: String,
    /// The end of its life, as the API server said it.
    pub expires: Wall,
}

impl fmt::Debug for Token {
    /// Prints the end alone, because the text is secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "token until {:?}", self.expires)
    }
}
