//! Kubeconfigs in the forms that people and tools write.

use super::*;

/// A node's kubeconfig as kubeadm writes it, with relative paths.
const NODE: &str = "
apiVersion: v1
kind: Config
preferences: {}
clusters:
- cluster:
    certificate-authority-data: Q0E=
    server: https://10.0.0.1:6443
  name: kubernetes
contexts:
- context:
    cluster: kubernetes
    user: system:node:a
    namespace: default
  name: system:node:a@kubernetes
current-context: system:node:a@kubernetes
users:
- name: system:node:a
  user:
    client-certificate: pki/current.pem
    client-key: pki/current.pem
";

#[test]
fn the_current_context_is_taken_or_the_named_one() {
    let chosen = choose(NODE, None).unwrap();
    assert_eq!(chosen.cluster.server, "https://10.0.0.1:6443");
    assert_eq!(chosen.user.client_certificate, "pki/current.pem");
    assert_eq!(chosen.user_field("token"), "users[system:node:a].user.token");
    assert_eq!(choose(NODE, Some("system:node:a@kubernetes")).unwrap(), chosen);
    // JSON is YAML.
    let json = r#"{"clusters":[{"name":"c","cluster":{"server":"https://a"}}],"contexts":[{"name":"x","context":{"cluster":"c","user":"u"}}],"users":[{"name":"u","user":{"tokenFile":"/t","token":"abc"}}],"current-context":"x"}"#;
    let chosen = choose(json, None).unwrap();
    assert_eq!((chosen.user.token_file.as_str(), chosen.user.token.as_str()), ("/t", "abc"));
}

#[test]
fn an_exec_plugin_is_read_as_client_go_writes_it() {
    let text = NODE.replace(
        "    client-certificate: pki/current.pem\n    client-key: pki/current.pem\n",
        "    exec:\n      apiVersion: client.authentication.k8s.io/v1\n      command: ./get-token\n      args: [a, b]\n      env:\n      - name: A\n        value: \"1\"\n      - name: A\n        value: \"2\"\n      interactiveMode: IfAvailable\n      provideClusterInfo: true\n      installHint: null\n",
    );
    let exec = choose(&text, None).unwrap().user.exec.unwrap();
    assert_eq!((exec.command.as_str(), exec.args.len(), exec.provide_cluster_info), ("./get-token", 2, true));
    assert_eq!(exec.variables(), [("A", "2")].into());
    let old = text.replace("k8s.io/v1", "k8s.io/v1alpha1");
    assert!(choose(&old, None).unwrap_err().to_string().contains("exec.apiVersion: must be"));
    let asks = text.replace("IfAvailable", "Always");
    assert!(choose(&asks, None).unwrap_err().to_string().contains("no terminal"));
}

#[test]
fn wrong_files_are_told_by_field_and_what_to_do() {
    let user = |fields: &str| {
        NODE.replace("    client-certificate: pki/current.pem\n    client-key: pki/current.pem\n", fields)
    };
    let cluster = |line: &str| NODE.replace("    server:", &format!("    {line}\n    server:"));
    for (text, told) in [
        (String::new(), "current-context: is empty; name a context (kubectl config use-context)"),
        ("clusters: [".into(), ": the file is no YAML of a kubeconfig at line 1"),
        ("clusters: 7".into(), ": the file is no YAML of a kubeconfig at line 1"),
        (NODE.replace("kind: Config", "kind: Pod"), "kind: must be Config, is \"Pod\""),
        (
            NODE.replace("current-context: system", "current-context: other"),
            "contexts: no context is called \"other:node:a@kubernetes\"; there are system:node:a@kubernetes",
        ),
        (
            NODE.replace("    cluster: kubernetes", "    cluster: gone"),
            "contexts[system:node:a@kubernetes].context.cluster: no cluster is called \"gone\"; there are kubernetes",
        ),
        (
            NODE.replace("    user: system:node:a", "    user: gone"),
            "contexts[system:node:a@kubernetes].context.user: no user is called \"gone\"; there are system:node:a",
        ),
        (
            NODE.replace("    server: https://10.0.0.1:6443\n", ""),
            "clusters[kubernetes].cluster.server: is missing; give the URL of the API server, https://HOST:PORT",
        ),
        (cluster("proxy-url: http://p"), "clusters[kubernetes].cluster.proxy-url: proxies are not supported"),
        (
            cluster("insecure-skip-tls-verify: true"),
            "clusters[kubernetes].cluster.insecure-skip-tls-verify: cannot be true beside certificate-authority",
        ),
        (user("    client-key: k\n"), "users[system:node:a].user.client-certificate: is missing"),
        (user("    client-certificate: c\n"), "users[system:node:a].user.client-key: is missing"),
        (user("    username: u\n"), "users[system:node:a].user.username: passwords are not supported"),
        (user("    as: admin\n    token: t\n"), "users[system:node:a].user.as: impersonation"),
        (
            user("    auth-provider: {name: gcp}\n"),
            "users[system:node:a].user.auth-provider: is not supported",
        ),
        (user("    {}\n"), "users[system:node:a].user: has no credentials"),
        (
            user("    token: t\n    exec: {command: c, apiVersion: client.authentication.k8s.io/v1}\n"),
            "users[system:node:a].user.exec: cannot stand beside token",
        ),
        (
            user("    exec: {apiVersion: client.authentication.k8s.io/v1}\n"),
            "users[system:node:a].user.exec.command: is missing",
        ),
        (format!("{NODE}- name: system:node:a\n"), "users[system:node:a]: the name is there twice"),
    ] {
        let wrong = choose(&text, None).unwrap_err().to_string();
        assert!(wrong.starts_with(told), "{wrong}\nis not\n{told}");
        assert!(!wrong.contains('\n'), "{wrong}");
    }
}

#[test]
fn secrets_stay_out_of_errors_and_logs() {
    let text = NODE.replace("    client-certificate: pki/current.pem\n", "    token: [s3cret\n");
    assert!(!choose(&text, None).unwrap_err().to_string().contains("s3cret"));
    let text = NODE.replace(
        "    client-certificate: pki/current.pem\n    client-key: pki/current.pem\n",
        "    token: s3cret\n",
    );
    assert!(!format!("{:?}", choose(&text, None).unwrap()).contains("s3cret"));
}
