//! The certificate that the node's own API presents, where the cluster signs it (`serverTLSBootstrap`).
//!
//! A certificate is for the node's name and addresses. Another address needs another certificate; the one
//! before is presented until there is one. No control plane approves these requests by itself, so a new node
//! waits for a person or a controller, and until then handshakes fail, as the kubelet's do.

use super::{
    blocking,
    health::CertificateHealth,
    signing::{Signer, Unsigned, sign},
};
use berth_core::model::NodeInfo;
use berth_kube::{
    certs::{Held, Rotation, ServingCertificate, Store, Subject},
    metrics,
    pool::Pool,
};
use jiff::Timestamp;
use rand::random;
use std::sync::Arc;
use tokio::{sync::watch, time::sleep};

/// The serving certificate that the cluster signs.
#[derive(Debug)]
pub struct Serving {
    /// The files of the certificates.
    pub store: Store,
    /// The node's name and addresses.
    pub node: watch::Receiver<Arc<NodeInfo>>,
    /// What the server presents.
    pub presented: ServingCertificate,
    /// Where the state is shown.
    pub health: CertificateHealth,
}

impl Serving {
    /// Keeps the certificate valid for the node's addresses. Ends with the owner of the node's facts.
    pub async fn run(mut self, pool: Pool) {
        let mut rotation = Rotation::new(random());
        let mut held = self.read().await;
        loop {
            let subject = subject(&self.node.borrow_and_update());
            // A certificate needs an address at least.
            if subject.addresses.is_empty() {
                if self.node.changed().await.is_err() {
                    return;
                }
                continue;
            }
            let meeting = held.as_ref().filter(|held| subject.is_met_by(&held.certificate));
            let wait = rotation.wait(meeting.map(Held::validity), Timestamp::now());
            let renewed = tokio::select! {
                // A changed address is looked at first.
                biased;
                changed = other(&mut self.node, &subject) => match changed {
                    Ok(()) => continue,
                    Err(_ended) => return,
                },
                () = sleep(wait), if !wait.is_zero() => continue,
                renewed = renew(&self.store, &subject, &pool, &self.health), if wait.is_zero() => renewed,
            };
            match renewed {
                Ok(new) => {
                    self.health.renewed(new.certificate.not_after);
                    if let Some(old) = &held {
                        let age = Timestamp::now().duration_since(old.certificate.not_before);
                        // A clock that was set back makes no age.
                        metrics::observe_server_rotation(age.try_into().unwrap_or_default());
                    }
                    tracing::info!(end = %new.certificate.not_after, "the node has a new serving certificate");
                    self.present(&new);
                    held = Some(new);
                    rotation.renewed(Timestamp::now(), random());
                }
                Err(Unsigned { reason, is_over }) => {
                    rotation.failed(Timestamp::now(), random());
                    metrics::count_server_renew_error();
                    if self.health.failed(&reason) {
                        tracing::warn!(reason, "cannot get a serving certificate; tried again");
                    }
                    if is_over {
                        let store = self.store.clone();
                        if let Err(error) = blocking(move || store.forget_pending_key()).await {
                            tracing::warn!(error, "the next request has the same key");
                        }
                    }
                }
            }
        }
    }

    /// The certificate of an earlier agent.
    async fn read(&self) -> Option<Held> {
        let store = self.store.clone();
        match blocking(move || store.current()).await {
            Ok(held) => held.inspect(|held| {
                self.health.held(Some(held.certificate.not_after));
                self.present(held);
            }),
            Err(reason) => {
                tracing::warn!(reason, "a new serving certificate is requested");
                None
            }
        }
    }

    fn present(&self, held: &Held) {
        if let Err(error) = self.presented.set(&held.pem, &held.pem) {
            tracing::warn!(%error, "the serving certificate is not presented");
        }
    }
}

/// The node as a server.
fn subject(node: &NodeInfo) -> Subject {
    Subject::server(node.name.as_str(), &node.ips)
}

/// Waits until the node is to have another certificate.
async fn other(
    node: &mut watch::Receiver<Arc<NodeInfo>>,
    known: &Subject,
) -> Result<(), watch::error::RecvError> {
    node.wait_for(|node| subject(node) != *known).await.map(drop)
}

async fn renew(
    store: &Store,
    subject: &Subject,
    pool: &Pool,
    health: &CertificateHealth,
) -> Result<Held, Unsigned> {
    let failed = |reason: String| Unsigned { reason, is_over: false };
    pool.identified().await;
    let files = store.clone();
    let key = blocking(move || files.pending_key()).await.map_err(failed)?;
    let pem = sign(pool, Signer::Serving, subject, &key, health).await?;
    let files = store.clone();
    let updated = blocking(move || files.update(&pem, &key, Timestamp::now())).await;
    updated.map_err(|reason| Unsigned { reason, is_over: true })
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_core::ids::NodeName;

    #[tokio::test]
    async fn only_another_name_or_address_asks_for_another_certificate() {
        let info = |ips: &[&str]| {
            let ips = ips.iter().map(|ip| ip.parse().unwrap()).collect();
            Arc::new(NodeInfo { ips, ..NodeInfo::new(NodeName::new("n1").unwrap()) })
        };
        let (owner, mut node) = watch::channel(info(&["192.0.2.1", "2001:db8::1"]));
        let known = subject(&node.borrow_and_update());
        owner.send_replace(info(&["2001:db8::1", "192.0.2.1"]));
        let waiting = tokio::time::timeout(std::time::Duration::ZERO, other(&mut node, &known)).await;
        assert!(waiting.is_err(), "the order of addresses does not matter");
        owner.send_replace(info(&["192.0.2.1"]));
        other(&mut node, &known).await.unwrap();
    }
}
