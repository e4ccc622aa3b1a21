//! Loading of identities from files, and the error texts for wrong files.

use super::*;
use berth_core::error::Chain;
use rcgen::{CertificateParams, KeyPair};

/// A directory with `client.pem`, `client.key`, `other.key`, `ca.pem` and `kubeconfig`.
struct Files(tempfile::TempDir);

fn pem(label: &str, der: &[u8]) -> String {
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der))
}

impl Files {
    fn new() -> Files {
        let files = Files(tempfile::tempdir().unwrap());
        let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let certificate = CertificateParams::default().self_signed(&key).unwrap();
        files.write("client.pem", &pem("CERTIFICATE", certificate.der()));
        files.write("ca.pem", &pem("CERTIFICATE", certificate.der()));
        files.write("client.key", &pem("PRIVATE KEY", &key.serialize_der()));
        files.write("other.key", &pem("PRIVATE KEY", &other.serialize_der()));
        files
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.0.path().join(name), text).unwrap();
    }

    fn text(&self, name: &str) -> String {
        STANDARD.encode(fs::read(self.0.path().join(name)).unwrap())
    }

    async fn load(&self, cluster: &str, user: &str) -> Result<Identity, String> {
        self.write(
            "kubeconfig",
            &format!(
                "clusters: [{{name: c, cluster: {{{cluster}}}}}]\nusers: [{{name: u, user: {{{user}}}}}]\n\
                 contexts: [{{name: x, context: {{cluster: c, user: u}}}}]\ncurrent-context: x\n"
            ),
        );
        self.source().load(None).await.map_err(|e| Chain(&e).to_string())
    }

    fn source(&self) -> Source {
        Source { kubeconfig: self.0.path().join("kubeconfig"), context: None }
    }
}

const CLUSTER: &str = "server: 'https://a:6443', certificate-authority: ca.pem";
const USER: &str = "client-certificate: client.pem, client-key: client.key";

#[tokio::test]
async fn paths_are_relative_to_the_kubeconfig_and_data_comes_before_files() {
    let files = Files::new();
    let identity = files.load(CLUSTER, USER).await.unwrap();
    assert!(identity.tls.is_some() && identity.bearer.is_none() && !identity.is_stale());
    assert_eq!(identity.certificate_from, files.0.path().join("client.pem").display().to_string());
    let data = format!(
        "client-certificate-data: {}, client-certificate: gone.pem, client-key-data: {}, token: abc, tokenFile: token",
        files.text("client.pem"),
        files.text("client.key")
    );
    files.write("token", " def\n");
    let identity = files.load(CLUSTER, &data).await.unwrap();
    assert_eq!(identity.bearer.unwrap(), "Bearer def", "the file comes before the text");
    assert_eq!(identity.certificate_from, "users[u].user.client-certificate-data");
}

#[tokio::test]
async fn servers_are_read_with_port_path_and_name() {
    let files = Files::new();
    let mut seen = Vec::new();
    for cluster in [
        "server: 'https://a.example/k8s/c-1/'",
        "server: 'https://[fd00::1]:6443'",
        "server: 'https://10.0.0.1:6443', tls-server-name: kubernetes",
        "server: 'http://127.0.0.1:8001'",
    ] {
        let cluster = format!("{cluster}, certificate-authority: ca.pem");
        let server = files.load(&cluster, USER).await.unwrap().server;
        seen.push(format!("{} {} {}", server.url, server.prefix, server.name));
    }
    assert_eq!(
        seen,
        [
            "https://a.example:443 /k8s/c-1 a.example",
            "https://[fd00::1]:6443  fd00::1",
            "https://10.0.0.1:6443  kubernetes",
            "http://127.0.0.1:8001  127.0.0.1",
        ]
    );
}

