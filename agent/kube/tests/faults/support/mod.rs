//! Support of the client's tests: certificates, an API server of one kind, a proxy with faults, and a
//! consumer.

#![allow(dead_code, reason = "each test uses a part")]

pub(crate) mod certificates;
pub(crate) mod consumer;
pub(crate) mod proxy;
pub(crate) mod server;

use berth_kube::{identity::Source, pool::Pool};
use certificates::Authority;
use proxy::Proxy;
use server::ApiServer;
use std::{fs, path::Path, time::Duration};
use tokio::time::{Instant, sleep};

/// A server behind a proxy, and a kubeconfig for the proxy.
pub(crate) struct Cluster {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) authority: Authority,
    pub(crate) server: ApiServer,
    pub(crate) proxy: Proxy,
}

impl Cluster {
    pub(crate) async fn new() -> Cluster {
        Cluster::with(&[b"h2", b"http/1.1"]).await
    }

    /// A server with these protocols.
    pub(crate) async fn with(protocols: &[&[u8]]) -> Cluster {
        // A paused clock jumps to the next timer when no task is ready, even while bytes are in transit. This
        // timer keeps the jumps small.
        tokio::spawn(async {
            loop {
                sleep(Duration::from_millis(1)).await;
            }
        });
        let authority = Authority::new();
        let server = ApiServer::start(&authority, protocols).await;
        let proxy = Proxy::start(server.port).await;
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("ca.pem"), authority.pem()).unwrap();
        let cluster = Cluster { dir, authority, server, proxy };
        cluster.client("system:node:a");
        cluster.kubeconfig("client-certificate: client.pem, client-key: client.key");
        cluster
    }

    /// Gives the client a certificate with this name.
    pub(crate) fn client(&self, name: &str) {
        let (certificate, key) = self.authority.client(name, 4000);
        replace(&self.dir.path().join("client.pem"), &certificate);
        replace(&self.dir.path().join("client.key"), &key);
    }

    /// Writes a kubeconfig with these fields of the user.
    pub(crate) fn kubeconfig(&self, user: &str) {
        let url = format!("https://127.0.0.1:{}", self.proxy.port);
        self.kubeconfig_for(&format!("server: \"{url}\", certificate-authority: ca.pem"), user);
    }

    /// Writes a kubeconfig with these fields of cluster and user.
    pub(crate) fn kubeconfig_for(&self, cluster: &str, user: &str) {
        let text = format!(
            "clusters: [{{name: c, cluster: {{{cluster}}}}}]\nusers: [{{name: u, user: {{{user}}}}}]\n\
             contexts: [{{name: x, context: {{cluster: c, user: u}}}}]\ncurrent-context: x\n"
        );
        replace(&self.dir.path().join("kubeconfig"), &text);
    }

    pub(crate) fn source(&self) -> Source {
        Source { kubeconfig: self.dir.path().join("kubeconfig"), context: None }
    }

    pub(crate) async fn pool(&self) -> Pool {
        Pool::new(self.source()).await.unwrap()
    }
}

/// Replaces a file by a rename.
pub(crate) fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(&new, path).unwrap();
}

/// Waits until the condition holds. Returns the time that this took.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) -> Duration {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(600), "never: {what}");
        sleep(Duration::from_millis(5)).await;
    }
    begun.elapsed()
}
