//! The node's certificates as the options choose them: who renews the client certificate, and what the node's
//! own API presents.
//!
//! [`ServingTls`] is what a TLS server is given. [`CertificatesHealth`] is what the status page and metrics
//! read.

use super::args::AgentArgs;
use anyhow::Context as _;
use berth_api::view::{CertificateView, RequestView};
use berth_cluster::certificates::{
    CertificateHealth, CertificateState, ClientCertificate, PendingRequest, self_signed,
};
use berth_core::{roots::Roots, time::Wall};
use berth_kube::certs::{ResolvesServerCert, ServingCertificate, ServingFiles, Store};
use jiff::Timestamp;
use std::{net::IpAddr, path::PathBuf, sync::Arc};

/// The certificate of the node's own API.
#[derive(Debug, Clone)]
pub(crate) enum ServingTls {
    /// Signed by the cluster.
    Signed(ServingCertificate, CertificateHealth),
    /// Two files of somebody else.
    Files(Arc<ServingFiles>),
    /// Signed by the node itself.
    Own(ServingCertificate),
}

/// State of the node's certificates; clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct CertificatesHealth {
    client: CertificateHealth,
    serving: ServingTls,
}

impl ServingTls {
    /// The certificate that the options choose. `addresses`: those of the node, for a certificate of its own.
    pub(crate) fn open(args: &AgentArgs, roots: &Roots, addresses: &[IpAddr]) -> anyhow::Result<ServingTls> {
        if args.rotate_server_certificates {
            return Ok(ServingTls::Signed(ServingCertificate::default(), CertificateHealth::default()));
        }
        if let (Some(certificate), Some(key)) = (&args.tls_cert_file, &args.tls_private_key_file) {
            let files = ServingFiles::open(certificate.clone(), key.clone());
            return Ok(ServingTls::Files(Arc::new(files.context("read --tls-cert-file")?)));
        }
        let own = self_signed(&roots.pki_dir(), &roots.node_name, addresses, Timestamp::now());
        Ok(ServingTls::Own(own.context("make the serving certificate")?))
    }

    /// What a TLS server presents.
    #[expect(dead_code, reason = "the node's own API is not there yet")]
    pub(crate) fn resolver(&self) -> Arc<dyn ResolvesServerCert> {
        match self {
            ServingTls::Signed(presented, _) | ServingTls::Own(presented) => Arc::new(presented.clone()),
            ServingTls::Files(files) => Arc::clone(files) as Arc<dyn ResolvesServerCert>,
        }
    }

    /// State of the certificate, for metrics.
    pub(crate) fn state(&self) -> CertificateState {
        let (validity, problem) = match self {
            ServingTls::Signed(_, health) => return health.state(),
            ServingTls::Files(files) => (files.validity(), files.problem()),
            ServingTls::Own(presented) => (presented.validity(), None),
        };
        let not_after = validity.map(|validity| validity.not_after);
        CertificateState { not_after, problem, ..CertificateState::default() }
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

    /// State of the serving certificate.
    pub(crate) fn serving(&self) -> CertificateState {
        self.serving.state()
    }

    /// Both on the status page.
    pub(crate) fn view(&self, client_ends: Option<Timestamp>) -> Vec<CertificateView> {
        vec![view("client", self.client(client_ends)), view("serving", self.serving())]
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
    use berth_core::ids::NodeName;
    use clap::Parser as _;

    #[derive(Debug, clap::Parser)]
    struct Command {
        #[command(flatten)]
        args: AgentArgs,
    }

    fn parse(arguments: &[&str]) -> Result<AgentArgs, clap::Error> {
        Command::try_parse_from([&["agent"], arguments].concat()).map(|command| command.args)
    }

    #[test]
    fn the_options_choose_the_serving_certificate() {
        let dir = tempfile::tempdir().unwrap();
        let roots = Roots::below(dir.path(), NodeName::new("n1").unwrap(), "c");
        let own = ServingTls::open(&parse(&[]).unwrap(), &roots, &[]).unwrap();
        assert!(matches!(own, ServingTls::Own(_)) && own.state().not_after.is_some());
        let [certificate, key] =
            ["kubelet.crt", "kubelet.key"].map(|name| roots.pki_dir().join(name).display().to_string());
        let files = ["--tls-cert-file", &certificate, "--tls-private-key-file", &key];
        let files = ServingTls::open(&parse(&files).unwrap(), &roots, &[]).unwrap();
        assert_eq!(files.state().not_after, own.state().not_after);
        let signed = parse(&["--kubeconfig=k", "--rotate-server-certificates"]).unwrap();
        assert_eq!(ServingTls::open(&signed, &roots, &[]).unwrap().state().not_after, None);
        assert!(
            ServingTls::open(
                &parse(&["--tls-cert-file=/nonexistent", "--tls-private-key-file=/nonexistent"]).unwrap(),
                &roots,
                &[]
            )
            .is_err()
        );
        for wrong in [
            ["--tls-cert-file=a", "--standalone"],
            ["--tls-cert-file=a", "--kubeconfig=k"],
            ["--rotate-server-certificates", "--standalone"],
            ["--bootstrap-kubeconfig=b", "--standalone"],
        ] {
            assert!(parse(&wrong).is_err(), "{wrong:?}");
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
