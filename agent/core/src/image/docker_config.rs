//! Docker's configuration with credentials, in its two forms: `config.json` with a map `auths`, and the older
//! `.dockercfg`, which is that map itself. Read as Kubernetes reads them (`pkg/credentialprovider/config.go`).

use super::Credential;
use crate::image::Hidden;
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD},
};
use serde::Deserialize;
use std::collections::BTreeMap;

/// Credentials by the place that they are for: a host with an optional port, scheme and path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DockerConfig {
    /// The entries.
    pub entries: BTreeMap<String, Credential>,
}

/// Why a configuration cannot be read. It names no part of the content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DockerConfigError {
    /// The text is no JSON of this form.
    #[error("it is no JSON of a docker configuration")]
    Json,
    /// A field `auth` is not base64 of `name:password`.
    #[error("a field auth is not base64 of name:password")]
    Auth,
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    auths: Option<BTreeMap<String, Entry>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    username: Option<String>,
    password: Option<String>,
    auth: Option<String>,
    email: Option<String>,
    identitytoken: Option<String>,
}

impl DockerConfig {
    /// Reads a `config.json`.
    ///
    /// # Errors
    /// The text has another form.
    pub fn from_config_json(json: &[u8]) -> Result<DockerConfig, DockerConfigError> {
        let file: File = serde_json::from_slice(json).map_err(|_content| DockerConfigError::Json)?;
        DockerConfig::of(file.auths.unwrap_or_default())
    }

    /// Reads a `.dockercfg`.
    ///
    /// # Errors
    /// The text has another form.
    pub fn from_dockercfg(json: &[u8]) -> Result<DockerConfig, DockerConfigError> {
        let entries: Option<BTreeMap<String, Entry>> =
            serde_json::from_slice(json).map_err(|_content| DockerConfigError::Json)?;
        DockerConfig::of(entries.unwrap_or_default())
    }

    fn of(entries: BTreeMap<String, Entry>) -> Result<DockerConfig, DockerConfigError> {
        let read = |(place, entry): (String, Entry)| Ok((place, entry.credential()?));
        Ok(DockerConfig { entries: entries.into_iter().map(read).collect::<Result<_, _>>()? })
    }
}

impl Entry {
    /// The credential. A field `auth` wins over name and password.
    fn credential(self) -> Result<Credential, DockerConfigError> {
        let mut credential =
            Credential::basic(self.username.unwrap_or_default(), self.password.unwrap_or_default());
        credential.email = self.email.unwrap_or_default();
        credential.identity_token = Hidden::new(self.identitytoken.unwrap_or_default());
        let auth = self.auth.unwrap_or_default();
        if !auth.is_empty() {
            let (username, password) = decode(&auth).ok_or(DockerConfigError::Auth)?;
            credential.username = username;
            credential.password = Hidden::new(password);
        }
        Ok(credential)
    }
}

/// Name and password of a field `auth`, with or without padding. Go's decoder passes over line ends.
fn decode(auth: &str) -> Option<(String, String)> {
    let text: String = auth.chars().filter(|c| !matches!(c, '\n' | '\r')).collect();
    let padded = auth.trim().ends_with('=');
    let bytes = if padded { STANDARD.decode(&text) } else { STANDARD_NO_PAD.decode(&text) }.ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let (username, password) = text.split_once(':')?;
    Some((username.to_owned(), password.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read() {
        let auths =
            r#"{"a.io":{"username":"u","password":"p","email":"e"},"b.io":{"auth":"bmFtZTpzOmVjcmV0"}}"#;
        let file = format!(r#"{{"auths":{auths},"HttpHeaders":{{"A":"b"}},"credsStore":"x"}}"#);
        let config = DockerConfig::from_config_json(file.as_bytes()).unwrap();
        assert_eq!(config, DockerConfig::from_dockercfg(auths.as_bytes()).unwrap());
        let with_email = Credential { email: "e".into(), ..Credential::basic("u", "p") };
        assert_eq!(config.entries["a.io"], with_email);
        assert_eq!(config.entries["b.io"], Credential::basic("name", "s:ecret"), "the first colon divides");
        let both = r#"{"auths":{"a":{"username":"x","password":"y","auth":"dTpw"}}}"#;
        let config = DockerConfig::from_config_json(both.as_bytes()).unwrap();
        assert_eq!(config.entries["a"], Credential::basic("u", "p"), "auth wins");
        for empty in ["{}", r#"{"auths":null}"#, r#"{"auths":{}}"#] {
            assert!(DockerConfig::from_config_json(empty.as_bytes()).unwrap().entries.is_empty());
        }
    }

    #[test]
    fn auth_is_read_with_and_without_padding() {
        for (auth, wanted) in [
            ("dXNlcjpwYQ==", Some(("user", "pa"))),
            ("dXNlcjpwYQ", Some(("user", "pa"))),
            ("dXNlcjpwYXNz", Some(("user", "pass"))),
            ("dXNlcjo=", Some(("user", ""))),
            ("dXNlcg==", None),
            ("%%", None),
            ("dXNlcjpwYQ=", None),
        ] {
            let read = decode(auth);
            assert_eq!(read.as_ref().map(|(u, p)| (u.as_str(), p.as_str())), wanted, "{auth}");
        }
    }

    #[test]
    fn an_error_tells_nothing_of_the_content() {
        for bad in [r#"{"auths":{"a":{"auth":"c2VjcmV0"}}}"#, r#"{"auths":"secret"}"#, "secret"] {
            let error = DockerConfig::from_config_json(bad.as_bytes()).unwrap_err();
            assert!(!error.to_string().contains("secret") && !error.to_string().contains("c2Vj"), "{error}");
        }
    }
}
