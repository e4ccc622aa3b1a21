//! The files of a certificate, as the kubelet has them (client-go's `util/certificate/certificate_store.go`):
//! each certificate with its key in `<prefix>-<date>.pem`, a link `<prefix>-current.pem` to the present one,
//! and the key of a request that is not answered yet in `<prefix>.key.tmp`.

use super::{CertificateError, Key, Validity, pem};
use crate::identity::Certificate;
use berth_sys::fs::{read_limited, remove_if_there, write_atomic};
use jiff::{Timestamp, tz::TimeZone};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink},
    path::{Path, PathBuf},
};

/// Maximum size in bytes of a file.
const MAX_FILE: usize = 1024 * 1024;

/// The files of one certificate and of those before it.
#[derive(Debug, Clone)]
pub struct Store {
    dir: PathBuf,
    prefix: &'static str,
}

/// The present certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// What the certificate says.
    pub certificate: Certificate,
    /// Certificates and key as the file has them.
    pub pem: Vec<u8>,
}

impl Held {
    /// The time in which the certificate is valid.
    pub fn validity(&self) -> Validity {
        Validity { not_before: self.certificate.not_before, not_after: self.certificate.not_after }
    }
}

impl Store {
    /// The certificate by which the node is a client of the API server.
    pub fn client(dir: &Path) -> Store {
        Store { dir: dir.into(), prefix: "kubelet-client" }
    }

    /// The certificate by which the node serves.
    pub fn server(dir: &Path) -> Store {
        Store { dir: dir.into(), prefix: "kubelet-server" }
    }

    /// Path of the link to the present certificate.
    pub fn current_path(&self) -> PathBuf {
        self.path("current")
    }

    fn path(&self, what: &str) -> PathBuf {
        self.dir.join(format!("{}-{what}.pem", self.prefix))
    }

    fn pending_path(&self) -> PathBuf {
        self.dir.join(format!("{}.key.tmp", self.prefix))
    }

    /// The present certificate; `None` if there is none.
    ///
    /// # Errors
    /// The file cannot be read, or has no certificate.
    pub fn current(&self) -> Result<Option<Held>, CertificateError> {
        let path = self.current_path();
        if !path.exists() {
            return Ok(None);
        }
        read(&path).map(Some)
    }

    /// The key of the request that is not answered yet, or a new key. The key is on disk before it is
    /// returned, so that an agent that starts again asks for the same.
    ///
    /// # Errors
    /// No key can be made or written.
    pub fn pending_key(&self) -> Result<Key, CertificateError> {
        let path = self.pending_path();
        // A file that is no key, or another kind of key, gives way to a new one.
        if let Some(key) = read_limited(&path, MAX_FILE).ok().and_then(|text| Key::from_pem(&text).ok()) {
            return Ok(key);
        }
        let key = Key::generate()?;
        self.make_dir()?;
        write_atomic(&path, key.pem().as_bytes(), 0o600)
            .map_err(|e| CertificateError::new(format!("write {}", path.display()), reason(&e)))?;
        Ok(key)
    }

    /// Removes the key of a request that is over.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn forget_pending_key(&self) -> Result<(), CertificateError> {
        let path = self.pending_path();
        remove_if_there(&path).map_err(|e| CertificateError::new(format!("remove {}", path.display()), e))
    }

    /// Makes a certificate the present one. `chain` is the certificate in PEM with those between it and the
    /// CA. The files of certificates that have ended are removed.
    ///
    /// # Errors
    /// The certificate is not of this key, or a file cannot be written. The certificate before stays then.
    pub fn update(&self, chain: &[u8], key: &Key, now: Timestamp) -> Result<Held, CertificateError> {
        let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain).collect();
        let all = all.map_err(|e| CertificateError::new("read the issued certificate", e))?;
        let certificate = all.first().and_then(|der| Certificate::read(der));
        let wrong = |reason: &str| CertificateError::new("use the issued certificate", reason);
        let certificate = certificate.ok_or_else(|| wrong("it cannot be read"))?;
        if certificate.key_digest != key.digest() {
            return Err(wrong("it is for another key"));
        }
        let mut text: String = all.iter().map(|der| pem::block("CERTIFICATE", der)).collect();
        text.push_str(&key.pem());
        self.make_dir()?;
        let date = now.to_zoned(TimeZone::UTC).strftime("%Y-%m-%d-%H-%M-%S").to_string();
        let file = self.path(&date);
        self.replace(&file, text.as_bytes())
            .map_err(|e| CertificateError::new(format!("write {}", file.display()), e))?;
        self.forget_pending_key()?;
        self.remove_ended(now, &file);
        Ok(Held { certificate, pem: text.into_bytes() })
    }

    fn make_dir(&self) -> Result<(), CertificateError> {
        // The kubelet's mode; the files within are their owner's alone.
        let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(&self.dir);
        made.map_err(|e| CertificateError::new(format!("make {}", self.dir.display()), e))
    }

    /// Writes a file durably and lets the link lead there. A reader of the link finds one file or the other.
    fn replace(&self, file: &Path, bytes: &[u8]) -> io::Result<()> {
        let current = self.current_path();
        if fs::symlink_metadata(&current).is_ok_and(|there| !there.is_symlink()) {
            let why = format!("{} is a file and no link; move it away", current.display());
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, why));
        }
        let (part, link) = (self.path("part"), self.path("updated"));
        remove_if_there(&part)?;
        let mut to = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part)?;
        to.write_all(bytes)?;
        to.sync_all()?;
        fs::rename(&part, file)?;
        remove_if_there(&link)?;
        // By its whole path, as the kubelet's.
        symlink(std::path::absolute(file)?, &link)?;
        fs::rename(&link, &current)?;
        File::open(&self.dir)?.sync_all()
    }

    /// Removes the files of certificates that have ended. A failure leaves a file that nobody uses.
    fn remove_ended(&self, now: Timestamp, present: &Path) {
        let begin = format!("{}-2", self.prefix);
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            let is_ours =
                name.to_str().is_some_and(|name| name.starts_with(&begin) && name.ends_with(".pem"));
            if is_ours
                && path != present
                && read(&path).is_ok_and(|held| held.validity().has_ended(now))
                && let Err(error) = fs::remove_file(&path)
            {
                tracing::info!(%error, file = %path.display(), "cannot remove a certificate that has ended");
            }
        }
    }
}

