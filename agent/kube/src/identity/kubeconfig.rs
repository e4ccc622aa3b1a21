//! The kubeconfig file (`client-go/tools/clientcmd/api/v1`), restricted to the fields that an agent can use.
//! Functions over bytes; the files that a kubeconfig names are read by the parent module.
//!
//! A field that client-go would honour and this client does not support is an error with the field's name,
//! never ignored: a node that bypasses its proxy, or acts as another user, is worse than a node that does not
//! start. Unknown fields are ignored, as in client-go.

use crate::null::or_default;
use serde::Deserialize;
use std::collections::BTreeMap;

/// API versions of the exchange with a credential plugin. The newer version differs in nothing that is used here.
const VERSIONS: &[&str] = &["client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1"];

/// The reason why a kubeconfig cannot be used: the field and its error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct Wrong {
    /// Path of the field within the file; empty for the file as a whole.
    pub field: String,
    /// The error and its remedy.
    pub reason: String,
}

impl Wrong {
    pub(super) fn new(field: impl Into<String>, reason: impl Into<String>) -> Wrong {
        Wrong { field: field.into(), reason: reason.into() }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct File {
    #[serde(deserialize_with = "or_default")]
    kind: String,
    #[serde(deserialize_with = "or_default")]
    clusters: Vec<NamedCluster>,
    #[serde(deserialize_with = "or_default")]
    users: Vec<NamedUser>,
    #[serde(deserialize_with = "or_default")]
    contexts: Vec<NamedContext>,
    #[serde(deserialize_with = "or_default")]
    current_context: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct NamedCluster {
    #[serde(deserialize_with = "or_default")]
    name: String,
    #[serde(deserialize_with = "or_default")]
    cluster: Cluster,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct NamedUser {
    #[serde(deserialize_with = "or_default")]
    name: String,
    #[serde(deserialize_with = "or_default")]
    user: User,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct NamedContext {
    #[serde(deserialize_with = "or_default")]
    name: String,
    #[serde(deserialize_with = "or_default")]
    context: Context,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Context {
    #[serde(deserialize_with = "or_default")]
    cluster: String,
    #[serde(deserialize_with = "or_default")]
    user: String,
}

/// Access to the API server. Empty texts are absent.
#[derive(Debug, Default, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub(super) struct Cluster {
    #[serde(deserialize_with = "or_default")]
    pub(super) server: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) tls_server_name: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) insecure_skip_tls_verify: bool,
    #[serde(deserialize_with = "or_default")]
    pub(super) certificate_authority: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) certificate_authority_data: String,
    #[serde(deserialize_with = "or_default")]
    proxy_url: String,
}

/// Credentials of the user. Empty texts are absent.
#[derive(Default, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub(super) struct User {
    #[serde(deserialize_with = "or_default")]
    pub(super) client_certificate: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) client_certificate_data: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) client_key: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) client_key_data: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) token: String,
    #[serde(rename = "tokenFile", deserialize_with = "or_default")]
    pub(super) token_file: String,
    pub(super) exec: Option<Exec>,
    #[serde(deserialize_with = "or_default")]
    username: String,
    #[serde(deserialize_with = "or_default")]
    password: String,
    #[serde(rename = "as", deserialize_with = "or_default")]
    impersonate: String,
    auth_provider: Option<serde_json::Value>,
}

// Keys and tokens stay out of logs.
impl std::fmt::Debug for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("User").finish_non_exhaustive()
    }
}

/// A program that makes credentials.
#[derive(Debug, Default, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Exec {
    #[serde(deserialize_with = "or_default")]
    pub(super) api_version: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) command: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) args: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub(super) env: Vec<Variable>,
    #[serde(deserialize_with = "or_default")]
    pub(super) install_hint: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) provide_cluster_info: bool,
    #[serde(deserialize_with = "or_default")]
    interactive_mode: String,
}

