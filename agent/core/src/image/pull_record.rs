//! Records of who may use an image that was pulled (KEP-2535): their contents, and the decision whether a present image
//! serves a pod or has to be pulled again with the pod's own credentials. Pure.
//!
//! Format and rules are the kubelet's (`pkg/kubelet/images/pullmanager`), so that a node keeps its records when one
//! replaces the other.

use super::{CredentialSource, ObjectCoordinates, Sourced};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// The API version of the records.
const API_VERSION: &str = "kubelet.config.k8s.io/v1beta1";
/// An older one, which is read too.
const OLD_API_VERSION: &str = "kubelet.config.k8s.io/v1alpha1";
/// The most secrets of a record to which a match adds another.
const MOST_SECRETS: usize = 100;

/// A pull that was begun (`ImagePullIntent`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PullIntent {
    kind: String,
    api_version: String,
    /// The image as the container names it.
    pub image: String,
}

/// Who may use a pulled image (`ImagePulledRecord`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PulledRecord {
    kind: String,
    api_version: String,
    /// The time of the last change, as RFC 3339 in seconds.
    pub last_updated_time: Option<String>,
    /// The image's id: the digest of its configuration.
    pub image_ref: String,
    /// The credentials by the image's name without tag and digest.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub credential_mapping: BTreeMap<String, PullCredentials>,
}

/// Credentials with which an image was pulled (`ImagePullCredentials`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PullCredentials {
    /// Secrets, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kubernetes_secrets: Vec<PullSecret>,
    /// ServiceAccounts whose tokens gave a credential, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kubernetes_service_accounts: Vec<PullServiceAccount>,
    /// Whether every pod of the node may use the image.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub node_pods_accessible: bool,
}

/// A Secret, and the hash of the credential that it held (`ImagePullSecret`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PullSecret {
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// SHA-256 of the credential, in hexadecimal digits.
    pub credential_hash: String,
}

/// A ServiceAccount (`ImagePullServiceAccount`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PullServiceAccount {
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
}

impl PullIntent {
    /// An intent to pull an image.
    pub fn of(image: &str) -> PullIntent {
        PullIntent { kind: "ImagePullIntent".into(), api_version: API_VERSION.into(), image: image.into() }
    }

    /// Reads an intent; `None` for anything else.
    pub fn read(json: &[u8]) -> Option<PullIntent> {
        let read: PullIntent = serde_json::from_slice(json).ok()?;
        (read.kind == "ImagePullIntent" && is_known(&read.api_version)).then_some(read)
    }
}

impl PulledRecord {
    /// Reads a record; `None` for anything else. A record of an older version becomes one of this version.
    pub fn read(json: &[u8]) -> Option<PulledRecord> {
        let read: PulledRecord = serde_json::from_slice(json).ok()?;
        (read.kind == "ImagePulledRecord" && is_known(&read.api_version))
            .then(|| PulledRecord { api_version: API_VERSION.into(), ..read })
    }

    /// The record of an image that was pulled with these credentials; `None`: with credentials that nobody knows.
    pub fn new(
        image_ref: &str,
        repository: &str,
        credentials: Option<&PullCredentials>,
        at: &str,
    ) -> PulledRecord {
        let mapping = credentials.map(|c| (repository.to_owned(), c.clone()));
        PulledRecord {
            kind: "ImagePulledRecord".into(),
            api_version: API_VERSION.into(),
            last_updated_time: Some(at.to_owned()),
            image_ref: image_ref.to_owned(),
            credential_mapping: mapping.into_iter().collect(),
        }
    }

    /// The record with further credentials; `None` where they change nothing.
    pub fn with(&self, repository: &str, credentials: &PullCredentials, at: &str) -> Option<PulledRecord> {
        if *credentials == PullCredentials::default() {
            return None;
        }
        let mut record = self.clone();
        let known = record.credential_mapping.entry(repository.to_owned());
        let is_new = matches!(known, std::collections::btree_map::Entry::Vacant(_));
        let known = known.or_insert_with(|| credentials.clone());
        if !is_new && !known.merge(credentials) {
            return None;
        }
        record.last_updated_time = Some(at.to_owned());
        Some(record)
    }
}

impl PullCredentials {
    /// The credentials as they are recorded after a pull with this one; `None`: without any.
    pub fn of(used: Option<&Sourced>) -> PullCredentials {
        match used.and_then(|used| Some((used, used.source.as_ref()?))) {
            None => PullCredentials { node_pods_accessible: true, ..PullCredentials::default() },
            Some((used, CredentialSource::Secret(secret))) => PullCredentials {
                kubernetes_secrets: vec![PullSecret::of(used, secret)],
                ..PullCredentials::default()
            },
            Some((_, CredentialSource::ServiceAccount(account))) => PullCredentials {
                kubernetes_service_accounts: vec![PullServiceAccount::of(account)],
                ..PullCredentials::default()
            },
        }
    }

