//! Received bytes to frames.
//!
//! A control frame is read when it is there whole. A data frame is handed on in pieces, so that its length, up
//! to 16 MiB, costs no memory.

use crate::{
    Error, Frame, Headers, Limits, StreamId,
    frame::{FLAG_FIN, FLAG_UNIDIRECTIONAL, HEAD, VERSION, kind},
    inflate::Inflater,
};
use bytes::{Buf, Bytes, BytesMut};

/// The reader of one direction of a connection.
#[derive(Debug)]
pub struct Decoder {
    limits: Limits,
    inflater: Inflater,
    /// The data frame whose payload is being read.
    data: Option<OpenData>,
}

#[derive(Debug, Clone, Copy)]
struct OpenData {
    stream: StreamId,
    left: usize,
    fin: bool,
}

impl Decoder {
    /// A reader at the connection's beginning.
    pub fn new(limits: Limits) -> Decoder {
        Decoder { limits, inflater: Inflater::new(), data: None }
    }

    /// Takes the next frame, or the next piece of a data frame, off the received bytes. `None` where more have
    /// to be received first.
    ///
    /// # Errors
    /// The bytes are no frames, or a frame breaks a limit. The reader is unusable afterwards.
    pub fn next(&mut self, received: &mut BytesMut) -> Result<Option<Frame>, Error> {
        if let Some(data) = self.data.take() {
            return Ok(self.piece(data, received));
        }
        let Some(head) = received.first_chunk::<HEAD>() else { return Ok(None) };
        let [a, b, c, d, flags, l1, l2, l3] = *head;
        let length = usize::try_from(u32::from_be_bytes([0, l1, l2, l3])).unwrap_or(usize::MAX);
        if a & 0x80 == 0 {
            received.advance(HEAD);
            let stream = u32::from_be_bytes([a, b, c, d]);
            if stream == 0 {
                return Err(Error::Malformed("data for the stream 0"));
            }
            let data = OpenData { stream, left: length, fin: flags & FLAG_FIN != 0 };
            if length == 0 {
                return Ok(Some(Frame::Data { stream, payload: Bytes::new(), fin: data.fin }));
            }
            return Ok(self.piece(data, received));
        }
        let version = u16::from_be_bytes([a & 0x7f, b]);
        if version != VERSION {
            return Err(Error::Version(version));
        }
        let kind = u16::from_be_bytes([c, d]);
        if length > self.limits.control {
            return Err(Error::TooLong { length, limit: self.limits.control });
        }
        if received.len() < HEAD.saturating_add(length) {
            return Ok(None);
        }
        received.advance(HEAD);
        let payload = received.split_to(length);
        self.control(kind, flags, &payload).map(Some)
    }

    fn piece(&mut self, mut data: OpenData, received: &mut BytesMut) -> Option<Frame> {
        let OpenData { stream, left, fin } = data;
        if received.is_empty() {
            self.data = Some(data);
            return None;
        }
        let payload = received.split_to(left.min(received.len())).freeze();
        data.left = left.saturating_sub(payload.len());
        let last = data.left == 0;
        if !last {
            self.data = Some(data);
        }
        Some(Frame::Data { stream, payload, fin: fin && last })
    }

    fn control(&mut self, kind: u16, flags: u8, payload: &[u8]) -> Result<Frame, Error> {
        let fin = flags & FLAG_FIN != 0;
        match kind {
            kind::SYN_STREAM => {
                let (stream, rest) = stream_id(payload)?;
                // The stream that it is associated to, its priority and its credential slot have no meaning.
                let block = rest.get(6..).ok_or(Error::Malformed("a SYN_STREAM is cut"))?;
                let unidirectional = flags & FLAG_UNIDIRECTIONAL != 0;
                Ok(Frame::SynStream { stream, fin, unidirectional, headers: self.headers(block)? })
            }
            kind::SYN_REPLY => {
                let (stream, block) = stream_id(payload)?;
                Ok(Frame::SynReply { stream, fin, headers: self.headers(block)? })
            }
            kind::HEADERS => {
                let (stream, block) = stream_id(payload)?;
                Ok(Frame::Headers { stream, fin, headers: self.headers(block)? })
            }
            kind::RST_STREAM => {
                let (stream, status) = two(payload)?;
                if stream == 0 || status == 0 {
                    return Err(Error::Malformed("a RST_STREAM without a stream or a reason"));
                }
                Ok(Frame::RstStream { stream, status })
            }
            kind::GOAWAY => {
                let (last, status) = two(payload)?;
                Ok(Frame::GoAway { last, status })
            }
            kind::PING => match payload.try_into().map(u32::from_be_bytes) {
                Ok(id) if id != 0 => Ok(Frame::Ping { id }),
                _ => Err(Error::Malformed("a PING without a number")),
            },
            kind::SETTINGS => Ok(Frame::Settings),
            kind::WINDOW_UPDATE => Ok(Frame::WindowUpdate),
            other => Err(Error::Type(other)),
        }
    }

    fn headers(&mut self, block: &[u8]) -> Result<Headers, Error> {
        Headers::parse(self.inflater.block(block, self.limits.headers)?)
    }
}

fn stream_id(payload: &[u8]) -> Result<(StreamId, &[u8]), Error> {
    let (id, rest) = payload.split_first_chunk::<4>().ok_or(Error::Malformed("it has no stream"))?;
    match u32::from_be_bytes(*id) & 0x7fff_ffff {
        0 => Err(Error::Malformed("the stream is 0")),
        stream => Ok((stream, rest)),
    }
}

fn two(payload: &[u8]) -> Result<(u32, u32), Error> {
    let [a, b, c, d, e, f, g, h] =
        *payload.as_array::<8>().ok_or(Error::Malformed("it has not two numbers"))?;
    Ok((u32::from_be_bytes([a & 0x7f, b, c, d]), u32::from_be_bytes([e, f, g, h])))
}
