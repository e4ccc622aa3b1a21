//! Bytes of the frames that a server sends.
//!
//! Header blocks are sent uncompressed, as stored blocks of the one zlib stream of the connection. Each is
//! followed by an empty stored block, at which a reader hands on what it has.

use crate::{
    Headers, ResetStatus, StreamId,
    frame::{FLAG_FIN, HEAD, VERSION, kind},
};

/// The longest payload of a data frame, in bytes.
pub const DATA_MAX: usize = (1 << 24) - 1;

/// Length of a data frame's head, in bytes.
pub const DATA_HEAD: usize = HEAD;

/// The zlib header of a stream without a dictionary.
const ZLIB: [u8; 2] = [0x78, 0x01];

/// The longest stored block, in bytes.
const STORED_MAX: usize = 0xffff;

fn control(to: &mut Vec<u8>, kind: u16, flags: u8, length: usize) {
    let length = u32::try_from(length).unwrap_or(u32::MAX) & 0x00ff_ffff;
    to.extend_from_slice(&(0x8000 | VERSION).to_be_bytes());
    to.extend_from_slice(&kind.to_be_bytes());
    to.extend_from_slice(&((u32::from(flags) << 24) | length).to_be_bytes());
}

fn pair(to: &mut Vec<u8>, kind: u16, first: u32, second: u32) {
    control(to, kind, 0, 8);
    to.extend_from_slice(&first.to_be_bytes());
    to.extend_from_slice(&second.to_be_bytes());
}

/// Appends a PING.
pub fn ping(to: &mut Vec<u8>, id: u32) {
    control(to, kind::PING, 0, 4);
    to.extend_from_slice(&id.to_be_bytes());
}

/// Appends a RST_STREAM.
pub fn reset(to: &mut Vec<u8>, stream: StreamId, status: ResetStatus) {
    pair(to, kind::RST_STREAM, stream, status as u32);
}

/// Appends a GOAWAY without an error, after which the sender accepts no stream.
pub fn go_away(to: &mut Vec<u8>, last: StreamId) {
    pair(to, kind::GOAWAY, last, 0);
}

/// The head of a data frame with a payload of `length` bytes, at most [`DATA_MAX`].
pub fn data_head(stream: StreamId, length: usize, fin: bool) -> [u8; DATA_HEAD] {
    debug_assert!(length <= DATA_MAX, "a payload of {length} bytes");
    let length = u32::try_from(length.min(DATA_MAX)).unwrap_or_default();
    let flags = if fin { u32::from(FLAG_FIN) << 24 } else { 0 };
    let (a, b) = ((stream & 0x7fff_ffff).to_be_bytes(), (flags | length).to_be_bytes());
    [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]]
}

/// The sending side of a connection's header compression.
#[derive(Debug, Default)]
pub struct HeaderWriter {
    begun: bool,
}

impl HeaderWriter {
    /// Appends a SYN_REPLY. Frames of one writer have to be sent in the order in which they were made.
    pub fn syn_reply(&mut self, to: &mut Vec<u8>, stream: StreamId, headers: &Headers) {
        let block = self.block(headers);
        control(to, kind::SYN_REPLY, 0, block.len().saturating_add(4));
        to.extend_from_slice(&stream.to_be_bytes());
        to.extend_from_slice(&block);
    }

    /// Appends a SYN_STREAM, which only clients send.
    pub fn syn_stream(&mut self, to: &mut Vec<u8>, stream: StreamId, fin: bool, headers: &Headers) {
        let block = self.block(headers);
        let flags = if fin { FLAG_FIN } else { 0 };
        control(to, kind::SYN_STREAM, flags, block.len().saturating_add(10));
        to.extend_from_slice(&stream.to_be_bytes());
        to.extend_from_slice(&[0; 6]);
        to.extend_from_slice(&block);
    }

    fn block(&mut self, headers: &Headers) -> Vec<u8> {
        let mut plain = Vec::new();
        headers.write(&mut plain);
        let mut block = Vec::with_capacity(plain.len().saturating_add(16));
        if !std::mem::replace(&mut self.begun, true) {
            block.extend_from_slice(&ZLIB);
        }
        for part in plain.chunks(STORED_MAX).chain([[].as_slice()]) {
            let length = u16::try_from(part.len()).unwrap_or_default();
            block.push(0);
            block.extend_from_slice(&length.to_le_bytes());
            block.extend_from_slice(&(!length).to_le_bytes());
            block.extend_from_slice(part);
        }
        block
    }
}