    /// Adds others; whether that changed anything.
    fn merge(&mut self, new: &PullCredentials) -> bool {
        if self.node_pods_accessible {
            return false;
        }
        let before = self.clone();
        if new.node_pods_accessible {
            *self = PullCredentials { node_pods_accessible: true, ..PullCredentials::default() };
        } else if !new.kubernetes_secrets.is_empty() {
            for secret in &new.kubernetes_secrets {
                match self.kubernetes_secrets.iter_mut().find(|s| s.is_same_object(secret)) {
                    Some(known) => known.credential_hash.clone_from(&secret.credential_hash),
                    None => self.kubernetes_secrets.push(secret.clone()),
                }
            }
            if *self != before {
                let order = |s: &PullSecret| (s.namespace.clone(), s.name.clone(), s.uid.clone());
                self.kubernetes_secrets.sort_by_key(order);
            }
        } else {
            for account in &new.kubernetes_service_accounts {
                if !self.kubernetes_service_accounts.contains(account) {
                    self.kubernetes_service_accounts.push(account.clone());
                }
            }
            if *self != before {
                let order = |a: &PullServiceAccount| (a.namespace.clone(), a.name.clone(), a.uid.clone());
                self.kubernetes_service_accounts.sort_by_key(order);
            }
        }
        *self != before
    }
}

impl PullSecret {
    fn of(used: &Sourced, secret: &ObjectCoordinates) -> PullSecret {
        let ObjectCoordinates { uid, namespace, name } = secret.clone();
        PullSecret { uid, namespace, name, credential_hash: used.credential.hash() }
    }

    fn is_same_object(&self, other: &PullSecret) -> bool {
        (&self.uid, &self.namespace, &self.name) == (&other.uid, &other.namespace, &other.name)
    }
}

impl PullServiceAccount {
    fn of(account: &ObjectCoordinates) -> PullServiceAccount {
        let ObjectCoordinates { uid, namespace, name } = account.clone();
        PullServiceAccount { uid, namespace, name }
    }
}

/// Which present images serve a pod only after a look at the pod's credentials
/// (`imagePullCredentialsVerificationPolicy`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum VerificationPolicy {
    /// No image: every present one serves every pod.
    NeverVerify,
    /// Images that were pulled for pods.
    #[default]
    NeverVerifyPreloadedImages,
    /// All images but those of the list (`preloadedImagesVerificationAllowlist`): repositories, and prefixes that end in `/*`.
    NeverVerifyAllowlistedImages(Vec<String>),
    /// All images.
    AlwaysVerify,
}

impl VerificationPolicy {
    /// The name of the policy in the kubelet's configuration.
    pub fn name(&self) -> &'static str {
        match self {
            VerificationPolicy::NeverVerify => "NeverVerify",
            VerificationPolicy::NeverVerifyPreloadedImages => "NeverVerifyPreloadedImages",
            VerificationPolicy::NeverVerifyAllowlistedImages(_) => "NeverVerifyAllowlistedImages",
            VerificationPolicy::AlwaysVerify => "AlwaysVerify",
        }
    }

    /// Reads the policy and its list.
    ///
    /// # Errors
    /// The fault in the kubelet's words.
    pub fn parse(name: &str, list: &[String]) -> Result<VerificationPolicy, String> {
        let policy = match name {
            "NeverVerify" => VerificationPolicy::NeverVerify,
            "NeverVerifyPreloadedImages" => VerificationPolicy::NeverVerifyPreloadedImages,
            "NeverVerifyAllowlistedImages" => VerificationPolicy::NeverVerifyAllowlistedImages(list.to_vec()),
            "AlwaysVerify" => VerificationPolicy::AlwaysVerify,
            _ => {
                return Err(format!(
                    "invalid configuration: option {name:?} specified for imagePullCredentialsVerificationPolicy. Valid \
                     options are \"NeverVerify\", \"NeverVerifyPreloadedImages\", \"NeverVerifyAllowlistedImages\" or \
                     \"AlwaysVerify\""
                ));
            }
        };
        if !list.is_empty() && !matches!(policy, VerificationPolicy::NeverVerifyAllowlistedImages(_)) {
            return Err("invalid configuration: can't set `preloadedImagesVerificationAllowlist` if \
                        `imagePullCredentialsVertificationPolicy` is not \"NeverVerifyAllowlistedImages\""
                .to_owned());
        }
        match list.iter().find_map(|pattern| pattern_fault(pattern)) {
            Some(fault) => Err(format!(
                "invalid configuration: invalid image pattern in `preloadedImagesVerificationAllowlist`: {fault}"
            )),
            None => Ok(policy),
        }
    }

    fn verifies(&self, repository: &str, was_pulled: bool) -> bool {
        match self {
            VerificationPolicy::NeverVerify => false,
            VerificationPolicy::NeverVerifyPreloadedImages => was_pulled,
            VerificationPolicy::NeverVerifyAllowlistedImages(list) => {
                !list.iter().any(|pattern| match pattern.strip_suffix('*') {
                    Some(prefix) => repository.starts_with(prefix),
                    None => repository == pattern,
                })
            }
            VerificationPolicy::AlwaysVerify => true,
        }
    }

    /// Whether a present image serves a pod as far as its records tell. `was_pulled`: a record of its pull, or of an
    /// intent, is there. `mapping`: the record's credentials of this repository.
    pub fn decide(&self, repository: &str, was_pulled: bool, mapping: Option<&PullCredentials>) -> Access {
        if !self.verifies(repository, was_pulled) {
            return Access::Granted;
        }
        match mapping {
            Some(known) if known.node_pods_accessible => Access::Granted,
            Some(known) if *known != PullCredentials::default() => Access::AskPod,
            _ => Access::MustPull,
        }
    }
}

