//! A credential for a registry. Its secret parts are never printed and never written.

use sha2::{Digest, Sha256};
use std::fmt;

/// A text that is never printed.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hidden(String);

impl Hidden {
    /// Hides a text.
    pub fn new(text: impl Into<String>) -> Hidden {
        Hidden(text.into())
    }

    /// The text itself, for the one who sends it.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Whether there is no text.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "none" } else { "hidden" })
    }
}

/// A credential for a registry: a name with a password, or an identity token.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Credential {
    /// The name; empty beside an identity token.
    pub username: String,
    /// The password of that name.
    pub password: Hidden,
    /// The address of mail that some configurations have; part of the hash alone.
    pub email: String,
    /// The identity token, for which the registry's token service gives an access token.
    pub identity_token: Hidden,
}

impl Credential {
    /// A name and its password.
    pub fn basic(username: impl Into<String>, password: impl Into<String>) -> Credential {
        Credential {
            username: username.into(),
            password: Hidden::new(password),
            email: String::new(),
            identity_token: Hidden::default(),
        }
    }

    /// SHA-256 of the credential in hexadecimal digits, as the kubelet has it in its records: of the JSON that Go writes
    /// of its `AuthConfig`.
    pub fn hash(&self) -> String {
        let fields = [
            ("username", self.username.as_str()),
            ("password", self.password.reveal()),
            ("email", &self.email),
            ("identitytoken", self.identity_token.reveal()),
        ];
        let fields = fields.iter().filter(|(_, value)| !value.is_empty());
        let fields: Vec<String> =
            fields.map(|(name, value)| format!("\"{name}\":{}", go_string(value))).collect();
        let digest = Sha256::digest(format!("{{{}}}", fields.join(",")));
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The name and the secret as containerd takes them: no name means that the secret is an identity token.
    pub fn parts(&self) -> (&str, &str) {
        if !self.identity_token.is_empty() && self.password.is_empty() {
            ("", self.identity_token.reveal())
        } else if self.username.is_empty() {
            // A password without a name is no credential: the registry is asked without one.
            ("", "")
        } else {
            (&self.username, self.password.reveal())
        }
    }
}

/// A text as Go writes it into JSON: fit for HTML.
fn go_string(text: &str) -> String {
    let mut json = serde_json::Value::from(text).to_string();
    for (sign, escaped) in [
        ('<', "\\u003c"),
        ('>', "\\u003e"),
        ('&', "\\u0026"),
        ('\u{2028}', "\\u2028"),
        ('\u{2029}', "\\u2029"),
    ] {
        json = json.replace(sign, escaped);
    }
    json
}

/// An object of the API from which a credential comes.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectCoordinates {
    /// `metadata.uid`; empty for an object of a manifest.
    pub uid: String,
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
}

/// Whose a credential is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CredentialSource {
    /// That of the pods that name this Secret.
    Secret(ObjectCoordinates),
    /// That of the pods of this ServiceAccount: a plugin gave it for its token.
    ServiceAccount(ObjectCoordinates),
}

/// A credential with its source; `None`: every pod of the node may use it.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sourced {
    /// The credential.
    pub credential: Credential,
    /// Whose it is.
    pub source: Option<CredentialSource>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_is_printed() {
        let credential =
            Credential { identity_token: Hidden::new("tok-1"), ..Credential::basic("me", "pass-1") };
        let text = format!("{credential:?} {credential:#?}");
        assert!(text.contains("me") && !text.contains("pass-1") && !text.contains("tok-1"), "{text}");
    }

    #[test]
    fn a_token_stands_for_a_name_only_without_a_password() {
        let token = |username: &str, password: &str| Credential {
            identity_token: Hidden::new("t"),
            ..Credential::basic(username, password)
        };
        assert_eq!(token("me", "").parts(), ("", "t"));
        assert_eq!(token("me", "p").parts(), ("me", "p"));
        assert_eq!(Credential::basic("", "p").parts(), ("", ""));
    }

    #[test]
    fn the_hash_is_that_of_gos_json() {
        // printf '{"username":"u","password":"a\\u003cb\\u0026c"}' | sha256sum
        let hash = Credential::basic("u", "a<b&c").hash();
        let mut wanted = Sha256::digest(br#"{"username":"u","password":"a\u003cb\u0026c"}"#).to_vec();
        assert_eq!(hash, wanted.iter().map(|b| format!("{b:02x}")).collect::<String>());
        wanted = Sha256::digest(b"{}").to_vec();
        assert_eq!(
            Credential::default().hash(),
            wanted.iter().map(|b| format!("{b:02x}")).collect::<String>()
        );
    }
}
