//! The node's client certificate: bootstrap and rotation.
//!
//! One task, which sleeps until the certificate is due. [`way`] (pure) says how the next certificate is got.
//! The task renews only a certificate of its own [`Store`], to which the kubeconfig points; a certificate
//! that a kubeconfig contains, or has in a file of somebody else, is left to its owner.

use super::{
    blocking,
    health::CertificateHealth,
    signing::{Signer, Unsigned, sign},
};
use berth_core::{error::Chain, ids::NodeName};
use berth_kube::{
    Error,
    certs::{CertificateError, Rotation, Store, Subject, Validity},
    identity::{Identity, Source},
    metrics,
    pool::Pool,
};
use berth_sys::fs::write_atomic;
use jiff::Timestamp;
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::time::sleep;

/// Time until a certificate that is left to its owner is looked at again.
const LOOK: Duration = Duration::from_secs(600);

/// The node's client certificate, with what is needed to get the next one.
#[derive(Debug)]
pub struct ClientCertificate {
    /// The kubeconfig of the node, which is written when the node bootstraps.
    pub kubeconfig: PathBuf,
    /// The kubeconfig with the bootstrap token.
    pub bootstrap: Option<PathBuf>,
    /// The files of the certificates.
    pub store: Store,
    /// Name of the node.
    pub node: NodeName,
    /// Whether the certificate is renewed before its end (`rotateCertificates`).
    pub rotate: bool,
    /// Where the state is shown.
    pub health: CertificateHealth,
}

/// How the node gets its next certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Not at all: the credentials are somebody else's to renew.
    Owner,
    /// With the present certificate, when that is due.
    Rotate,
    /// With the bootstrap token, now.
    Bootstrap,
    /// There is none: the certificate has ended, and there is no token.
    Ended,
}

/// What [`way`] depends on.
#[derive(Debug, Clone, Copy)]
struct Situation {
    /// Whether the kubeconfig can be used.
    usable: bool,
    /// Whether the kubeconfig has a certificate that can be read.
    certificate: bool,
    /// Whether that certificate has ended.
    ended: bool,
    /// Whether the certificate is the store's, and is to be rotated.
    rotates: bool,
    /// Whether there is a bootstrap kubeconfig.
    bootstrap: bool,
}

fn way(situation: Situation) -> Way {
    let Situation { usable, certificate, ended, rotates, bootstrap } = situation;
    match (usable && !ended, bootstrap) {
        (true, _) if certificate && rotates => Way::Rotate,
        // A token or a plugin identifies the node, or a certificate that stays as it is.
        (true, _) => Way::Owner,
        (false, true) => Way::Bootstrap,
        (false, false) => Way::Ended,
    }
}

/// Opens the connections of the node. Without a kubeconfig that can be used they wait until the node has
/// bootstrapped.
///
/// # Errors
/// The kubeconfig cannot be used and there is no bootstrap kubeconfig, or that cannot be used either.
pub async fn open(kubeconfig: PathBuf, bootstrap: Option<&Path>) -> Result<Pool, Error> {
    let source = Source { kubeconfig, context: None };
    let error = match Pool::new(source.clone()).await {
        Ok(pool) => return Ok(pool),
        Err(error) => error,
    };
    let Some(bootstrap) = bootstrap else { return Err(error) };
    if source.kubeconfig.exists() {
        tracing::warn!("{}; the node bootstraps anew", Chain(&error));
    }
    let identity = Source { kubeconfig: bootstrap.into(), context: None }.load(None).await?;
    Ok(Pool::waiting(source, &identity, "the node has no client certificate yet"))
}

impl ClientCertificate {
    /// Keeps the certificate valid for as long as the agent runs. Never returns.
    pub async fn run(self, pool: Pool) {
        let mut rotation = Rotation::new(rand::random());
        loop {
            let (identity, now) = (pool.identity(), Timestamp::now());
            let held = identity.certificate.as_ref().map(validity);
            self.health.held(held.map(|held| held.not_after));
            let way = way(Situation {
                usable: identity.is_usable(),
                certificate: held.is_some(),
                ended: held.is_some_and(|held| held.has_ended(now)),
                rotates: self.rotate && self.is_of_store(&identity),
                bootstrap: self.bootstrap.is_some(),
            });
            let wait = match way {
                Way::Owner => LOOK,
                Way::Ended => {
                    let text = "the client certificate has ended and there is no bootstrap token: give \
                                --bootstrap-kubeconfig FILE, or a kubeconfig with another certificate";
                    self.health.stuck(Some(text.to_owned()));
                    LOOK
                }
                Way::Rotate => rotation.wait(held, now),
                Way::Bootstrap => rotation.wait(None, now),
            };
            if !wait.is_zero() {
                sleep(wait).await;
                continue;
            }
            match self.renew(way, held, &pool).await {
                Ok(end) => {
                    self.health.renewed(end);
                    tracing::info!(%end, "the node has a new client certificate");
                    rotation.renewed(Timestamp::now(), rand::random());
                }
                Err(Unsigned { reason, is_over }) => {
                    rotation.failed(Timestamp::now(), rand::random());
                    metrics::count_client_renew_error();
                    if self.health.failed(&reason) {
                        tracing::warn!(reason, "cannot get a client certificate; tried again");
                    }
                    if is_over {
                        self.forget_key().await;
                    }
                }
            }
        }
    }