/// Whether a present image serves a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// It does.
    Granted,
    /// The pod's own credentials decide ([`PullCredentials::grants`]).
    AskPod,
    /// The pod has to pull it.
    MustPull,
}

/// What the credentials of a pod are in the light of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match {
    /// One of them is recorded.
    Found,
    /// One of them is recorded under other coordinates or with another hash: the record takes it too.
    Changed(PullCredentials),
    /// None is recorded.
    None,
}

impl PullCredentials {
    /// Whether one of a pod's credentials is recorded here.
    pub fn grants(&self, pod: &[Sourced]) -> Match {
        for used in pod {
            let Some(CredentialSource::Secret(secret)) = &used.source else { continue };
            let secret = PullSecret::of(used, secret);
            for known in &self.kubernetes_secrets {
                let same_hash =
                    !known.credential_hash.is_empty() && known.credential_hash == secret.credential_hash;
                let same_object = known.is_same_object(&secret);
                let room = self.kubernetes_secrets.len() < MOST_SECRETS;
                match (same_hash, same_object) {
                    (true, true) => return Match::Found,
                    (true, false) if !room => return Match::Found,
                    (true, false) => {}
                    (false, true) if room => {}
                    (false, _) => continue,
                }
                let kubernetes_secrets = vec![secret];
                return Match::Changed(PullCredentials { kubernetes_secrets, ..PullCredentials::default() });
            }
        }
        // The kubelet takes the pod's first ServiceAccount alone.
        let account = pod.iter().find_map(|used| match &used.source {
            Some(CredentialSource::ServiceAccount(account)) => Some(PullServiceAccount::of(account)),
            _ => None,
        });
        match account.is_some_and(|account| self.kubernetes_service_accounts.contains(&account)) {
            true => Match::Found,
            false => Match::None,
        }
    }
}

/// The fault of an entry of the list of preloaded images.
fn pattern_fault(pattern: &str) -> Option<String> {
    if pattern != pattern.trim() {
        return Some(format!("leading/trailing spaces are not allowed: {pattern}"));
    }
    let prefix = pattern.strip_suffix("/*");
    let rest = if prefix.is_some() { pattern.strip_suffix('*').unwrap_or(pattern) } else { pattern };
    if rest.is_empty() {
        return Some(format!("the supplied pattern is too short: {pattern}"));
    }
    if rest.contains('*') {
        return Some(format!(
            "not a valid wildcard pattern, only patterns ending with '/*' are allowed: {pattern}"
        ));
    }
    if prefix.is_some() {
        return (rest.len() == 1).then(|| "at least registry hostname is required".to_owned());
    }
    (repository_of(rest) != rest)
        .then(|| format!("neither tag nor digest is accepted in an image reference: {pattern}"))
}

/// An image's name, as a container has it, without tag and digest.
pub fn repository_of(image: &str) -> &str {
    let name = image.split_once('@').map_or(image, |(name, _)| name);
    let last = name.rfind('/').map_or(0, |slash| slash + 1);
    let colon = name.get(last..).and_then(|part| part.find(':'));
    colon.and_then(|at| name.get(..last + at)).unwrap_or(name)
}

/// The name of the file of a record about this image.
pub fn file_name(image: &str) -> String {
    let digest = Sha256::digest(image.as_bytes());
    digest.iter().fold("sha256-".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

/// Whether a file of this name is a finished record.
pub fn is_file_name(name: &str) -> bool {
    name.starts_with("sha256-") && !name.ends_with(".tmp")
}

fn is_known(api_version: &str) -> bool {
    [API_VERSION, OLD_API_VERSION].contains(&api_version)
}

#[cfg(test)]
mod tests;
