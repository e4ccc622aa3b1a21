//! TLS of the server: the client's certificate is requested and never required.
//!
//! The handshake proves only that the client has the key of its certificate. [`ClientCa`] judges the certificate with each
//! request, so that a bad one is 401 and not a broken handshake, and so that a CA that was taken away counts at once.
//! Files are read again when they change. HTTP/1.1 is the only protocol: upgrades of HTTP/2 do not exist.

mod files;
mod serving;

pub use serving::{ServingFiles, self_made};

use files::Watched;
use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, UnixTime, pem::PemObject},
    server::{
        NoServerSessionStorage, ParsedCertificate, ResolvesServerCert, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use std::{path::PathBuf, sync::Arc};

/// The configuration of the server. Sessions are not resumed: each connection proves its key.
///
/// # Errors
/// The cryptography has no usable version of TLS.
pub fn config(certificate: Arc<dyn ResolvesServerCert>) -> Result<ServerConfig, Error> {
    let provider = Arc::new(ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(Arc::new(AnyClient(provider)))
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// Verifier that accepts every client certificate whose key the client has, and clients without one.
#[derive(Debug)]
struct AnyClient(Arc<CryptoProvider>);

impl ClientCertVerifier for AnyClient {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if is_unreadable(certificate) {
            return Ok(HandshakeSignatureValid::assertion());
        }
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if is_unreadable(certificate) {
            return Ok(HandshakeSignatureValid::assertion());
        }
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Whether a certificate cannot be read, so that its signature cannot be checked. [`ClientCa::judge`] reads by the same
/// rules and accepts none of these, so the client goes on as one with a bad certificate.
fn is_unreadable(certificate: &CertificateDer<'_>) -> bool {
    ParsedCertificate::try_from(certificate).is_err()
}

/// The CAs whose client certificates are accepted (`--client-ca-file`).
#[derive(Debug)]
pub struct ClientCa {
    file: Watched<Arc<dyn ClientCertVerifier>>,
}

impl ClientCa {
    /// Reads the CAs of a file in PEM.
    ///
    /// # Errors
    /// The file cannot be read, or has no CA that can be used.
    pub fn open(path: PathBuf) -> Result<ClientCa, crate::Error> {
        Ok(ClientCa { file: Watched::open(vec![path], |texts| roots(texts.concat().as_slice()))? })
    }

    /// Judges a client's certificate chain: of one of the CAs, valid now, and for client authentication.
    ///
    /// # Errors
    /// The reason why the chain does not count; there may be none.
    pub(crate) fn judge<'c>(
        &self,
        chain: &'c [CertificateDer<'static>],
    ) -> Result<&'c CertificateDer<'static>, Error> {
        let (own, others) = chain.split_first().ok_or(Error::NoCertificatesPresented)?;
        self.file.get().verify_client_cert(own, others, UnixTime::now())?;
        Ok(own)
    }
}

/// The verifier of the CAs in a PEM text.
fn roots(pem: &[u8]) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|e| format!("is no PEM: {e}"))?;
        roots.add(certificate).map_err(|e| format!("has a CA certificate that cannot be used: {e}"))?;
    }
    if roots.is_empty() {
        return Err("has no CA certificate in PEM".to_owned());
    }
    let provider = Arc::new(ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
    verifier.map_err(|e| format!("has CA certificates that cannot be used: {e}"))
}
