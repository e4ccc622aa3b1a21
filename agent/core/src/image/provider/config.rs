//! The configuration of credential provider plugins (`CredentialProviderConfig`, `kubelet.config.k8s.io/v1`): its fields
//! and what makes one invalid.

use crate::{image::keyring, time::parse_go_duration};
use serde::{Deserialize, Deserializer};
use std::{collections::BTreeSet, time::Duration};

/// The versions of the plugins' interface.
const PLUGIN_VERSIONS: [&str; 3] = [
    "credentialprovider.kubelet.k8s.io/v1",
    "credentialprovider.kubelet.k8s.io/v1alpha1",
    "credentialprovider.kubelet.k8s.io/v1beta1",
];

/// A file of the configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProviderConfig {
    /// `CredentialProviderConfig`.
    pub kind: String,
    /// `kubelet.config.k8s.io/v1`, or an older version of it.
    pub api_version: String,
    /// The plugins.
    #[serde(default)]
    pub providers: Vec<Provider>,
}

/// A plugin.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Provider {
    /// The name of its program in the directory of plugins.
    pub name: String,
    /// The images for which it is asked; hosts may have globs.
    pub match_images: Vec<String>,
    /// How long its answers are kept where they do not say it.
    #[serde(deserialize_with = "duration")]
    pub default_cache_duration: Option<Duration>,
    /// The version of its interface.
    pub api_version: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// Further variables of its environment.
    pub env: Vec<EnvVar>,
    /// Which token of the pod's ServiceAccount it gets.
    pub token_attributes: Option<TokenAttributes>,
}

/// A variable of a plugin's environment.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EnvVar {
    /// Its name.
    pub name: String,
    /// Its value, which is never printed.
    pub value: String,
}

impl std::fmt::Debug for EnvVar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}=hidden", self.name)
    }
}

/// Which token a plugin gets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct TokenAttributes {
    /// The audience of the token.
    pub service_account_token_audience: String,
    /// `ServiceAccount` or `Token`: what an answer is kept for.
    pub cache_type: String,
    /// Whether the plugin is asked only for pods that have a ServiceAccount.
    pub require_service_account: Option<bool>,
    /// Annotations without which it is not asked.
    pub required_service_account_annotation_keys: Vec<String>,
    /// Annotations that it gets where they are there.
    pub optional_service_account_annotation_keys: Vec<String>,
}

/// What an answer is kept for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenCacheType {
    /// The ServiceAccount.
    ServiceAccount,
    /// The token.
    Token,
}

impl TokenAttributes {
    /// What an answer is kept for.
    pub fn cache(&self) -> TokenCacheType {
        if self.cache_type == "Token" { TokenCacheType::Token } else { TokenCacheType::ServiceAccount }
    }
}

impl Provider {
    /// Whether the plugin is asked for an image.
    pub fn is_for(&self, image: &str) -> bool {
        self.match_images.iter().any(|place| keyring::matches(place, image))
    }
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
    let fault = || serde::de::Error::custom(format!("time: invalid duration {text:?}"));
    parse_go_duration(&text).map(Some).ok_or_else(fault)
}

/// Checks that a file is one of this configuration.
///
/// # Errors
/// The fault in the kubelet's words.
pub fn read_config_kind(config: &ProviderConfig) -> Result<(), String> {
    if config.kind != "CredentialProviderConfig" {
        return Err(format!("failed to decode {:?} (wrong Kind)", config.kind));
    }
    let (group, version) = config.api_version.split_once('/').unwrap_or(("", &config.api_version));
    if group != "kubelet.config.k8s.io" {
        return Err(format!("failed to decode CredentialProviderConfig, unexpected Group: {group}"));
    }
    if !["v1", "v1beta1", "v1alpha1"].contains(&version) {
        return Err(format!(
            "no kind \"CredentialProviderConfig\" is registered for version {:?}",
            config.api_version
        ));
    }
    Ok(())
}

/// The plugins of all files together.
///
/// # Errors
/// Two have one name.
pub fn merge(files: impl IntoIterator<Item = ProviderConfig>) -> Result<Vec<Provider>, String> {
    let (mut all, mut names) = (Vec::new(), BTreeSet::new());
    for provider in files.into_iter().flat_map(|file| file.providers) {
        if !names.insert(provider.name.clone()) {
            return Err(format!(
                "duplicate provider name {:?} found in configuration file(s)",
                provider.name
            ));
        }
        all.push(provider);
    }
    Ok(all)
}

/// Checks the plugins.
///
/// # Errors
/// All faults in the kubelet's words.
pub fn check(providers: &[Provider]) -> Result<(), String> {
    let mut faults = Vec::new();
    if providers.is_empty() {
        faults.push("providers: Required value: at least 1 item in plugins is required".to_owned());
    }
    for provider in providers {
        faults_of(provider, &mut faults);
    }
    match faults.as_slice() {
        [] => Ok(()),
        [one] => Err(format!("failed to validate credential provider config: {one}")),
        all => Err(format!("failed to validate credential provider config: [{}]", all.join(", "))),
    }
}

