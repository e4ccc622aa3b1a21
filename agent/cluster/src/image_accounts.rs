//! ServiceAccounts and their tokens for credential provider plugins: both are asked when an image is pulled, and a token
//! is used again until a fifth of its life is left, as the kubelet's token manager does it.
//!
//! Owns the tokens, in memory alone. Expired ones go with the next request.

use crate::tokens::{Issued, issued};
use berth_core::{
    image::{Hidden, provider::PullPod},
    sync::lock,
    time::Boottime,
};
use berth_kube::{pool::Pool, request::Request};
use berth_sys::clock;
use serde::Deserialize;
use serde_json::json;
use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::Mutex,
    time::Duration,
};

/// The longest use of a token (`maxTTL`, `pkg/kubelet/token/token_manager.go`).
const MOST_USE: Duration = Duration::from_secs(24 * 3600);
/// The most tokens that are kept.
const MOST_TOKENS: usize = 1024;

/// Pod's UID, ServiceAccount's UID, audience.
type Key = (String, String, String);

/// The ServiceAccounts of the API server.
pub struct ImageAccounts {
    pool: Pool,
    tokens: Mutex<HashMap<Key, (Boottime, Hidden)>>,
}

impl fmt::Debug for ImageAccounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImageAccounts").field("tokens", &lock(&self.tokens).len()).finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct Account {
    metadata: Metadata,
}

#[derive(Deserialize)]
struct Metadata {
    #[serde(default)]
    uid: String,
    annotations: Option<BTreeMap<String, String>>,
}

impl ImageAccounts {
    /// Asks on these connections.
    pub fn new(pool: Pool) -> ImageAccounts {
        ImageAccounts { pool, tokens: Mutex::default() }
    }

    /// UID and annotations of a ServiceAccount.
    ///
    /// # Errors
    /// The API server's reason, or why it cannot be asked.
    pub async fn account(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<(String, BTreeMap<String, String>), String> {
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{name}");
        let answer = self.pool.send(&Request::get(path)).await.map_err(|e| e.reason())?;
        let account: Account = serde_json::from_slice(&answer.body)
            .map_err(|error| format!("cannot read ServiceAccount {namespace}/{name}: {error}"))?;
        Ok((account.metadata.uid, account.metadata.annotations.unwrap_or_default()))
    }

    /// A token of the pod's ServiceAccount for this audience.
    ///
    /// # Errors
    /// The API server's reason, or why it cannot be asked.
    pub async fn token(&self, pod: &PullPod, uid: &str, audience: &str) -> Result<Hidden, String> {
        let key: Key = (pod.uid.clone(), uid.to_owned(), audience.to_owned());
        let now = clock::boottime();
        {
            let mut tokens = lock(&self.tokens);
            tokens.retain(|_, (until, _)| *until > now);
            if let Some((_, token)) = tokens.get(&key) {
                return Ok(token.clone());
            }
        }
        let path =
            format!("/api/v1/namespaces/{}/serviceaccounts/{}/token", pod.namespace, pod.service_account);
        let request = Request::create(path, body(pod, uid, audience));
        let answer = self.pool.send(&request).await.map_err(|e| e.reason())?;
        let Issued { token, life } = issued(&answer.body, clock::wall())?;
        let token = Hidden::new(token.text);
        let mut tokens = lock(&self.tokens);
        if tokens.len() < MOST_TOKENS {
            tokens.insert(key, (now + (life * 4 / 5).min(MOST_USE), token.clone()));
        }
        Ok(token)
    }
}

/// The request for a token that is bound to the pod.
fn body(pod: &PullPod, uid: &str, audience: &str) -> String {
    json!({
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "metadata": { "uid": uid },
        "spec": {
            "audiences": [audience],
            "boundObjectRef": { "apiVersion": "v1", "kind": "Pod", "name": pod.name, "uid": pod.uid },
        },
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_names_the_account_the_pod_and_the_audience() {
        let pod = PullPod {
            namespace: "ns".into(),
            name: "p".into(),
            uid: "u1".into(),
            service_account: "sa".into(),
        };
        let sent: serde_json::Value = serde_json::from_str(&body(&pod, "sa-1", "aud")).unwrap();
        assert_eq!(sent["metadata"]["uid"], "sa-1");
        assert_eq!(sent["spec"]["audiences"], json!(["aud"]));
        assert_eq!(sent["spec"]["boundObjectRef"]["uid"], "u1");
        assert!(sent["spec"]["expirationSeconds"].is_null(), "the API server's own");
    }
}