/// A variable of a program's environment.
#[derive(Debug, Default, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Variable {
    #[serde(deserialize_with = "or_default")]
    pub(super) name: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) value: String,
}

/// The cluster and the user of one context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chosen {
    pub(super) cluster: Cluster,
    /// Path of the cluster's fields, `clusters[NAME].cluster`.
    pub(super) cluster_field: String,
    pub(super) user: User,
    /// Path of the user's fields, `users[NAME].user`.
    pub(super) user_field: String,
}

/// Reads a kubeconfig and takes the named context, or the current one.
pub(super) fn choose(text: &str, context: Option<&str>) -> Result<Chosen, Wrong> {
    // Excerpts of the text would show keys and tokens.
    let options = serde_saphyr::options! { with_snippet: false };
    let file: File = serde_saphyr::from_str_with_options(text, options).map_err(|e| {
        let place = e.location().map(|l| format!(" at line {}, column {}", l.line(), l.column()));
        Wrong::new("", format!("the file is no YAML of a kubeconfig{}", place.unwrap_or_default()))
    })?;
    if !matches!(file.kind.as_str(), "" | "Config") {
        return Err(Wrong::new("kind", format!("must be Config, is {:?}", file.kind)));
    }
    for (list, names) in [
        ("clusters", file.clusters.iter().map(|c| &c.name).collect::<Vec<_>>()),
        ("users", file.users.iter().map(|u| &u.name).collect()),
        ("contexts", file.contexts.iter().map(|c| &c.name).collect()),
    ] {
        let mut seen = std::collections::BTreeSet::new();
        if let Some(twice) = names.iter().find(|name| !seen.insert(**name)) {
            return Err(Wrong::new(format!("{list}[{twice}]"), "the name is there twice"));
        }
    }
    let wanted = context.unwrap_or(&file.current_context);
    if wanted.is_empty() {
        return Err(Wrong::new("current-context", "is empty; name a context (kubectl config use-context)"));
    }
    let names = |names: Vec<&String>| match names.as_slice() {
        [] => "there is none".to_owned(),
        _ => format!("there are {}", names.iter().map(|n| n.as_str()).collect::<Vec<_>>().join(", ")),
    };
    let Some(context) = file.contexts.iter().find(|c| c.name == wanted) else {
        let there = names(file.contexts.iter().map(|c| &c.name).collect());
        return Err(Wrong::new("contexts", format!("no context is called {wanted:?}; {there}")));
    };
    let field = format!("contexts[{wanted}].context");
    let (cluster_name, user_name) = (&context.context.cluster, &context.context.user);
    let Some(cluster) = file.clusters.iter().find(|c| c.name == *cluster_name) else {
        let there = names(file.clusters.iter().map(|c| &c.name).collect());
        return Err(Wrong::new(
            format!("{field}.cluster"),
            format!("no cluster is called {cluster_name:?}; {there}"),
        ));
    };
    let Some(user) = file.users.iter().find(|u| u.name == *user_name) else {
        let there = names(file.users.iter().map(|u| &u.name).collect());
        return Err(Wrong::new(format!("{field}.user"), format!("no user is called {user_name:?}; {there}")));
    };
    let chosen = Chosen {
        cluster: cluster.cluster.clone(),
        cluster_field: format!("clusters[{cluster_name}].cluster"),
        user: user.user.clone(),
        user_field: format!("users[{user_name}].user"),
    };
    chosen.check()?;
    Ok(chosen)
}

/// The one cluster of a kubeconfig that need not have users, as that of the ConfigMap `cluster-info`.
pub(super) fn only_cluster(text: &str) -> Result<Cluster, Wrong> {
    let options = serde_saphyr::options! { with_snippet: false };
    let file: File = serde_saphyr::from_str_with_options(text, options)
        .map_err(|_unreadable| Wrong::new("", "the text is no YAML of a kubeconfig"))?;
    match <[NamedCluster; 1]>::try_from(file.clusters) {
        Ok([only]) => Ok(only.cluster),
        Err(all) => Err(Wrong::new("clusters", format!("must have one cluster, has {}", all.len()))),
    }
}

