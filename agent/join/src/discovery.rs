//! Asking a server for its cluster, as `kubeadm join` does: the ConfigMap `cluster-info` is read without
//! trust, checked by the token's signature and the CA's pin, and read again over a connection that only that
//! CA can answer.

use crate::{
    Error,
    trust::{Pin, Token, check_pins},
};
use berth_core::error::Chain;
use berth_kube::{
    identity::{DiscoveredCluster, Identity},
    pool::Pool,
    request::Request,
};
use serde::Deserialize;
use std::{collections::BTreeMap, time::Duration};
use tokio::time::{Instant, sleep};

const CLUSTER_INFO: &str = "/api/v1/namespaces/kube-public/configmaps/cluster-info";

/// Deadline of all tries.
const PATIENCE: Duration = Duration::from_secs(60);

/// Time between two tries. A new token's signature comes a moment after the token.
const AGAIN: Duration = Duration::from_secs(2);

/// Deadline of one request.
const ANSWER: Duration = Duration::from_secs(10);

#[derive(Debug, Deserialize)]
struct ConfigMap {
    #[serde(default)]
    data: BTreeMap<String, String>,
}

/// The cluster behind a server, verified.
///
/// # Errors
/// The server does not answer in time, has no `cluster-info`, or is not the one that the token and the pins
/// mean.
pub(crate) async fn discover(server: &str, token: &Token, pins: &[Pin]) -> Result<DiscoveredCluster, Error> {
    let url = format!("https://{server}");
    let found = ask(&url, None, token).await?;
    let trust = |reason: String| Error::Trust { server: url.clone(), reason };
    token.verify(&found.signature, &found.kubeconfig).map_err(|reason| trust(reason.to_owned()))?;
    let cluster = DiscoveredCluster::read(&found.kubeconfig)
        .map_err(|wrong| trust(format!("the kubeconfig of its cluster-info is wrong: {wrong}")))?;
    if pins.is_empty() {
        return Ok(cluster);
    }
    check_pins(pins, &cluster.key_digests()).map_err(trust)?;
    let again = ask(&url, Some(&cluster.ca), token).await?;
    if again.kubeconfig != found.kubeconfig {
        return Err(trust("it says another thing over a trusted connection".to_owned()));
    }
    Ok(cluster)
}

/// What `cluster-info` has for a token.
struct Found {
    kubeconfig: String,
    signature: String,
}

/// Reads `cluster-info` until it has a signature of this token.
async fn ask(url: &str, ca: Option<&[u8]>, token: &Token) -> Result<Found, Error> {
    let failed = |reason: String| Error::Discovery { server: url.to_owned(), reason };
    let identity = Identity::anonymous(url, ca).map_err(|error| failed(Chain(&error).to_string()))?;
    let (pool, until) = (Pool::of(identity), Instant::now() + PATIENCE);
    loop {
        let answer = pool.send(&Request::get(CLUSTER_INFO).within(ANSWER)).await;
        let reason = match answer {
            Ok(answer) => match read(&answer.body, token.id()) {
                Ok(found) => return Ok(found),
                Err(reason) => reason,
            },
            Err(error) => match error.refusal() {
                // Another answer does not come by waiting.
                Some(refusal) if refusal.code == 403 || refusal.code == 404 => {
                    let hint =
                        "the cluster is not set up for bootstrap tokens (kubeadm init phase bootstrap-token)";
                    return Err(failed(format!("{}; {hint}", Chain(&error))));
                }
                _ => Chain(&error).to_string(),
            },
        };
        if Instant::now() + AGAIN >= until {
            return Err(failed(reason));
        }
        sleep(AGAIN).await;
    }
}

/// The kubeconfig and the signature of a token in the ConfigMap.
fn read(body: &[u8], id: &str) -> Result<Found, String> {
    let map: ConfigMap =
        serde_json::from_slice(body).map_err(|e| format!("its answer is no ConfigMap: {e}"))?;
    let of = |key: &str| map.data.get(key).filter(|text| !text.is_empty()).cloned();
    let kubeconfig = of("kubeconfig").ok_or("its cluster-info has no kubeconfig")?;
    let signature = of(&format!("jws-kubeconfig-{id}")).ok_or_else(|| {
        format!("its cluster-info has no signature of token {id}: the token is unknown, or has expired (kubeadm token create)")
    })?;
    Ok(Found { kubeconfig, signature })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cluster_info_has_a_kubeconfig_and_a_signature_a_token() {
        let body = br#"{"data":{"kubeconfig":"k","jws-kubeconfig-abcdef":"s"}}"#;
        let found = read(body, "abcdef").unwrap();
        assert_eq!((found.kubeconfig.as_str(), found.signature.as_str()), ("k", "s"));
        for (body, told) in [
            (&br#"{"data":{"kubeconfig":"k"}}"#[..], "kubeadm token create"),
            (br#"{"data":{"jws-kubeconfig-abcdef":"s"}}"#, "no kubeconfig"),
            (br#"{}"#, "no kubeconfig"),
            (b"x", "no ConfigMap"),
        ] {
            let error = read(body, "abcdef").err().unwrap();
            assert!(error.contains(told), "{error}");
        }
    }

    #[tokio::test]
    async fn what_is_no_server_is_told_with_its_name() {
        let token: Token = "abcdef.0123456789abcdef".parse().unwrap();
        let error = discover("not a host", &token, &[]).await.unwrap_err().to_string();
        assert!(error.contains("https://not a host"), "{error}");
    }
}