    /// Gets a certificate, stores it and connects with it. Returns the certificate's end.
    async fn renew(&self, way: Way, held: Option<Validity>, pool: &Pool) -> Result<Timestamp, Unsigned> {
        let failed = |reason: String| Unsigned { reason, is_over: false };
        let store = self.store.clone();
        let key = blocking(move || store.pending_key()).await.map_err(failed)?;
        let bootstrap = self.bootstrap.as_ref().filter(|_| way == Way::Bootstrap);
        let bootstrap = bootstrap.map(|path| Source { kubeconfig: path.clone(), context: None });
        let signer = match &bootstrap {
            Some(source) => {
                Pool::new(source.clone()).await.map_err(|error| failed(Chain(&error).to_string()))?
            }
            None => pool.clone(),
        };
        let subject = Subject::client(self.node.as_str());
        let ends = async {
            match (way, held) {
                (Way::Rotate, Some(held)) => until(held.not_after).await,
                _ => std::future::pending().await,
            }
        };
        let pem = tokio::select! {
            signed = sign(&signer, Signer::Client, &subject, &key, &self.health) => signed?,
            () = ends => return Err(failed("the certificate ended before its renewal was approved".to_owned())),
        };
        let store = self.store.clone();
        let updated = blocking(move || store.update(&pem, &key, Timestamp::now())).await;
        // A certificate that cannot be used comes again for the same request.
        let held = updated.map_err(|reason| Unsigned { reason, is_over: true })?;
        if let Some(source) = bootstrap {
            let (kubeconfig, pem) = (self.kubeconfig.clone(), self.store.current_path());
            let text = source.with_certificate(&pem).map_err(|error| failed(Chain(&error).to_string()))?;
            blocking(move || write_kubeconfig(&kubeconfig, &text)).await.map_err(failed)?;
        }
        pool.look().await;
        Ok(held.certificate.not_after)
    }

    async fn forget_key(&self) {
        let store = self.store.clone();
        if let Err(error) = blocking(move || store.forget_pending_key()).await {
            tracing::warn!(error, "the next request has the same key");
        }
    }

    /// Whether the kubeconfig's certificate is the store's.
    fn is_of_store(&self, identity: &Identity) -> bool {
        let (from, current) = (Path::new(&identity.certificate_from), self.store.current_path());
        from == current
            || fs::canonicalize(from)
                .is_ok_and(|from| fs::canonicalize(current).is_ok_and(|path| path == from))
    }
}

fn validity(certificate: &berth_kube::identity::Certificate) -> Validity {
    Validity { not_before: certificate.not_before, not_after: certificate.not_after }
}

/// Waits for a time of the clock, which may be set meanwhile.
async fn until(end: Timestamp) {
    loop {
        let Ok(left) = Duration::try_from(end.duration_since(Timestamp::now())) else { return };
        if left.is_zero() {
            return;
        }
        sleep(left.min(LOOK)).await;
    }
}

fn write_kubeconfig(path: &Path, text: &str) -> Result<(), CertificateError> {
    let failed = |reason: String| CertificateError { what: format!("write {}", path.display()), reason };
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(|e| failed(e.to_string()))?;
    }
    write_atomic(path, text.as_bytes(), 0o600).map_err(|e| failed(Chain(&e).to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_rotated_while_it_is_valid_and_bootstrapped_afterwards() {
        let of = |usable, certificate, ended, rotates, bootstrap| {
            way(Situation { usable, certificate, ended, rotates, bootstrap })
        };
        assert_eq!(of(true, true, false, true, true), Way::Rotate);
        assert_eq!(of(true, true, false, true, false), Way::Rotate);
        assert_eq!(of(true, true, false, false, true), Way::Owner, "a certificate of somebody else");
        assert_eq!(of(true, false, false, false, true), Way::Owner, "a token");
        assert_eq!(of(true, true, true, true, true), Way::Bootstrap);
        assert_eq!(of(true, true, true, false, true), Way::Bootstrap);
        assert_eq!(of(true, true, true, true, false), Way::Ended);
        assert_eq!(of(false, false, false, false, true), Way::Bootstrap);
        assert_eq!(of(false, false, false, false, false), Way::Ended);
    }

    #[test]
    fn a_kubeconfig_is_its_owners_alone() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("etc/kubelet.conf");
        write_kubeconfig(&path, "text").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
