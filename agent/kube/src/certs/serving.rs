//! The certificate that the node's TLS server presents.
//!
//! [`ServingCertificate`] is replaced by its owner; [`ServingFiles`] are two files of somebody else, which
//! are looked at when a client comes. Both answer a handshake from memory. Without a certificate, or with one
//! that has ended, the handshake fails, as the kubelet's does.

use super::{CertificateError, Validity};
use crate::identity::Certificate;
use berth_core::sync::lock;
use berth_sys::fs::read_limited;
use jiff::Timestamp;
use rustls::{
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use std::{
    fmt, fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

/// Maximum size in bytes of a file.
const MAX_FILE: usize = 1024 * 1024;

/// Files are looked at once in this time at most.
const LOOK: Duration = Duration::from_secs(1);

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

/// Certificate and key in two files (`tlsCertFile`, `tlsPrivateKeyFile`). A handshake looks at them, once a
/// second at most, and reads them again if one has changed; nothing looks while nobody asks. Files that
/// cannot be used, such as a new certificate whose key is still the old one, leave the certificate before.
pub struct ServingFiles {
    certificate: PathBuf,
    key: PathBuf,
    state: Mutex<FilesState>,
}

struct FilesState {
    presented: Option<Presented>,
    stamps: [Stamp; 2],
    looked: Option<Instant>,
    problem: Option<String>,
}

/// What changes when a file is replaced or written; the default for a file that cannot be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Stamp(u64, u64, u64, i64, i64);

fn stamp(path: &Path) -> Stamp {
    fs::metadata(path)
        .map_or_else(|_| Stamp::default(), |m| Stamp(m.dev(), m.ino(), m.size(), m.mtime(), m.mtime_nsec()))
}

impl fmt::Debug for ServingFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServingFiles")
            .field("certificate", &self.certificate)
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

impl ServingFiles {
    /// Reads the files.
    ///
    /// # Errors
    /// A file cannot be read, or they do not belong together.
    pub fn open(certificate: PathBuf, key: PathBuf) -> Result<ServingFiles, CertificateError> {
        let state = FilesState { presented: None, stamps: Default::default(), looked: None, problem: None };
        let files = ServingFiles { certificate, key, state: Mutex::new(state) };
        files.look(Instant::now());
        let mut state = lock(&files.state);
        if let Some(problem) = state.problem.take() {
            return Err(CertificateError::new("serve", problem));
        }
        drop(state);
        Ok(files)
    }

    /// The time in which the present certificate is valid.
    pub fn validity(&self) -> Option<Validity> {
        lock(&self.state).presented.as_ref().map(|presented| presented.validity)
    }

    /// Why the newest files are not used.
    pub fn problem(&self) -> Option<String> {
        lock(&self.state).problem.clone()
    }

    /// Reads the files again if one of them has changed since the last time.
    fn look(&self, now: Instant) {
        let mut state = lock(&self.state);
        if state.looked.is_some_and(|at| now.saturating_duration_since(at) < LOOK) {
            return;
        }
        let first = state.looked.is_none();
        state.looked = Some(now);
        let stamps = [stamp(&self.certificate), stamp(&self.key)];
        if !first && stamps == state.stamps {
            return;
        }
        state.stamps = stamps;
        match self.read() {
            Ok(presented) => {
                if !first {
                    tracing::info!(file = %self.certificate.display(), "the serving certificate was read again");
                }
                (state.presented, state.problem) = (Some(presented), None);
            }
            Err(problem) => {
                if !first {
                    tracing::warn!(problem, "the serving certificate before is used further");
                }
                state.problem = Some(problem);
            }
        }
    }

    fn read(&self) -> Result<Presented, String> {
        let [certificate, key] = [&self.certificate, &self.key]
            .map(|path| read_limited(path, MAX_FILE).map_err(|e| berth_core::error::Chain(&e).to_string()));
        Presented::read(&certificate?, &key?)
            .map_err(|e| format!("{}: {}", self.certificate.display(), e.reason))
    }
}

impl ResolvesServerCert for ServingFiles {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.look(Instant::now());
        lock(&self.state).presented.as_ref()?.at(Timestamp::now())
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

    fn presented(files: &ServingFiles) -> CertificateDer<'static> {
        lock(&files.state).presented.as_ref().unwrap().key.cert[0].clone()
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

    #[test]
    fn files_are_read_again_when_they_change_as_a_pair() {
        let dir = tempfile::tempdir().unwrap();
        let [certificate, key] = ["tls.crt", "tls.key"].map(|name| dir.path().join(name));
        let missing = ServingFiles::open(certificate.clone(), key.clone()).unwrap_err().to_string();
        assert!(missing.contains("tls.crt"), "{missing}");
        let ((one, one_key), (two, two_key)) = (pair("a"), pair("b"));
        fs::write(&certificate, &one).unwrap();
        fs::write(&key, &one_key).unwrap();
        let files = ServingFiles::open(certificate.clone(), key.clone()).unwrap();
        let (first, begun) = (presented(&files), Instant::now());
        fs::write(dir.path().join("new"), &two).unwrap();
        fs::rename(dir.path().join("new"), &certificate).unwrap();
        files.look(begun);
        assert_eq!(files.problem(), None, "not looked at twice in a second");
        files.look(begun + 2 * LOOK);
        assert!(files.problem().unwrap().contains("tls.crt"));
        assert_eq!(presented(&files), first, "the pair before is used");
        fs::write(dir.path().join("new"), &two_key).unwrap();
        fs::rename(dir.path().join("new"), &key).unwrap();
        files.look(begun + 4 * LOOK);
        assert_eq!(files.problem(), None);
        assert_ne!(presented(&files), first);
    }
}
