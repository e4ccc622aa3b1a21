//! `kubectl port-forward` with a thousand connections.

use super::{Stage, WEB};
use crate::cluster::Node;
use anyhow::{Context, Result, ensure};
use berth_harness::wait::{self, PATIENCE};
use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    time::Duration,
};

/// All connections.
const CONNECTIONS: usize = 1000;
/// Those that are open at the same time.
const AT_ONCE: usize = 100;
/// The same with the kubelet, with which a hundred do not get their answers in the server's time.
const AT_ONCE_KUBELET: usize = 10;
/// Deadline of one answer.
const ANSWER: Duration = Duration::from_secs(30);

/// A thousand connections through one session, a hundred at a time; then the session still serves.
pub(super) fn thousand(stage: &Stage<'_>, kubectl: &str) -> Result<String> {
    let session = stage.kubectl(kubectl).start(&["port-forward", WEB, ":8080", "--address=127.0.0.1"])?;
    let port = wait::some("kubectl forwards", PATIENCE, || {
        let text = String::from_utf8_lossy(&session.output()).into_owned();
        let rest = text.split_once("Forwarding from 127.0.0.1:")?.1;
        rest.split(' ').next()?.parse::<u16>().ok()
    })?;
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let at_once = if stage.node == Node::Kubelet { AT_ONCE_KUBELET } else { AT_ONCE };
    for round in 0..CONNECTIONS / at_once {
        let open: Vec<TcpStream> = (0..at_once)
            .map(|_| TcpStream::connect_timeout(&address, ANSWER).context("cannot connect to kubectl"))
            .collect::<Result<_>>()?;
        for (n, stream) in open.into_iter().enumerate() {
            ask(stream).with_context(|| {
                format!(
                    "connection {} of {CONNECTIONS}: {}",
                    round * at_once + n,
                    String::from_utf8_lossy(&session.output())
                )
            })?;
        }
    }
    // A port without a listener ends its connection alone.
    session.stop()?;
    let closed = stage.kubectl(kubectl).start(&["port-forward", WEB, ":9", "--address=127.0.0.1"])?;
    closed.says("Forwarding from", PATIENCE)?;
    let text = String::from_utf8_lossy(&closed.output()).into_owned();
    let port =
        text.split_once("127.0.0.1:").and_then(|(_, rest)| rest.split(' ').next()?.parse::<u16>().ok());
    let mut stream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port.context("no port")?)))?;
    stream.set_read_timeout(Some(ANSWER))?;
    let mut nothing = Vec::new();
    // The connection may be reset.
    stream.read_to_end(&mut nothing).ok();
    ensure!(nothing.is_empty(), "a port without a listener answers");
    closed.says("an error occurred forwarding", PATIENCE)?;
    closed.stop()?;
    Ok(format!("{CONNECTIONS} connections, {at_once} at a time; a port without a listener"))
}

fn ask(mut stream: TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(ANSWER)).context("cannot set a deadline")?;
    stream.write_all(b"GET /index.html HTTP/1.0\r\n\r\n").context("cannot send")?;
    let mut text = String::new();
    stream.read_to_string(&mut text).context("cannot read")?;
    // The other end may have closed.
    stream.shutdown(Shutdown::Both).ok();
    ensure!(text.ends_with("\r\n\r\nanswer\n"), "{text:?}");
    Ok(())
}
