//! The certificate that the node's TLS server presents, and that its owner replaces. A handshake is answered
//! from memory. Without a certificate, or with one that has ended, the handshake fails, as the kubelet's does.

use super::{CertificateError, Validity};
use crate::identity::Certificate;
use berth_core::sync::lock;
use jiff::Timestamp;
use rustls::{
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use std::{
    fmt,
    sync::{Arc, Mutex},
};

/// A certificate that can be presented.
#[derive(Clone)]
struct Presented {
    key: Arc<CertifiedKey>,
    validity: Validity,
}

impl Presented {
    /// Reads certificates and a private key in PEM.
    fn read(chain: &[u8], key: &[u8]) -> Result<Presented, CertificateError> {
        let failed = |reason: String| CertificateError::new("use the serving certificate", reason);
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain).collect();
        let chain = chain.map_err(|e| failed(format!("it is no PEM: {e}")))?;
        let first = chain.first().ok_or_else(|| failed("there is none".to_owned()))?;
        let certificate =
            Certificate::read(first).ok_or_else(|| failed("it has no known form".to_owned()))?;
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|_secret| failed("there is no private key in PEM that can be used".to_owned()))?;
        let key = CertifiedKey::from_der(chain, key, &ring::default_provider())
            .map_err(|e| failed(e.to_string()))?;
        let validity = Validity { not_before: certificate.not_before, not_after: certificate.not_after };
        Ok(Presented { key: Arc::new(key), validity })
    }

    fn at(&self, now: Timestamp) -> Option<Arc<CertifiedKey>> {
        (!self.validity.has_ended(now)).then(|| Arc::clone(&self.key))
    }
}

/// A serving certificate that its owner replaces; clones are the same.
#[derive(Clone, Default)]
pub struct ServingCertificate(Arc<Mutex<Option<Presented>>>);

impl fmt::Debug for ServingCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ServingCertificate").field(&self.validity()).finish()
    }
}

impl ServingCertificate {
    /// Presents another certificate from the next handshake on.
    ///
    /// # Errors
    /// There is no certificate or no key, or they do not belong together. The certificate before stays then.
    pub fn set(&self, chain: &[u8], key: &[u8]) -> Result<(), CertificateError> {
        let presented = Presented::read(chain, key)?;
        *lock(&self.0) = Some(presented);
        Ok(())
    }

    /// The time in which the present certificate is valid; `None` if there is none.
    pub fn validity(&self) -> Option<Validity> {
        lock(&self.0).as_ref().map(|presented| presented.validity)
    }
}

impl ResolvesServerCert for ServingCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        lock(&self.0).as_ref()?.at(Timestamp::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certs::{Key, Subject};

    fn pair(node: &str) -> (String, String) {
        let key = Key::generate().unwrap();
        let subject = Subject::server(node, &["192.0.2.1".parse().unwrap()]);
        (key.self_signed(&subject, Timestamp::now()).unwrap(), key.pem())
    }

    #[test]
    fn a_certificate_is_replaced_and_a_wrong_one_is_not_taken() {
        let serving = ServingCertificate::default();
        assert_eq!(serving.validity(), None);
        let ((one, one_key), (two, two_key)) = (pair("a"), pair("b"));
        serving.set(one.as_bytes(), one_key.as_bytes()).unwrap();
        let first = lock(&serving.0).as_ref().unwrap().key.cert[0].clone();
        for (certificate, key) in [(&two, &one_key), (&two, &two), (&two_key, &two_key)] {
            let error = serving.set(certificate.as_bytes(), key.as_bytes()).unwrap_err();
            assert!(!error.to_string().contains("BEGIN"), "{error}");
        }
        assert_eq!(lock(&serving.0).as_ref().unwrap().key.cert[0], first);
        serving.clone().set(two.as_bytes(), two_key.as_bytes()).unwrap();
        assert_ne!(lock(&serving.0).as_ref().unwrap().key.cert[0], first);
    }

    #[test]
    fn a_certificate_that_has_ended_is_not_presented() {
        let (certificate, key) = pair("a");
        let presented = Presented::read(certificate.as_bytes(), key.as_bytes()).unwrap();
        assert!(presented.at(Timestamp::now()).is_some());
        assert!(presented.at(presented.validity.not_after).is_none());
    }
}
