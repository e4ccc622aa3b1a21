//! Frames (RFC 6455, section 5): a client's are read in pieces, the server's get a head.

use bytes::{Buf, Bytes, BytesMut};

/// Length of the longest head that a server sends, in bytes.
pub(in crate::streams) const HEAD_MAX: usize = 10;

/// The longest payload of a control frame, in bytes.
const CONTROL_MAX: u64 = 125;

/// Kind of a message that a server sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(in crate::streams) enum Opcode {
    /// Text, which is UTF-8.
    Text = 1,
    /// A message of bytes (RFC 6455 11.8).
    Binary = 2,
    /// The end of the connection.
    Close = 8,
    /// A sign of life.
    Ping = 9,
    /// The answer to a ping.
    Pong = 10,
}

/// A part of what a client sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::streams) enum Part {
    /// Bytes of a message.
    Data {
        /// Whether they are its first.
        first: bool,
        /// The bytes.
        payload: Bytes,
        /// Whether they are its last.
        last: bool,
    },
    /// A ping, which is to be answered.
    Ping(Bytes),
    /// The end of the connection.
    Close,
}

/// Why a client's bytes are no frames. The connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(in crate::streams) enum FrameError {
    /// A frame is not masked.
    #[error("cannot read a frame: a client's frames are masked")]
    NotMasked,
    /// A reserved bit or operation is used.
    #[error("cannot read a frame: it is of an extension")]
    Reserved,
    /// A control frame is too long, or in parts.
    #[error("cannot read a control frame: it is in parts or longer than 125 bytes")]
    Control,
    /// A continued message has no beginning, or one begins within another.
    #[error("cannot read a message: its frames are out of order")]
    Order,
}

/// The frame that is being read.
#[derive(Debug, Clone, Copy)]
struct Open {
    left: u64,
    mask: [u8; 4],
    /// The last frame of its message.
    fin: bool,
    first: bool,
}

/// The reader of a client's frames.
#[derive(Debug, Default)]
pub(in crate::streams) struct Decoder {
    open: Option<Open>,
    /// A message has begun and not ended.
    in_message: bool,
}

struct Head {
    opcode: u8,
    fin: bool,
    length: u64,
    mask: [u8; 4],
    size: usize,
}

fn parse_head(bytes: &[u8]) -> Result<Option<Head>, FrameError> {
    let Some(([a, b], rest)) = bytes.split_first_chunk::<2>() else { return Ok(None) };
    if a & 0x70 != 0 {
        return Err(FrameError::Reserved);
    }
    if b & 0x80 == 0 {
        return Err(FrameError::NotMasked);
    }
    let (length, rest, size) = match b & 0x7f {
        126 => match rest.split_first_chunk::<2>() {
            Some((length, rest)) => (u64::from(u16::from_be_bytes(*length)), rest, 8),
            None => return Ok(None),
        },
        127 => match rest.split_first_chunk::<8>() {
            Some((length, rest)) => (u64::from_be_bytes(*length), rest, 14),
            None => return Ok(None),
        },
        short => (u64::from(short), rest, 6),
    };
    let Some(mask) = rest.first_chunk::<4>() else { return Ok(None) };
    Ok(Some(Head { opcode: a & 0x0f, fin: a & 0x80 != 0, length, mask: *mask, size }))
}