fn faults_of(provider: &Provider, faults: &mut Vec<String>) {
    let Provider { name, .. } = provider;
    let mut invalid = |field: &str, value: &str, why: &str| {
        faults.push(format!("providers.{field}: Invalid value: {value:?}: {why}"));
    };
    if name.contains('/') {
        invalid("name", name, "provider name cannot contain '/'");
    }
    if name.contains(' ') {
        invalid("name", name, "provider name cannot contain spaces");
    }
    if name == "." {
        invalid("name", name, "provider name cannot be '.'");
    }
    if name == ".." {
        invalid("name", name, "provider name cannot be '..'");
    }
    for place in provider.match_images.iter().filter(|place| !keyring::is_place(place)) {
        invalid("matchImages", place, "match image is invalid");
    }
    if provider.api_version.is_empty() {
        faults.push("providers.apiVersion: Required value".to_owned());
    } else if !PLUGIN_VERSIONS.contains(&provider.api_version.as_str()) {
        let versions = PLUGIN_VERSIONS.map(|v| format!("{v:?}")).join(", ");
        let version = &provider.api_version;
        faults.push(format!(
            "providers.apiVersion: Unsupported value: {version:?}: supported values: {versions}"
        ));
    }
    if provider.match_images.is_empty() {
        faults.push(
            "providers.matchImages: Required value: at least 1 item in matchImages is required".to_owned(),
        );
    }
    if provider.default_cache_duration.is_none() {
        faults.push("providers.defaultCacheDuration: Required value".to_owned());
    }
    if let Some(token) = &provider.token_attributes {
        token_faults(token, &provider.api_version, faults);
    }
}

fn token_faults(token: &TokenAttributes, api_version: &str, faults: &mut Vec<String>) {
    let at = "providers.tokenAttributes";
    if token.service_account_token_audience.is_empty() {
        faults.push(format!("{at}.serviceAccountTokenAudience: Required value"));
    }
    if token.require_service_account.is_none() {
        faults.push(format!("{at}.requireServiceAccount: Required value"));
    }
    if api_version != PLUGIN_VERSIONS[0] {
        faults.push(format!(
            "{at}: Forbidden: tokenAttributes is only supported for {} API version",
            PLUGIN_VERSIONS[0]
        ));
    }
    let required = &token.required_service_account_annotation_keys;
    let optional = &token.optional_service_account_annotation_keys;
    if token.require_service_account == Some(false) && !required.is_empty() {
        faults.push(format!(
            "{at}.requiredServiceAccountAnnotationKeys: Forbidden: requireServiceAccount cannot be false when \
             requiredServiceAccountAnnotationKeys is set"
        ));
    }
    for (field, keys) in [
        ("requiredServiceAccountAnnotationKeys", required),
        ("optionalServiceAccountAnnotationKeys", optional),
    ] {
        let mut seen = BTreeSet::new();
        for key in keys {
            if !is_qualified_name(key) {
                faults.push(format!("{at}.{field}: Invalid value: {key:?}: must be a qualified name"));
            }
            if !seen.insert(key) {
                faults.push(format!("{at}.{field}: Duplicate value: {key:?}"));
            }
        }
    }
    let both: Vec<String> =
        required.iter().filter(|key| optional.contains(key)).map(|k| format!("{k:?}")).collect();
    if !both.is_empty() {
        faults.push(format!(
            "{at}: Invalid value: [{}]: annotation keys cannot be both required and optional",
            both.join(",")
        ));
    }
    match token.cache_type.as_str() {
        "ServiceAccount" | "Token" => {}
        "" => faults.push(format!(
            "{at}.cacheType: Required value: cacheType is required to be set when tokenAttributes is specified. Supported \
             values are: ServiceAccount, Token"
        )),
        other => faults.push(format!(
            "{at}.cacheType: Unsupported value: {other:?}: supported values: \"ServiceAccount\", \"Token\""
        )),
    }
}

