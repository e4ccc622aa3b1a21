//! The kubeconfigs of a node that joins: the cluster as it introduces itself, the kubeconfig with a bootstrap token, and
//! the node's own, which has the same server and CA, and the node's certificate in the place of the token (the
//! kubelet's `writeKubeconfigFromBootstrapping`).

use super::{Certificate, MAX_FILE, Source, Wrong, kubeconfig, tls};
use crate::Error;
use base64::{Engine, engine::general_purpose::STANDARD};
use berth_sys::fs::read_limited;
use serde_json::json;
use std::path::Path;

/// A cluster as the ConfigMap `cluster-info` introduces it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiscoveredCluster {
    /// URL of the API server.
    pub server: String,
    /// The CAs in PEM.
    pub ca: Vec<u8>,
}

impl DiscoveredCluster {
    /// Reads the kubeconfig of `cluster-info`.
    ///
    /// # Errors
    /// The text has not exactly one cluster with a server and a CA.
    pub fn read(text: &str) -> Result<DiscoveredCluster, Wrong> {
        let cluster = kubeconfig::only_cluster(text)?;
        let wrong = |field: &str, reason: &str| Wrong::new(format!("clusters[0].cluster.{field}"), reason);
        if cluster.server.is_empty() {
            return Err(wrong("server", "is missing"));
        }
        let data: String =
            cluster.certificate_authority_data.chars().filter(|c| !c.is_whitespace()).collect();
        let field = "certificate-authority-data";
        let ca = STANDARD.decode(data).map_err(|_invalid| wrong(field, "is no base64"))?;
        tls::chain(&ca).map_err(|_none| wrong(field, "has no CA certificate in PEM"))?;
        Ok(DiscoveredCluster { server: cluster.server, ca })
    }

    /// SHA-256 of each CA's public key (SPKI). A CA that cannot be read has none.
    pub fn key_digests(&self) -> Vec<[u8; 32]> {
        let chain = tls::chain(&self.ca).unwrap_or_default();
        chain.iter().filter_map(|der| Certificate::read(der)).map(|ca| ca.key_digest).collect()
    }
}

/// Text of a kubeconfig with this cluster and a bootstrap token.
pub fn with_token(cluster: &DiscoveredCluster, token: &str) -> String {
    let (server, ca) = (json!(cluster.server), STANDARD.encode(&cluster.ca));
    format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: kubernetes\n  cluster:\n    server: {server}\n    \
         certificate-authority-data: {ca}\nusers:\n- name: tls-bootstrap-token-user\n  user:\n    token: {}\n\
         contexts:\n- name: tls-bootstrap-token-user@kubernetes\n  context:\n    cluster: kubernetes\n    \
         user: tls-bootstrap-token-user\ncurrent-context: tls-bootstrap-token-user@kubernetes\n",
        json!(token)
    )
}

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
    fn a_cluster_introduces_itself_with_server_and_ca() {
        let key = rcgen::KeyPair::generate().unwrap();
        let ca = rcgen::CertificateParams::default().self_signed(&key).unwrap();
        let pem = format!(
            "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
            STANDARD.encode(ca.der())
        );
        let text = |server: &str, ca: &str| {
            format!(
                "clusters: [{{name: '', cluster: {{server: '{server}', certificate-authority-data: '{ca}'}}}}]"
            )
        };
        let cluster = DiscoveredCluster::read(&text("https://a:6443", &STANDARD.encode(&pem))).unwrap();
        assert_eq!((cluster.server.as_str(), cluster.key_digests().len()), ("https://a:6443", 1));
        let chosen = kubeconfig::choose(&with_token(&cluster, "abcdef.0123456789abcdef"), None).unwrap();
        assert_eq!(chosen.user.token, "abcdef.0123456789abcdef");
        assert_eq!(chosen.cluster.server, "https://a:6443");
        assert_eq!(STANDARD.decode(chosen.cluster.certificate_authority_data).unwrap(), pem.as_bytes());
        for (text, told) in [
            (text("", "QQ=="), "server: is missing"),
            (text("https://a", "!"), "is no base64"),
            (text("https://a", "QQ=="), "has no CA certificate"),
            ("clusters: []".to_owned(), "must have one cluster, has 0"),
            ("{".to_owned(), "no YAML"),
        ] {
            let error = DiscoveredCluster::read(&text).unwrap_err().to_string();
            assert!(error.contains(told), "{error}");
        }
    }

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
