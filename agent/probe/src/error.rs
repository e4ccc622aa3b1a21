//! What can go wrong before or beside a question.

/// Why something could not be asked or sent. None of these says anything about a container's health.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A probe or hook names a port the container does not declare, or port 0.
    #[error("the container has no port {port:?}")]
    NoSuchPort {
        /// The port as specified.
        port: String,
    },
    /// The pod has no address yet.
    #[error("the pod has no address yet")]
    NoPodAddress,
    /// An exec probe was to be asked over the network.
    #[error("an exec probe is not asked over the network")]
    NotOverTheNetwork,
    /// The TLS client could not be set up.
    #[error("set up TLS")]
    Tls(#[source] rustls::Error),
    /// An httpGet hook was not answered.
    #[error("lifecycle hook: {0}")]
    Hook(String),
}
