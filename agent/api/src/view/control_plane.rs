//! The control plane that the node works for, as the agent sees it.

use berth_core::{ids::PodKey, time::Wall};
use serde::{Deserialize, Serialize};

/// State of the connection to the API server, and what the node does not know of it or has not told it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlPlaneView {
    /// URL of the API server.
    pub server: String,
    /// Common name of the node's client certificate; `None` where the node identifies itself otherwise.
    #[serde(default)]
    pub identity: Option<String>,
    /// Number of open connections.
    #[serde(default)]
    pub connections: usize,
    /// Time of the API server's last answer; `None` before the first.
    #[serde(default)]
    pub last_contact: Option<Wall>,
    /// Time at which the node's Lease was last renewed.
    #[serde(default)]
    pub lease_renewed: Option<Wall>,
    /// The reason why the API server cannot be reached or the identity cannot be used, with the remedy.
    #[serde(default)]
    pub problem: Option<String>,
    /// Whether pods and Services were listed once. Before, no pod starts and none is deleted.
    pub listed: bool,
    /// Whether the API server has the node's own object.
    #[serde(default)]
    pub registered: bool,
    /// Number of pods that the API server has for this node.
    pub pods: usize,
    /// The followed sets that may be behind the API server.
    #[serde(default)]
    pub behind: Vec<SetBehind>,
    /// ConfigMaps and Secrets in use that the agent could not read yet.
    #[serde(default)]
    pub unread: Vec<UnreadObject>,
    /// Pods whose status the API server did not take yet.
    #[serde(default)]
    pub unpublished: Vec<UnpublishedPod>,
    /// The node's own certificates.
    #[serde(default)]
    pub certificates: Vec<CertificateView>,
}

/// A certificate of the node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateView {
    /// `client` or `serving`.
    pub purpose: String,
    /// End of the present certificate; `None` if there is none.
    #[serde(default)]
    pub not_after: Option<Wall>,
    /// The CertificateSigningRequest that is not answered yet.
    #[serde(default)]
    pub request: Option<RequestView>,
    /// Why the last try to renew the certificate failed.
    #[serde(default)]
    pub problem: Option<String>,
}

/// A CertificateSigningRequest without a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestView {
    /// Name of the object.
    pub name: String,
    /// Time since which the agent waits.
    pub since: Wall,
    /// Whether the request is approved, and only the signer is awaited.
    pub approved: bool,
    /// Why somebody denied the request.
    #[serde(default)]
    pub denied: Option<String>,
}

/// A set of objects that may be behind the API server's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetBehind {
    /// Name of the resource, as `endpointslices`.
    pub resource: String,
    /// Time since which the set may be behind.
    pub since: Wall,
    /// The reason.
    pub reason: String,
}

/// An object in use that the agent could not read yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnreadObject {
    /// Kind, as `ConfigMap`.
    pub kind: String,
    /// Namespace and name, as `default/settings`.
    pub key: String,
    /// The reason.
    pub reason: String,
}

/// A pod whose status the API server did not take yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnpublishedPod {
    /// Namespace and name.
    pub pod: PodKey,
    /// Time of the first request that failed.
    pub since: Wall,
    /// The reason.
    pub reason: String,
}
