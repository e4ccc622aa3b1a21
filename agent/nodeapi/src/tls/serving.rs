//! Serving certificates that need nobody else: of files, or made by the node itself.

use super::files::Watched;
use crate::Error;
use rustls::{
    crypto::ring::sign::any_supported_type,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use std::{path::PathBuf, sync::Arc};

/// How long a certificate that the node makes for itself is valid (the kubelet's is valid for a year).
const VALID_DAYS: u32 = 365;

/// The serving certificate of two files in PEM (`--tls-cert-file`, `--tls-private-key-file`), read again when they
/// change. While certificate and key do not belong together, the last pair counts.
#[derive(Debug)]
pub struct ServingFiles {
    pair: Watched<Arc<CertifiedKey>>,
}

impl ServingFiles {
    /// Reads certificate and key.
    ///
    /// # Errors
    /// A file cannot be read, or the two do not belong together.
    pub fn open(certificate: PathBuf, key: PathBuf) -> Result<ServingFiles, Error> {
        Ok(ServingFiles { pair: Watched::open(vec![certificate, key], pair)? })
    }
}

impl ResolvesServerCert for ServingFiles {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.pair.get())
    }
}

fn pair(texts: &[Vec<u8>]) -> Result<Arc<CertifiedKey>, String> {
    let [certificate, key] = texts else { return Err("needs a certificate and a key".into()) };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificate).collect();
    let chain = chain.map_err(|e| format!("is no PEM: {e}"))?;
    let key = PrivateKeyDer::from_pem_slice(key)
        .map_err(|_invalid| "its key is no private key in PEM (PKCS #8, PKCS #1 or SEC 1)".to_owned())?;
    pair_of(chain, &key)
}

fn pair_of(
    chain: Vec<CertificateDer<'static>>,
    key: &PrivateKeyDer<'static>,
) -> Result<Arc<CertifiedKey>, String> {
    let key = any_supported_type(key).map_err(|e| format!("its key cannot be used: {e}"))?;
    let pair = CertifiedKey::new(chain, key);
    pair.keys_match().map_err(|e| format!("does not belong to its key: {e}"))?;
    Ok(Arc::new(pair))
}

/// A certificate that never changes.
#[derive(Debug)]
struct Fixed(Arc<CertifiedKey>);

impl ResolvesServerCert for Fixed {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

/// A new self-signed certificate for the node's name and addresses, the name first. It is in memory alone, and clients that
/// verify certificates do not accept it.
///
/// # Errors
/// The names cannot be in a certificate.
pub fn self_made(names: Vec<String>) -> Result<Arc<dyn ResolvesServerCert>, Error> {
    let (certificate, key) = certificate(names)?;
    let pair = pair_of(vec![certificate], &key).map_err(|reason| Error::Make { reason })?;
    Ok(Arc::new(Fixed(pair)))
}

/// A self-signed certificate and its key.
fn certificate(names: Vec<String>) -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>), Error> {
    let failed = |e: rcgen::Error| Error::Make { reason: e.to_string() };
    let common_name = names.first().cloned().unwrap_or_default();
    let mut parameters = rcgen::CertificateParams::new(names).map_err(failed)?;
    parameters.distinguished_name = rcgen::DistinguishedName::new();
    parameters.distinguished_name.push(rcgen::DnType::CommonName, common_name);
    parameters.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
    parameters.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    let now = std::time::SystemTime::now();
    let day = std::time::Duration::from_secs(24 * 3600);
    // An hour back, for clients whose clocks are behind.
    parameters.not_before = (now - day / 24).into();
    parameters.not_after = (now + day * VALID_DAYS).into();
    let key = rcgen::KeyPair::generate().map_err(failed)?;
    let certificate = parameters.self_signed(&key).map_err(failed)?;
    let key = PrivatePkcs8KeyDer::from(key.serialize_der());
    Ok((certificate.der().clone(), key.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_self_made_certificate_serves_and_belongs_to_its_own_key_only() {
        let names = ["n1", "192.0.2.1", "2001:db8::1"].map(str::to_owned).to_vec();
        assert!(self_made(names.clone()).is_ok());
        let ((certificate, key), (_, other)) =
            (certificate(names.clone()).unwrap(), certificate(names).unwrap());
        let text = |label, der: &[u8]| crate::testing::pem(label, der).into_bytes();
        let (certificate, key) = (text("CERTIFICATE", &certificate), text("PRIVATE KEY", key.secret_der()));
        let other = text("PRIVATE KEY", other.secret_der());
        assert_eq!(pair(&[certificate.clone(), key.clone()]).unwrap().cert.len(), 1);
        assert!(pair(&[certificate.clone(), other]).unwrap_err().starts_with("does not belong to its key"));
        assert!(pair(&[certificate, Vec::new()]).is_err() && pair(&[Vec::new(), key]).is_err());
    }
}
