//! Identities of pods, containers, volumes and nodes. Each is a type of its own, so that a pod's UID never
//! stands where a container id belongs.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{fmt, str::FromStr, sync::Arc};

/// Error: a text is no valid identity of the expected kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {text:?} {reason}")]
pub struct IdError {
    /// The expected kind of identity.
    pub kind: &'static str,
    /// The invalid text, cut to 80 characters.
    pub text: String,
    /// The rule that the text breaks.
    pub reason: &'static str,
}

fn reject(kind: &'static str, text: &str, reason: &'static str) -> IdError {
    IdError { kind, text: text.chars().take(80).collect(), reason }
}

fn is_label_char(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'
}

/// RFC 1123 label: lower-case letters, digits and `-`, at most 63, alphanumeric at both ends.
fn check_label(kind: &'static str, s: &str) -> Result<(), IdError> {
    if s.is_empty() {
        return Err(reject(kind, s, "is empty"));
    }
    if s.len() > 63 {
        return Err(reject(kind, s, "is longer than 63 characters"));
    }
    if !s.bytes().all(is_label_char) {
        return Err(reject(kind, s, "may hold only lower-case letters, digits and '-'"));
    }
    if s.starts_with('-') || s.ends_with('-') {
        return Err(reject(kind, s, "must start and end with a letter or digit"));
    }
    Ok(())
}

/// RFC 1123 subdomain: labels joined by dots, at most 253 characters in all.
fn check_subdomain(kind: &'static str, s: &str) -> Result<(), IdError> {
    if s.is_empty() {
        return Err(reject(kind, s, "is empty"));
    }
    if s.len() > 253 {
        return Err(reject(kind, s, "is longer than 253 characters"));
    }
    for part in s.split('.') {
        if part.is_empty() || !part.bytes().all(is_label_char) {
            return Err(reject(kind, s, "must be lower-case letters, digits, '-' and single dots"));
        }
        if part.starts_with('-') || part.ends_with('-') {
            return Err(reject(kind, s, "has a part that does not start and end with a letter or digit"));
        }
    }
    Ok(())
}

/// Checks a UID, which becomes a path component and a cgroup name: no separators, and no dot at the start.
fn check_uid(kind: &'static str, s: &str) -> Result<(), IdError> {
    if s.is_empty() || s.len() > 128 {
        return Err(reject(kind, s, "must have 1 to 128 characters"));
    }
    if !s.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
        return Err(reject(kind, s, "may hold only letters, digits, '-' and '_'"));
    }
    Ok(())
}

fn check_hex64(kind: &'static str, s: &str) -> Result<(), IdError> {
    if s.len() != 64 || !s.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
        return Err(reject(kind, s, "must be 64 lower-case hexadecimal digits"));
    }
    Ok(())
}

fn check_boot_id(kind: &'static str, s: &str) -> Result<(), IdError> {
    if s.is_empty() || s.len() > 64 || !s.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        return Err(reject(kind, s, "must be 1 to 64 letters, digits and '-'"));
    }
    Ok(())
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $check:path) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Parses and checks the text.
            pub fn new(text: impl Into<String>) -> Result<Self, IdError> {
                let text = text.into();
                $check($kind, &text)?;
                Ok(Self(text.into()))
            }

            /// The identity as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(s: &str) -> Result<Self, IdError> {
                Self::new(s)
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(s: String) -> Result<Self, IdError> {
                Self::new(s)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0.as_ref().to_owned()
            }
        }
    };
}

text_id!(
    /// A pod's UID (`metadata.uid`), unique for one life of a pod. Safe as a path component and cgroup name.
    PodUid, "pod UID", check_uid
);
text_id!(
    /// A namespace name, an RFC 1123 label.
    Namespace, "namespace", check_label
);
text_id!(
    /// A pod's name, an RFC 1123 subdomain.
    PodName, "pod name", check_subdomain
);
text_id!(
    /// A container's name within its pod, an RFC 1123 label.
    ContainerName, "container name", check_label
);
text_id!(
    /// A volume's name within its pod, an RFC 1123 label.
    VolumeName, "volume name", check_label
);
text_id!(
    /// The node's name, an RFC 1123 subdomain.
    NodeName, "node name", check_subdomain
);
text_id!(
    /// The id of one boot of the machine (`/proc/sys/kernel/random/boot_id`). After another boot, no process,
    /// network namespace or tmpfs of the earlier one is left.
    BootId, "boot id", check_boot_id
);
text_id!(
    /// The containerd id of one attempt of one container: 64 hexadecimal digits.
    ContainerId, "container id", check_hex64
);

