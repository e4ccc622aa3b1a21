//! TLS of connections to the API server: the trusted CAs, the agent's certificate, and explanations of
//! failures.

use super::Identity;
use jiff::Timestamp;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, InconsistentKeys, InvalidMessage,
    RootCertStore, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
};
use std::{fs, sync::Arc};

/// Paths at which distributions keep the system's CAs (Go's `crypto/x509/root_linux.go`).
const SYSTEM_ROOTS: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// The server certificates that are accepted.
pub(super) enum Trust {
    /// All certificates: `insecure-skip-tls-verify`.
    Anyone,
    /// Certificates of these CAs.
    Roots(RootCertStore),
}

/// The CAs of a PEM text.
pub(super) fn roots(pem: &[u8]) -> Result<Trust, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|e| format!("cannot read the CA as PEM: {e}"))?;
        roots.add(certificate).map_err(|e| format!("cannot use a CA certificate: {e}"))?;
    }
    if roots.is_empty() { Err("has no CA certificate in PEM".to_owned()) } else { Ok(Trust::Roots(roots)) }
}

/// The system's CAs, for a kubeconfig that names no CA.
pub(super) fn system_roots() -> Result<Trust, String> {
    let text = SYSTEM_ROOTS.iter().find_map(|path| fs::read(path).ok());
    let text = text.ok_or("is missing, and the system has no CA certificates; name the cluster's CA")?;
    let mut roots = RootCertStore::empty();
    // Distributions' bundles contain certificates that a strict reader refuses; the other certificates count.
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&text).flatten());
    Ok(Trust::Roots(roots))
}

/// The certificates of a PEM text, the agent's own one first.
pub(super) fn chain(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let all = all.map_err(|e| format!("cannot read the client certificate as PEM: {e}"))?;
    if all.is_empty() { Err("has no client certificate in PEM".to_owned()) } else { Ok(all) }
}

/// The private key of a PEM text.
pub(super) fn key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|_invalid| {
        "has no private key in PEM that can be used (PKCS #8, PKCS #1 or SEC 1)".to_owned()
    })
}

/// The TLS configuration of an identity. Sessions are not resumed: a resumed session keeps the certificate
/// with which it began.
pub(super) fn config(
    trust: Trust,
    own: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
) -> Result<ClientConfig, String> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?;
    let builder = match trust {
        Trust::Anyone => {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        }
        Trust::Roots(roots) => builder.with_root_certificates(roots),
    };
    let mut config = match own {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).map_err(|e| match e {
            Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                "the key does not belong to the client certificate".to_owned()
            }
            other => format!("cannot use the client certificate with its key: {other}"),
        })?,
        None => builder.with_no_client_auth(),
    };
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// Verifier that accepts every certificate, and checks that the server has the certificate's key.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// The reason of a failed handshake and the remedy, on one line.
pub(crate) fn explain(error: &Error, identity: &Identity) -> String {
    let time = |t: &UnixTime| {
        let seconds = i64::try_from(t.as_secs()).unwrap_or(i64::MAX);
        Timestamp::from_second(seconds).map_or_else(|_| "an unknown time".to_owned(), |t| t.to_string())
    };
    match error {
        Error::InvalidCertificate(wrong) => match wrong {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                "the server's certificate is of an unknown CA; put the cluster's CA into certificate-authority"
                    .to_owned()
            }
            CertificateError::ExpiredContext { time: now, not_after } => format!(
                "the server's certificate expired at {}, and this node's clock says {}; renew it, or set the clock",
                time(not_after),
                time(now)
            ),
            CertificateError::NotValidYetContext { time: now, not_before } => format!(
                "the server's certificate is valid from {} on, and this node's clock says {}; set the clock",
                time(not_before),
                time(now)
            ),
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                let names = match wrong {
                    CertificateError::NotValidForNameContext { presented, .. } if !presented.is_empty() => {
                        format!(" (it is for {})", presented.join(", "))
                    }
                    _ => String::new(),
                };
                format!(
                    "the server's certificate is not for {}{names}; use a name of the certificate as server or tls-server-name",
                    identity.server.name
                )
            }
            CertificateError::UnsupportedSignatureAlgorithmContext { .. }
            | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
                "the server's certificate has a signature that is not supported (P-521 is not); use P-256, P-384 or RSA"
                    .to_owned()
            }
            other => format!(
                "the server's certificate cannot be used: {other}; it must be of version 3 and no CA certificate itself"
            ),
        },
        Error::AlertReceived(alert) => {
            let own = identity.problem(Timestamp::now());
            let own = own.unwrap_or_else(|| "look at client-certificate and at the server's client CA".to_owned());
            format!("the server refuses the handshake ({alert:?}): {own}")
        }
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            "the server does not speak TLS there; look at host and port of server".to_owned()
        }
        other => format!("the TLS handshake failed: {other}"),
    }
}
