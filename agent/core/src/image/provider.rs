//! Credential provider plugins as data: their configuration, the request and the answer of one, and the keys under which
//! answers are kept. Pure. The rules are the kubelet's (`pkg/credentialprovider/plugin`).

mod config;

pub use config::{
    EnvVar, Provider, ProviderConfig, TokenAttributes, TokenCacheType, check, merge, read_config_kind,
};

use super::{Credential, DockerConfig, Hidden};
use crate::time::parse_go_duration;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{collections::BTreeMap, time::Duration};

/// The pod for which credentials are wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PullPod {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
    /// `spec.serviceAccountName`; empty for a pod that has none.
    pub service_account: String,
}

/// The request to a plugin (`CredentialProviderRequest`), as JSON.
pub fn request(
    api_version: &str,
    image: &str,
    token: Option<&Hidden>,
    annotations: &BTreeMap<String, String>,
) -> Hidden {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Request<'r> {
        kind: &'r str,
        api_version: &'r str,
        image: &'r str,
        #[serde(skip_serializing_if = "str::is_empty")]
        service_account_token: &'r str,
        #[serde(skip_serializing_if = "BTreeMap::is_empty")]
        service_account_annotations: &'r BTreeMap<String, String>,
    }
    let request = Request {
        kind: "CredentialProviderRequest",
        api_version,
        image,
        service_account_token: token.map(Hidden::reveal).unwrap_or_default(),
        service_account_annotations: annotations,
    };
    // A struct of texts has always a JSON.
    Hidden::new(serde_json::to_string(&request).unwrap_or_default() + "\n")
}

/// What a plugin's answer is kept under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheKeyType {
    /// The image.
    Image,
    /// The image's registry.
    Registry,
    /// The plugin.
    Global,
}

/// The answer of a plugin (`CredentialProviderResponse`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// What the answer is kept under.
    pub cache_key_type: CacheKeyType,
    /// For how long; `None`: for the configured time.
    pub cache_duration: Option<Duration>,
    /// The credentials.
    pub auth: DockerConfig,
}

#[derive(Deserialize)]
struct Head {
    #[serde(default)]
    kind: String,
    #[serde(default, rename = "apiVersion")]
    api_version: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Answer {
    #[serde(rename = "kind")]
    _kind: String,
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(default)]
    cache_key_type: String,
    cache_duration: Option<String>,
    auth: Option<BTreeMap<String, Auth>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Auth {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
}

/// Reads the answer of a plugin.
///
/// # Errors
/// The fault in the kubelet's words, which hold nothing of the answer's credentials.
pub fn response(api_version: &str, json: &[u8]) -> Result<Response, String> {
    let head: Head = serde_json::from_slice(json).map_err(|_content| {
        "error reading GVK from response: couldn't get version/kind; json parse error".to_owned()
    })?;
    if head.api_version != api_version {
        return Err(format!(
            "apiVersion from credential plugin response did not match expected apiVersion:{api_version}, actual \
             apiVersion:{}",
            head.api_version
        ));
    }
    let undecoded = || "error decoding credential provider plugin response from stdout".to_owned();
    if head.kind != "CredentialProviderResponse" {
        return Err(undecoded());
    }
    let answer: Answer = serde_json::from_slice(json).map_err(|_content| undecoded())?;
    let cache_duration = match answer.cache_duration {
        // A negative one ends at once.
        Some(text) => {
            let (text, ended) = text.strip_prefix('-').map_or((text.as_str(), false), |rest| (rest, true));
            let time = parse_go_duration(text).ok_or_else(undecoded)?;
            Some(if ended { Duration::ZERO } else { time })
        }
        None => None,
    };
    let cache_key_type = match answer.cache_key_type.as_str() {
        "Image" => CacheKeyType::Image,
        "Registry" => CacheKeyType::Registry,
        "Global" => CacheKeyType::Global,
        other => {
            return Err(format!("credential provider plugin did not return a valid cacheKeyType: {other}"));
        }
    };
    let entry = |(place, auth): (String, Auth)| (place, Credential::basic(auth.username, auth.password));
    let entries = answer.auth.unwrap_or_default().into_iter().map(entry).collect();
    Ok(Response { cache_key_type, cache_duration, auth: DockerConfig { entries } })
}

/// The key of an answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CacheKey {
    /// The image, its registry, or nothing for the plugin as a whole.
    base: Option<String>,
    account: Option<AccountKey>,
}

/// The part of a key that is of the pod's ServiceAccount.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AccountKey {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
    /// The annotations that the plugin gets.
    pub annotations: BTreeMap<String, String>,
    /// The hash of the token, where each token has an answer of its own.
    pub token: Option<String>,
}

impl CacheKey {
    /// The key of an answer of this type.
    pub fn of(kind: CacheKeyType, image: &str, account: Option<&AccountKey>) -> CacheKey {
        let base = match kind {
            CacheKeyType::Image => Some(image.to_owned()),
            CacheKeyType::Registry => Some(registry(image).to_owned()),
            CacheKeyType::Global => None,
        };
        CacheKey { base, account: account.cloned() }
    }

