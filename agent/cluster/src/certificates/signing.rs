//! One CertificateSigningRequest: made, and followed until there is a certificate.
//!
//! [`judge`] (pure) says what the object means. The object is followed by its name. A denied request is
//! followed further until it is deleted: the denial is somebody's decision, and a node that asked anew every
//! half minute would fill the API server with requests.

use super::health::{CertificateHealth, PendingRequest};
use base64::{Engine, engine::general_purpose::STANDARD};
use berth_core::error::Chain;
use berth_kube::{
    certs::{Key, Subject},
    pool::Pool,
    reflector::{Bad, Change, Health, Kind, ListWatch, Meta, Options, follow},
    request::Request,
};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::json;
use std::pin::pin;
use tokio::sync::{mpsc, watch};

const PATH: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";

/// Who signs a certificate, and what it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signer {
    /// The node as a client of the API server.
    Client,
    /// The node as a server.
    Serving,
}

/// Why there is no certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unsigned {
    /// The reason, on one line.
    pub(super) reason: String,
    /// Whether the request can come to nothing any more, so that the next one needs another key.
    pub(super) is_over: bool,
}

/// What the object means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nobody has approved the request yet.
    Waits,
    /// The request is approved, and the signer has not signed yet.
    Approved,
    /// The certificate in PEM.
    Issued(Vec<u8>),
    /// Somebody denied the request.
    Denied(String),
    /// The signer refuses the request.
    Failed(String),
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Object {
    metadata: Option<Meta>,
    status: Status,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    conditions: Vec<Condition>,
    certificate: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    reason: String,
    message: String,
}

impl Signer {
    fn name(self) -> &'static str {
        match self {
            Signer::Client => "kubernetes.io/kube-apiserver-client-kubelet",
            Signer::Serving => "kubernetes.io/kubelet-serving",
        }
    }

    /// The usages. Key encipherment is for RSA keys alone.
    fn usages(self) -> [&'static str; 2] {
        ["digital signature", if self == Signer::Client { "client auth" } else { "server auth" }]
    }
}

impl Unsigned {
    fn new(reason: impl Into<String>) -> Unsigned {
        Unsigned { reason: reason.into(), is_over: false }
    }
}

/// What an object means, by its conditions and its certificate.
fn judge(status: Status) -> Verdict {
    let told = |kind: &str| {
        let condition = status.conditions.iter().find(|condition| condition.kind == kind)?;
        let text = format!("{}: {}", condition.reason, condition.message);
        Some(text.split_whitespace().collect::<Vec<_>>().join(" "))
    };
    if let Some(reason) = told("Denied") {
        return Verdict::Denied(reason);
    }
    if let Some(reason) = told("Failed") {
        return Verdict::Failed(reason);
    }
    if told("Approved").is_none() {
        return Verdict::Waits;
    }
    match STANDARD.decode(&status.certificate) {
        Ok(pem) if pem.is_empty() => Verdict::Approved,
        Ok(pem) => Verdict::Issued(pem),
        Err(_) => Verdict::Failed("its certificate is no base64".to_owned()),
    }
}

/// The requests of one name.
struct OneRequest {
    query: String,
}

impl Kind for OneRequest {
    type Item = Verdict;

    fn path(&self) -> &str {
        PATH
    }

    fn query(&self) -> &str {
        &self.query
    }

    fn read(&self, json: &[u8]) -> Result<(Meta, Verdict), Bad> {
        let object: Object = serde_json::from_slice(json).map_err(|e| Bad(e.to_string()))?;
        let meta = object.metadata.ok_or_else(|| Bad("the object has no metadata".to_owned()))?;
        Ok((meta, judge(object.status)))
    }
}

/// Has a certificate signed for this key, and returns it in PEM. Waits until somebody approves the request;
/// `health` says so meanwhile.
pub(super) async fn sign(
    pool: &Pool,
    signer: Signer,
    subject: &Subject,
    key: &Key,
    health: &CertificateHealth,
) -> Result<Vec<u8>, Unsigned> {
    let usages = signer.usages();
    let name = key.request_name(subject, &usages);
    let request = key.request(subject).map_err(|e| Unsigned::new(e.to_string()))?;
    let object = json!({
        "apiVersion": "certificates.k8s.io/v1",
        "kind": "CertificateSigningRequest",
        "metadata": {"name": name},
        "spec": {"request": STANDARD.encode(request), "signerName": signer.name(), "usages": usages},
    });
    match pool.send(&Request::create(PATH, object.to_string())).await {
        Ok(_) => tracing::info!(csr = name, "a certificate is requested"),
        Err(error) if error.refusal().is_some_and(|refusal| refusal.code == 409) => {
            tracing::info!(csr = name, "the certificate was requested before");
        }
        Err(error) => return Err(Unsigned::new(Chain(&error).to_string())),
    }
    let since = Timestamp::now();
    let pending = PendingRequest { name: name.clone(), since, denied: None, approved: false };
    health.pending(Some(pending.clone()));
    let _cleared = Cleared(health);
    wait(pool, pending, health).await
}

