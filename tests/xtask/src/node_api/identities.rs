//! Those who ask: certificates and tokens with and without rights, and nobody.

use crate::{cluster::Cluster, setup::succeed};
use anyhow::{Context, Result, ensure};
use std::{fmt::Write as _, path::Path, process::Command};

/// Who asks, and how curl shows it.
pub(super) struct Identity {
    /// Name in differences.
    pub(super) name: &'static str,
    /// Lines of curl's configuration.
    pub(super) curl: Vec<String>,
}

/// Users with a certificate and one right: verb and subresource of nodes.
const READERS: [(&str, &str, &str); 9] = [
    ("get-proxy", "get", "proxy"),
    ("create-proxy", "create", "proxy"),
    ("get-pods", "get", "pods"),
    ("get-healthz", "get", "healthz"),
    ("get-configz", "get", "configz"),
    ("get-metrics", "get", "metrics"),
    ("get-stats", "get", "stats"),
    ("get-log", "get", "log"),
    ("no-rights", "get", "none"),
];

/// Makes the identities and gives them their rights.
///
/// # Errors
/// openssl or kubectl fails.
pub(super) fn make(cluster: &Cluster, bin: &Path) -> Result<Vec<Identity>> {
    let pki = |name: &str| cluster.file(&format!("pki/{name}"));
    let certificate = |name: &'static str, file: &str| Identity {
        name,
        curl: vec![
            format!("cert = \"{}\"", pki(&format!("{file}.crt")).display()),
            format!("key = \"{}\"", pki(&format!("{file}.key")).display()),
        ],
    };
    let mut identities = vec![
        Identity { name: "nobody", curl: Vec::new() },
        certificate("api-server", "apiserver-kubelet-client"),
        certificate("node", "node"),
        // A certificate for servers is none for clients.
        certificate("serving-certificate", "kubelet-server"),
        certificate("foreign-certificate", "foreign"),
    ];
    request(cluster, "foreign", "/O=system:masters/CN=kubernetes-admin", false)?;
    let mut manifest = rights("metrics-token", "get", "metrics", "ServiceAccount");
    manifest += "---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {name: metrics-token}\n";
    for (name, verb, subresource) in READERS {
        request(cluster, name, &format!("/CN={name}"), true)?;
        manifest += &rights(name, verb, subresource, "User");
        identities.push(certificate(name, name));
    }
    let file = cluster.write("manifests/node-api.yaml", &manifest)?;
    let kubectl = |args: &[&str]| -> Result<String> {
        let mut command = Command::new(bin.join("kubectl"));
        command.arg("--kubeconfig").arg(cluster.file("admin.kubeconfig")).args(args);
        let done = command.output().context("cannot run kubectl")?;
        ensure!(done.status.success(), "kubectl {args:?}: {}", String::from_utf8_lossy(&done.stderr));
        Ok(String::from_utf8_lossy(&done.stdout).trim().to_owned())
    };
    kubectl(&["apply", "-f", &file.display().to_string()])?;
    let token = |name, token: &str| Identity {
        name,
        curl: vec![format!("header = \"Authorization: Bearer {token}\"")],
    };
    identities.push(token("metrics-token", &kubectl(&["create", "token", "metrics-token"])?));
    identities.push(token("token-without-rights", &kubectl(&["create", "token", "default"])?));
    identities.push(token("bad-token", "abc"));
    Ok(identities)
}

/// A certificate of the cluster's CA, or of nobody's.
fn request(cluster: &Cluster, name: &str, subject: &str, of_ca: bool) -> Result<()> {
    let pki = |file: &str| cluster.file(&format!("pki/{file}"));
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-new", "-nodes", "-days", "2", "-newkey", "ec"]);
    openssl.args(["-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", subject]);
    openssl.arg("-config").arg(pki("openssl.cnf"));
    openssl.args(["-addext", "basicConstraints=critical,CA:FALSE", "-addext", "extendedKeyUsage=clientAuth"]);
    openssl.arg("-keyout").arg(pki(&format!("{name}.key"))).arg("-out").arg(pki(&format!("{name}.crt")));
    if of_ca {
        openssl.arg("-CA").arg(pki("ca.crt")).arg("-CAkey").arg(pki("ca.key"));
    }
    succeed(&mut openssl)
}

/// A role with one right, and its binding.
fn rights(name: &str, verb: &str, subresource: &str, kind: &str) -> String {
    let group = if kind == "User" { "apiGroup: rbac.authorization.k8s.io" } else { "namespace: default" };
    let mut text = String::new();
    // Writing to a string cannot fail.
    write!(
        text,
        "---\napiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata: {{name: {name}}}\n\
         rules: [{{apiGroups: [\"\"], resources: [nodes/{subresource}], verbs: [{verb}]}}]\n\
         ---\napiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRoleBinding\nmetadata: {{name: {name}}}\n\
         roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: {name}}}\n\
         subjects: [{{kind: {kind}, name: {name}, {group}}}]\n"
    )
    .ok();
    text
}