    /// The keys under which an answer may be, in the order of the look-up.
    pub fn all(image: &str, account: Option<&AccountKey>) -> [CacheKey; 3] {
        [CacheKeyType::Image, CacheKeyType::Registry, CacheKeyType::Global]
            .map(|kind| CacheKey::of(kind, image, account))
    }
}

/// The host and port of an image's registry.
fn registry(image: &str) -> &str {
    image.split('/').next().unwrap_or_default()
}

/// The hash of a token, for keys.
pub fn token_hash(token: &Hidden) -> String {
    Sha256::digest(token.reveal()).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "credentialprovider.kubelet.k8s.io/v1";

    fn answer(rest: &str) -> String {
        format!(r#"{{"kind":"CredentialProviderResponse","apiVersion":"{V1}",{rest}}}"#)
    }

    #[test]
    fn the_request_is_the_kubelets() {
        let plain = request(V1, "a.test/x", None, &BTreeMap::new());
        let wanted =
            format!(r#"{{"kind":"CredentialProviderRequest","apiVersion":"{V1}","image":"a.test/x"}}"#);
        assert_eq!(plain.reveal(), wanted + "\n");
        let annotations = [("a.test/role".to_owned(), "r".to_owned())].into();
        let token = Hidden::new("tok");
        let full = request(V1, "a.test/x", Some(&token), &annotations);
        let part = r#""serviceAccountToken":"tok","serviceAccountAnnotations":{"a.test/role":"r"}}"#;
        assert!(full.reveal().contains(part), "{}", full.reveal());
        assert!(!format!("{full:?}").contains("tok"));
    }

    #[test]
    fn an_answer_is_read_and_no_fault_tells_its_secrets() {
        let rest = r#""cacheKeyType":"Registry","cacheDuration":"5m","auth":{"*.a.test":{"username":"u","password":"geheim"}}"#;
        let read = response(V1, answer(rest).as_bytes()).unwrap();
        assert_eq!(
            (read.cache_key_type, read.cache_duration),
            (CacheKeyType::Registry, Some(Duration::from_secs(300)))
        );
        assert_eq!(read.auth.entries["*.a.test"], Credential::basic("u", "geheim"));
        let none = response(V1, answer(r#""cacheKeyType":"Global""#).as_bytes()).unwrap();
        assert_eq!((none.cache_duration, none.auth.entries.len()), (None, 0));
        for (text, why) in [
            ("geheim".to_owned(), "error reading GVK from response"),
            (
                answer(rest).replace("/v1", "/v2"),
                "did not match expected apiVersion:credentialprovider.kubelet.k8s.io/v1, actual apiVersion:credentialprovider.kubelet.k8s.io/v2",
            ),
            (
                answer(rest).replace("ProviderResponse", "Geheim"),
                "error decoding credential provider plugin response from stdout",
            ),
            (answer(&rest.replace("5m", "geheim")), "error decoding"),
            (answer(&rest.replace("\"u\"", "{}")), "error decoding"),
            (answer(&rest.replace("username", "user")), "error decoding"),
            (answer(&rest.replace("Registry", "Host")), "did not return a valid cacheKeyType: Host"),
            (answer(&rest.replace("\"Registry\"", "\"\"")), "did not return a valid cacheKeyType: "),
        ] {
            let fault = response(V1, text.as_bytes()).unwrap_err();
            assert!(fault.contains(why) && !fault.contains("geheim"), "{fault}");
        }
    }

    #[test]
    fn keys_tell_images_registries_and_accounts_apart() {
        let account = |token: Option<&str>| AccountKey {
            namespace: "ns".into(),
            name: "sa".into(),
            uid: "1".into(),
            annotations: BTreeMap::new(),
            token: token.map(str::to_owned),
        };
        let of = |kind, image: &str| CacheKey::of(kind, image, None);
        assert_eq!(of(CacheKeyType::Registry, "a.test:5000/x"), of(CacheKeyType::Registry, "a.test:5000/y"));
        assert_ne!(of(CacheKeyType::Image, "a.test/x"), of(CacheKeyType::Image, "a.test/y"));
        assert_eq!(of(CacheKeyType::Global, "a.test/x"), of(CacheKeyType::Global, "b.test/y"));
        let with = |token| CacheKey::of(CacheKeyType::Global, "a.test/x", Some(&account(token)));
        assert_ne!(with(None), of(CacheKeyType::Global, "a.test/x"));
        assert_ne!(with(Some("1")), with(Some("2")));
        assert_eq!(CacheKey::all("a.test/x", None)[1], of(CacheKeyType::Registry, "a.test/z"));
        assert_eq!(token_hash(&Hidden::new("t")).len(), 64);
    }
}
