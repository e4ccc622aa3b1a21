//! Requests to the API server as the administrator, by way of `kubectl proxy`, so that none of them pays for the start of
//! a program or for encryption.
//!
//! Owns the proxy's process, which ends with the value. A watch owns a thread that ends with its connection.

use crate::cluster::Cluster;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::Child,
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

/// Deadline of a request.
const DEADLINE: Duration = Duration::from_secs(30);

/// A way to the API server.
#[derive(Debug)]
pub(super) struct Api {
    proxy: Child,
    address: String,
}

impl Drop for Api {
    fn drop(&mut self) {
        // A proxy that has ended already needs no end.
        self.proxy.kill().ok();
        self.proxy.wait().ok();
    }
}

/// A change that a watch reported.
#[derive(Debug)]
pub(super) struct Event {
    /// When it came.
    pub(super) at: Instant,
    /// `ADDED`, `MODIFIED`, `DELETED`, `BOOKMARK`, `ERROR`.
    pub(super) kind: String,
    pub(super) object: Value,
}

impl Api {
    /// Starts the proxy.
    pub(super) fn start(cluster: &Cluster) -> Result<Api> {
        let mut proxy = cluster.kubectl_proxy()?;
        let said = proxy.stdout.take().context("kubectl proxy has no output")?;
        let mut line = String::new();
        BufReader::new(said).read_line(&mut line).context("cannot read what kubectl proxy says")?;
        let address = line.trim().rsplit(' ').next().unwrap_or_default().to_owned();
        ensure!(address.contains(':'), "kubectl proxy says {line:?}");
        Ok(Api { proxy, address })
    }

    /// Sends a request and returns the object of the answer.
    ///
    /// # Errors
    /// The API server refuses, or does not answer in time.
    pub(super) fn request(&self, method: &str, path: &str, body: &str) -> Result<Value> {
        let mut text = Vec::new();
        ask(&self.address, method, path, body)?.read_to_end(&mut text).context("cannot read an answer")?;
        serde_json::from_slice(&text).context("an answer is no JSON")
    }

    /// Follows a set from now on. A watch that the API server ends, as it does with slow clients, goes on where it was.
    ///
    /// # Errors
    /// As [`Api::request`].
    pub(super) fn watch(&self, path: &str) -> Result<Receiver<Event>> {
        let list = self.request("GET", path, "")?;
        let mut version = version(&list);
        let (address, path) = (self.address.clone(), path.to_owned());
        let open = move |version: &str| {
            let reader = ask(&address, "GET", &format!("{path}?watch=1&resourceVersion={version}"), "")?;
            reader.get_ref().set_read_timeout(None).context("cannot lift a deadline")?;
            Ok::<_, anyhow::Error>(reader)
        };
        let mut reader = open(&version)?;
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            loop {
                let mut line = String::new();
                while reader.read_line(&mut line).is_ok_and(|n| n > 0) {
                    let at = Instant::now();
                    let Ok(mut event) = serde_json::from_str::<Value>(&line) else { break };
                    let kind = event["type"].as_str().unwrap_or_default().to_owned();
                    let object = event["object"].take();
                    if kind == "ERROR" {
                        return;
                    }
                    version = self::version(&object);
                    if sender.send(Event { at, kind, object }).is_err() {
                        return;
                    }
                    line.clear();
                }
                // An API server that does not answer ends the events for their reader.
                let Ok(again) = open(&version) else { return };
                reader = again;
            }
        });
        Ok(receiver)
    }
}

/// Sends a request; the reader is at the beginning of the answer's body.
fn ask(address: &str, method: &str, path: &str, body: &str) -> Result<BufReader<TcpStream>> {
    let mut stream = TcpStream::connect(address).context("cannot connect to kubectl proxy")?;
    stream.set_nodelay(true).context("cannot set up a connection")?;
    stream.set_read_timeout(Some(DEADLINE)).context("cannot set a deadline")?;
    let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
    // An answer of HTTP/1.0 ends with its connection and has no chunks.
    let head = format!(
        "{method} {path} HTTP/1.0\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all((head + body).as_bytes()).context("cannot send a request")?;
    let mut reader = BufReader::new(stream);
    let (mut status, mut line) = (String::new(), String::new());
    reader.read_line(&mut status).context("cannot read an answer")?;
    while reader.read_line(&mut line).context("cannot read an answer")? > 2 {
        line.clear();
    }
    if status.split(' ').nth(1).is_none_or(|code| !code.starts_with('2')) {
        let mut text = String::new();
        reader.read_to_string(&mut text).context("cannot read an answer")?;
        anyhow::bail!("{method} {path}: {} {text}", status.trim());
    }
    Ok(reader)
}

/// `metadata.resourceVersion`.
fn version(object: &Value) -> String {
    object["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned()
}
