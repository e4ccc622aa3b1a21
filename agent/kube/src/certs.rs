//! The node's certificates: keys and requests for them, their files, when they are renewed, and the serving
//! certificate of TLS.
//!
//! [`Rotation`] (pure) decides when a certificate is renewed. [`Key`] and [`Subject`] make a request; the
//! caller has it signed. [`Store`] keeps certificates in the kubelet's files, so that a node may change
//! between the two agents. [`ServingCertificate`] is what a TLS server presents. The module starts no task.
//!
//! Invariants: a certificate that is valid is used until its end, whatever becomes of its renewal. A file is
//! replaced as a whole, and durable before it counts. A private key is readable for its owner alone and is in
//! no error and no log.

mod key;
mod pem;
mod rotation;
mod serving;
mod store;

pub use key::{Key, Subject};
pub use rotation::{Rotation, Validity};
pub use serving::ServingCertificate;
pub use store::{Held, Store, ends};

/// Error of a key, a request or a certificate; one line, without any part of a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot {what}: {reason}")]
pub struct CertificateError {
    /// The operation with its subject.
    pub what: String,
    /// Cause of the failure.
    pub reason: String,
}

impl CertificateError {
    fn new(what: impl Into<String>, reason: impl ToString) -> CertificateError {
        CertificateError { what: what.into(), reason: reason.to_string() }
    }
}
