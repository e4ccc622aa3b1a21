//! A client of the node's API: connections, requests, upgrades, and the frames of SPDY.

use anyhow::{Context, Result, ensure};
use berth_spdy::{Decoder, Frame, Headers, Limits, encode};
use bytes::BytesMut;
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

/// Longest wait for a connection, and for each byte.
const PATIENCE: Duration = Duration::from_secs(30);

/// The longest head of an answer.
const HEAD: usize = 64 * 1024;

/// Where the node's API is, and who asks.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Api {
    /// The node's API.
    #[arg(long, value_name = "ADDRESS:PORT")]
    address: SocketAddr,
    /// The CA of the node's certificate, in PEM.
    #[arg(long, value_name = "FILE")]
    ca: PathBuf,
    /// The client's certificate, in PEM.
    #[arg(long, value_name = "FILE")]
    cert: PathBuf,
    /// The key of --cert, in PEM.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Namespace and name of a pod whose container `c` writes without end, and listens on port 80.
    #[arg(long, value_name = "NAMESPACE/POD", default_value = "default/load")]
    pub(crate) pod: String,
}

/// A connection.
pub(crate) type Tls = StreamOwned<ClientConnection, TcpStream>;

/// Who connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum As {
    /// The owner of the certificate.
    Known,
    /// A client without a certificate.
    Stranger,
}

#[derive(Debug, Clone)]
pub(crate) struct Client {
    pub(crate) api: Api,
    known: Arc<ClientConfig>,
    stranger: Arc<ClientConfig>,
}

impl Client {
    pub(crate) fn new(api: &Api) -> Result<Client> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(&api.ca).context("cannot read --ca")? {
            roots.add(certificate.context("cannot read --ca")?).context("cannot use --ca")?;
        }
        let chain: Result<Vec<_>, _> =
            CertificateDer::pem_file_iter(&api.cert).context("cannot read --cert")?.collect();
        let chain = chain.context("cannot read --cert")?;
        let key = PrivateKeyDer::from_pem_file(&api.key).context("cannot read --key")?;
        let builder = || {
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()
        };
        let known = builder()?.with_root_certificates(roots.clone()).with_client_auth_cert(chain, key)?;
        let stranger = builder()?.with_root_certificates(roots).with_no_client_auth();
        Ok(Client { api: api.clone(), known: Arc::new(known), stranger: Arc::new(stranger) })
    }

    /// A plain connection.
    pub(crate) fn tcp(&self) -> io::Result<TcpStream> {
        let socket = TcpStream::connect_timeout(&self.api.address, PATIENCE)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        socket.set_nodelay(true)?;
        Ok(socket)
    }

    /// A connection after its handshake.
    pub(crate) fn connect(&self, who: As) -> io::Result<Tls> {
        let config = if who == As::Known { &self.known } else { &self.stranger };
        let name = ServerName::from(self.api.address.ip());
        let connection = ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
        let mut tls = StreamOwned::new(connection, self.tcp()?);
        while tls.conn.is_handshaking() {
            tls.conn.complete_io(&mut tls.sock)?;
        }
        Ok(tls)
    }

    /// A connection that has become one of SPDY, by a request to this path of the pod.
    pub(crate) fn spdy(&self, verb: &str, rest: &str, protocol: &str) -> Result<Tls> {
        let head = format!(
            "POST /{verb}/{}{rest} HTTP/1.1\r\nHost: n\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
             X-Stream-Protocol-Version: {protocol}\r\n\r\n",
            self.api.pod
        );
        self.upgraded(&head)
    }

    /// A connection that has become a WebSocket.
    pub(crate) fn websocket(&self, verb: &str, rest: &str, protocol: &str) -> Result<Tls> {
        let head = format!(
            "GET /{verb}/{}{rest} HTTP/1.1\r\nHost: n\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\
             Sec-WebSocket-Protocol: {protocol}\r\n\r\n",
            self.api.pod
        );
        self.upgraded(&head)
    }

    fn upgraded(&self, head: &str) -> Result<Tls> {
        let mut tls = self.connect(As::Known).context("cannot connect")?;
        tls.write_all(head.as_bytes())?;
        let answer = head_of(&mut tls)?;
        ensure!(answer.starts_with("HTTP/1.1 101 "), "no upgrade: {answer}");
        Ok(tls)
    }
}

/// Reads the head of an answer, and nothing behind it.
pub(crate) fn head_of(tls: &mut Tls) -> io::Result<String> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") && head.len() < HEAD {
        if tls.read(&mut byte)? == 0 {
            return Err(io::Error::other(format!(
                "the connection ended within {:?}",
                String::from_utf8_lossy(&head)
            )));
        }
        head.extend_from_slice(&byte);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

/// The frames that open these streams, by type; numbers are odd and begin with 1.
pub(crate) fn opened(streams: &[&[(&str, &str)]]) -> Vec<u8> {
    let (mut writer, mut frames) = (encode::HeaderWriter::default(), Vec::new());
    for (number, headers) in (1_u32..).step_by(2).zip(streams) {
        writer.syn_stream(&mut frames, number, false, &Headers::of(headers));
    }
    frames
}

/// Reads frames to the end of the connection, and returns the bytes of stream 1.
pub(crate) fn error_stream(tls: &mut Tls) -> Result<Vec<u8>> {
    let mut decoder = Decoder::new(Limits::DEFAULT);
    let (mut received, mut told, mut chunk) = (BytesMut::new(), Vec::new(), [0; 4096]);
    loop {
        while let Some(frame) = decoder.next(&mut received).context("cannot read a frame")? {
            match frame {
                Frame::Data { stream: 1, payload, .. } => told.extend_from_slice(&payload),
                Frame::GoAway { .. } => return Ok(told),
                _ => {}
            }
        }
        match tls.read(&mut chunk) {
            Ok(0) => return Ok(told),
            Ok(count) => received.extend_from_slice(chunk.get(..count).unwrap_or_default()),
            // The server closes without TLS's own goodbye.
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(told),
            Err(e) => return Err(e).context("cannot read"),
        }
    }
}