#[tokio::test]
async fn wrong_files_are_told_by_kubeconfig_field_and_reason_on_one_line() {
    let files = Files::new();
    files.write("empty", "");
    files.write("noise", "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n");
    let path = files.0.path().display().to_string();
    for (cluster, user, told) in [
        ("server: a", USER, "clusters[c].cluster.server: \"a\" must begin with https://"),
        ("server: 'https://'", USER, "clusters[c].cluster.server: \"https:\" must begin with https://"),
        ("server: 'https://a b'", USER, "clusters[c].cluster.server: \"https://a b\" is no URL"),
        ("server: 'https://u@a'", USER, "clusters[c].cluster.server: must have neither a query nor a user"),
        (
            "server: 'https://a', certificate-authority: gone",
            USER,
            "clusters[c].cluster.certificate-authority: cannot",
        ),
        ("server: 'https://a', certificate-authority: empty", USER, "empty: has no CA certificate in PEM"),
        ("server: 'https://a', certificate-authority: noise", USER, "noise: cannot read the CA as PEM"),
        (
            "server: 'https://a', certificate-authority-data: '!'",
            USER,
            "clusters[c].cluster.certificate-authority-data: is no base64",
        ),
        (CLUSTER, "client-certificate: client.pem, client-key: gone", "users[u].user.client-key: cannot"),
        (
            CLUSTER,
            "client-certificate: client.pem, client-key: other.key",
            "other.key: the key does not belong to the client certificate",
        ),
        (
            CLUSTER,
            "client-certificate: empty, client-key: client.key",
            "empty: has no client certificate in PEM",
        ),
        (CLUSTER, "client-certificate: client.pem, client-key: empty", "empty: has no private key in PEM"),
        (CLUSTER, "tokenFile: empty", "users[u].user.tokenFile: empty is empty"),
        (CLUSTER, "token: \"a\\nb\"", "users[u].user.token: the token has characters"),
    ] {
        let error = files.load(cluster, user).await.unwrap_err();
        let begin = format!("cannot use kubeconfig {path}/kubeconfig: ");
        assert!(error.starts_with(&begin) && error.contains(told), "{error}\nlacks\n{told}");
        assert!(!error.contains('\n'), "{error}");
    }
    let gone = Source { kubeconfig: "/nonexistent/kubeconfig".into(), context: None };
    let error = Chain(&gone.load(None).await.unwrap_err()).to_string();
    assert!(error.starts_with("cannot use kubeconfig /nonexistent/kubeconfig: cannot"), "{error}");
}

#[tokio::test]
async fn a_change_of_any_file_is_seen_and_only_a_token_keeps_connections() {
    let files = Files::new();
    files.write("token", "one");
    let user = format!("{USER}, tokenFile: token");
    let first = files.load(CLUSTER, &user).await.unwrap();
    for name in ["token", "ca.pem", "client.pem", "client.key", "kubeconfig"] {
        let identity = files.source().load(None).await.unwrap();
        assert!(!identity.is_stale() && identity.shares_connections(&first), "{name}");
        let text = fs::read(files.0.path().join(name)).unwrap();
        // Another file with the same text.
        fs::write(files.0.path().join("new"), text).unwrap();
        fs::rename(files.0.path().join("new"), files.0.path().join(name)).unwrap();
        assert!(identity.is_stale(), "{name}");
    }
    files.write("token", "two");
    let identity = files.source().load(None).await.unwrap();
    assert!(identity.shares_connections(&first) && identity.bearer != first.bearer);
    let again = Files::new();
    for name in ["client.pem", "client.key"] {
        files.write(name, &fs::read_to_string(again.0.path().join(name)).unwrap());
    }
    assert!(!files.source().load(None).await.unwrap().shares_connections(&first));
    assert!(!format!("{first:?}").contains("one"), "secrets stay out of logs");
}

#[tokio::test]
async fn plugins_fail_with_their_last_words_and_hint() {
    let files = Files::new();
    let exec = |command: &str, args: &str| {
        format!(
            "exec: {{apiVersion: client.authentication.k8s.io/v1, command: {command}, args: {args}, installHint: install it}}"
        )
    };
    let failed =
        files.load(CLUSTER, &exec("/bin/sh", "['-c', 'echo first >&2; echo why >&2; exit 3']")).await;
    assert_eq!(
        failed.unwrap_err(),
        "cannot get credentials from exec plugin /bin/sh: ends with exit status: 3: why"
    );
    let failed = files.load(CLUSTER, &exec("./gone", "[]")).await.unwrap_err();
    assert!(failed.ends_with("install it"), "{failed}");
    let script = r#"printf '{"kind":"ExecCredential","apiVersion":"client.authentication.k8s.io/v1","status":{"token":"%s"}}' "$KUBERNETES_EXEC_INFO" | tr -d '\"{},:/. ' | sed 's/.*/{"kind":"ExecCredential","apiVersion":"client.authentication.k8s.io\/v1","status":{"token":"&"}}/'"#;
    files.write("plugin", &format!("#!/bin/sh\n{script}\n"));
    fs::set_permissions(files.0.path().join("plugin"), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .unwrap();
    let identity = files.load(CLUSTER, &exec("./plugin", "[]")).await.unwrap();
    assert!(
        identity.bearer.unwrap().to_str().unwrap().contains("interactivefalse"),
        "told that there is no terminal"
    );
}
