//! Errors before or beside a probe.

/// A probe or hook that could not be sent. None of these errors says anything about a container's
/// health.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A probe or hook names a port that the container does not declare, or port 0.
    #[error("cannot find port {port:?}: the container does not declare it")]
    NoSuchPort {
        /// The port as specified.
        port: String,
    },
    /// The pod has no address yet.
    #[error("cannot probe the pod: it has no address yet")]
    NoPodAddress,
    /// An exec probe was resolved as a network probe.
    #[error("cannot resolve an exec probe to a request over the network")]
    NotOverTheNetwork,
    /// Setting up the TLS client.
    #[error("cannot set up TLS")]
    Tls(#[source] rustls::Error),
    /// An httpGet hook was not answered.
    #[error("{0}")]
    Hook(String),
}