/// End of the certificate in a file.
///
/// # Errors
/// The file cannot be read, or has no certificate.
pub fn ends(file: &Path) -> Result<Timestamp, CertificateError> {
    read(file).map(|held| held.certificate.not_after)
}

fn read(path: &Path) -> Result<Held, CertificateError> {
    let failed = |reason: String| CertificateError::new(format!("read {}", path.display()), reason);
    let pem = read_limited(path, MAX_FILE).map_err(|e| failed(reason(&e)))?;
    let der =
        CertificateDer::from_pem_slice(&pem).map_err(|e| failed(format!("no certificate in PEM: {e}")))?;
    let certificate =
        Certificate::read(&der).ok_or_else(|| failed("the certificate has no known form".to_owned()))?;
    Ok(Held { certificate, pem })
}

fn reason(error: &berth_sys::Error) -> String {
    berth_core::error::Chain(error).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certs::Subject;
    use std::os::unix::fs::PermissionsExt;

    fn now() -> Timestamp {
        "2026-01-02T03:04:05Z".parse().unwrap()
    }

    fn signed(key: &Key, at: &str) -> Vec<u8> {
        key.self_signed(&Subject::client("n1"), at.parse().unwrap()).unwrap().into_bytes()
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_new_certificate_is_linked_with_its_key_and_readable_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let pki = dir.path().join("pki");
        let store = Store::client(&pki);
        assert_eq!(store.current(), Ok(None));
        let key = store.pending_key().unwrap();
        assert_eq!(names(&pki), ["kubelet-client.key.tmp"]);
        assert_eq!(
            store.pending_key().unwrap().digest(),
            key.digest(),
            "an agent that starts again finds it"
        );
        let held = store.update(&signed(&key, "2026-01-02T03:04:05Z"), &key, now()).unwrap();
        assert_eq!(names(&pki), ["kubelet-client-2026-01-02-03-04-05.pem", "kubelet-client-current.pem"]);
        let link = fs::read_link(store.current_path()).unwrap();
        assert_eq!(link, pki.join("kubelet-client-2026-01-02-03-04-05.pem"));
        assert_eq!(fs::metadata(&link).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(store.current(), Ok(Some(held)));
        assert_ne!(
            store.pending_key().unwrap().digest(),
            key.digest(),
            "the next request has a key of its own"
        );
    }

    #[test]
    fn files_of_certificates_that_have_ended_go_and_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::server(dir.path());
        fs::write(dir.path().join("kubelet-server-2.pem"), "mine").unwrap();
        for at in ["2023-01-02T00:00:00Z", "2025-06-02T00:00:00Z", "2026-01-02T00:00:00Z"] {
            let key = store.pending_key().unwrap();
            store.update(&signed(&key, at), &key, at.parse().unwrap()).unwrap();
        }
        let want = [
            "kubelet-server-2.pem",
            "kubelet-server-2025-06-02-00-00-00.pem",
            "kubelet-server-2026-01-02-00-00-00.pem",
            "kubelet-server-current.pem",
        ];
        assert_eq!(names(dir.path()), want);
    }

    #[test]
    fn what_is_not_the_nodes_certificate_leaves_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::client(dir.path());
        let key = store.pending_key().unwrap();
        store.update(&signed(&key, "2026-01-02T03:04:05Z"), &key, now()).unwrap();
        let before = store.current().unwrap();
        let other = Key::generate().unwrap();
        for bad in [signed(&other, "2026-01-02T03:04:05Z"), b"noise".to_vec(), Vec::new()] {
            let error = store.update(&bad, &key, now()).unwrap_err().to_string();
            assert!(error.starts_with("cannot use the issued certificate: "), "{error}");
        }
        assert_eq!(store.current().unwrap(), before);
    }

    #[test]
    fn a_file_in_the_links_place_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::client(dir.path());
        fs::write(store.current_path(), "mine").unwrap();
        let key = store.pending_key().unwrap();
        let error = store.update(&signed(&key, "2026-01-02T03:04:05Z"), &key, now()).unwrap_err();
        assert!(error.reason.contains("is a file and no link"), "{error}");
        assert_eq!(fs::read_to_string(store.current_path()).unwrap(), "mine");
        assert!(store.current().is_err(), "and is no certificate");
    }

    #[test]
    fn what_a_death_half_way_left_is_in_nobodys_way() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::client(dir.path());
        fs::write(dir.path().join("kubelet-client-part.pem"), "torn").unwrap();
        symlink("/nonexistent", dir.path().join("kubelet-client-updated.pem")).unwrap();
        symlink("/nonexistent", store.current_path()).unwrap();
        fs::write(dir.path().join("kubelet-client.key.tmp"), "torn").unwrap();
        assert_eq!(store.current(), Ok(None));
        let key = store.pending_key().unwrap();
        store.update(&signed(&key, "2026-01-02T03:04:05Z"), &key, now()).unwrap();
        assert_eq!(
            names(dir.path()),
            ["kubelet-client-2026-01-02-03-04-05.pem", "kubelet-client-current.pem"]
        );
    }
}