/// Clears what is pending, also where the wait is given up.
struct Cleared<'a>(&'a CertificateHealth);

impl Drop for Cleared<'_> {
    fn drop(&mut self) {
        self.0.pending(None);
    }
}

async fn wait(
    pool: &Pool,
    mut pending: PendingRequest,
    health: &CertificateHealth,
) -> Result<Vec<u8>, Unsigned> {
    let name = pending.name.clone();
    let kind = OneRequest { query: format!("fieldSelector=metadata.name%3D{name}") };
    let (changes, mut incoming) = mpsc::channel(4);
    let (tell, _listener) = watch::channel(Health::unknown());
    let mut follow = pin!(follow(kind, pool.clone(), ListWatch::new(Options::single()), changes, tell));
    let mut seen = false;
    loop {
        let change = tokio::select! {
            biased;
            Some(change) = incoming.recv() => change,
            () = &mut follow => return Err(Unsigned::new(format!("the request {name} is not followed any more"))),
        };
        let verdict = match change {
            Change::Begin => {
                seen = false;
                continue;
            }
            Change::Put(_, verdict) => verdict,
            Change::Complete(_) if seen => continue,
            Change::Gone(..) | Change::Complete(_) | Change::UnreadableGone(_) => {
                return Err(Unsigned::new(format!("the request {name} was deleted without a certificate")));
            }
            Change::Unreadable(_, bad) => Verdict::Failed(bad.to_string()),
        };
        seen = true;
        match verdict {
            Verdict::Waits => {}
            Verdict::Approved => pending.approved = true,
            Verdict::Issued(pem) => return Ok(pem),
            Verdict::Denied(reason) => {
                if pending.denied.as_ref() != Some(&reason) {
                    tracing::warn!(csr = name, reason, "the request for a certificate is denied");
                }
                pending.denied = Some(reason);
            }
            Verdict::Failed(reason) => {
                let reason = format!("the signer refuses the request {name}: {reason}");
                return Err(Unsigned { reason, is_over: true });
            }
        }
        health.pending(Some(pending.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(status: &str) -> Verdict {
        let kind = OneRequest { query: String::new() };
        let text = format!(
            r#"{{"metadata":{{"name":"x","resourceVersion":"7"}},"spec":{{"request":"QQ=="}},{status}}}"#
        );
        let (meta, verdict) = kind.read(text.as_bytes()).unwrap();
        assert_eq!(&*meta.name, "x");
        verdict
    }

    #[test]
    fn the_object_says_who_is_waited_for() {
        let approved = r#"{"type":"Approved","status":"True","reason":"AutoApproved","message":"yes"}"#;
        let of = |conditions: &str, certificate: &str| {
            read(&format!(r#""status":{{"conditions":[{conditions}],"certificate":"{certificate}"}}"#))
        };
        assert_eq!(read(r#""status":{}"#), Verdict::Waits);
        assert_eq!(of("", "QQ=="), Verdict::Waits, "a certificate counts with its approval");
        assert_eq!(of(approved, ""), Verdict::Approved);
        assert_eq!(of(approved, "QUI="), Verdict::Issued(b"AB".to_vec()));
        assert!(matches!(of(approved, "!"), Verdict::Failed(_)));
        let denied = r#"{"type":"Denied","reason":"KubectlDeny","message":"by\n hand"}"#;
        assert_eq!(of(&format!("{approved},{denied}"), ""), Verdict::Denied("KubectlDeny: by hand".into()));
        let failed = r#"{"type":"Failed","reason":"SignerValidationFailure","message":"no"}"#;
        assert_eq!(of(failed, ""), Verdict::Failed("SignerValidationFailure: no".into()));
    }

    #[test]
    fn signers_and_usages_are_those_of_nodes() {
        assert_eq!(Signer::Client.usages(), ["digital signature", "client auth"]);
        assert_eq!(Signer::Serving.usages(), ["digital signature", "server auth"]);
        assert_eq!(Signer::Client.name(), "kubernetes.io/kube-apiserver-client-kubelet");
        assert_eq!(Signer::Serving.name(), "kubernetes.io/kubelet-serving");
    }
}
