//! Certificates and keys of a cluster, made by openssl, and the kubeconfigs of those who use them.

use super::place::{KUBERNETES, NODE, Place};
use crate::setup::succeed;
use anyhow::{Context, Result};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use std::{fs, path::Path, process::Command};

/// Configuration of openssl without extensions of its own: its default marks every certificate as an
/// authority, and rustls refuses such a certificate of a server.
const CONFIG: &str = "[req]\ndistinguished_name = dn\n[dn]\n";

/// Lifetime of all certificates.
const DAYS: &str = "365";

/// Who a certificate is for.
struct Leaf {
    file: String,
    /// Distinguished name as openssl writes it: O is the group, CN the user.
    subject: String,
    /// Names and addresses of a server; empty for a client.
    names: Vec<String>,
    /// Authority that signs the certificate.
    authority: &'static str,
}

/// Users with a kubeconfig: file, user and group.
const USERS: [(&str, &str, &str); 5] = [
    ("admin", "kubernetes-admin", "system:masters"),
    ("controller-manager", "system:kube-controller-manager", ""),
    ("scheduler", "system:kube-scheduler", ""),
    ("kube-proxy", "system:kube-proxy", ""),
    ("node", "system:node:berth-node", "system:nodes"),
];

/// Makes everything below `pki`, and a kubeconfig for each of [`USERS`].
///
/// # Errors
/// openssl is missing or fails, or a file cannot be written.
pub(super) fn make(place: &Place) -> Result<()> {
    place.write("pki/openssl.cnf", CONFIG)?;
    authority(place, "ca", "kubernetes-ca")?;
    authority(place, "front-proxy-ca", "front-proxy-ca")?;
    key(&place.pki("service-account.key"))?;
    // The API server reads no public key out of a private one in this format.
    let mut openssl = Command::new("openssl");
    openssl.args(["pkey", "-pubout", "-in"]).arg(place.pki("service-account.key"));
    succeed(openssl.arg("-out").arg(place.pki("service-account.pub")))?;
    for leaf in leaves(place) {
        certificate(place, &leaf)?;
    }
    for (file, _, _) in USERS {
        kubeconfig(place, file)?;
    }
    Ok(())
}

/// Makes the certificates of a further node of the cluster in `place`, and copies what it needs to its own place.
///
/// # Errors
/// As [`make`].
pub(super) fn make_node(place: &Place, node: &Place) -> Result<()> {
    let name = &node.node;
    let (client, server) = (format!("node-{name}"), format!("kubelet-server-{name}"));
    let subject = format!("/O=system:nodes/CN=system:node:{name}");
    let leaf =
        |file: &str, names| Leaf { file: file.to_owned(), subject: subject.clone(), names, authority: "ca" };
    certificate(place, &leaf(&client, Vec::new()))?;
    certificate(place, &leaf(&server, vec![format!("DNS:{name}"), format!("IP:{}", node.address)]))?;
    kubeconfig(place, &client)?;
    let files = [
        (place.kubeconfig(&client), node.kubeconfig("node")),
        (place.kubeconfig("kube-proxy"), node.kubeconfig("kube-proxy")),
        (place.pki("ca.crt"), node.pki("ca.crt")),
        (place.pki(&format!("{server}.crt")), node.pki("kubelet-server.crt")),
        (place.pki(&format!("{server}.key")), node.pki("kubelet-server.key")),
    ];
    for (from, to) in files {
        fs::copy(&from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
    }
    Ok(())
}

fn leaves(place: &Place) -> Vec<Leaf> {
    let dns = |names: &[&str]| names.iter().map(|n| format!("DNS:{n}")).collect::<Vec<_>>();
    let ips = |ips: &[&str]| ips.iter().map(|ip| format!("IP:{ip}")).collect::<Vec<_>>();
    let service = [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
    ];
    let client = |file: &str, subject: &str, authority| Leaf {
        file: file.to_owned(),
        subject: subject.to_owned(),
        names: Vec::new(),
        authority,
    };
    let mut leaves = vec![
        Leaf {
            names: [
                dns(&service),
                dns(&["localhost", NODE]),
                ips(&[&place.address, KUBERNETES, "127.0.0.1"]),
            ]
            .concat(),
            ..client("apiserver", "/CN=kube-apiserver", "ca")
        },
        Leaf {
            names: [dns(&[NODE]), ips(&[&place.address])].concat(),
            ..client("kubelet-server", "/O=system:nodes/CN=system:node:berth-node", "ca")
        },
        client("apiserver-kubelet-client", "/O=system:masters/CN=kube-apiserver-kubelet-client", "ca"),
        client("front-proxy-client", "/CN=front-proxy-client", "front-proxy-ca"),
    ];
    leaves.extend(USERS.iter().map(|(file, user, group)| {
        let group = if group.is_empty() { String::new() } else { format!("/O={group}") };
        client(file, &format!("{group}/CN={user}"), "ca")
    }));
    leaves
}

fn key(path: &Path) -> Result<()> {
    let mut openssl = Command::new("openssl");
    openssl
        .args(["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-out"])
        .arg(path);
    succeed(&mut openssl)
}

/// `openssl req` for a new key and its certificate.
fn request(place: &Place, file: &str, subject: &str) -> Result<Command> {
    let key_file = place.pki(&format!("{file}.key"));
    key(&key_file)?;
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-new", "-sha256", "-days", DAYS, "-subj", subject]);
    openssl.arg("-config").arg(place.pki("openssl.cnf")).arg("-key").arg(key_file);
    openssl.arg("-out").arg(place.pki(&format!("{file}.crt")));
    Ok(openssl)
}

fn authority(place: &Place, file: &str, name: &str) -> Result<()> {
    let mut openssl = request(place, file, &format!("/CN={name}"))?;
    openssl.args(["-addext", "basicConstraints=critical,CA:TRUE"]);
    openssl.args(["-addext", "keyUsage=critical,digitalSignature,keyCertSign"]);
    succeed(&mut openssl)
}

fn certificate(place: &Place, leaf: &Leaf) -> Result<()> {
    let mut openssl = request(place, &leaf.file, &leaf.subject)?;
    openssl.arg("-CA").arg(place.pki(&format!("{}.crt", leaf.authority)));
    openssl.arg("-CAkey").arg(place.pki(&format!("{}.key", leaf.authority)));
    openssl.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
    openssl.args(["-addext", "keyUsage=critical,digitalSignature"]);
    if leaf.names.is_empty() {
        openssl.args(["-addext", "extendedKeyUsage=clientAuth"]);
    } else {
        openssl.args(["-addext", "extendedKeyUsage=serverAuth"]);
        openssl.args(["-addext", &format!("subjectAltName={}", leaf.names.join(","))]);
    }
    succeed(&mut openssl)
}

/// Writes the kubeconfig of the user whose certificate has this name.
fn kubeconfig(place: &Place, file: &str) -> Result<()> {
    let data = |file: &str| -> Result<String> {
        let path = place.pki(file);
        Ok(BASE64.encode(fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?))
    };
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: berth\ncontexts:\n- name: berth\n  context: {{cluster: berth, user: {file}}}\n\
         clusters:\n- name: berth\n  cluster:\n    server: {}\n    certificate-authority-data: {}\n\
         users:\n- name: {file}\n  user:\n    client-certificate-data: {}\n    client-key-data: {}\n",
        place.server(),
        data("ca.crt")?,
        data(&format!("{file}.crt"))?,
        data(&format!("{file}.key"))?,
    );
    let path = place.kubeconfig(file);
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}
