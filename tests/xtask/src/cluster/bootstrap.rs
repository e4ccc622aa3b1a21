//! What lets a node join by nothing but a bootstrap token, as kubeadm sets it up: the token, the rights of
//! who has it, the approval of nodes' client certificates, and the ConfigMap `cluster-info`. Serving
//! certificates wait for a person.

use super::{control_plane::Kubectl, place::Place};
use anyhow::{Context, Result};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use std::fs;

/// The token: its id, and its secret after the dot.
pub(crate) const TOKEN: &str = "berth1.0123456789abcdef";

/// Makes the objects and the kubeconfig of the token.
///
/// # Errors
/// A file cannot be written or read, or the API server refuses an object.
pub(super) fn make(place: &Place, kubectl: &Kubectl) -> Result<()> {
    let ca = place.pki("ca.crt");
    let ca = fs::read(&ca).with_context(|| format!("cannot read {}", ca.display()))?;
    let cluster = format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: ''\n  cluster:\n    server: {}\n    certificate-authority-data: {}\n",
        place.server(),
        BASE64.encode(ca),
    );
    let with_token = format!(
        "{cluster}current-context: token\ncontexts:\n- name: token\n  context: {{cluster: '', user: token}}\n\
         users:\n- name: token\n  user: {{token: {TOKEN}}}\n"
    );
    let path = place.kubeconfig("bootstrap");
    fs::write(&path, with_token).with_context(|| format!("cannot write {}", path.display()))?;
    let info: String = cluster.lines().map(|line| format!("    {line}\n")).collect();
    let (id, secret) = TOKEN.split_once('.').context("the token has no dot")?;
    let objects = include_str!("bootstrap.yaml")
        .replace("TOKEN_ID", id)
        .replace("TOKEN_SECRET", secret)
        .replace("    CLUSTER_INFO\n", &info);
    kubectl.apply(&place.write("manifests/bootstrap.yaml", &objects)?)
}
