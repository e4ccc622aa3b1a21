//! A credential for a registry. Its secret parts are never printed and never written.

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
    /// The identity token, for which the registry's token service gives an access token.
    pub identity_token: Hidden,
}

impl Credential {
    /// A name and its password.
    pub fn basic(username: impl Into<String>, password: impl Into<String>) -> Credential {
        Credential {
            username: username.into(),
            password: Hidden::new(password),
            identity_token: Hidden::default(),
        }
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
}
