//! One client's connection: bytes in, requests out; answers in, bytes out. Never blocks.

use crate::proto::{Envelope, REQUEST_MAX, Reply, Request, decode, encode, length};
use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
};

/// Answers that a client does not read end its connection when they are this much.
const UNREAD_MAX: usize = 32 * 1024 * 1024;

/// A connection.
#[derive(Debug)]
pub(super) struct Conn {
    /// The socket, not blocking.
    pub(super) stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
}

/// What came in.
#[derive(Debug)]
pub(super) enum Incoming {
    /// A request with its number.
    Request(u64, Request),
    /// Something that is to be answered as not understood.
    Unknown(u64, String),
}

impl Conn {
    /// Takes an accepted socket.
    pub(super) fn new(stream: UnixStream) -> io::Result<Conn> {
        stream.set_nonblocking(true)?;
        Ok(Conn { stream, input: Vec::new(), output: Vec::new() })
    }

    /// Reads what is there. An error, the end of the connection among them, ends it.
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
                // The rest stays in the socket until these are answered.
                return Ok(());
            }
        }
    }

    /// The next whole request.
    pub(super) fn next(&mut self) -> io::Result<Option<Incoming>> {
        let Some(head) = self.input.first_chunk::<4>() else { return Ok(None) };
        let end = length(*head, REQUEST_MAX)?.saturating_add(4);
        let Some(json) = self.input.get(4..end) else { return Ok(None) };
        let incoming = match decode::<Request>(json) {
            Ok(envelope) => Incoming::Request(envelope.seq, envelope.body),
            Err(error) => {
                let seq = serde_json::from_slice::<Envelope<serde_json::Value>>(json).map_or(0, |e| e.seq);
                Incoming::Unknown(seq, error.to_string())
            }
        };
        self.input.drain(..end);
        Ok(Some(incoming))
    }

    /// Sends an answer, or keeps what the socket does not take.
    pub(super) fn send(&mut self, seq: u64, reply: Reply) -> io::Result<()> {
        self.output.extend_from_slice(&encode(seq, reply)?);
        self.flush()
    }

    /// Sends what was kept.
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
            return Err(io::Error::other("answers are not read"));
        }
        result
    }

    /// Whether the socket is to be watched for room.
    pub(super) fn waits_for_room(&self) -> bool {
        !self.output.is_empty()
    }
}
