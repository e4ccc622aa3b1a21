//! Connection of one client: bytes in, requests out; replies in, bytes out. Never blocks.

use berth_api::{
    frame,
    logd::{Envelope, REQUEST_MAX, Reply, Request, decode, encode},
};
use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
};

/// A connection is closed when its client has left this many bytes of replies unread.
const UNREAD_MAX: usize = 32 * 1024 * 1024;

/// Connection of one client.
#[derive(Debug)]
pub(super) struct Conn {
    /// The socket, nonblocking.
    pub(super) stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
}

/// An incoming message.
#[derive(Debug)]
pub(super) enum Incoming {
    /// A request with its sequence number.
    Request(u64, Request),
    /// A message that is not understood, with its sequence number and the reason.
    Unknown(u64, String),
}

impl Conn {
    /// Wraps an accepted socket.
    pub(super) fn new(stream: UnixStream) -> io::Result<Conn> {
        stream.set_nonblocking(true)?;
        Ok(Conn { stream, input: Vec::new(), output: Vec::new() })
    }

    /// Reads what the socket has. An error, including the end of the connection, ends the
    /// connection.
    pub(super) fn fill(&mut self) -> io::Result<()> {
        let mut buf = [0; 4096];
        loop {
            match self.stream.read(&mut buf) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
                Ok(n) => self.input.extend_from_slice(buf.get(..n).unwrap_or_default()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(e),
            }
            if self.input.len() > REQUEST_MAX.saturating_mul(2) {
                // The rest stays in the socket until these requests are answered.
                return Ok(());
            }
        }
    }

    /// The next complete request.
    pub(super) fn next(&mut self) -> io::Result<Option<Incoming>> {
        let Some(json) = frame::take(&mut self.input, REQUEST_MAX)? else { return Ok(None) };
        let incoming = match decode::<Request>(&json) {
            Ok(envelope) => Incoming::Request(envelope.seq, envelope.body),
            Err(error) => {
                let seq = serde_json::from_slice::<Envelope<serde_json::Value>>(&json).map_or(0, |e| e.seq);
                Incoming::Unknown(seq, error.to_string())
            }
        };
        Ok(Some(incoming))
    }

    /// Sends a reply. Keeps the bytes that the socket does not take.
    pub(super) fn send(&mut self, seq: u64, reply: Reply) -> io::Result<()> {
        self.output.extend_from_slice(&encode(seq, reply)?);
        self.flush()
    }

    /// Sends the bytes that were kept.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        let mut sent: usize = 0;
        let result = loop {
            match self.output.get(sent..) {
                None | Some([]) => break Ok(()),
                Some(rest) => match self.stream.write(rest) {
                    Ok(n) => sent = sent.saturating_add(n),
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => break Ok(()),
                    Err(e) => break Err(e),
                },
            }
        };
        self.output.drain(..sent.min(self.output.len()));
        if self.output.len() > UNREAD_MAX {
            return Err(io::Error::other("the client does not read its replies"));
        }
        result
    }

    /// Whether the socket must be watched until it can take more bytes.
    pub(super) fn waits_for_room(&self) -> bool {
        !self.output.is_empty()
    }
}
