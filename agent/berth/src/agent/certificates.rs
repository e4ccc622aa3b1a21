//! The node's certificates as the options choose them: who renews the client certificate, and what the node's
//! own API presents. [`CertificatesHealth`] is what the status page and metrics read.

use super::args::AgentArgs;
use berth_api::view::{CertificateView, RequestView};
use berth_cluster::certificates::{CertificateHealth, CertificateState, ClientCertificate, PendingRequest};
use berth_core::{error::Chain, roots::Roots, time::Wall};
use berth_kube::certs::{ServingCertificate, Store, ends};
use jiff::Timestamp;
use std::path::PathBuf;

/// The certificate of the node's own API.
#[derive(Debug, Clone)]
pub(crate) enum ServingTls {
    /// Signed by the cluster.
    Signed(ServingCertificate, CertificateHealth),
    /// A file of somebody else.
    File(PathBuf),
    /// Made by the node itself.
    Own,
}

/// State of the node's certificates; clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct CertificatesHealth {
    client: CertificateHealth,
    serving: ServingTls,
}

impl ServingTls {
    /// The certificate that the options choose.
    pub(crate) fn of(args: &AgentArgs) -> ServingTls {
        match &args.node_api.tls_cert_file {
            _ if args.rotate_server_certificates => {
                ServingTls::Signed(ServingCertificate::default(), CertificateHealth::default())
            }
            Some(file) => ServingTls::File(file.clone()),
            None => ServingTls::Own,
        }
    }

    /// Seconds until the end of a certificate that the cluster signed; `None` for any other.
    pub(crate) fn ttl_seconds(&self) -> Option<f64> {
        let ServingTls::Signed(_, health) = self else { return None };
        Some(health.state().ttl_seconds(Timestamp::now()))
    }

    /// State of the certificate; `None` for one that the node makes for itself at each start.
    fn state(&self) -> Option<CertificateState> {
        match self {
            ServingTls::Signed(_, health) => Some(health.state()),
            // The file is read when somebody asks.
            ServingTls::File(file) => Some(match ends(file) {
                Ok(end) => CertificateState { not_after: Some(end), ..CertificateState::default() },
                Err(error) => CertificateState {
                    problem: Some(Chain(&error).to_string()),
                    ..CertificateState::default()
                },
            }),
            ServingTls::Own => None,
        }
    }
}

impl CertificatesHealth {
    /// The state of these two.
    pub(crate) fn new(client: CertificateHealth, serving: ServingTls) -> CertificatesHealth {
        CertificatesHealth { client, serving }
    }

    /// State of the client certificate, whose end is `not_after`.
    pub(crate) fn client(&self, not_after: Option<Timestamp>) -> CertificateState {
        CertificateState { not_after, ..self.client.state() }
    }

    /// State of the serving certificate; `None` for one that the node makes for itself.
    pub(crate) fn serving(&self) -> Option<CertificateState> {
        self.serving.state()
    }

    /// Both on the status page.
    pub(crate) fn view(&self, client_ends: Option<Timestamp>) -> Vec<CertificateView> {
        let client = view("client", self.client(client_ends));
        std::iter::once(client).chain(self.serving().map(|state| view("serving", state))).collect()
    }
}

/// The node's client certificate by the options.
pub(crate) fn client(kubeconfig: PathBuf, args: &AgentArgs, roots: &Roots) -> ClientCertificate {
    ClientCertificate {
        kubeconfig,
        bootstrap: args.bootstrap_kubeconfig.clone(),
        store: Store::client(&roots.pki_dir()),
        node: roots.node_name.clone(),
        rotate: args.rotate_certificates,
        health: CertificateHealth::default(),
    }
}

fn view(purpose: &str, state: CertificateState) -> CertificateView {
    let CertificateState { not_after, pending, problem, .. } = state;
    let request = pending.map(|PendingRequest { name, since, denied, approved }| RequestView {
        name,
        since: wall(since),
        approved,
        denied,
    });
    CertificateView { purpose: purpose.to_owned(), not_after: not_after.map(wall), request, problem }
}

/// The time; the latest that can be shown for a certificate without an end.
fn wall(at: Timestamp) -> Wall {
    Wall(i64::try_from(at.as_nanosecond()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::args::parse;

    #[test]
    fn the_options_choose_the_serving_certificate() {
        let of = |arguments: &[&str]| ServingTls::of(&parse(arguments).unwrap());
        assert!(of(&[]).state().is_none());
        assert_eq!(of(&["--kubeconfig=k", "--rotate-server-certificates"]).state().unwrap().not_after, None);
        let file = ["--tls-cert-file=/nonexistent", "--tls-private-key-file=/nonexistent"];
        let problem = of(&file).state().unwrap().problem.unwrap();
        assert!(problem.contains("/nonexistent"), "{problem}");
        for wrong in [
            &["--rotate-server-certificates", "--standalone"][..],
            &["--bootstrap-kubeconfig=b", "--standalone"],
            &["--kubeconfig=k", "--rotate-server-certificates", file[0], file[1]],
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn rotation_can_be_turned_off_as_the_kubelets() {
        for (arguments, want) in
            [(&[][..], true), (&["--rotate-certificates"], true), (&["--rotate-certificates=false"], false)]
        {
            assert_eq!(parse(arguments).unwrap().rotate_certificates, want, "{arguments:?}");
        }
    }
}