/// Number of a pod's sandbox, counted from 0. A pod gets a new sandbox after a reboot and after the loss of
/// the old one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
pub struct SandboxAttempt(pub u32);

/// Number of a container's run, counted from 0 over all sandboxes. The number equals the `restartCount` of
/// that run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
pub struct Attempt(pub u32);

impl Attempt {
    /// The run after this one.
    pub fn next(self) -> Attempt {
        Attempt(self.0.saturating_add(1))
    }
}

impl fmt::Display for SandboxAttempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl ContainerId {
    /// Derives the id of one attempt from its identity. A second try to create the attempt therefore meets
    /// the container of the first, and `AlreadyExists` means to adopt that container.
    pub fn derive(
        pod: &PodUid,
        sandbox_attempt: SandboxAttempt,
        container: &ContainerName,
        attempt: Attempt,
    ) -> Self {
        let mut hash = Sha256::new();
        hash.update(pod.as_str());
        hash.update([0]);
        hash.update(sandbox_attempt.0.to_be_bytes());
        hash.update(container.as_str());
        hash.update([0]);
        hash.update(attempt.0.to_be_bytes());
        const HEX: &[u8; 16] = b"0123456789abcdef";
        let digit = |nibble: u8| char::from(HEX[usize::from(nibble & 15)]);
        let text: String = hash.finalize().iter().flat_map(|b| [digit(b >> 4), digit(*b)]).collect();
        Self(text.into())
    }

    /// The first 13 characters, the length that container tools print.
    pub fn short(&self) -> &str {
        self.0.get(..13).unwrap_or(&self.0)
    }
}

/// Namespace and name of a pod. Unlike the [`PodUid`], a later pod may have the same key.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PodKey {
    /// The namespace.
    pub namespace: Namespace,
    /// The name within the namespace.
    pub name: PodName,
}

impl fmt::Display for PodKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Debug for PodKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_subdomains_follow_rfc_1123() {
        for good in ["a", "web-0", "a1", &"x".repeat(63)] {
            assert!(Namespace::new(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a_b", "a.b", &"x".repeat(64), "a/b", "ä"] {
            assert!(Namespace::new(bad).is_err(), "{bad}");
        }
        assert!(PodName::new("a.b-c.d").is_ok());
        for bad in ["a..b", ".a", "a.", "a.-b", "../x"] {
            assert!(PodName::new(bad).is_err(), "{bad}");
        }
        assert!(PodUid::new("../../etc").is_err());
    }

    #[test]
    fn container_ids_differ_in_every_part() {
        let uid = PodUid::new("u1").unwrap();
        let name = ContainerName::new("c").unwrap();
        let base = ContainerId::derive(&uid, SandboxAttempt(0), &name, Attempt(0));
        assert_eq!(base, ContainerId::derive(&uid, SandboxAttempt(0), &name, Attempt(0)));
        assert!(ContainerId::new(base.as_str()).is_ok());
        assert_ne!(base, ContainerId::derive(&uid, SandboxAttempt(1), &name, Attempt(0)));
        assert_ne!(base, ContainerId::derive(&uid, SandboxAttempt(0), &name, Attempt(1)));
        assert_ne!(
            base,
            ContainerId::derive(&PodUid::new("u2").unwrap(), SandboxAttempt(0), &name, Attempt(0))
        );
    }

    #[test]
    fn deserialising_checks() {
        assert!(serde_json::from_str::<Namespace>("\"Bad\"").is_err());
        assert_eq!(serde_json::from_str::<Namespace>("\"ok\"").unwrap().as_str(), "ok");
    }
}
