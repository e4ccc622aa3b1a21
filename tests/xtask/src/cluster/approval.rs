//! What a person does for the node's certificates: approves the request for the serving certificate.

use super::Cluster;
use anyhow::{Context, Result};
use berth_harness::wait::{self, PATIENCE};
use std::{fs, path::PathBuf};

/// The controllers, which sign certificates.
const CONTROLLERS: &str = "kube-controller-manager";

impl Cluster {
    /// Directory of the certificates of a node that joined by a token.
    pub(crate) fn node_pki(&self) -> PathBuf {
        self.file("node/kubelet/pki")
    }

    /// The file of the present certificate of such a node (`client`, `server`).
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn node_certificate(&self, purpose: &str) -> Result<PathBuf> {
        let link = self.node_pki().join(format!("kubelet-{purpose}-current.pem"));
        fs::read_link(&link).with_context(|| format!("cannot read {}", link.display()))
    }

    /// Starts the controllers, which sign certificates, again: those that they sign from now on live this long (`20s`).
    ///
    /// # Errors
    /// They do not end or do not start.
    pub(crate) fn sign_for(&self, life: &str) -> Result<()> {
        self.kill(CONTROLLERS)?;
        self.start_controllers_with_signing_duration(life)
    }

    /// Waits until the agent says that its request for a serving certificate waits, approves it, and waits for the
    /// certificate.
    ///
    /// # Errors
    /// The agent does not say so, or gets no certificate.
    pub(crate) fn approve_serving_certificate(&self) -> Result<()> {
        let waiting = "the request for the serving certificate waits";
        let name = wait::some(waiting, PATIENCE, || self.waiting_request("serving"))?;
        self.kubectl(&["certificate", "approve", &name])?;
        wait::ok("the node has its serving certificate", PATIENCE, || {
            let path = self.node_pki().join("kubelet-server-current.pem");
            fs::metadata(&path).with_context(|| format!("there is no {}", path.display())).map(drop)
        })
    }

    /// Name of the request for this certificate (`client`, `serving`) that waits for a person, as the agent tells it.
    pub(crate) fn waiting_request(&self, purpose: &str) -> Option<String> {
        let status: serde_json::Value = serde_json::from_str(&self.agent_status().ok()?).ok()?;
        let all = status["controlPlane"]["certificates"].as_array()?.clone();
        let serving = all.into_iter().find(|certificate| certificate["purpose"] == purpose)?;
        let request = serving["request"].as_object()?.clone();
        if request.get("approved").is_some_and(|approved| approved == true) {
            return None;
        }
        request["name"].as_str().map(str::to_owned)
    }
}
