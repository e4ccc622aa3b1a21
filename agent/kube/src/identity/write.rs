//! The kubeconfig of a node, made from the one by which the node bootstraps: the same server and CA, and the
//! node's own certificate in the place of the token (the kubelet's `writeKubeconfigFromBootstrapping`).

use super::{MAX_FILE, Source, kubeconfig};
use crate::Error;
use berth_sys::fs::read_limited;
use serde_json::json;
use std::path::Path;

impl Source {
    /// Text of a kubeconfig with this one's server and CA, and with the certificate and key of the file
    /// `pem`.
    ///
    /// # Errors
    /// This kubeconfig cannot be read or used.
    pub fn with_certificate(&self, pem: &Path) -> Result<String, Error> {
        let text = read_limited(&self.kubeconfig, MAX_FILE)
            .map_err(|source| Error::KubeconfigFile { path: self.kubeconfig.clone(), source })?;
        let text = String::from_utf8_lossy(&text);
        let chosen = kubeconfig::choose(&text, self.context.as_deref())
            .map_err(|wrong| Error::Kubeconfig { path: self.kubeconfig.clone(), wrong })?;
        let cluster = &chosen.cluster;
        // A text of JSON is one of YAML, whatever characters it has.
        let mut fields = vec![("server", json!(cluster.server))];
        if !cluster.certificate_authority_data.is_empty() {
            fields.push(("certificate-authority-data", json!(cluster.certificate_authority_data)));
        } else if !cluster.certificate_authority.is_empty() {
            // The new file may be in another directory.
            let path = self.dir().join(&cluster.certificate_authority);
            let path = std::path::absolute(&path).unwrap_or(path);
            fields.push(("certificate-authority", json!(path.to_string_lossy())));
        }
        if !cluster.tls_server_name.is_empty() {
            fields.push(("tls-server-name", json!(cluster.tls_server_name)));
        }
        if cluster.insecure_skip_tls_verify {
            fields.push(("insecure-skip-tls-verify", json!(true)));
        }
        let cluster: String = fields.iter().map(|(name, value)| format!("    {name}: {value}\n")).collect();
        let pem = json!(pem.to_string_lossy());
        Ok(format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- name: default-cluster\n  cluster:\n{cluster}\
             users:\n- name: default-auth\n  user:\n    client-certificate: {pem}\n    client-key: {pem}\n\
             contexts:\n- name: default-context\n  context:\n    cluster: default-cluster\n    \
             user: default-auth\n    namespace: default\ncurrent-context: default-context\n"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_and_ca_stay_and_the_token_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let source = Source { kubeconfig: dir.path().join("bootstrap"), context: None };
        let write = |cluster: &str| {
            let text = format!(
                "current-context: b\ncontexts: [{{name: b, context: {{cluster: k, user: t}}}}]\n\
                 clusters: [{{name: k, cluster: {{{cluster}}}}}]\nusers: [{{name: t, user: {{token: abc.def}}}}]\n"
            );
            std::fs::write(&source.kubeconfig, text).unwrap();
            source.with_certificate("/pki/a \"b\".pem".as_ref())
        };
        let text = write("server: 'https://192.0.2.1:6443', certificate-authority: ca.crt").unwrap();
        assert!(!text.contains("abc.def"), "{text}");
        let chosen = kubeconfig::choose(&text, None).unwrap();
        assert_eq!(chosen.cluster.server, "https://192.0.2.1:6443");
        assert_eq!(Path::new(&chosen.cluster.certificate_authority), dir.path().join("ca.crt"));
        assert_eq!(chosen.user.client_certificate, "/pki/a \"b\".pem");
        assert_eq!(chosen.user.client_key, "/pki/a \"b\".pem");
        let text =
            write("server: 'https://a', certificate-authority-data: QQ==, tls-server-name: b").unwrap();
        let cluster = kubeconfig::choose(&text, None).unwrap().cluster;
        assert_eq!(cluster.certificate_authority_data, "QQ==");
        assert_eq!(cluster.tls_server_name, "b");
        let text = write("server: 'https://a', insecure-skip-tls-verify: true").unwrap();
        assert!(kubeconfig::choose(&text, None).unwrap().cluster.insecure_skip_tls_verify);
        assert!(write("server: ''").is_err());
    }
}
