//! Connections of probes: connecting, closing, and errors that are the node's own.
//!
//! A connection leaves no TIME_WAIT on either side: it is reset when dropped. After success a FIN
//! is sent first, so that the other end reads an orderly end of stream before the reset.

use crate::action::{Endpoint, Host};
use berth_core::{error::Chain, probe::ProbeResult};
use rustix::io::Errno;
use std::{
    error::Error as StdError,
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpStream, lookup_host},
    time::Instant,
};

/// A timeout that fires this late means that the agent itself was delayed, so that nothing is known
/// about the container.
const TIMER_LATE: Duration = Duration::from_millis(250);

/// Error of a network probe.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProbeError {
    #[error("{0}")]
    Answer(String),
    #[error("{0}")]
    Request(String),
    #[error("cannot connect to {endpoint}")]
    Connect {
        endpoint: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot complete the TLS handshake with {endpoint}")]
    Tls {
        endpoint: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot complete the HTTP exchange with {endpoint}")]
    Http {
        endpoint: String,
        #[source]
        source: hyper::Error,
    },
    #[error("cannot complete the gRPC exchange with {endpoint}")]
    Grpc {
        endpoint: String,
        #[source]
        source: h2::Error,
    },
}

impl ProbeError {
    /// The error in the words of the kubelet's prober, which tools and people look for.
    pub(crate) fn message(&self) -> String {
        match self {
            ProbeError::Connect { endpoint, source } => {
                format!("dial tcp {endpoint}: connect: {}", kernels_words(source))
            }
            ProbeError::Tls { source, .. } if speaks_plain_http(source) => {
                "http: server gave HTTP response to HTTPS client".to_owned()
            }
            other => Chain(other).to_string(),
        }
    }

    /// The error as a probe result, with `asked` before its text: a failure of the container, or
    /// unknown if the node lacked resources or the request could not be built.
    pub(crate) fn into_result(self, asked: &str) -> ProbeResult {
        let text = format!("{asked}{}", self.message());
        if matches!(self, ProbeError::Request(_)) || lacks_resources(&self) {
            ProbeResult::Unknown(text)
        } else {
            ProbeResult::Failure(text)
        }
    }
}

/// What the kernel answered, without its number, as it stands within a sentence.
pub(crate) fn kernels_words(error: &dyn std::fmt::Display) -> String {
    let text = error.to_string();
    let words = text.split_once(" (os error").map_or(text.as_str(), |(words, _)| words);
    words.to_lowercase()
}

/// A TLS client that reads plain text finds no record header in it.
pub(crate) fn speaks_plain_http(error: &io::Error) -> bool {
    error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>()).is_some_and(|e| {
        matches!(e, rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType))
    })
}