impl Chosen {
    /// A server without a user.
    pub(super) fn anonymous(server: &str, insecure: bool) -> Chosen {
        let cluster =
            Cluster { server: server.to_owned(), insecure_skip_tls_verify: insecure, ..Cluster::default() };
        let (cluster_field, user_field) = ("clusters[].cluster".to_owned(), "users[].user".to_owned());
        Chosen { cluster, cluster_field, user: User::default(), user_field }
    }

    /// Refuses combinations that client-go refuses, and fields that this client does not support.
    fn check(&self) -> Result<(), Wrong> {
        let cluster = |name: &str, reason: &str| Err(Wrong::new(self.cluster_field(name), reason));
        let user = |name: &str, reason: &str| Err(Wrong::new(self.user_field(name), reason));
        let (c, u) = (&self.cluster, &self.user);
        let has_ca = !c.certificate_authority.is_empty() || !c.certificate_authority_data.is_empty();
        if c.server.is_empty() {
            return cluster("server", "is missing; give the URL of the API server, https://HOST:PORT");
        }
        if !c.proxy_url.is_empty() {
            return cluster(
                "proxy-url",
                "proxies are not supported; remove it and reach the server directly",
            );
        }
        if c.insecure_skip_tls_verify && has_ca {
            return cluster(
                "insecure-skip-tls-verify",
                "cannot be true beside certificate-authority; remove one of the two",
            );
        }
        if !u.username.is_empty() || !u.password.is_empty() {
            return user("username", "passwords are not supported; use a certificate or a token");
        }
        if u.auth_provider.is_some() {
            return user("auth-provider", "is not supported; use an exec plugin");
        }
        if !u.impersonate.is_empty() {
            return user("as", "impersonation is not supported");
        }
        let has_certificate = !u.client_certificate.is_empty() || !u.client_certificate_data.is_empty();
        let has_key = !u.client_key.is_empty() || !u.client_key_data.is_empty();
        if has_certificate && !has_key {
            return user("client-key", "is missing; client-certificate needs its key");
        }
        if has_key && !has_certificate {
            return user("client-certificate", "is missing; client-key needs its certificate");
        }
        let has_token = !u.token.is_empty() || !u.token_file.is_empty();
        let Some(exec) = &u.exec else {
            if !has_certificate && !has_token {
                return Err(Wrong::new(
                    &*self.user_field,
                    "has no credentials; give client-certificate and client-key, token, tokenFile or exec",
                ));
            }
            return Ok(());
        };
        if has_token {
            return user("exec", "cannot stand beside token or tokenFile; remove one of the two");
        }
        if exec.command.is_empty() {
            return user("exec.command", "is missing; name the plugin");
        }
        if !VERSIONS.contains(&exec.api_version.as_str()) {
            let known = VERSIONS.join(" or ");
            return user("exec.apiVersion", &format!("must be {known}, is {:?}", exec.api_version));
        }
        if exec.interactive_mode == "Always" {
            return user(
                "exec.interactiveMode",
                "cannot be Always: an agent has no terminal; set it to Never",
            );
        }
        Ok(())
    }

    /// Path of a field of the cluster.
    pub(super) fn cluster_field(&self, name: &str) -> String {
        format!("{}.{name}", self.cluster_field)
    }

    /// Path of a field of the user.
    pub(super) fn user_field(&self, name: &str) -> String {
        format!("{}.{name}", self.user_field)
    }
}

impl Exec {
    /// The variables by name; the last value of a name counts.
    pub(super) fn variables(&self) -> BTreeMap<&str, &str> {
        self.env.iter().map(|v| (v.name.as_str(), v.value.as_str())).collect()
    }
}

#[cfg(test)]
mod tests;