impl Decoder {
    /// Takes the next part off the received bytes; `None` where more have to be received first.
    ///
    /// # Errors
    /// The bytes are no frames of a client. The reader is unusable afterwards.
    pub(in crate::streams) fn next(&mut self, received: &mut BytesMut) -> Result<Option<Part>, FrameError> {
        loop {
            if let Some(open) = self.open.take() {
                return Ok(self.piece(open, received));
            }
            let Some(head) = parse_head(received)? else { return Ok(None) };
            if head.opcode >= 8 {
                match self.control(&head, received)? {
                    Control::Wait => return Ok(None),
                    Control::Skip => continue,
                    Control::Part(part) => return Ok(Some(part)),
                }
            }
            let first = match head.opcode {
                0 if self.in_message => false,
                1 | 2 if !self.in_message => true,
                0..=2 => return Err(FrameError::Order),
                _ => return Err(FrameError::Reserved),
            };
            received.advance(head.size);
            self.in_message = !head.fin;
            let open = Open { left: head.length, mask: head.mask, fin: head.fin, first };
            if open.left == 0 {
                return Ok(Some(Part::Data { first, payload: Bytes::new(), last: head.fin }));
            }
            self.open = Some(open);
        }
    }

    fn piece(&mut self, mut open: Open, received: &mut BytesMut) -> Option<Part> {
        if received.is_empty() {
            self.open = Some(open);
            return None;
        }
        let length = usize::try_from(open.left).unwrap_or(usize::MAX).min(received.len());
        let mut payload = received.split_to(length);
        unmask(&mut payload, open.mask);
        open.mask.rotate_left(length % 4);
        open.left = open.left.saturating_sub(length as u64);
        let first = std::mem::replace(&mut open.first, false);
        let last = open.fin && open.left == 0;
        if open.left > 0 {
            self.open = Some(open);
        }
        Some(Part::Data { first, payload: payload.freeze(), last })
    }

    fn control(&mut self, head: &Head, received: &mut BytesMut) -> Result<Control, FrameError> {
        if !head.fin || head.length > CONTROL_MAX {
            return Err(FrameError::Control);
        }
        let length = usize::try_from(head.length).unwrap_or_default();
        if received.len() < head.size.saturating_add(length) {
            return Ok(Control::Wait);
        }
        received.advance(head.size);
        let mut payload = received.split_to(length);
        unmask(&mut payload, head.mask);
        match head.opcode {
            8 => Ok(Control::Part(Part::Close)),
            9 => Ok(Control::Part(Part::Ping(payload.freeze()))),
            10 => Ok(Control::Skip),
            _ => Err(FrameError::Reserved),
        }
    }
}

enum Control {
    Wait,
    Skip,
    Part(Part),
}

fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    let (words, rest) = payload.as_chunks_mut::<4>();
    let key = u32::from_ne_bytes(mask);
    for word in words {
        *word = (u32::from_ne_bytes(*word) ^ key).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(mask) {
        *byte ^= key;
    }
}

/// The head of a frame that is a whole message, and its length in bytes.
pub(in crate::streams) fn head(opcode: Opcode, length: usize) -> ([u8; HEAD_MAX], usize) {
    let mut head = [0_u8; HEAD_MAX];
    let long = u64::try_from(length).unwrap_or(u64::MAX).to_be_bytes();
    let [.., high, low] = long;
    let (mark, rest): (u8, &[u8]) = match length {
        0..=125 => (low, &[]),
        126..=0xffff => (126, &[high, low]),
        _ => (127, &long),
    };
    for (to, from) in head.iter_mut().zip([0x80 | opcode as u8, mark].iter().chain(rest)) {
        *to = *from;
    }
    (head, rest.len().saturating_add(2))
}

/// A short frame whole.
fn whole(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    let (head, length) = head(opcode, payload.len());
    let mut frame = head.get(..length).unwrap_or_default().to_vec();
    frame.extend_from_slice(payload);
    frame
}

/// The answer to a ping.
pub(in crate::streams) fn pong(payload: &[u8]) -> Vec<u8> {
    whole(Opcode::Pong, payload)
}

/// The end of the connection with the code for an orderly one.
pub(in crate::streams) fn close() -> Vec<u8> {
    whole(Opcode::Close, &1000_u16.to_be_bytes())
}

/// A sign of life that asks for an answer.
pub(in crate::streams) fn ping() -> Vec<u8> {
    whole(Opcode::Ping, &[])
}

#[cfg(test)]
mod tests;
