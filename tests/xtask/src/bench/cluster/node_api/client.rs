//! Requests to the API server as the administrator, over TLS: a body as it comes, and a command by WebSocket v5. The
//! connection is there before a request is timed.

use crate::cluster::Cluster;
use anyhow::{Context, Result, bail, ensure};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use serde_json::Value;
use std::{
    io::{BufRead as _, BufReader, Read, Write as _},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

/// Deadline of a read.
const DEADLINE: Duration = Duration::from_secs(30);

/// Port of the API server.
const PORT: u16 = 6443;

/// Channel of the outcome (`v5.channel.k8s.io`).
const ERROR: u8 = 3;

/// The longest message that is read, in bytes.
const LONGEST: u64 = 1 << 20;

type Stream = BufReader<StreamOwned<ClientConnection, TcpStream>>;

/// A way to the API server.
#[derive(Debug)]
pub(super) struct Client {
    address: SocketAddr,
    config: Arc<ClientConfig>,
}

impl Client {
    /// The administrator's client.
    ///
    /// # Errors
    /// A certificate cannot be read.
    pub(super) fn new(cluster: &Cluster) -> Result<Client> {
        let pki = |name: &str| cluster.file(&format!("pki/{name}"));
        let mut roots = RootCertStore::empty();
        let ca = CertificateDer::from_pem_file(pki("ca.crt")).context("cannot read the cluster's CA")?;
        roots.add(ca).context("cannot use the cluster's CA")?;
        let own = CertificateDer::from_pem_file(pki("admin.crt")).context("cannot read a certificate")?;
        let key = PrivateKeyDer::from_pem_file(pki("admin.key")).context("cannot read a key")?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .context("cannot set up TLS")?
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![own], key)
            .context("cannot set up TLS")?;
        Ok(Client { address: SocketAddr::new(cluster.address()?, PORT), config: Arc::new(config) })
    }

    /// A new connection, with its handshake done.
    fn connect(&self) -> Result<Stream> {
        let mut socket = TcpStream::connect(self.address).context("cannot connect to the API server")?;
        socket.set_nodelay(true).context("cannot set up a connection")?;
        socket.set_read_timeout(Some(DEADLINE)).context("cannot set a deadline")?;
        let name = ServerName::IpAddress(self.address.ip().into());
        let mut tls = ClientConnection::new(Arc::clone(&self.config), name).context("cannot set up TLS")?;
        while tls.is_handshaking() {
            tls.complete_io(&mut socket).context("cannot greet the API server")?;
        }
        Ok(BufReader::with_capacity(64 * 1024, StreamOwned::new(tls, socket)))
    }

    /// Sends a GET and returns the time of sending and the body, whose end is the connection's.
    ///
    /// # Errors
    /// The API server refuses, or does not answer in time.
    pub(super) fn get(&self, path: &str) -> Result<(Instant, impl Read + use<>)> {
        let mut stream = self.connect()?;
        let sent = Instant::now();
        // An answer of HTTP/1.0 ends with its connection and has no chunks.
        let request = format!("GET {path} HTTP/1.0\r\nHost: {}\r\n\r\n", self.address);
        send(&mut stream, request.as_bytes())?;
        if head(&mut stream)? != 200 {
            bail!("GET {path}: {}", rest(stream));
        }
        Ok((sent, stream))
    }

    /// Runs a command in the container `app` of a pod, and returns the time from the request to the outcome.
    ///
    /// # Errors
    /// The API server refuses, or the command does not succeed.
    pub(super) fn exec(&self, pod: &str, command: &str) -> Result<Duration> {
        let mut stream = self.connect()?;
        let begun = Instant::now();
        let request = format!(
            "GET {}/{pod}/exec?container=app&stdout=1&stderr=1&command={command} HTTP/1.1\r\nHost: {}\r\n\
             Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n",
            super::super::pods::PODS,
            self.address
        );
        send(&mut stream, request.as_bytes())?;
        if head(&mut stream)? != 101 {
            bail!("exec in {pod}: {}", rest(stream));
        }
        loop {
            let message = message(&mut stream)?;
            if let Some((&ERROR, outcome)) = message.split_first() {
                let took = begun.elapsed();
                let outcome: Value = serde_json::from_slice(outcome).context("the outcome is no JSON")?;
                ensure!(outcome["status"] == "Success", "exec in {pod}: {outcome}");
                return Ok(took);
            }
        }
    }
}

fn send(stream: &mut Stream, bytes: &[u8]) -> Result<()> {
    let to = stream.get_mut();
    to.write_all(bytes).and_then(|()| to.flush()).context("cannot send a request")
}

/// Reads the head of an answer and returns its status.
fn head(stream: &mut Stream) -> Result<u16> {
    let (mut status, mut line) = (String::new(), String::new());
    stream.read_line(&mut status).context("cannot read an answer")?;
    while stream.read_line(&mut line).context("cannot read an answer")? > 2 {
        line.clear();
    }
    let code = status.split(' ').nth(1).and_then(|code| code.parse().ok());
    code.with_context(|| format!("the API server says {status:?}"))
}

/// What the API server says of a refusal.
fn rest(stream: Stream) -> String {
    let mut text = Vec::new();
    // Cut by an error, it is still the best that is known.
    stream.take(4096).read_to_end(&mut text).ok();
    String::from_utf8_lossy(&text).into_owned()
}

/// Reads one message of a WebSocket: a server's frames are not masked, and short messages are not cut.
fn message(stream: &mut Stream) -> Result<Vec<u8>> {
    let bytes = |stream: &mut Stream, n: u64| -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        stream.take(n).read_to_end(&mut bytes).context("cannot read a message")?;
        ensure!(u64::try_from(bytes.len()).is_ok_and(|got| got == n), "a message is cut");
        Ok(bytes)
    };
    let number = |bytes: &[u8]| bytes.iter().fold(0_u64, |n, b| n << 8 | u64::from(*b));
    let start = number(&bytes(stream, 2)?);
    let (opcode, length) = (start >> 8 & 0xF, start & 0x7F);
    ensure!(opcode != 8, "the stream ended without an outcome");
    let length = match length {
        126 => number(&bytes(stream, 2)?),
        127 => number(&bytes(stream, 8)?),
        length => length,
    };
    ensure!(length <= LONGEST, "a message of {length} bytes");
    bytes(stream, length)
}