fn lacks_resources(error: &(dyn StdError + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(e) = next {
        if let Some(code) = e.downcast_ref::<io::Error>().and_then(Errno::from_io_error) {
            return is_own_shortage(code);
        }
        next = e.source();
    }
    false
}

/// A lack of descriptors, buffers, ports or addresses on the node says nothing about the other end.
fn is_own_shortage(code: Errno) -> bool {
    matches!(
        code,
        Errno::MFILE
            | Errno::NFILE
            | Errno::NOBUFS
            | Errno::NOMEM
            | Errno::AGAIN
            | Errno::ADDRNOTAVAIL
            | Errno::ADDRINUSE
            | Errno::AFNOSUPPORT
    )
}

/// Runs a probe with a deadline. Exceeding it is a failure with the text `late`, unless the timer
/// itself fired late.
pub(crate) async fn within(
    timeout: Duration,
    late: String,
    question: impl Future<Output = ProbeResult>,
) -> ProbeResult {
    let deadline = Instant::now() + timeout.min(Duration::from_secs(u64::from(u32::MAX)));
    match tokio::time::timeout_at(deadline, question).await {
        Ok(result) => result,
        Err(_) if Instant::now().saturating_duration_since(deadline) > TIMER_LATE => {
            ProbeResult::Unknown(format!("{late}; the agent was delayed while it waited for the answer"))
        }
        Err(_) => ProbeResult::Failure(late),
    }
}

/// Connects to the endpoint. The addresses of a name are tried in order.
pub(crate) async fn connect(endpoint: &Endpoint) -> Result<TcpStream, ProbeError> {
    let failed = |source| ProbeError::Connect { endpoint: endpoint.to_string(), source };
    let addresses: Vec<SocketAddr> = match &endpoint.host {
        Host::Address(ip) => vec![SocketAddr::new(*ip, endpoint.port)],
        Host::Name(name) => lookup_host((name.as_str(), endpoint.port)).await.map_err(failed)?.collect(),
    };
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        if !endpoint.node_local && is_node_local(address.ip()) {
            return Err(ProbeError::Answer(format!(
                "{address} is the node's own address, not the pod's; it is not probed"
            )));
        }
        match TcpStream::connect(address).await.and_then(|s| s.set_zero_linger().map(|()| s)) {
            Ok(stream) => {
                // A request is one write. Without nodelay its last segment would wait for the first
                // acknowledgement.
                stream.set_nodelay(true).map_err(failed)?;
                return Ok(stream);
            }
            Err(e) => last = e,
        }
    }
    Err(failed(last))
}

/// Closes a connection after success.
pub(crate) async fn end(stream: &mut (impl AsyncWriteExt + Unpin)) {
    // An error of the other end no longer matters.
    drop(stream.shutdown().await);
}

fn is_node_local(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_link_local() || ip.is_unspecified(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unicast_link_local() || ip.is_unspecified(),
    }
}

/// Runs a TCP probe: connects and closes.
pub(crate) async fn tcp(endpoint: &Endpoint) -> ProbeResult {
    match connect(endpoint).await {
        Ok(mut stream) => {
            end(&mut stream).await;
            ProbeResult::Success
        }
        Err(e) => e.into_result(""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_nodes_own_shortages_are_unknown() {
        let result =
            |code: Errno| ProbeError::Connect { endpoint: "e".into(), source: code.into() }.into_result("");
        for code in [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::ADDRNOTAVAIL] {
            assert!(matches!(result(code), ProbeResult::Unknown(_)), "{code:?}");
        }
        for code in
            [Errno::CONNREFUSED, Errno::TIMEDOUT, Errno::HOSTUNREACH, Errno::NETUNREACH, Errno::CONNRESET]
        {
            assert!(matches!(result(code), ProbeResult::Failure(_)), "{code:?}");
        }
    }

    /// The texts of the kubelet's events (`tests/golden/events`).
    #[test]
    fn a_refused_connection_is_told_in_the_kubelets_words() {
        let refused = |asked: &str| {
            let source = io::Error::from(Errno::CONNREFUSED);
            ProbeError::Connect { endpoint: "10.0.0.9:81".into(), source }.into_result(asked)
        };
        let text = "dial tcp 10.0.0.9:81: connect: connection refused";
        assert_eq!(refused(""), ProbeResult::Failure(text.to_owned()));
        let get = "Get \"http://10.0.0.9:81/\": ";
        assert_eq!(refused(get), ProbeResult::Failure(format!("{get}{text}")));
    }

    #[test]
    fn node_local_addresses_in_all_spellings() {
        for ip in [
            "127.0.0.1",
            "127.9.9.9",
            "169.254.169.254",
            "0.0.0.0",
            "::1",
            "::",
            "fe80::1",
            "::ffff:127.0.0.1",
        ] {
            assert!(is_node_local(ip.parse().unwrap()), "{ip}");
        }
        for ip in ["10.0.0.1", "192.168.1.1", "fd00::1", "2001:db8::1"] {
            assert!(!is_node_local(ip.parse().unwrap()), "{ip}");
        }
    }
}