/// Whether a text is the key of an annotation: an optional DNS subdomain and a name of at most 63 characters.
fn is_qualified_name(key: &str) -> bool {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    let ends = |text: &str| {
        let alphanumeric = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
        alphanumeric(text.as_bytes().first()) && alphanumeric(text.as_bytes().last())
    };
    let inner = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    let label = |text: &str| ends(text) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    name.len() <= 63
        && ends(name)
        && name.bytes().all(inner)
        && prefix.is_none_or(|prefix| prefix.len() <= 253 && prefix.split('.').all(label))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn provider() -> Provider {
        Provider {
            name: "p".into(),
            match_images: vec!["*.a.test".into()],
            default_cache_duration: Some(Duration::ZERO),
            api_version: PLUGIN_VERSIONS[0].into(),
            ..Provider::default()
        }
    }

    fn with_token(change: impl FnOnce(&mut TokenAttributes)) -> Provider {
        let mut token = TokenAttributes {
            service_account_token_audience: "aud".into(),
            cache_type: "Token".into(),
            require_service_account: Some(true),
            ..TokenAttributes::default()
        };
        change(&mut token);
        Provider { token_attributes: Some(token), ..provider() }
    }

    #[test]
    fn a_configuration_is_read() {
        let json = r#"{"kind":"CredentialProviderConfig","apiVersion":"kubelet.config.k8s.io/v1","providers":[{"name":"p",
            "matchImages":["*.a.test"],"defaultCacheDuration":"1h","apiVersion":"credentialprovider.kubelet.k8s.io/v1",
            "args":["x"],"env":[{"name":"N","value":"geheim"}],"tokenAttributes":{"serviceAccountTokenAudience":"aud",
            "cacheType":"ServiceAccount","requireServiceAccount":true}}]}"#;
        let read: ProviderConfig = serde_json::from_str(json).unwrap();
        assert_eq!(read_config_kind(&read), Ok(()));
        assert_eq!(check(&read.providers), Ok(()));
        assert_eq!(read.providers[0].default_cache_duration, Some(Duration::from_secs(3600)));
        assert!(!format!("{read:?}").contains("geheim"));
        assert!(read.providers[0].is_for("b.a.test/x") && !read.providers[0].is_for("a.test/x"));
        assert!(serde_json::from_str::<ProviderConfig>(&json.replace("\"args\"", "\"arg\"")).is_err());
        assert!(merge([read.clone(), read.clone()]).unwrap_err().contains("duplicate provider name \"p\""));
        for (field, value, why) in [
            ("kind", "Other", "failed to decode \"Other\" (wrong Kind)"),
            ("apiVersion", "v1", "unexpected Group: "),
            ("apiVersion", "kubelet.config.k8s.io/v2", "no kind \"CredentialProviderConfig\" is registered"),
        ] {
            let mut other = read.clone();
            if field == "kind" {
                other.kind = value.into()
            } else {
                other.api_version = value.into()
            }
            assert!(read_config_kind(&other).unwrap_err().contains(why));
        }
    }

    #[test]
    fn every_fault_is_named() {
        let base = provider;
        assert_eq!(check(&[base()]), Ok(()));
        assert_eq!(check(&[with_token(|_| {})]), Ok(()));
        for (bad, why) in [
            (Provider { name: "a/b".into(), ..base() }, "provider name cannot contain '/'"),
            (Provider { name: "a b".into(), ..base() }, "provider name cannot contain spaces"),
            (Provider { name: ".".into(), ..base() }, "cannot be '.'"),
            (Provider { name: "..".into(), ..base() }, "cannot be '..'"),
            (Provider { api_version: String::new(), ..base() }, "providers.apiVersion: Required value"),
            (Provider { api_version: "v9".into(), ..base() }, "Unsupported value: \"v9\""),
            (Provider { match_images: Vec::new(), ..base() }, "at least 1 item in matchImages"),
            (Provider { match_images: vec!["a b".into()], ..base() }, "match image is invalid"),
            (Provider { default_cache_duration: None, ..base() }, "defaultCacheDuration: Required"),
            (
                with_token(|t| t.service_account_token_audience.clear()),
                "serviceAccountTokenAudience: Required",
            ),
            (with_token(|t| t.require_service_account = None), "requireServiceAccount: Required"),
            (with_token(|t| t.cache_type.clear()), "cacheType is required to be set"),
            (with_token(|t| t.cache_type = "Pod".into()), "Unsupported value: \"Pod\""),
            (
                with_token(|t| {
                    t.require_service_account = Some(false);
                    t.required_service_account_annotation_keys = vec!["a".into()];
                }),
                "requireServiceAccount cannot be false",
            ),
            (
                with_token(|t| {
                    t.required_service_account_annotation_keys = vec!["a.test/b".into()];
                    t.optional_service_account_annotation_keys = vec!["a.test/b".into()];
                }),
                "cannot be both required and optional",
            ),
            (
                with_token(|t| t.optional_service_account_annotation_keys = vec!["a/b/c".into()]),
                "must be a qualified name",
            ),
            (
                with_token(|t| t.optional_service_account_annotation_keys = vec!["a".into(), "a".into()]),
                "Duplicate value",
            ),
        ] {
            let fault = check(&[bad]).unwrap_err();
            assert!(fault.contains(why), "{fault}");
        }
        assert!(check(&[]).unwrap_err().contains("at least 1 item in plugins is required"));
        let old = Provider { api_version: PLUGIN_VERSIONS[2].into(), ..with_token(|_| {}) };
        assert!(check(&[old]).unwrap_err().contains("only supported for"));
    }
}
