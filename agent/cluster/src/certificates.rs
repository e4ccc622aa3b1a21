//! The node's own certificates: TLS bootstrap, rotation of the client certificate, and the serving
//! certificate.
//!
//! [`ClientCertificate`] gets the certificate by which the node is known to the API server: by a bootstrap
//! token where the node has none, by the certificate before while that is valid. [`Serving`] gets the one
//! that the node's own API presents. Both make a CertificateSigningRequest and wait until somebody approves
//! it, for as long as it takes. A task each; what they wait for and what fails is in a [`CertificateHealth`].
//!
//! Invariants: pods and watches outlive every renewal. A key exists on disk before its request, and the
//! request's name derives from the key, so that an agent that starts again goes on with the request that it
//! made. On failure: a certificate is used until its end; tries are repeated after 2 s to 32 s. A node whose
//! certificate has ended goes back to its bootstrap token if it has one, else it stays behind the API server,
//! with its pods, until it gets another.

mod client;
mod health;
mod serving;
mod signing;

pub use client::{ClientCertificate, open};
pub use health::{CertificateHealth, CertificateState, PendingRequest};
pub use serving::Serving;

use berth_kube::certs::CertificateError;

/// Runs work on files on a thread of its own.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CertificateError> + Send + 'static,
) -> Result<T, String> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(|error| error.to_string()),
        Err(error) => Err(format!("cannot work on the certificate's files: {error}")),
    }
}
